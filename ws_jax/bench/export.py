"""`export`: the folded network in each format, written, read and called."""

import functools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from ws_jax.base import extras
from ws_jax.bench import DEFAULT_MODEL, Options, Row, Table, ours, timing
from ws_jax.train import record, trained
from ws_jax.weights.export import network, verb


def run(options: Options) -> list[Table]:
  """Returns a table for each batch size, a row for each format.

  A format whose extra is not installed has a row that says so.
  """
  name, arm = options.model or DEFAULT_MODEL, options.arms[-1]
  model = _model(name, arm, options.size)
  return [
    _table(
      f"{name}, {arm}, {options.size}x{options.size}", model, size, options
    )
    for size in options.batch_sizes
  ]


def _model(name: str, arm: str, size: int) -> trained.Trained:
  """Returns a run that has not been trained."""
  setup = ours.set_up(name, arm, batch_size=2, size=size)
  data: Any = record.about(setup)["data"]
  state = setup.state()
  variables = {"params": state.params, **state.model_state}
  return trained.restore(setup.config.to_dict(), data, variables, step=0)


def _table(
  title: str, model: trained.Trained, size: int, options: Options
) -> Table:
  rows: list[Row] = []
  calls: dict[str, Callable[[], float]] = {}
  with tempfile.TemporaryDirectory() as folder:
    for format, module in verb.FORMATS.items():
      if extras.lacking(module.EXTRA or "train"):
        rows.append({"format": format, "runtime": "is not installed"})
        continue
      path = pathlib.Path(folder, f"x{module.SUFFIX}")
      row, calls[format] = _format(model, path, format, size)
      rows.append(row)
    # A SavedModel is read as it is called: the files stay until then.
    seconds = timing.interleave(calls, options.rounds or 20)
  for row in rows:
    if times := seconds.get(row["format"]):
      row["ms a call"] = 1e3 * statistics.median(times)
      row["seconds"] = times
  return Table(f"export: {title}, calls of {size}", rows)


def _format(
  model: trained.Trained, path: pathlib.Path, format: str, size: int
) -> tuple[Row, Callable[[], float]]:
  """Returns the row of a format, and what calls the network of its file."""
  done = verb.export(model, path, format=format)
  began = time.perf_counter()
  found = verb.read(path)
  read = time.perf_counter() - began
  weights = format == "safetensors"  # which say nothing of the pictures
  folded = network.fold(model, preprocessed=weights)
  inputs = folded.taken(folded.samples(size))
  call = timing.timed(functools.partial(found.call, inputs))
  row = {
    "format": format,
    "runtime": found.runtime,
    "MB": done.size / 1e6,
    "s to write": done.seconds,
    "s to read": read,
    "s of the first call": call(),
    "off by": done.compared[0].difference / done.compared[0].largest,
  }
  return row, call
