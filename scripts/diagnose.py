"""Runs the diagnostics on the checkpoints of a sweep.

  python scripts/sweep.py --experiment=experiments/smoothness.py
  python scripts/diagnose.py workdirs/smoothness --to=experiments/smoothness

Writes diagnostics.csv, a row for each checkpoint of each run, and
diagnostics.png. A run keeps as many checkpoints as train.keep_checkpoints says;
step 0 needs none. What is measured already is not measured again.
"""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging

import ws_jax
from ws_jax import config, diagnostics, weights
from ws_jax.base import disk
from ws_jax.report import figures
from ws_jax.sweep import arms, rows
from ws_jax.train import backend, loop
from ws_jax.train import step as steps

_TO = flags.DEFINE_string("to", None, "Folder to write to. Default: DIR.")
_STEPS = flags.DEFINE_list(
  "steps", None, "Optimizer steps to look at. Default: all that are kept."
)
_PROBE = flags.DEFINE_integer(
  "probe", 1024, "Training images on which activations are looked at."
)

# How far the gradient is followed, as parts of the norm of the kernels.
RELATIVE_STEPS = (0.01, 0.03, 0.1, 0.3)
NUM_ITERATIONS = 8  # of each of the two rounds of power iteration

# Layers behind which, in a ResNet of version 1, there is a ReLU or was one.
_RELUS = ws_jax.matching_regex(r"(stem_norm|norm1|block\d+)$")
# What the figure shows: column, title, whether the axis is logarithmic.
_PANELS = (
  ("own.loss_variation", "loss variation (nats)", True),
  ("own.predictiveness", "gradient change / gradient", True),
  ("own.beta", "effective beta-smoothness, own units", True),
  ("own.sharpness", "largest Hessian eigenvalue, own units", True),
  ("removed", "part of the gradient that WS removes", False),
  ("dead", "share of dead channels", False),
)


@functools.cache
def losses(program: steps.Program):
  """The training loss by the raw parameters, and by the effective ones."""

  def by_effective(effective, model_state, batch):
    logits, _ = program.model.apply(
      {"params": effective, **model_state},
      batch["inputs"],
      train=True,
      mutable=list(model_state),
    )
    mask = jnp.ones(len(logits))
    sums = program.task.sums(logits, batch, mask, training=True)
    return sums["loss"] / sums["count"]

  def by_raw(params, model_state, batch):
    effective = steps.effective_params(program, params)
    return by_effective(effective, model_state, batch)

  return by_raw, by_effective


def landscape(program, state, batch) -> dict[str, jax.Array]:
  """Smoothness of the loss by the kernels: in their own units, and raw."""
  loss, _ = losses(program)
  scaled, coordinates, frame = diagnostics.in_own_units(loss, state.params)
  params, norms = frame
  raw = {path: norms[path] * unit for path, unit in coordinates.items()}
  ones = jax.tree.map(jnp.ones_like, norms)
  row = {}
  # The same function, so that it compiles once.
  for name, kernels, frame in (
    ("own", coordinates, (params, norms)),
    ("raw", raw, (params, ones)),
  ):
    args = frame, state.model_state, batch
    walk = diagnostics.along_gradient(scaled, kernels, RELATIVE_STEPS, *args)
    sharp = diagnostics.sharpness(
      scaled, kernels, *args, num_iterations=NUM_ITERATIONS
    )
    row |= {
      "loss": walk.loss,
      f"{name}.gradient_norm": walk.gradient_norm,
      f"{name}.loss_variation": walk.loss_variation,
      f"{name}.predictiveness": walk.predictiveness,
      f"{name}.beta": walk.beta_smoothness,
      f"{name}.sharpness": sharp.eigenvalue,
      f"{name}.sharpness_residual": sharp.residual,
    }
  squared = optax.tree.norm(raw) ** 2
  return row | {"raw.sharpness_times_w2": row["raw.sharpness"] * squared}


