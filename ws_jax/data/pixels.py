"""How large an image may be."""

from typing import Any


def bounded(image: Any) -> None:
  """Refuses an image of more pixels than Pillow opens without a warning.

  A file of a hundred bytes may have a header that asks for gigabytes. The bound
  is `PIL.Image.MAX_IMAGE_PIXELS`, 89 million; None lifts it.

  Args:
    image: Pillow image, opened and not yet decoded.

  Raises:
    ValueError: the image has more.

  Example:
    >>> import PIL.Image
    >>> bounded(PIL.Image.new("L", (20, 10)))
  """
  import PIL.Image

  most = PIL.Image.MAX_IMAGE_PIXELS
  if most is not None and image.width * image.height > most:
    raise ValueError(
      f"{image.width}x{image.height} pixels are more than the {most:,} of"
      " PIL.Image.MAX_IMAGE_PIXELS"
    )
