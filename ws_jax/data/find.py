"""Where prepared sets are, and what to say of one that is not there."""

import difflib
import os
import pathlib
import re
import shlex
import shutil
import sys

from ws_jax.base import extras
from ws_jax.data.request import DataError

EMBEDDED, TEXT = "fashion_mnist_10k", "austen"

# The names people ask for most; any other image classification set of TFDS
# works by its TFDS name too.
DATASETS = {
  EMBEDDED: "10,000 + 2,000 images of Fashion-MNIST, in the package",
  "fashion_mnist": "60,000 + 10,000 grey images of clothes, 28x28, 10 classes",
  "mnist": "60,000 + 10,000 grey images of digits, 28x28, 10 classes",
  "cifar10": "50,000 + 10,000 colour images, 32x32, 10 classes",
  "cifar100": "50,000 + 10,000 colour images, 32x32, 100 classes",
  TEXT: "six novels, for task.name=language_model, in the package",
  "svhn_cropped": "73,257 + 26,032 house numbers, 32x32, 10 classes",
}

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_NAME = re.compile(r"\w[\w.+-]*(/\w[\w.+-]*)*")
_UNFINISHED = "incomplete."  # How TFDS begins the name of what it is writing.


def default_data_dir() -> pathlib.Path:
  """Returns TFDS's own folder: `TFDS_DATA_DIR`, or the one at home."""
  folder = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  return pathlib.Path(folder).expanduser()


def data_folder(data_dir: str | os.PathLike | None) -> pathlib.Path:
  """Returns the folder of prepared sets: `data_dir`, or the one of TFDS."""
  if data_dir:
    return pathlib.Path(data_dir).expanduser()
  return default_data_dir()


def find(data_dir: pathlib.Path, name: str) -> pathlib.Path | None:
  """Returns the folder of a set's newest prepared version, None without one.

  Args:
    data_dir: the folder of all prepared sets.
    name: `set`, `set/config`, either with `:version` behind it.

  Raises:
    DataError: the set is there in several configs and the name says none.
  """
  path, _, version = name.partition(":")
  if not _NAME.fullmatch(path):
    return None  # Not a name, or a way out of `data_dir`.
  folder = data_dir / path
  found = _versions(folder, version)
  if found:
    return found[-1]
  configs = _configs(folder, version)
  if len(configs) > 1:
    choices = ", ".join(f"{path}/{config}" for config in configs)
    raise DataError(f"data set {name!r} has configs: choose one of {choices}")
  return next(iter(configs.values()))[-1] if configs else None


def not_found(name: str, data_dir: str | os.PathLike | None) -> DataError:
  """Returns the error about a set that `find` does not find.

  It tells an interrupted preparation from a version that is not there, from a
  folder that is not the one of prepared sets, and from an unknown name.
  """
  if name == TEXT:
    return DataError(f"data set {name!r} is for task.name=language_model")
  folder = data_folder(data_dir)
  path, _, version = name.partition(":")
  command = _how_to_prepare(name, data_dir)
  if _NAME.fullmatch(path):
    reason = (
      _interrupted(folder / path, version, command)
      or _other_version(folder / path, path, version)
      or _other_config(folder, path)
      or _wrong_folder(folder, name)
    )
    if reason:
      return DataError(f"data set {name!r}: {reason}")
  base = path.partition("/")[0]
  if base in DATASETS or base in tfds_names():
    missing = "" if folder.is_dir() else " (there is no such folder)"
    return DataError(
      f"data set {name!r} is not prepared in {folder}{missing}: type {command}"
    )
  if "/" in name:
    return DataError(
      f"there is no folder {pathlib.Path(name).absolute()}, and no prepared "
      f"set {name!r} in {folder}"
    )
  return DataError(unknown_name(name, data_dir))


def unknown_name(
  name: object, data_dir: str | os.PathLike | None = None
) -> str:
  """Returns the message about an unknown name, with the nearest ones."""
  folder = data_folder(data_dir)
  known = {*DATASETS, *tfds_names(), *_stored_names(folder)}
  near = difflib.get_close_matches(str(name), sorted(known), n=3)
  hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
  beside = ""
  if isinstance(name, str) and name and pathlib.Path(name).is_dir():
    beside = f"; the folder of that name here is './{name}'"
  if text := extras.lacking("data"):
    beside += f"; a set of TFDS {text}"
  return (
    f"unknown data set {name!r}: {hint}Known: {', '.join(DATASETS)}, each "
    "other image classification set of TFDS by its name there, and what is "
    f"prepared in {folder}{beside}"
  )


