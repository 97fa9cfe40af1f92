"""Optimizers whose numbers are data, so that changing one compiles nothing.

The learning rate, weight decay and momentum are leaves of the optimizer state
(`optax.inject_hyperparams`). What shapes the program (which optimizer, which
schedule, how long) is a hashable value that `jax.jit` takes as static.

An optimizer of the user's own is a function that returns an optax
transformation, as `optax.lion`; see `Optimizer.make`.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ws_jax import gradients
from ws_jax.base import names
from ws_jax.core.kernels import (
  all_but,
  conv_kernels,
  matching,
  named_kernels,
  path_string,
  seeing,
  verdict_on,
)

PyTree = Any

SCHEDULES = ("constant", "step", "cosine", "one_cycle")
OPTIMIZERS = ("sgd", "adamw")
DECAYS = ("kernels", "all")

# Smith and Topin 2017 (1708.07120); the values fastai and PyTorch settled on.
_ONE_CYCLE_WARMUP = 0.3
_ONE_CYCLE_START = 1 / 25
_ONE_CYCLE_END = 1 / 1e4


@dataclasses.dataclass(frozen=True)
class Schedule:
  """The learning rate over its peak, as a function of the step.

  Attributes:
    kind: `constant`, `step` (times `factor` at each boundary), `cosine` (to
      0) or `one_cycle` (cosine from 1/25 of the peak up to it, then down to
      1e-4 of it; momentum is not cycled).
    total_steps: Number of steps of the run.
    warmup_steps: Number of steps of linear warm-up before `constant`, `step`
      and `cosine`; for `one_cycle` the steps up to the peak, 0 meaning 30 %.
    boundaries: Parts of the run after which `step` falls.
    factor: Factor of `step` at each boundary.

  Raises:
    ValueError: unknown kind.

  Example:
    >>> schedule = Schedule("cosine", total_steps=100, warmup_steps=10)
    >>> [round(float(schedule(s)), 3) for s in (0, 10, 55, 100)]
    [0.1, 1.0, 0.5, 0.0]
  """

  kind: str
  total_steps: int
  warmup_steps: int = 0
  boundaries: tuple[float, ...] = (1 / 3, 2 / 3)
  factor: float = 0.1

  def __post_init__(self):
    names.lookup(dict.fromkeys(SCHEDULES), self.kind, "schedule")

  def __call__(self, step: jax.typing.ArrayLike) -> jax.Array:
    """Returns the multiplier of the peak for update number `step` (from 0)."""
    step = jnp.asarray(step, jnp.float32)
    if self.kind == "one_cycle":
      return self._one_cycle(step)
    # Counted from 1, so that the first update already moves.
    warmup = jnp.minimum(1.0, (step + 1) / max(1, self.warmup_steps))
    if self.kind == "constant":
      return warmup
    if self.kind == "step":
      edges = jnp.asarray(self.boundaries, jnp.float32) * self.total_steps
      return warmup * self.factor ** jnp.sum(step >= edges)
    length = max(1, self.total_steps - self.warmup_steps)
    return warmup * _cosine((step - self.warmup_steps) / length)

  def _one_cycle(self, step: jax.Array) -> jax.Array:
    up = self.warmup_steps or round(_ONE_CYCLE_WARMUP * self.total_steps)
    rise = _cosine(1 - step / max(1, up))
    fall = _cosine((step - up) / max(1, self.total_steps - up))
    return jnp.where(
      step < up,
      _ONE_CYCLE_START + (1 - _ONE_CYCLE_START) * rise,
      _ONE_CYCLE_END + (1 - _ONE_CYCLE_END) * fall,
    )


def _cosine(part: jax.Array) -> jax.Array:
  """Returns half a cosine from 1 at 0 to 0 at 1, flat beyond."""
  return 0.5 * (1 + jnp.cos(math.pi * jnp.clip(part, 0.0, 1.0)))


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """SGD with momentum, AdamW, or one of the user's own, with all around it.

  Attributes:
    schedule: Relative learning rate.
    name: `sgd` (weight decay is added to the gradient, as in the WS paper's
      recipe) or `adamw` (decoupled, eps 1e-8; momentum is b1); with `make`
      just a name.
    b2: Decay of the second moment of `adamw`.
    nesterov: Whether both use Nesterov's form of the momentum.
    decay: Leaves that decay: `kernels`, or `all`.
    clip_norm: Largest global norm of the gradient, None for no limit.
    centralize: Whether the gradient of each kernel loses its mean over the
      fan-in (Gradient Centralization, see `ws_jax.centralize_gradients`).
    adaptive_clip: Largest ratio of unit-wise gradient to weight norm (AGC,
      Brock et al. 2021, sec. 4; not on the head), None for no limit.
    rest_factor: Learning rate of all but the convolution kernels (the head,
      the scales and biases of norms), as a part of theirs.
    freeze: Shell patterns of the paths of parameters that stay as they are: no
      update, no decay, no part in `clip_norm`, no momentum in memory.
    make: Function that returns an optax transformation, as `optax.lion`. It is
      called with `learning_rate`, and with `weight_decay`, `mask` (the leaves
      that decay) and `momentum` or `b1` if it takes them.
    arguments: Further arguments of `make`, as pairs of name and value.

  Raises:
    ValueError: an unknown name, or an argument that `make` does not take.
  """

  schedule: Schedule
  name: str = "sgd"
  b2: float = 0.999
  nesterov: bool = True
  decay: str = "kernels"
  centralize: bool = False
  clip_norm: float | None = None
  adaptive_clip: float | None = None
  rest_factor: float = 1.0
  freeze: tuple[str, ...] = ()
  make: Callable[..., optax.GradientTransformation] | None = None
  arguments: tuple[tuple[str, Any], ...] = ()

  def __post_init__(self):
    names.lookup(dict.fromkeys(DECAYS), self.decay, "decay mask")
    if self.make is None:
      names.lookup(dict.fromkeys(OPTIMIZERS), self.name, "optimizer")
      return
    takes = _parameters(self.make)
    for argument in ("learning_rate", *dict(self.arguments)):
      if argument not in takes:
        raise ValueError(
          f"optimizer {self.name} takes no argument {argument!r}:"
          f" {names.suggest(argument, takes)}"
        )

  def init(
    self, params: PyTree, *, learning_rate, weight_decay, momentum
  ) -> optax.OptState:
    """Returns the optimizer state; the three numbers may be traced.

    Args:
      params: Raw parameters, float32.
      learning_rate: Peak of the schedule.
      weight_decay: Coefficient of the decay.
      momentum: Momentum of SGD, or b1 of AdamW.
    """
    state: Any = _transformation(self).init(params)
    numbers = {
      "learning_rate": learning_rate,
      "weight_decay": weight_decay,
      "momentum": momentum,
    }
    as_float = lambda x: jnp.asarray(x, jnp.float32)
    return state._replace(hyperparams=jax.tree.map(as_float, numbers))

  def learning_rate(
    self, state: optax.OptState, step: jax.typing.ArrayLike
  ) -> jax.Array:
    """Returns the learning rate of update number `step` (from 0)."""
    injected: Any = state
    return injected.hyperparams["learning_rate"] * self.schedule(step)

  def motion(self, state: optax.OptState) -> dict[str, jax.Array]:
    """Returns the size of the last update relative to each kernel.

    Returns:
      `relative_step` and `effective_learning_rate` (see
      `ws_jax.monitor_effective_learning_rates`), means over the kernels that
      move, those of dense layers too, and a `count` of 1.
    """
    seen = gradients.effective_learning_rates(state)
    stays = matching(*self.freeze)

    def mean(values):
      moved = [value for path, value in values.items() if not stays(path, None)]
      return sum(moved, jnp.zeros((), jnp.float32)) / max(1, len(moved))

    return {
      "relative_step": mean(seen.relative_step),
      "effective_learning_rate": mean(seen.effective_learning_rate),
      "count": jnp.ones((), jnp.float32),
    }

  def update(
    self, grads: PyTree, state: optax.OptState, params: PyTree
  ) -> tuple[PyTree, optax.OptState]:
    """Returns new parameters and state; trees have the shape of `params`."""
    updates, state = _transformation(self).update(grads, state, params)
    return optax.apply_updates(params, updates), state

  def ignores(self) -> tuple[str, ...]:
    """Returns which of weight decay and momentum `make` has no use for."""
    if self.make is None:
      return ()
    takes = _parameters(self.make)
    ignored = [] if "weight_decay" in takes else ["weight_decay"]
    if not {"momentum", "b1"} & set(takes):
      ignored.append("momentum")
    return tuple(ignored)


def own(function: Any, name: str, arguments: Mapping[str, Any]) -> dict:
  """Returns the fields of `Optimizer` for a function of the user's own.

  Args:
    function: Function that returns an optax transformation.
    name: Name for messages.
    arguments: Further arguments of it.

  Raises:
    ValueError: it is a transformation, and not the function that makes one.
  """
  if isinstance(function, optax.GradientTransformation) or not callable(
    function
  ):
    raise ValueError(
      f"optimizer {name}: give the function that makes it, as optax.lion and"
      " not optax.lion(1e-3), so that the learning rate can be varied"
    )
  if isinstance(function, functools.partial):
    arguments = {**function.keywords, **arguments}
    function = function.func
  pairs = tuple(sorted(arguments.items()))
  return {"name": name, "make": function, "arguments": pairs}


def hyperparams(c: Any) -> dict[str, float]:
  """Returns the numbers of `config.optim` that a sweep varies for free."""
  return {
    name: c[name] for name in ("learning_rate", "weight_decay", "momentum")
  }


@functools.cache
def _transformation(spec: Optimizer) -> optax.GradientTransformation:
  def build(learning_rate, weight_decay, momentum):
    rest = []
    if spec.rest_factor != 1:
      slower = optax.scale(spec.rest_factor)
      rest = [optax.masked(slower, _not_convolutions)]
    steps = (
      *_clipping(spec),
      *_rule(spec, learning_rate, weight_decay, momentum),
      *rest,
      optax.scale_by_schedule(spec.schedule),
      *_rate(spec, learning_rate),
    )
    if spec.freeze:
      frozen = functools.partial(frozen_mask, globs=spec.freeze)
      moves = lambda params: jax.tree.map(lambda x: not x, frozen(params))
      steps = (
        optax.masked(optax.chain(*steps), moves),
        optax.masked(optax.set_to_zero(), frozen),
      )
    return optax.chain(
      *steps,
      gradients.monitor_effective_learning_rates(
        lambda step: learning_rate * spec.schedule(step),
        where=_observed,
        axes=_observed_axes,
        center=False,  # the raw kernels as they are, with WS or without
      ),
    )

  return optax.inject_hyperparams(build)(
    learning_rate=0.0, weight_decay=0.0, momentum=0.0
  )


def _rule(spec, learning_rate, weight_decay, momentum):
  """Returns the update rule; an own one has the learning rate in it."""
  mask = decay_mask(spec.decay)
  centralize = [gradients.centralize_gradients()] if spec.centralize else []
  if spec.make is not None:
    takes, arguments = _parameters(spec.make), dict(spec.arguments)
    given = {
      "learning_rate": learning_rate,
      "weight_decay": weight_decay,
      "mask": mask,
    }
    given["momentum" if "momentum" in takes else "b1"] = momentum
    arguments = {k: x for k, x in given.items() if k in takes} | arguments
    return [*centralize, spec.make(**arguments)]
  decay = optax.add_decayed_weights(weight_decay, mask=mask)
  if spec.name == "sgd":
    # As in the authors' code, where a filter's mean does not decay either.
    trace = optax.trace(momentum, nesterov=spec.nesterov)
    return [decay, *centralize, trace]
  adam = optax.scale_by_adam(b1=momentum, b2=spec.b2, nesterov=spec.nesterov)
  return [*centralize, adam, decay]


def _rate(spec, learning_rate):
  return [] if spec.make else [optax.scale_by_learning_rate(learning_rate)]


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
  return tuple(inspect.signature(function).parameters)


def _observed(path: str, leaf: Any) -> bool:
  """Selects kernels by name, and matrices of other names in foreign models."""
  matrix = leaf.ndim > 1 and not path.endswith("/gain")
  return named_kernels(path, leaf) or matrix


def _observed_axes(path: str, leaf: Any) -> tuple[int, ...]:
  """Returns fan-in axes, the usual ones where they cannot be known.

  What is only measured is no reason to refuse a run.
  """
  axes = verdict_on(path, leaf).axes
  return all_but(-1)(path, leaf) if axes is None else axes


def _clipping(spec: Optimizer) -> list[optax.GradientTransformation]:
  steps = []
  if spec.clip_norm is not None:
    steps.append(optax.clip_by_global_norm(spec.clip_norm))
  if spec.adaptive_clip is not None:
    clip = optax.adaptive_grad_clip(spec.adaptive_clip)
    not_head = functools.partial(
      jax.tree_util.tree_map_with_path,
      lambda path, _: "head" not in jax.tree_util.keystr(path),
    )
    steps.append(optax.masked(clip, not_head))
  return steps


def _not_convolutions(params: PyTree) -> PyTree:
  with seeing(params):
    return jax.tree_util.tree_map_with_path(
      lambda path, leaf: not conv_kernels(path_string(path), leaf), params
    )


def frozen_mask(params: PyTree, globs: tuple[str, ...]) -> PyTree:
  """Returns a tree of bools: which leaves stay as they are.

  Args:
    params: Tree of parameters.
    globs: Shell patterns of the paths that stay.

  Example:
    >>> frozen_mask({"stem": {"kernel": 0.0}, "head": {"bias": 0.0}}, ("st*",))
    {'head': {'bias': False}, 'stem': {'kernel': True}}
  """
  stays = matching(*globs)
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: stays(path_string(path), leaf), params
  )


def decay_mask(kind: str):
  """Returns a function from parameters to a tree of bools: which leaves decay.

  Args:
    kind: `kernels` (as `ws_jax.kernel_decay_mask`: not biases, not the scales
      of norms), or `all`.

  Example:
    >>> mask = decay_mask("kernels")
    >>> mask({"conv": {"kernel": jnp.ones((8, 2)), "bias": jnp.ones(2)}})
    {'conv': {'bias': False, 'kernel': True}}
  """
  if kind == "all":
    return lambda params: jax.tree.map(lambda _: True, params)
  return gradients.kernel_decay_mask
