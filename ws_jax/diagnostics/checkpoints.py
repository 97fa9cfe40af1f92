"""The diagnostics of this folder, run on the checkpoints of a training run.

Start reading at `measure`: it yields one row of numbers for each checkpoint of
one run; `measurements` says how they are computed. `draw` makes the figure from
the rows of all runs. The command is `scripts/diagnose.py`.
"""

import functools
import pathlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import jax.numpy as jnp
import ml_collections
import numpy as np

from ws_jax import config as config_lib
from ws_jax import weights
from ws_jax.base import disk
from ws_jax.diagnostics import measurements
from ws_jax.report import figures
from ws_jax.sweep import arms, rows
from ws_jax.train import build

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

# Panels of the figure: column, title, whether the axis is logarithmic.
_PANELS = (
  ("own.loss_variation", "loss variation (nats)", True),
  ("own.predictiveness", "gradient change / gradient", True),
  ("own.beta", "effective beta-smoothness, own units", True),
  ("own.sharpness", "largest Hessian eigenvalue, own units", True),
  ("removed", "part of the gradient that WS removes", False),
  ("dead", "share of dead channels", False),
)


def read_config(workdir: pathlib.Path) -> ml_collections.ConfigDict:
  """Returns the configuration that a run was trained with.

  Args:
    workdir: folder of the run.

  Raises:
    ValueError: there is no `config.json`, it is damaged, or has a key that the
      configuration does not have.
  """
  saved = disk.read_json(workdir / "config.json")
  if saved is None:
    raise ValueError(f"no config.json in {workdir}: not the folder of a run")
  return config_lib.from_saved(saved)


def kept_steps(workdir: pathlib.Path) -> list[int]:
  """Returns the optimizer steps that can be measured, in order.

  Step 0 is always among them: the initialization is computed again.

  Args:
    workdir: folder of the run.

  Example:
    >>> kept_steps(pathlib.Path("/no/checkpoints/here"))
    [0]
  """
  names = [path.name for path in (workdir / "checkpoints").glob("*")]
  return sorted({0, *(int(name) for name in names if name.isdecimal())})


def measure(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  steps_to_measure: Iterable[int],
  *,
  probe_size: int = 1024,
) -> Iterator[rows.Row]:
  """Yields a row for each checkpoint of one run.

  The loss and its gradients are those of the first batch of the training set,
  without augmentation; a norm uses the statistics of that batch, as in
  training.

  Args:
    config: configuration that the run was trained with.
    workdir: folder of the run.
    steps_to_measure: optimizer steps out of `kept_steps`.
    probe_size: number of training images on which activations are measured.

  Yields:
    Column name to value: run, arm, learning rate, seed and step, then the
    columns of the two functions of `measurements`, to four digits.

  Raises:
    ValueError: the configuration cannot be run.
  """
  setup = build.start(config_lib.on_any_devices(config))
  config, program, task = setup.config, setup.program, setup.program.task
  blocks = max(1, -(-probe_size // config.data.batch_size))
  initial, (arrays, _) = setup.state(), setup.source.block(0, blocks)
  batch = task.batch(arrays, jnp.arange(config.data.batch_size), None)
  probe = task.batch(arrays, jnp.arange(probe_size), None)
  for step in steps_to_measure:
    checkpoint = workdir / "checkpoints" / str(step)
    params = weights.read_params(checkpoint) if step else initial.params
    # Running statistics stay as they were at the start: none is read here.
    state = initial.replace(params=params)
    row = {
      "run": workdir.name,
      "arm": arms.arm(config.model.norm, config.model.ws),
      "learning_rate": config.optim.learning_rate,
      "seed": config.seed,
      "step": step,
    }
    numbers = measurements.landscape(program, state, batch)
    numbers |= measurements.inside(program, state, batch, probe)
    yield row | {k: float(f"{float(v):.4g}") for k, v in numbers.items()}


def draw(table: list[rows.Row]) -> "Figure":
  """Draws six columns over steps: a line for each arm, its seeds as points.

  Args:
    table: rows of `measure`, of one run or of many.
  """
  panels = [
    functools.partial(_panel, table=table, column=column, title=title, log=log)
    for column, title, log in _PANELS
  ]
  return figures.sheet(panels, columns=3)


def _panel(
  ax: "Axes", *, table: list[rows.Row], column: str, title: str, log: bool
) -> None:
  looks = figures.looks(row["arm"] for row in table)
  for arm, look in looks.items():
    mine = [row for row in table if row["arm"] == arm]
    at = sorted({row["step"] for row in mine})
    seeds = [[row[column] for row in mine if row["step"] == s] for s in at]
    ax.plot(at, [np.mean(values) for values in seeds], **look, label=arm)
    for step, values in zip(at, seeds, strict=True):
      ax.plot([step] * len(values), values, ".", color=look["color"])
  ax.set_ylabel(title)
  ax.set_xlabel("optimizer step")
  if log:
    ax.set_yscale("log")
  else:
    ax.set_ylim(0)
