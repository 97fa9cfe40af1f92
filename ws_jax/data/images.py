"""Decodes the image files of a folder into one array."""

import concurrent.futures
import contextlib
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ws_jax.base import cores, extras
from ws_jax.data import pixels
from ws_jax.data.request import DataError

_CHANNELS = {"L": 1, "RGB": 3}  # By the mode of an image as Pillow names it.
_PIECE = 256  # Images that a thread decodes before it reports.


def decode(
  folder: pathlib.Path, files: list[str], first: pathlib.Path
) -> np.ndarray:
  """Returns all images of a list of files, and tells on stderr how far it is.

  Args:
    folder: the folder that the files are named from.
    files: the paths of PNG or JPEG files in it.
    first: the image that all others must be like.

  Returns:
    A uint8 array `[N, H, W, C]` with one or three channels.

  Raises:
    DataError: a file is not whole, or differs from the first in size or in
      being grey; the message names it.
  """
  shape = read_shape(first)
  images = np.empty((len(files), *shape), np.uint8)

  def fill(start: int) -> int:
    part = files[start : start + _PIECE]
    for index, file in enumerate(part, start):
      images[index] = _pixels(folder / file, shape, first)
    return len(part)

  # Threads, because Pillow lets go of Python's lock while it decodes.
  workers = concurrent.futures.ThreadPoolExecutor(cores.count())
  try:
    with _progress(folder, len(files)) as tell:
      for count in workers.map(fill, range(0, len(files), _PIECE)):
        tell(count)
  finally:  # One broken image is enough: leave the rest undone.
    workers.shutdown(cancel_futures=True)
  return images


def read_shape(path: pathlib.Path) -> tuple[int, int, int]:
  """Returns `[H, W, C]` of an image by its header.

  Raises:
    DataError: it is not a PNG or JPEG file, or neither grey nor RGB.
  """
  extras.need("train", by=f"the image {path}")
  with _opened(path) as image:
    return _shape(image, path)


def _pixels(
  path: pathlib.Path, shape: tuple[int, ...], first: pathlib.Path
) -> np.ndarray:
  """Returns the pixels of an image whose shape must be that of the first."""
  with _opened(path) as image:
    found = _shape(image, path)
    if found != shape:  # Known before the pixels take any memory.
      raise DataError(_difference(path, found, first, shape))
    return np.asarray(image).reshape(shape)


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
  """Opens an image; what is wrong with it names the file."""
  import PIL.Image

  try:
    with PIL.Image.open(path, formats=("PNG", "JPEG")) as image:
      pixels.bounded(image)
      yield image
  except DataError:
    raise
  except Exception as error:  # Pillow raises whatever its parsers raise.
    raise DataError(f"{path} cannot be decoded: {error}") from error


def _shape(image: Any, path: pathlib.Path) -> tuple[int, int, int]:
  if image.mode not in _CHANNELS:
    raise DataError(
      f"{path} is an image of mode {image.mode}: convert it to RGB (colour, 8 "
      "bits) or L (grey, 8 bits)"
    )
  return image.height, image.width, _CHANNELS[image.mode]


def _difference(
  path: pathlib.Path,
  found: tuple[int, ...],
  first: pathlib.Path,
  shape: tuple[int, ...],
) -> str:
  """Returns the message about an image that is not like the first one."""
  if found[:2] == shape[:2]:
    words = {1: "grey", 3: "in colour"}
    return (
      f"grey and colour images are mixed: {path} is {words[found[2]]}, {first} "
      f"is {words[shape[2]]}"
    )
  return (
    f"images differ in size: {path} is {found[1]}x{found[0]} pixels, {first} "
    f"is {shape[1]}x{shape[0]}"
  )


@contextlib.contextmanager
def _progress(
  folder: pathlib.Path, total: int
) -> Iterator[Callable[[int], None]]:
  """Tells on stderr how many images are decoded.

  A terminal shows one line that counts; a file gets a line at the end.
  """
  terminal, began, shown, done = sys.stderr.isatty(), time.monotonic(), -1.0, 0

  def tell(count: int) -> None:
    nonlocal done, shown
    done += count
    if terminal and time.monotonic() - shown > 0.1:
      shown = time.monotonic()
      print(
        f"\rdecoding {done:,} of {total:,} images of {folder}",
        end="",
        file=sys.stderr,
        flush=True,
      )

  try:
    yield tell
  except BaseException:
    if terminal:  # The error gets a line of its own.
      print(file=sys.stderr)
    raise
  seconds = time.monotonic() - began
  print(
    f"{chr(13) if terminal else ''}decoded {total:,} images of {folder}, once, "
    f"in {seconds:.1f} s",
    file=sys.stderr,
    flush=True,
  )
