"""The diagnostics of a training program at one state, as named numbers.

`landscape` measures the loss around the state, `inside` the gradients and the
activations. Both take raw parameters and standardize them as the program does.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

import ws_jax
from ws_jax import diagnostics
from ws_jax.train import calling
from ws_jax.train import step as steps

PyTree = Any

# Lengths of the steps along the gradient, as parts of the norm of the kernels.
RELATIVE_STEPS = (0.01, 0.03, 0.1, 0.3)
NUM_ITERATIONS = 8  # in each of the two rounds of power iteration

# Layers whose output goes through a ReLU in a version-1 ResNet.
_RELUS = ws_jax.matching_regex(r"(stem_norm|norm1|block\d+)$")


@functools.cache
def losses(program: steps.Program):
  """Returns two training losses: of raw, and of effective parameters.

  Cached, because the diagnostics compile once for each function object.

  Args:
    program: the program of the run.

  Returns:
    `loss(params, model_state, batch)` twice; the first standardizes the raw
    parameters that it is given, the second takes effective ones.
  """

  def by_effective(effective, model_state, batch):
    logits, _ = calling.apply(
      program.model,
      effective,
      model_state,
      batch["inputs"],
      train=True,
      key=jax.random.key(0),  # of dropout, the same at each point
    )
    mask = jnp.ones(len(logits), jnp.float32)
    sums = program.task.sums(logits, batch, mask, training=True)
    return sums["loss"] / sums["count"]

  def by_raw(params, model_state, batch):
    effective = steps.effective_params(program, params)
    return by_effective(effective, model_state, batch)

  return by_raw, by_effective


def landscape(
  program: steps.Program, state: steps.TrainState, batch: PyTree
) -> dict[str, jax.Array]:
  """Measures how smooth the loss is as a function of the kernels.

  Args:
    program: the program of the run.
    state: the state, with the raw parameters of the checkpoint.
    batch: a batch as `program.task.batch` returns it.

  Returns:
    The columns `own.*`, with each kernel in units of its own norm; `raw.*`, in
    the units of the parameters; and `loss`.
  """
  loss, _ = losses(program)
  scaled, coordinates, frame = diagnostics.in_own_units(loss, state.params)
  params, norms = frame
  raw = {path: norms[path] * unit for path, unit in coordinates.items()}
  ones = jax.tree.map(jnp.ones_like, norms)
  row = {}
  # Raw units are own units with every norm set to one: the same function, which
  # then is compiled once.
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
def inside(
  program: steps.Program, state: steps.TrainState, batch: PyTree, probe: PyTree
) -> dict[str, jax.Array]:
  """Measures what WS removes from the gradients, and the activations.

  Args:
    program: the program of the run.
    state: the state, with the raw parameters of the checkpoint.
    batch: the batch whose gradients are taken.
    probe: the batch whose activations are measured.

  Returns:
    The columns `removed*`, `dead*`, `constant_power*` and `lowest_margin*`:
    over the whole network, and behind a slash for each kernel or layer.
  """
  effective = steps.effective_params(program, state.params)
  row = _removed(program, effective, state.model_state, batch)
  return row | _activations(program, effective, state.model_state, probe)


def _removed(program, effective, model_state, batch):
  _, loss = losses(program)
  grads = jax.grad(loss)(effective, model_state, batch)
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
  return row


def _activations(program, effective, model_state, probe):
  stats = functools.partial(
    diagnostics.activation_stats,
    program.model,
    {"params": effective, **model_state},
    probe["inputs"],
    train=True,
  )
  dead = {path: layer.dead for path, layer in stats(where=_RELUS).items()}
  norms = stats(where=diagnostics.norm_layers)
  powers = {path: layer.constant_power for path, layer in norms.items()}
  margins = {path: layer.margin.min() for path, layer in norms.items()}
  row = {}
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
