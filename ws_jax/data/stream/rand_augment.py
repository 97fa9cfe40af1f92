"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719) on Pillow images.

The operations and their ranges are those of the paper's table for ImageNet, in
the 31 steps that torchvision counts: strength 0 leaves an image as it is, 30 is
the end of each range. What a shift or a rotation uncovers is black.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

STRONGEST = 30.0
# Ends of the ranges: a slope, a part of the side, degrees, a factor less one.
_SHEAR, _SHIFT, _DEGREES, _CONTRAST = 0.3, 150 / 331, 30.0, 0.9


def apply(
  image: Any, rng: np.random.Generator, count: int, strength: float
) -> Any:
  """Returns an image after `count` random operations.

  Args:
    image: the Pillow image, RGB.
    rng: the generator that chooses operations and directions.
    count: the number of operations, drawn with replacement.
    strength: their strength, from 0 to 30.
  """
  names = tuple(OPERATIONS)
  for _ in range(count):
    operation = OPERATIONS[names[int(rng.integers(len(names)))]]
    sign = 1 if rng.random() < 0.5 else -1
    image = operation(image, strength / STRONGEST, sign)
  return image


def _affine(image, *matrix):
  import PIL.Image

  return image.transform(image.size, PIL.Image.Transform.AFFINE, matrix)


def _shear_x(image, part, sign):
  return _affine(image, 1, sign * part * _SHEAR, 0, 0, 1, 0)


def _shear_y(image, part, sign):
  return _affine(image, 1, 0, 0, sign * part * _SHEAR, 1, 0)


def _shift_x(image, part, sign):
  shift = int(sign * part * _SHIFT * image.width)
  return _affine(image, 1, 0, shift, 0, 1, 0)


def _shift_y(image, part, sign):
  shift = int(sign * part * _SHIFT * image.height)
  return _affine(image, 1, 0, 0, 0, 1, shift)


def _rotate(image, part, sign):
  return image.rotate(sign * part * _DEGREES)


def _enhance(kind: str) -> Callable[..., Any]:
  """Returns an operation that mixes an image with its plain version."""

  def operation(image, part, sign):
    import PIL.ImageEnhance

    make = getattr(PIL.ImageEnhance, kind)
    return make(image).enhance(1 + sign * part * _CONTRAST)

  return operation


def _posterize(image, part, sign):
  import PIL.ImageOps

  return PIL.ImageOps.posterize(image, 8 - round(4 * part))


def _solarize(image, part, sign):
  import PIL.ImageOps

  return PIL.ImageOps.solarize(image, round(255 * (1 - part)) + (part == 0))


def _auto_contrast(image, part, sign):
  import PIL.ImageOps

  return PIL.ImageOps.autocontrast(image)


def _equalize(image, part, sign):
  import PIL.ImageOps

  return PIL.ImageOps.equalize(image)


OPERATIONS: dict[str, Callable[..., Any]] = {
  "identity": lambda image, part, sign: image,
  "shear_x": _shear_x,
  "shear_y": _shear_y,
  "translate_x": _shift_x,
  "translate_y": _shift_y,
  "rotate": _rotate,
  "brightness": _enhance("Brightness"),
  "color": _enhance("Color"),
  "contrast": _enhance("Contrast"),
  "sharpness": _enhance("Sharpness"),
  "posterize": _posterize,
  "solarize": _solarize,
  "auto_contrast": _auto_contrast,
  "equalize": _equalize,
}