def tfds_names() -> set[str]:
  """Returns the names of the sets that TFDS can prepare, none without TFDS."""
  if extras.lacking("data"):
    return set()
  import tensorflow_datasets as tfds

  # The community's sets would be thousands of names behind the network.
  return set(tfds.list_builders(with_community_datasets=False))


def _other_version(folder: pathlib.Path, path: str, version: str) -> str:
  """Returns the message about a version where there are others, or ""."""
  found = _versions(folder, "")
  for others in _configs(folder, "").values():
    found = found or others
  if not version or not found:
    return ""
  have = ", ".join(other.name for other in found)
  return (
    f"version {version} is not in {found[0].parent}, which has {have}: ask for "
    f"{path}:{found[-1].name}"
  )


def _interrupted(folder: pathlib.Path, version: str, command: str) -> str:
  """Returns the message about an unfinished preparation, "" without one."""
  if not folder.is_dir():
    return ""
  for child in [*sorted(folder.iterdir()), *sorted(folder.glob("*/*"))]:
    name = child.name
    unfinished = name.startswith(_UNFINISHED) or _VERSION.fullmatch(name)
    done = (child / "dataset_info.json").exists()
    if unfinished and not done and child.is_dir() and name.endswith(version):
      return (
        f"its preparation in {child} was interrupted or is under way; to begin "
        f"again delete that folder and type {command}"
      )
  return ""


def _other_config(folder: pathlib.Path, path: str) -> str:
  """Returns the message about a config where there are others, or ""."""
  base, _, config = path.partition("/")
  configs = _configs(folder / base, "")
  if not config or not configs:
    return ""
  have = ", ".join(f"{base}/{other}" for other in configs)
  return f"config {config!r} is not in {folder / base}, which has {have}"


def _wrong_folder(folder: pathlib.Path, name: str) -> str:
  """Returns the message about a set in a folder above or below, or ""."""
  if not folder.is_dir():
    return ""
  above = list(folder.parents)[:2]
  below = sorted(child for child in folder.iterdir() if child.is_dir())
  for place in [*above, *below]:
    try:
      found = find(place, name)
    except (DataError, OSError):
      continue
    if found is not None:
      return f"it is not in {folder}, but in {place}: give that as data.dir"
  return ""


def _configs(
  folder: pathlib.Path, version: str
) -> dict[str, list[pathlib.Path]]:
  """Returns the prepared versions of each config of a set."""
  if not folder.is_dir():
    return {}
  children = sorted(child for child in folder.iterdir() if child.is_dir())
  configs = {child.name: _versions(child, version) for child in children}
  return {config: found for config, found in configs.items() if found}


def _versions(folder: pathlib.Path, version: str) -> list[pathlib.Path]:
  """Returns the prepared versions in a folder, oldest first."""
  if not folder.is_dir():
    return []
  found = [
    child
    for child in folder.iterdir()
    if _VERSION.fullmatch(child.name)
    and version in ("", child.name)
    and (child / "dataset_info.json").exists()
  ]
  return sorted(found, key=lambda path: [int(n) for n in path.name.split(".")])


def _stored_names(folder: pathlib.Path) -> set[str]:
  if not folder.is_dir():
    return set()
  names = (entry.name for entry in folder.iterdir() if entry.is_dir())
  return {name for name in names if name != "downloads"}


def _how_to_prepare(name: str, data_dir: str | os.PathLike | None) -> str:
  """Returns the command that prepares a set, in backquotes."""
  where = ""
  if data_dir is not None:
    where = f" --data_dir={shlex.quote(str(data_folder(data_dir)))}"
  command = f"{_prepare_command()} {shlex.quote(name)}"
  offline = ""
  if name == "fashion_mnist":
    offline = f" (no internet: `{command} --from_debian{where}`)"
  return f"`{command}{where}`{offline}"


def _prepare_command() -> str:
  """Returns how to call the script that prepares, from the folder we are in."""

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
