"""Data sets that fit in memory: the embedded one, and those TFDS prepared."""

import dataclasses
import difflib
import hashlib
import io
import os
import pathlib
import shlex
import shutil
import sys

import numpy as np

from ws_jax.base import extras
from ws_jax.data import prepared
from ws_jax.data.prepared import DataError

EMBEDDED = "fashion_mnist_10k"
EMBEDDED_PATH = pathlib.Path(__file__).with_name(f"{EMBEDDED}.npz")
EMBEDDED_SHA256 = (
  "e1f135263a857d415148830e6c5bd9eda2ce26a856144526a56f752e24d48693"
)

# The names people ask for most; any other image classification set of TFDS
# works by its TFDS name too.
DATASETS = {
  EMBEDDED: "10,000 + 2,000 images of Fashion-MNIST, in the package",
  "fashion_mnist": "60,000 + 10,000 grey images of clothes, 28x28, 10 classes",
  "mnist": "60,000 + 10,000 grey images of digits, 28x28, 10 classes",
  "cifar10": "50,000 + 10,000 colour images, 32x32, 10 classes",
  "cifar100": "50,000 + 10,000 colour images, 32x32, 100 classes",
  "svhn_cropped": "73,257 + 26,032 house numbers, 32x32, 10 classes",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """A set of labelled images in memory.

  Attributes:
    name: what it was asked for by.
    train: `{"image": uint8 [N, H, W, C], "label": int32 [N]}`.
    test: the same for the examples that training never sees.
    num_classes: labels are in `[0, num_classes)`.
    mean: of each channel over the training images, scaled to [0, 1].
    std: the same for the standard deviation.
  """

  name: str
  train: dict[str, np.ndarray]
  test: dict[str, np.ndarray]
  num_classes: int
  mean: tuple[float, ...]
  std: tuple[float, ...]


def load_dataset(
  name: str, data_dir: str | os.PathLike | None = None
) -> Dataset:
  """Loads a data set, never from the network and never through TensorFlow.

  A set that TFDS prepared is decoded once; the arrays are kept beside it, so
  that the next start takes a fraction of a second.

  Args:
    name: one of `DATASETS`, or the name of any image classification set of
      TFDS (`set`, `set/config`, `set:version`) prepared in `data_dir`.
    data_dir: the folder of prepared sets; by default the one TFDS uses.

  Returns:
    The arrays, with the statistics that normalization needs.

  Raises:
    DataError: unknown name, or the set is not prepared (the message has the
      command that does it), or it does not suit training in memory.

  Example:
    >>> dataset = load_dataset("fashion_mnist_10k")
    >>> dataset.train["image"].shape, dataset.num_classes
    ((10000, 28, 28, 1), 10)
  """
  if name == EMBEDDED:
    arrays, num_classes = _read_embedded(), 10
  else:
    folder = _find(name, data_dir)
    arrays, num_classes = prepared.read_arrays(folder)
  mean, std = arrays.get("mean"), arrays.get("std")
  if mean is None or std is None:
    mean, std = prepared.channel_statistics(arrays["train_image"])
  splits = {
    split: {
      "image": arrays[f"{split}_image"],
      "label": arrays[f"{split}_label"].astype(np.int32),
    }
    for split in ("train", "test")
  }
  return Dataset(
    name=name,
    num_classes=num_classes,
    mean=tuple(float(x) for x in mean),
    std=tuple(float(x) for x in std),
    **splits,
  )


def check_dataset(name: str, data_dir: str | os.PathLike | None = None) -> None:
  """Does the cheap checks of `load_dataset`, to fail before any compile.

  Args:
    name: as for `load_dataset`.
    data_dir: as for `load_dataset`.

  Raises:
    DataError: as for `load_dataset`, except that no image is decoded.

  Example:
    >>> check_dataset("fashion_mnist_10k")
    >>> check_dataset("cifar10", "/nowhere")
    Traceback (most recent call last):
    ws_jax.data.prepared.DataError: data set 'cifar10' is not prepared ...
  """
  if name == EMBEDDED:
    _embedded_bytes()
  else:
    prepared.read_info(_find(name, data_dir))


def default_data_dir() -> pathlib.Path:
  """The folder that TFDS itself uses: `TFDS_DATA_DIR`, or the one at home."""
  folder = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  return pathlib.Path(folder).expanduser()


def unknown_name(name: str, data_dir: str | os.PathLike | None = None) -> str:
  """What to say about a name that is nowhere, with the nearest ones."""
  known = {*DATASETS, *_tfds_names(), *_stored_names(_folder(data_dir))}
  near = difflib.get_close_matches(str(name), sorted(known), n=3)
  hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
  return (
    f"unknown data set {name!r}: {hint}Known: {', '.join(DATASETS)}, and each "
    "other image classification set of TFDS by its name there"
  )


def _find(name: str, data_dir: str | os.PathLike | None) -> pathlib.Path:
  """The folder of a prepared set, or the error that says how to get it."""
  folder = _folder(data_dir)
  if not isinstance(name, str) or not name:
    raise DataError(unknown_name(name, data_dir))
  extras.need("data", by=f"data set {name!r}")
  found = prepared.find(folder, name)
  if found is not None:
    return found
  base = name.split("/")[0].split(":")[0]
  if base not in DATASETS and base not in _tfds_names():
    raise DataError(unknown_name(name, data_dir))
  command = f"{_prepare_command()} {shlex.quote(name)}"
  where = "" if data_dir is None else f" --data_dir={shlex.quote(str(folder))}"
  offline = ""
  if name == "fashion_mnist":
    offline = f" (no internet: `{command} --from_debian{where}`)"
  raise DataError(
    f"data set {name!r} is not prepared in {folder}: type `{command}{where}`"
    f"{offline}"
  )


def _prepare_command() -> str:
  """How to call the script that prepares, from the folder we are in."""

  def short(path: pathlib.Path) -> str:
    here = pathlib.Path.cwd()
    inside = path.is_relative_to(here)
    return shlex.quote(str(path.relative_to(here) if inside else path))

  python = "python"
  if shutil.which("python") != sys.executable:  # The environment is not active.
    python = short(pathlib.Path(sys.executable))
  script = pathlib.Path(__file__).parents[2] / "scripts" / "prepare_data.py"
  if not script.exists():  # Installed without the checkout around it.
    return f"{python} scripts/prepare_data.py"
  return f"{python} {short(script)}"


def _folder(data_dir: str | os.PathLike | None) -> pathlib.Path:
  if data_dir:
    return pathlib.Path(data_dir).expanduser()
  return default_data_dir()


def _tfds_names() -> set[str]:
  import tensorflow_datasets as tfds

  # The community's sets would be thousands of names behind the network.
  return set(tfds.list_builders(with_community_datasets=False))


def _stored_names(folder: pathlib.Path) -> set[str]:
  if not folder.is_dir():
    return set()
  names = (entry.name for entry in folder.iterdir() if entry.is_dir())
  return {name for name in names if name != "downloads"}


def _embedded_bytes() -> bytes:
  if not EMBEDDED_PATH.exists():
    raise DataError(f"{EMBEDDED_PATH} is missing: install ws_jax again")
  content = EMBEDDED_PATH.read_bytes()
  if hashlib.sha256(content).hexdigest() != EMBEDDED_SHA256:
    raise DataError(
      f"{EMBEDDED_PATH} is damaged (its checksum differs): restore it with "
      f"`git checkout -- {shlex.quote(str(EMBEDDED_PATH))}` or install ws_jax "
      "again"
    )
  return content


def _read_embedded() -> dict[str, np.ndarray]:
  with np.load(io.BytesIO(_embedded_bytes()), allow_pickle=False) as archive:
    return dict(archive)
