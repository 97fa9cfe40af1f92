"""Makes the embedded subset of Fashion-MNIST from the official files.

    python scripts/make_fashion_mnist_10k.py            # writes the file
    python scripts/make_fashion_mnist_10k.py --check    # only compares

The subset is the first 1,000 training and the first 200 test images of each
class, in the order of the official files. The source is the four files of the
authors or those of Debian's package dataset-fashion-mnist, whose contents are
equal. The bytes written are the same on every machine with the usual zlib.
"""

import gzip
import hashlib
import io
import pathlib
import sys
import zipfile

import numpy as np

from ws_jax.base import extras

with extras.program("train", by="scripts/make_fashion_mnist_10k.py"):
  from absl import app, flags

from ws_jax import data
from ws_jax.base import disk

_SOURCE = flags.DEFINE_string(
  "source",
  "/usr/share/datasets/fashion-mnist",
  "Folder with the four official .gz files.",
)
_OUTPUT = flags.DEFINE_string(
  "output", str(data.EMBEDDED_PATH), "The .npz file to write or check."
)
_CHECK = flags.DEFINE_bool(
  "check", False, "Compare with the file, and write nothing."
)

TRAIN_PER_CLASS = 1000
TEST_PER_CLASS = 200
NUM_CLASSES = 10
# SHA-256 of the uncompressed official files.
CONTENTS = {
  "train-images-idx3-ubyte": (
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
  ),
  "train-labels-idx1-ubyte": (
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
  ),
  "t10k-images-idx3-ubyte": (
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
  ),
  "t10k-labels-idx1-ubyte": (
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
  ),
}


def read_idx(source: pathlib.Path, name: str) -> np.ndarray:
  """Reads an official file, and checks its content.

  Args:
    source: Folder of the four files.
    name: Name of the file, without `.gz`.

  Returns:
    uint8 labels `[N]` or images `[N, 28, 28]`.

  Raises:
    ValueError: it is not the official file.
  """
  content = gzip.decompress((source / f"{name}.gz").read_bytes())
  digest = hashlib.sha256(content).hexdigest()
  if digest != CONTENTS[name]:
    raise ValueError(
      f"{source / name}.gz is not the official file: its content has sha256 "
      f"{digest}, expected {CONTENTS[name]}"
    )
  rank = content[3]
  shape = np.frombuffer(content, ">u4", rank, offset=4)
  return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def first_of_each_class(labels: np.ndarray, per_class: int) -> np.ndarray:
  """Returns the positions of the first `per_class` of each class, ascending."""
  parts = [np.flatnonzero(labels == c)[:per_class] for c in range(NUM_CLASSES)]
  return np.sort(np.concatenate(parts))


def make_arrays(source: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the arrays of the subset, by their name in the file."""
  arrays = {}
  for split, prefix, per_class in (
    ("train", "train", TRAIN_PER_CLASS),
    ("test", "t10k", TEST_PER_CLASS),
  ):
    images = read_idx(source, f"{prefix}-images-idx3-ubyte")
    labels = read_idx(source, f"{prefix}-labels-idx1-ubyte")
    keep = first_of_each_class(labels, per_class)
    arrays[f"{split}_image"] = images[keep][..., None]
    arrays[f"{split}_label"] = labels[keep]
  return arrays


def npz_bytes(arrays: dict[str, np.ndarray]) -> bytes:
  """Returns a compressed .npz whose bytes depend on the arrays alone."""
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as archive:
    for name, array in arrays.items():
      member = io.BytesIO()
      np.lib.format.write_array(member, array, (1, 0), allow_pickle=False)
      info = zipfile.ZipInfo(f"{name}.npy")  # Dated 1980, not today.
      info.compress_type = zipfile.ZIP_DEFLATED
      info.create_system = 3
      archive.writestr(info, member.getvalue(), compresslevel=9)
  return buffer.getvalue()


def main(argv: list[str]) -> None:
  """Writes the file, or compares it; exits 1 if that cannot be done."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  source, output = pathlib.Path(_SOURCE.value), pathlib.Path(_OUTPUT.value)
  if not source.is_dir():
    sys.exit(
      f"no folder {source}: install Debian's package dataset-fashion-mnist or "
      "pass --source=FOLDER with the four official .gz files"
    )
  content = npz_bytes(make_arrays(source))
  try:
    print(disk.make_file(output, content, check=_CHECK.value))
  except ValueError as error:
    sys.exit(str(error))


if __name__ == "__main__":
  app.run(main)
