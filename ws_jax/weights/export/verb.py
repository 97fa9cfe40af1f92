"""The verb `export`: the folded network of a run, for use without this package.

A file is written in a folder beside its place, read again by the program that
will read it later, and compared with the run; only then is it put in its place.
Start reading at `export`; each format is a module with `write` and `read`.
"""

import argparse
import dataclasses
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any

from ws_jax import train
from ws_jax.base import extras
from ws_jax.base.names import lookup
from ws_jax.weights.export import (
  compare,
  network,
  onnx,
  plain,
  savedmodel,
  stablehlo,
  timm_network,
)

FORMATS: dict[str, Any] = {
  "stablehlo": stablehlo,
  "safetensors": plain,
  "onnx": onnx,
  "savedmodel": savedmodel,
}
INPUTS = {
  "raw": "as in the data, as uint8 pictures; the program normalizes",
  "float": "as the model takes them, normalized by whoever calls",
}


@dataclasses.dataclass(frozen=True)
class Exported:
  """A file that was written.

  Attributes:
    path: Path of the file or folder.
    size: Bytes of it.
    seconds: Time it took to write.
    compared: Comparisons with the run.
    skipped: Reasons why other programs did not read it.
    about: What the file says of its network.
  """

  path: pathlib.Path
  size: int
  seconds: float
  compared: tuple[compare.Comparison, ...]
  skipped: tuple[str, ...]
  about: dict[str, Any]

  def __str__(self) -> str:
    takes, gives = (self.about[name] for name in ("input", "output"))
    shape = lambda one: ", ".join(map(str, ("batch", *one["shape"][1:])))
    return "\n".join(
      [
        f"{self.path}: {takes['dtype']} [{shape(takes)}] to {gives['dtype']}"
        f" [{shape(gives)}], {self.size / 1e6:.2f} MB in {self.seconds:.1f} s",
        *map(str, self.compared),
        *self.skipped,
      ]
    )


def export(
  run: "train.Trained",
  out: str | os.PathLike[str],
  *,
  format: str,
  inputs: str | None = None,
) -> Exported:
  """Writes the folded network of a run, and compares what can be read.

  Args:
    run: Run, as `ws_jax.train.load_run` returns it.
    out: Path of the file, or of the folder of a SavedModel; what is there is
      replaced.
    format: Name of `FORMATS`.
    inputs: Name of `INPUTS`. None for `raw`, and for `float` where the format
      holds weights alone. Tokens are always those that the model takes.

  Raises:
    ValueError: a wrong name, a network that the format cannot hold, or outputs
      of the file that are not those of the run.
    MissingExtra: a package that writes the format is not installed.
    OSError: the file cannot be written.

  Example:
    >>> from ws_jax import train
    >>> run = train.load_run("workdirs/first")  # doctest: +SKIP
    >>> print(export(run, "first.onnx", format="onnx"))  # doctest: +SKIP
  """
  module, out = lookup(FORMATS, format, "format"), pathlib.Path(out)
  _check_out(out, format)
  if module.EXTRA:
    extras.need(module.EXTRA, by=f"--format={format}")
  folded = network.fold(run, preprocessed=_preprocessed(run, format, inputs))
  with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as folder:
    draft = pathlib.Path(folder, out.name)
    began = time.perf_counter()
    module.write(draft, folded)
    seconds = time.perf_counter() - began
    compared, skipped = [], []
    for read in _readers(module, folded):
      try:
        compared.append(compare.compare(read, draft, folded))
      except extras.MissingExtra as error:
        skipped.append(f"not compared there: {error}")
    size = sum(p.stat().st_size for p in draft.parent.rglob("*") if p.is_file())
    _place(draft.parent, out)
  return Exported(
    out, size, seconds, tuple(compared), tuple(skipped), folded.about
  )


