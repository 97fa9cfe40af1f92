"""The verb `predict`: the classes that a trained run sees in image files."""

import argparse
import pathlib

import numpy as np

from ws_jax import train


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the arguments of the verb."""
  parser.add_argument(
    "workdir", help="a run's workdir, or one checkpoint of it"
  )
  parser.add_argument("files", nargs="+", metavar="IMAGE", help="image files")
  parser.add_argument(
    "--top", type=int, default=3, help="how many classes to show (default: 3)"
  )


def run(given: argparse.Namespace) -> None:
  """Prints the most likely classes of each image, with their probabilities.

  Raises:
    ValueError: no run, no checkpoint, or a file that is no image; the message
      names it.
  """
  trained = train.load_run(given.workdir)
  images = [
    read_image(pathlib.Path(path), trained.input_shape) for path in given.files
  ]
  logits = trained.predict(np.stack(images)).astype(np.float64)
  odds = np.exp(logits - logits.max(-1, keepdims=True))
  shares = odds / odds.sum(-1, keepdims=True)
  for path, share in zip(given.files, shares, strict=True):
    best = np.argsort(-share, kind="stable")[: max(1, given.top)]
    words = (f"{name_of(trained.classes, i)} {share[i]:.1%}" for i in best)
    print(f"{path}: {', '.join(words)}", flush=True)


def name_of(classes: tuple[str, ...], number: int) -> str:
  """Returns the name of a class, or its number where the data had no names."""
  return classes[number] if number < len(classes) else str(number)


def read_image(path: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray:
  """Reads an image as a model takes it.

  Args:
    path: Image file of any format that Pillow reads.
    shape: Height, width and channels (1 or 3) of the model's inputs; an image
      of another size is scaled to it.

  Returns:
    uint8 array of that shape.

  Raises:
    ValueError: the model takes no images, or the file is no image.
  """
  from PIL import Image, UnidentifiedImageError

  if len(shape) != 3 or shape[2] not in (1, 3):
    raise ValueError(f"the run was not trained on images, but on {list(shape)}")
  try:
    with Image.open(path) as file:
      image = file.convert("L" if shape[2] == 1 else "RGB")
  except (OSError, UnidentifiedImageError) as error:
    raise ValueError(f"{path}: cannot be read as an image: {error}") from None
  if image.size != (shape[1], shape[0]):
    image = image.resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
  return np.asarray(image, np.uint8).reshape(shape)