@functools.partial(jax.jit, static_argnums=0)
def inside(program, state, batch, probe) -> dict[str, jax.Array]:
  """What WS removes from the gradients; dead channels; margins; power."""
  _, by_effective = losses(program)
  effective = steps.effective_params(program, state.params)
  grads = jax.grad(by_effective)(effective, state.model_state, batch)
  row = {}
  terms = diagnostics.removed_terms(grads, effective)
  whole = sum(term.squared_norm for term in terms.values())
  for part in ("mean", "radial"):
    row[f"removed.{part}"] = sum(
      getattr(term, part) * term.squared_norm for term in terms.values()
    ) / jnp.maximum(whole, 1e-30)
    row |= {
      f"removed.{part}/{path}": getattr(term, part)
      for path, term in terms.items()
    }
  row["removed"] = row["removed.mean"] + row["removed.radial"]
  stats = functools.partial(
    diagnostics.activation_stats,
    program.model,
    {"params": effective, **state.model_state},
    probe["inputs"],
    train=True,
  )
  dead = {path: found.dead for path, found in stats(where=_RELUS).items()}
  norms = stats(where=diagnostics.norm_layers)
  powers = {path: found.constant_power for path, found in norms.items()}
  margins = {path: found.margin.min() for path, found in norms.items()}
  row["dead"] = jnp.stack(list(dead.values())).mean()
  row["constant_power"] = jnp.stack(list(powers.values())).mean()
  row["lowest_margin"] = jnp.stack(list(margins.values())).min()
  for name, values in (
    ("dead", dead),
    ("constant_power", powers),
    ("lowest_margin", margins),
  ):
    row |= {f"{name}/{path}": value for path, value in values.items()}
  return row


def measure(workdir: pathlib.Path, known: set[tuple[str, int]], wanted):
  """Yields a row for each checkpoint of one run that has none yet."""
  saved = config.flatten(disk.read_json(workdir / "config.json"))
  resolved, dataset, program = loop.prepare(
    config.apply(config.default(), saved)
  )
  folder = workdir / "checkpoints"
  kept = {int(p.name) for p in folder.iterdir() if p.name.isdecimal()} | {0}
  todo = sorted(kept if wanted is None else kept & wanted)
  todo = [step for step in todo if (workdir.name, step) not in known]
  if not todo:
    return
  numbers = {
    name: resolved.optim[name]
    for name in ("learning_rate", "weight_decay", "momentum")
  }
  arrays = dataset.train
  start = steps.init_state(program, arrays, resolved.seed, numbers)
  size, probe_size = resolved.data.batch_size, _PROBE.value
  batch = program.task.batch(arrays, jnp.arange(size), None)
  probe = program.task.batch(arrays, jnp.arange(probe_size), None)
  for step in todo:
    # Statistics of the batch are used here, as in training: none are read.
    saved = weights.read_params(folder / str(step)) if step else start.params
    state = start.replace(params=saved)
    row = {
      "run": workdir.name,
      "arm": arms.arm(resolved.model.norm, resolved.model.ws),
      "learning_rate": resolved.optim.learning_rate,
      "seed": resolved.seed,
      "step": step,
    }
    found = landscape(program, state, batch)
    found |= inside(program, state, batch, probe)
    yield row | {k: float(f"{float(v):.4g}") for k, v in found.items()}


def draw(table: list[rows.Row]):
  """The `_PANELS` over steps: a line for each arm, its seeds as points."""
  return figures.sheet(
    [functools.partial(_panel, table=table, panel=panel) for panel in _PANELS],
    columns=3,
  )


def _panel(ax, *, table, panel):
  column, title, log = panel
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


def main(argv: list[str]) -> None:
  """Measures what is not measured yet, and draws all of it."""
  if len(argv) != 2:
    raise app.UsageError("give one folder: python scripts/diagnose.py DIR")
  logging.set_verbosity(logging.WARNING)
  backend.enable_compilation_cache()
  out = pathlib.Path(argv[1])
  target = pathlib.Path(_TO.value or out)
  target.mkdir(parents=True, exist_ok=True)
  wanted = _STEPS.value and {int(step) for step in _STEPS.value}
  table = rows.read(target / "diagnostics.csv")
  known = {(row["run"], row["step"]) for row in table}
  for run in rows.read(out / "runs.csv"):
    if run["status"] not in ("done", "diverged"):
      continue
    for row in measure(out / run["run"], known, wanted):
      table.append(row)
      rows.write(target / "diagnostics.csv", table)
      print(f"{row['run']} step {row['step']}: loss {row['loss']}", flush=True)
  if not table:
    sys.exit(f"error: no finished run in {out / 'runs.csv'}")
  draw(table).savefig(target / "diagnostics.png", dpi=80)
  print(f"table:  {target / 'diagnostics.csv'}")
  print(f"figure: {target / 'diagnostics.png'}")


if __name__ == "__main__":
  app.run(main)
