"""The way from the bytes of an image file to the pixels that a model sees.

Each function decodes with Pillow and calls its `crop` and `resize` on whole
pixels, as torchvision's transforms for PIL images do, so that the pixels are
equal to theirs. Of a JPEG file the rows below the crop are not decoded, which
changes no pixel. libjpeg's decoding at a smaller scale ("draft") is not used:
it changed pixels by up to 21/255 in a test, and saved nothing at ImageNet's
sizes.
"""

import io
import math
from typing import Any, NamedTuple

import numpy as np

from ws_jax.data import pixels
from ws_jax.data.request import DataError
from ws_jax.data.stream import rand_augment
from ws_jax.data.stream.options import Options

Window = tuple[int, int, int, int]

_TRIES = 10
_SEQUENTIAL = (0xC0, 0xC1)  # How the frame begins that is coded row by row.
_LEAST_RATIO = 3 / 4  # Of width to height; the largest is its inverse.


def random_window(
  rng: np.random.Generator, width: int, height: int, least_area: float
) -> Window:
  """Returns a random part of an image: the crop of Inception.

  Its area is between `least_area` and all of the image, its width between 3/4
  and 4/3 of its height (Szegedy et al. 2015, "Going Deeper with Convolutions",
  section 6). Where ten draws do not fit into the image, it is the largest
  central part whose sides are within that ratio.

  Args:
    rng: the generator that decides.
    width: the pixels of a row.
    height: the pixels of a column.
    least_area: the smallest part of the area.

  Returns:
    The left, top, right and bottom edge, as Pillow counts them.

  Example:
    >>> rng = np.random.default_rng(0)
    >>> random_window(rng, 500, 375, 0.08)
    (65, 166, 194, 337)
  """
  for _ in range(_TRIES):
    area = width * height * rng.uniform(least_area, 1.0)
    ratio = math.exp(
      rng.uniform(math.log(_LEAST_RATIO), -math.log(_LEAST_RATIO))
    )
    w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if 0 < w <= width and 0 < h <= height:
      left = int(rng.integers(0, width - w + 1))
      top = int(rng.integers(0, height - h + 1))
      return left, top, left + w, top + h
  w = min(width, round(height / _LEAST_RATIO))
  h = min(height, round(width / _LEAST_RATIO))
  left, top = (width - w) // 2, (height - h) // 2
  return left, top, left + w, top + h


def train_pixels(
  encoded: bytes, rng: np.random.Generator, options: Options
) -> np.ndarray:
  """Returns a random part of an image, resized and perhaps distorted.

  It is not mirrored: the task does that on the device.

  Args:
    encoded: the bytes of a JPEG or PNG file.
    rng: the generator that decides the part and the distortions.
    options: the sizes, and how much RandAugment.

  Returns:
    uint8 `[image_size, image_size, 3]`.

  Raises:
    DataError: the bytes cannot be decoded.
  """
  import PIL.Image

  frame = _frame(encoded)
  if frame is None:
    image = decode(encoded)
    window = random_window(rng, image.width, image.height, options.crop_area)
  else:
    window = random_window(rng, frame.width, frame.height, options.crop_area)
    image = decode(_rows_through(encoded, frame, window[3]))
  size = (options.image_size, options.image_size)
  image = image.crop(window).resize(size, PIL.Image.Resampling.BILINEAR)
  if options.rand_augment:
    image = rand_augment.apply(
      image, rng, options.rand_augment, options.rand_augment_strength
    )
  return np.asarray(image)


def eval_pixels(encoded: bytes, options: Options) -> np.ndarray:
  """Returns the middle of an image whose shorter side is `eval_resize` pixels.

  Args:
    encoded: the bytes of a JPEG or PNG file.
    options: the sizes.

  Returns:
    uint8 `[image_size, image_size, 3]`.

  Raises:
    DataError: the bytes cannot be decoded.
  """
  import PIL.Image

  image = decode(encoded)
  width, height = image.size
  short, size = options.eval_resize, options.image_size
  if width <= height:
    shape = short, int(short * height / width)
  else:
    shape = int(short * width / height), short
  image = image.resize(shape, PIL.Image.Resampling.BILINEAR)
  left = round((image.width - size) / 2)
  top = round((image.height - size) / 2)
  return np.asarray(image.crop((left, top, left + size, top + size)))


class _Frame(NamedTuple):
  """The head of a JPEG file that is coded row by row.

  Attributes:
    place: the position of the height, which has two bytes.
    width: the pixels of a row.
    height: the pixels of a column.
    block: the rows that are coded together.
  """

  place: int
  width: int
  height: int
  block: int


def _frame(encoded: bytes) -> _Frame | None:
  """Returns the frame of a JPEG file; None for any other, or a progressive one.

  A wrong one is left to Pillow, which says what is wrong.
  """
  place, end = 2, len(encoded) - 12
  if encoded[:2] != b"\xff\xd8":
    return None
  while place < end and encoded[place] == 0xFF:
    marker = encoded[place + 1]
    if marker in _SEQUENTIAL:
      height = int.from_bytes(encoded[place + 5 : place + 7])
      width = int.from_bytes(encoded[place + 7 : place + 9])
      factors = encoded[place + 11 : place + 11 + 3 * encoded[place + 9] : 3]
      block = 8 * max((factor & 15 for factor in factors), default=0)
      whole = width and height and block
      return _Frame(place + 5, width, height, block) if whole else None
    if 0xC0 <= marker <= 0xCF and marker != 0xC4 or marker == 0xDA:
      return None
    place += 2 + int.from_bytes(encoded[place + 2 : place + 4])
  return None


def _rows_through(encoded: bytes, frame: _Frame, bottom: int) -> bytes:
  """Returns a JPEG file that ends a little below a row.

  Its head tells a smaller height, and libjpeg passes over the bytes that are
  left. One block of rows more is kept: the colours of the last row are
  interpolated from it.
  """
  rows = (-(-bottom // frame.block) + 1) * frame.block
  if rows >= frame.height:
    return encoded
  cut = bytearray(encoded)
  cut[frame.place : frame.place + 2] = rows.to_bytes(2)
  return bytes(cut)


def decode(encoded: bytes) -> Any:
  """Returns the Pillow image in RGB; grey and CMYK become that.

  Raises:
    DataError: the bytes cannot be decoded.
  """
  import PIL.Image

  try:
    image: Any = PIL.Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG"))
    pixels.bounded(image)
    # All bytes at once: libjpeg would stop and start again each 64 kB.
    image.decodermaxblock = len(encoded)
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")
  except Exception as error:  # Pillow raises whatever its parsers raise.
    raise DataError(f"cannot be decoded: {error}") from error
