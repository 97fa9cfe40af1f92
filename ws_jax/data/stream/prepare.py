"""Packs a folder of images into few large files, which a stream reads.

The files of images are copied as they are, so no pixel changes.
"""

import hashlib
import os
import pathlib
import re
import shutil
import tarfile
import uuid
from collections.abc import Iterator
from typing import Any

from ws_jax.base import extras
from ws_jax.data import find, folder
from ws_jax.data.request import DataError

KINDS = ("array_record", "tar")
_SHARD_BYTES = 150 * 2**20


def prepare_folder(
  path: pathlib.Path,
  name: str,
  *,
  data_dir: pathlib.Path | None = None,
  kind: str = "array_record",
) -> pathlib.Path:
  """Packs `PATH/SPLIT/CLASS/*.jpg` into `data_dir / name`.

  Args:
    path: the folder with a folder for each split, and in that one for each
      class.
    name: the name that the set gets, for `data.name`.
    data_dir: the folder of all prepared sets; None for the one that TFDS uses.
    kind: "array_record", a set that TFDS can read as well, or "tar".

  Returns:
    The folder of the set, which is written whole or not at all.

  Raises:
    DataError: the folder has no such layout, or the name is taken.
  """
  if kind not in KINDS:
    raise DataError(f"kind {kind!r} must be {' or '.join(KINDS)}")
  if not re.fullmatch(r"[a-z]\w*", name):
    raise DataError(f"name {name!r} must be lower-case letters, digits and '_'")
  if not path.is_dir():
    raise DataError(f"there is no folder {path.absolute()}")
  target = find.data_folder(data_dir) / name
  if target.exists():
    raise DataError(f"{target} is there already: choose another name")
  splits = folder.subfolders(path)
  classes = sorted(
    {x for split in splits for x in folder.subfolders(path / split)}
  )
  if not classes:
    raise DataError(
      f"{path} holds no folder for a split, such as train, with one for each "
      "class in it"
    )
  target.parent.mkdir(parents=True, exist_ok=True)
  unfinished = target.with_name(f"incomplete.{name}.{uuid.uuid4().hex[:8]}")
  try:
    if kind == "tar":
      for split in splits:
        _write_tars(path / split, unfinished / split)
      os.rename(unfinished, target)
    else:
      _write_records(path, splits, classes, name, unfinished)
      os.rename(unfinished / name, target)
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)
  return target


def _listed(path: pathlib.Path) -> list[tuple[str, str]]:
  """Returns class and file of the images of a split, ordered by a hash."""
  found = [
    (name, file.name)
    for name in folder.subfolders(path)
    for file in folder.image_files(path / name)
  ]
  if not found:
    raise DataError(f"{path} holds no image")
  digest = lambda pair: hashlib.sha256(os.fsencode("/".join(pair))).digest()
  return sorted(found, key=digest)


def _write_tars(path: pathlib.Path, target: pathlib.Path) -> None:
  """Writes `SPLIT-00000-of-00008.tar` and so on, with `CLASS/FILE` in them."""
  images = _listed(path)
  total = sum((path / name / file).stat().st_size for name, file in images)
  count = max(1, round(total / _SHARD_BYTES))
  target.mkdir(parents=True)
  for shard in range(count):
    name = f"{target.name}-{shard:05d}-of-{count:05d}.tar"
    with tarfile.open(target / name, "w") as archive:
      for label, file in images[shard::count]:
        archive.add(path / label / file, f"{label}/{file}")


def _write_records(
  path: pathlib.Path,
  splits: list[str],
  classes: list[str],
  name: str,
  target: pathlib.Path,
) -> None:
  """Writes a set of TFDS; needs no TensorFlow."""
  extras.need("data", by="a set of array_record")
  import tensorflow_datasets as tfds

  builder_name = name

  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    name = builder_name

    def _info(self) -> Any:
      features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(names=classes),
        "file_name": tfds.features.Text(),
      }
      return tfds.core.DatasetInfo(
        builder=self,
        description=f"Images of {path.name}, as they were.",
        features=tfds.features.FeaturesDict(features),
        supervised_keys=("image", "label"),
      )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
      return {split: self._generate_examples(split) for split in splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, Any]]:
      for label, file in _listed(path / split):
        key, data = (
          f"{label}/{file}",
          (path / split / label / file).read_bytes(),
        )
        yield key, {"image": data, "label": label, "file_name": key}

  builder = Builder(data_dir=target, file_format="array_record")
  builder.download_and_prepare(file_format="array_record")
