"""`memory`: the peak memory of a training step, with donation and remat."""

import pathlib
import tempfile

from ws_jax.bench import DEFAULT_MODEL, Options, Row, Table, timing
from ws_jax.bench.others import Recipe, recipes
from ws_jax.bench.ours import Step
from ws_jax.bench.worker import Worker


def run(options: Options) -> list[Table]:
  """Returns three tables for each batch size: XLA's plan, processes, remat."""
  tables = []
  for batch_size in options.batch_sizes:
    tables += [
      _planned(options, batch_size),
      _resident(options, batch_size),
      _remat(options, batch_size),
    ]
  return tables


def _planned(options: Options, batch_size: int) -> Table:
  """Returns the memory of a step by XLA's plan, with and without donation."""
  rows = []
  for arm in options.arms:
    step = Step(options.model or DEFAULT_MODEL, arm, batch_size)
    for donate in (True, False):
      plan = step.plan(donate=donate)
      rows.append(
        {
          "arm": arm,
          "state donated": "yes" if donate else "no",
          "arguments MB": plan.argument_size_in_bytes / 1e6,
          "results MB": plan.output_size_in_bytes / 1e6,
          "of these in place MB": plan.alias_size_in_bytes / 1e6,
          "temporary MB": plan.temp_size_in_bytes / 1e6,
          "peak MB": step.peak(plan) / 1e6,
        }
      )
  return Table(f"memory: {_what(options, batch_size)}, as planned by XLA", rows)


def _resident(options: Options, batch_size: int) -> Table:
  """Returns the memory that processes take which do nothing but steps."""
  model = options.model or DEFAULT_MODEL
  rows: list[Row] = []
  with tempfile.TemporaryDirectory() as folder:
    for arm in options.arms:
      weights = str(pathlib.Path(folder, f"{arm}.npz"))
      Step(model, arm, batch_size, weights, checked_steps=0)
      for name, recipe in recipes(options, arm, weights, batch_size).items():
        rows.append({"contender": f"{arm} {name}".strip()})
        rows[-1] |= _measured(recipe)
  return Table(f"memory: {_what(options, batch_size)}, of a process", rows)


def _measured(recipe: Recipe) -> Row:
  with Worker(recipe.env, recipe.setup) as worker:
    step = worker.make(recipe.module, "Step", **recipe.arguments)
    before = worker.peak(reset=True)
    for _ in range(3):
      worker.call(step)
    return {
      "peak while stepping MB": worker.peak() / 1e6,
      "of it before MB": before / 1e6,
    }


def _remat(options: Options, batch_size: int) -> Table:
  """Returns time and memory with blocks recomputed in the backward pass."""
  model, arm = options.model or DEFAULT_MODEL, options.arms[-1]
  made = {
    "all kept": Step(model, arm, batch_size),
    "remat": Step(model, arm, batch_size, model__remat=True),
  }
  seconds = timing.interleave(dict(made), options.rounds or 10)
  rows = timing.rows(seconds, against="all kept", examples=batch_size)
  for row in rows:
    row["peak MB"] = made[row["contender"]].peak() / 1e6
  return Table(f"memory: remat, {_what(options, batch_size)}, {arm}", rows)


def _what(options: Options, batch_size: int) -> str:
  return f"{options.model or DEFAULT_MODEL}, 32x32, batch {batch_size}"
