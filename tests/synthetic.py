"""A sweep's folder as a sweep leaves it, without training anything."""

import itertools
import json
import math

import numpy as np

from ws_jax.sweep import grid, rows
from ws_jax.sweep.arms import ARMS, arm_of

# Best rate at batch 128, decades that are usable around it, best accuracy.
_SHAPES = {
  "BN": (0.2, 1.2, 0.925),
  "BN+WS": (0.25, 1.3, 0.928),
  "GN": (0.08, 0.7, 0.905),
  "GN+WS": (0.15, 1.1, 0.921),
}
RATES = tuple(grid.log_grid(0.005, 5, 9))
_FIRST_LOSS = math.log(10)
# Of the rows and of the folder: what a page must not take for HTML.
NASTY = '<img src=x onerror="alert(1)">&amp;</script>'


def fill(
  out,
  arms=("BN", "BN+WS", "GN", "GN+WS"),
  rates=RATES,
  batches=(32, 128, 512),
  seeds=(0, 1, 2),
  missing=(),
  metric=None,
  **more,
):
  """Writes `runs.csv`, `plan.json` and a folder for each run.

  Args:
    out: Folder to fill; it must be there.
    arms: Names of `ARMS`.
    rates: Learning rates.
    batches: Optimizer batches.
    seeds: Seeds of the runs.
    missing: Numbers of planned runs that have not run.
    metric: Metric of the task, as in `status.json`; None for runs from before
      they named it. Any but `accuracy` is the better, the lower it is.
    **more: Further axes, by dotted key.
  """
  axes = {"optim.learning_rate": rates, "data.batch_size": batches}
  axes |= more | {"seed": seeds}
  runs = grid.plan(grid.product([ARMS[arm] for arm in arms], **axes))
  (out / "plan.json").write_text(json.dumps([run.key for run in runs]))
  table = []
  for number, run in enumerate(runs):
    if number not in missing:
      status, points = _train(run.overrides, number, metric)
      folder = out / run.name
      folder.mkdir()
      text = "".join(json.dumps(point) + "\n" for point in points)
      (folder / "metrics.jsonl").write_text(text)
      table.append(
        rows.make(run.key, run.name, run.overrides, run.overrides, status)
      )
  rows.write(out / "runs.csv", table)
  return runs


def loss_like(accuracy):
  """Returns the value that a metric to be minimized has, for an accuracy."""
  return 1 + 4 * (1 - accuracy)


def _train(overrides, number, metric):
  """Returns what a run would leave: its status and its metrics."""
  name = metric["name"] if metric else "accuracy"
  measured = (lambda x: x) if name == "accuracy" else loss_like
  rng = np.random.default_rng(number)
  arm = arm_of(overrides)
  center, width, top = _SHAPES[arm]
  batch = overrides["data.batch_size"]
  away = math.log10(overrides["optim.learning_rate"] * 128 / batch / center)
  if batch < 128 and arm.startswith("BN"):
    top -= 0.02
  final = top - 0.02 * max(0.0, abs(away) - width / 2) ** 2 - 0.01 * away**2
  final = float(np.clip(final + 0.002 * rng.normal(), 0.1, 1.0))
  lost = away > width + 0.1 * rng.normal()
  steps = 60_000 // batch
  largest = overrides["optim.learning_rate"] * (0.3 if "WS" in arm else 0.6)
  points = []
  for i, part in enumerate(np.linspace(0.05, 1, 20), start=1):
    step = round(part * steps)
    loss = _FIRST_LOSS * math.exp(-4 * part) + 3 * (1 - final)
    if lost and part > 0.3:
      points.append({"step": step, "train/loss": float("nan")})
      break
    decay = 0.5 + 0.5 * math.cos(math.pi * part)
    point = {"step": step, "train/loss": loss + 0.03 * rng.normal()}
    points.append(point | {"train/relative_step": largest * (decay + 1e-4)})
    if i % 4 == 0:
      accuracy = final * (1 - 0.7 * math.exp(-5 * part))
      points.append(
        {
          "step": step,
          f"eval/{name}": measured(accuracy),
          "eval/loss": 3 * (1 - accuracy),
        }
      )
  metrics = dict(itertools.chain(*(point.items() for point in points)))
  metrics.pop("step")
  metrics["train/first_loss"] = _FIRST_LOSS
  return {
    "status": "diverged" if lost else "done",
    **({"metric": metric} if metric else {}),
    "step": points[-1]["step"],
    "reason": f"loss not finite {NASTY}" if lost else None,
    "metrics": metrics,
    "seconds": {"compile": 1.0, "train": steps / 100, "eval": 0.5},
    "versions": {"jax": "0.10.2"},
    "device": "1 x cpu",
    "commit": "0123abcd",
  }, points
