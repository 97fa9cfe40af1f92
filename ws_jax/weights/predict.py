"""The verb `predict`: the classes that a network sees in files or texts."""

import argparse
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from ws_jax.data import pixels
from ws_jax.weights.export import network, verb

# Of those of Pillow that need no other program: it gives EPS to Ghostscript.
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the arguments of the verb."""
  parser.add_argument(
    "network",
    metavar="NETWORK",
    help="a run's workdir, one checkpoint of it, or what `export` has written:"
    " a .stablehlo, .safetensors or .onnx file, or a SavedModel",
  )
  parser.add_argument(
    "inputs",
    nargs="+",
    metavar="INPUT",
    help="image files; audio files for a network of speech; texts, each in"
    " quotes, for one of text",
  )
  parser.add_argument(
    "--top", type=int, default=3, help="how many classes to show (default: 3)"
  )


def run(given: argparse.Namespace) -> None:
  """Prints the most likely classes of each input, with their probabilities.

  Raises:
    ValueError: no network, no checkpoint, an input that it cannot take, or one
      for which it gives no numbers; the message names it.
  """
  found = verb.read(given.network)
  reader = Reader(found.about)
  inputs = np.stack([reader.read(word) for word in given.inputs])
  logits = found.call(reader.taken(inputs)).astype(np.float64)
  for word, row in zip(given.inputs, logits, strict=True):
    if not np.isfinite(row).all():
      raise ValueError(f"{word}: {given.network} gives NaN or infinite values")
  odds = np.exp(logits - logits.max(-1, keepdims=True))
  shares = odds / odds.sum(-1, keepdims=True)
  classes = tuple(found.about["classes"])
  for word, share in zip(given.inputs, shares, strict=True):
    best = np.argsort(-share, kind="stable")[: max(1, given.top)]
    words = (f"{name_of(classes, i)} {share[i]:.1%}" for i in best)
    print(f"{word}: {', '.join(words)}", flush=True)


class Reader:
  """Makes inputs of a network from files or texts.

  Args:
    about: What the network says of itself.

  Raises:
    ValueError: it is no network that gives classes for images, clips or texts.
  """

  def __init__(self, about: dict[str, Any]):
    self._about = about
    self._data = about["run"]["data"]
    self._shape = tuple(self._data["input_shape"])
    if self._data["tokenizer"] and self._data["num_classes"] is None:
      raise ValueError(
        "a language model has no classes: see `python -m ws_jax.weights"
        " generate`"
      )

  def read(self, word: str) -> np.ndarray:
    """Returns an input as in the data, of a file or a text.

    Raises:
      ValueError: the file cannot be read; the message names it.
    """
    if self._data["tokenizer"]:
      return read_text(word, self._data["tokenizer"], self._shape[0])
    features = self._about["features"]
    if features is not None and len(self._shape) == 1:
      from ws_jax.data import audio_files

      path, rate = pathlib.Path(word), features["sample_rate"]
      return audio_files.read_input(path, rate, self._shape[0])
    if (dtype := self._data["input_dtype"]) != "uint8":
      raise ValueError(f"the run was not trained on images, but on {dtype}")
    return read_image(pathlib.Path(word), self._shape)

  def taken(self, inputs: np.ndarray) -> np.ndarray:
    """Returns inputs as in the data in the form that the network takes."""
    takes = self._about["input"]
    if takes["preprocessed"] and takes["dtype"].startswith("float"):
      task, info = network.task_of(self._about)
      inputs = np.asarray(network.preprocess(task, info, jnp.asarray(inputs)))
    return inputs.astype(takes["dtype"], copy=False)


def name_of(classes: tuple[str, ...], number: int) -> str:
  """Returns the name of a class, or its number where the data had no names."""
  return classes[number] if number < len(classes) else str(number)


def read_text(text: str, tokenizer: str, length: int) -> np.ndarray:
  """Returns a text as a model takes it: a row of tokens.

  Args:
    text: The text.
    tokenizer: Tokenizer as one text.
    length: Number of tokens of a row; a longer text is cut.

  Returns:
    uint16 array `[length]`, filled with the special token behind the text.
  """
  from ws_jax.data.text import tokenizers

  loaded = tokenizers.load(tokenizer)
  tokens = loaded.encode(text.encode())[:length]
  row = np.full(length, loaded.size - 1, np.uint16)
  row[: len(tokens)] = tokens
  return row


def read_image(path: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray:
  """Reads an image as a model takes it.

  Args:
    path: Image file of one of `_FORMATS`.
    shape: Height, width and channels (1 or 3) of the model's inputs; an image
      of another size is scaled to it.

  Returns:
    uint8 array of that shape.

  Raises:
    ValueError: the model takes no images, or the file is no image.
  """
  from PIL import Image

  if len(shape) != 3 or shape[2] not in (1, 3):
    raise ValueError(f"the run was not trained on images, but on {list(shape)}")
  try:
    with Image.open(path, formats=_FORMATS) as file:
      pixels.bounded(file)
      image = file.convert("L" if shape[2] == 1 else "RGB")
  except Exception as error:  # Pillow raises whatever its parsers raise.
    raise ValueError(f"{path}: cannot be read as an image: {error}") from None
  if image.size != (shape[1], shape[0]):
    image = image.resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
  return np.asarray(image, np.uint8).reshape(shape)