def read(path: str | os.PathLike[str]) -> network.Network:
  """Reads a network from a run's workdir, or from a file that was exported.

  Args:
    path: Path of either.

  Raises:
    ValueError: it is neither; the message names it.
    MissingExtra: the package that reads the format is not installed.
  """
  path = pathlib.Path(path)
  if path.is_file():
    for module in FORMATS.values():
      if module.SUFFIX and path.suffix == module.SUFFIX:
        return module.read(path)
    known = ", ".join(m.SUFFIX for m in FORMATS.values() if m.SUFFIX)
    raise ValueError(f"{path}: must be a workdir, a SavedModel, or a {known}")
  if (path / savedmodel.MARK).is_file():
    return savedmodel.read(path)
  run = train.load_run(path)
  return network.Network(network.fold(run).about, run.predict, "jax")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the arguments of the verb."""
  parser.add_argument(
    "workdir", help="a run's workdir, or one checkpoint of it"
  )
  parser.add_argument(
    "out",
    nargs="?",
    help="the file to write, or the folder of a SavedModel (default: one in"
    " the workdir, named after the model)",
  )
  parser.add_argument(
    "--format",
    required=True,
    choices=FORMATS,
    help="stablehlo for jax.export, safetensors for timm or Flax, onnx, or"
    " savedmodel for TensorFlow",
  )
  parser.add_argument(
    "--input",
    choices=INPUTS,
    help="; ".join(f"{name}: {text}" for name, text in INPUTS.items()),
  )


def run(given: argparse.Namespace) -> None:
  """Writes a file, and prints how it compares with the run.

  Raises:
    ValueError: as `export`, or no run.
    OSError: the file cannot be written.
  """
  if extra := FORMATS[given.format].EXTRA:
    extras.need(extra, by=f"--format={given.format}")
  trained, out = train.load_run(given.workdir), given.out
  if out is None:
    folder = pathlib.Path(given.workdir)
    if folder.parent.name == "checkpoints":
      folder = folder.parents[1]
    suffix = FORMATS[given.format].SUFFIX or "_savedmodel"
    out = folder / (trained.config.model.name.rpartition(":")[2] + suffix)
  print(export(trained, out, format=given.format, inputs=given.input))


def _check_out(out: pathlib.Path, format: str) -> None:
  """Refuses a path that cannot be written, before any work."""
  suffix = FORMATS[format].SUFFIX
  if suffix and out.suffix != suffix:
    raise ValueError(f"{out}: a file of --format={format} ends in {suffix}")
  if not out.parent.is_dir():
    raise FileNotFoundError(f"{out.parent}: no such folder")
  if suffix and out.is_dir():
    raise ValueError(f"{out}: is a folder")
  if not suffix and out.exists() and not (out / savedmodel.MARK).is_file():
    raise ValueError(f"{out}: is there, and is no SavedModel; choose another")


def _preprocessed(
  run: "train.Trained", format: str, inputs: str | None
) -> bool:
  """Returns whether the network starts behind the preprocessing."""
  weights = format == "safetensors"
  inputs = inputs or ("float" if weights else "raw")
  lookup(INPUTS, inputs, "input")
  if weights and inputs == "raw":
    raise ValueError(
      "--format=safetensors holds weights alone, which cannot normalize: leave"
      " --input=raw out"
    )
  if run.data.tokenizer and inputs == "float" and not weights:
    raise ValueError("tokens have no float form: leave --input=float out")
  return inputs == "float"


def _readers(
  module: Any, folded: network.Folded
) -> list[Callable[[pathlib.Path], network.Network]]:
  """Returns the functions that read a file of a format."""
  if module is not plain:
    return [module.read]
  # By the run's own model, which may be code of the user's.
  ours = lambda path: plain.read(path, folded.run)
  model = folded.about["run"]["config"]["model"]
  return [ours, timm_network.read] if timm_network.name_of(model) else [ours]


def _place(folder: pathlib.Path, out: pathlib.Path) -> None:
  """Moves all that lies in a folder to where `out` is to be."""
  # What a file says of its network goes first: it is read first.
  for draft in sorted(folder.iterdir(), reverse=True):
    place = out.with_name(draft.name)
    if place.is_dir():
      old = folder / "old"
      os.replace(place, old)
      os.replace(draft, place)
      shutil.rmtree(old)
      continue
    os.replace(draft, place)
