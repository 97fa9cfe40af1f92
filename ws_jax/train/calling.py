"""How a step initializes and calls a model, be it Flax Linen or NNX.

A model is a Linen module, or an `NNXModel`. To the rest of the training both
are two functions of plain trees: `init` makes the raw parameters and the
model's other state, `apply` computes outputs and the new state. Randomness is a
function of the key given: no random state is kept.
"""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
from flax import nnx

import ws_jax
import ws_jax.linen
import ws_jax.nnx
from ws_jax.base.names import lookup
from ws_jax.core.describe import summarize
from ws_jax.core.kernels import by_path, filter_axes, select
from ws_jax.core.standardize import gains_beside

PyTree = Any

# Arguments by which models are told whether they are being trained.
_TRAIN = ("train", "training", "is_training")
_NOT_TRAIN = ("deterministic", "use_running_average")
_depthwise = ws_jax.matching("*depthwise*/kernel")

# The axis rules that `model.ws_axes` names, where they are not those of the
# model: of [head, in, out], `joint` standardizes over all heads at once.
WS_AXES: dict[str, dict[str, ws_jax.Axes]] = {
  "joint": {},
  "per_head": {"*ttention*/out/kernel": ws_jax.all_but(0, -1)},
}


@dataclasses.dataclass(frozen=True)
class NNXModel:
  """An NNX module as a hashable value: it is made when it is needed.

  Attributes:
    make: Class or function that is called with `rngs=`, and returns a module.
    arguments: Further arguments of it, as pairs of name and value.
  """

  make: Callable[..., nnx.Module]
  arguments: tuple[tuple[str, Any], ...] = ()

  def module(self, rngs: nnx.Rngs) -> nnx.Module:
    """Makes the module, with parameters of these random streams."""
    return self.make(rngs=rngs, **dict(self.arguments))


def wrap(model: Any) -> Any:
  """Returns a model in the form that a step takes.

  Args:
    model: Linen module; NNX module, whose parameters the run then starts from;
      `functools.partial` of a function that is called with `rngs=`.

  Raises:
    ValueError: something else.
  """
  if isinstance(model, (nn.Module, NNXModel)):
    return model
  if isinstance(model, nnx.Module):
    return NNXModel(_Given(model))
  if isinstance(model, functools.partial):
    arguments = sorted(model.keywords.items())
    return NNXModel(model.func, tuple(arguments))
  if isinstance(model, type) and issubclass(model, nnx.Module):
    return NNXModel(model)
  raise ValueError(
    f"{model!r} is no model: it must be a flax.linen.Module (an object, not"
    " its class), or an nnx.Module"
  )


class _Given:
  """Makes copies of one NNX module; equal to itself alone."""

  def __init__(self, module: nnx.Module):
    self._module = module

  def __call__(self, rngs: nnx.Rngs) -> nnx.Module:
    del rngs
    return nnx.clone(self._module)


def abstract(arrays: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of arrays `[N, ...]` that have two examples each."""
  return {
    name: jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype)
    for name, x in arrays.items()
  }


def init(
  model: Any, key: jax.Array, inputs: jax.Array
) -> tuple[PyTree, PyTree]:
  """Makes the parameters of a model and its other state.

  Args:
    model: Linen module or `NNXModel`.
    key: Random key of the initialization.
    inputs: Inputs of the right shape, `[B, ...]`.

  Returns:
    The raw parameters and the other collections, as running statistics.

  Raises:
    ValueError: the model has no parameters.
  """
  if isinstance(model, NNXModel):
    parts = _split(model.module(nnx.Rngs(key)))
    params, state = _plain(parts[1]), _plain(parts[3])
  else:
    # A dropout that nothing switches off asks for a key of its own.
    rngs = {"params": key, "dropout": jax.random.fold_in(key, 1)}
    mode = _mode(model, train=False)
    state = dict(model.init(rngs, inputs, **mode))
    params = state.pop("params", {})
  if not jax.tree.leaves(params):
    raise ValueError(f"{type(model).__name__} has no parameters to train")
  return params, state


def apply(
  model: Any,
  params: PyTree,
  state: PyTree,
  inputs: jax.Array,
  *,
  train: bool,
  key: jax.Array | None = None,
  frozen: tuple[str, ...] = (),
) -> tuple[Any, PyTree]:
  """Calls a model.

  Args:
    model: Linen module or `NNXModel`.
    params: Parameters as `init` returns them, effective ones where WS is on.
    state: Other collections.
    inputs: Inputs `[B, ...]`.
    train: Whether this is a training step.
    key: Random key of dropout and the like, for training.
    frozen: Shell patterns of running statistics. The layers that have them
      behave in training as in evaluation, and leave them as they are.

  Returns:
    The outputs and the new state; in evaluation the state given.
  """
  if isinstance(model, NNXModel):
    return _apply_nnx(model, params, state, inputs, train, key, frozen)
  variables = {"params": params, **state}
  mode = _mode(model, train)
  if not train:
    return model.apply(variables, inputs, **mode), state
  assert key is not None, "training needs a key"
  with _evaluating(state, frozen):
    outputs, new = model.apply(
      variables,
      inputs,
      mutable=list(state),
      # Streams of other names draw from "params".
      rngs={"dropout": key, "params": jax.random.fold_in(key, 1)},
      **mode,
    )
  return outputs, dict(new)


@contextlib.contextmanager
def _evaluating(state: PyTree, frozen: tuple[str, ...]) -> Iterator[None]:
  """Lets the frozen layers of a Linen module behave as in evaluation.

  Raises:
    ValueError: at the end, if one of them was not called by its name.
  """
  if not frozen:
    yield
    return
  stays = ws_jax.matching(*frozen)
  layers = {
    path.rpartition("/")[0]
    for collection in state.values()
    for path, leaf in by_path(collection).items()
    if stays(path, leaf)
  }

  called: set[str] = set()

  def evaluate(call, args, kwargs, context):
    module, name = context.module, "/".join(context.module.path)
    if context.method_name != "__call__" or name not in layers:
      return call(*args, **kwargs)
    called.add(name)
    mode = dict(_mode_of(type(module), train=False))
    for switch in tuple(mode):
      # Flax's BatchNorm takes it from its attribute, or from the call.
      if getattr(module, switch, None) is not None:
        object.__setattr__(module, switch, mode.pop(switch))
    function: Any = type(module).__call__
    bound = inspect.signature(function).bind(module, *args, **kwargs)
    bound.arguments.update(mode)
    return call(*bound.args[1:], **bound.kwargs)

  with nn.intercept_methods(evaluate):
    yield
  if missed := sorted(layers - called):
    raise ValueError(
      f"the statistics of {missed[0]} cannot be frozen: a loop over equal"
      " layers calls it by another name; set model.scan=false, or"
      " optim.freeze_statistics=false"
    )


def effective_params(
  model: Any,
  params: PyTree,
  convention: ws_jax.Convention | None,
  globs: tuple[str, ...] = (),
  axes_name: str = "joint",
  depthwise: str = "standardize",
) -> PyTree:
  """Returns the parameters to apply the model with: standardized if WS is on.

  Args:
    model: Linen module or `NNXModel`.
    params: Raw parameters.
    convention: Convention of Weight Standardization; None for plain weights.
    globs: Shell patterns of the paths to standardize; empty for the kernels of
      convolutions.
    axes_name: Name in `WS_AXES`, or texts `GLOB=AXIS` with spaces between: the
      axes that count the filters of these kernels.
    depthwise: Treatment of the kernels whose path says "depthwise":
      `standardize`, `scale` (their mean is not subtracted) or `leave`.

  Raises:
    ValueError: nothing is selected; the message lists the paths.
  """
  if convention is None:
    return params
  where, axes = selection(model, globs, axes_name)

  def standardized(params, where, convention):
    return ws_jax.weight_standardize(
      params,
      where=where,
      axes=axes,
      convention=convention,
      gains=gains_beside(params, where=where, axes=axes),
    )

  if depthwise == "standardize":
    return standardized(params, where, convention)
  spared, rest = _split_off_depthwise(params, where)
  effective = standardized(params, rest, convention)
  if depthwise == "leave":
    return effective
  scaled = dataclasses.replace(convention, center=False)
  return standardized(effective, spared, scaled)


def summary(
  model: Any,
  params: PyTree,
  globs: tuple[str, ...] = (),
  axes_name: str = "joint",
  depthwise: str = "standardize",
) -> str:
  """Returns in one line which kernels `effective_params` standardizes.

  Args:
    model: Linen module or `NNXModel`.
    params: Raw parameters.
    globs: Shell patterns, as in `effective_params`.
    axes_name: Name in `WS_AXES`, as there.
    depthwise: Treatment of depthwise kernels, as there.
  """
  where, axes = selection(model, globs, axes_name)
  if depthwise == "leave":
    _, where = _split_off_depthwise(params, where)
  line = summarize(params, where=where, axes=axes)
  note = "; the mean of depthwise kernels stays" if depthwise == "scale" else ""
  return line + note


def _split_off_depthwise(
  params: PyTree, where: ws_jax.Where
) -> tuple[ws_jax.Selector, ws_jax.Selector]:
  """Returns selectors of the depthwise kernels, and of the other ones."""
  chosen = select(params, where)
  spared = lambda path, leaf: path in chosen and _depthwise(path, leaf)
  rest = lambda path, leaf: path in chosen and not _depthwise(path, leaf)
  return spared, rest


def selection(
  model: Any, globs: tuple[str, ...] = (), axes_name: str = "joint"
) -> tuple[ws_jax.Where, ws_jax.Axes]:
  """Returns the parameters that WS standardizes, and their fan-in axes.

  Args:
    model: Linen module or `NNXModel`.
    globs: Shell patterns of the paths; empty for the kernels of convolutions.
    axes_name: Name in `WS_AXES`.
  """
  where, axes = ws_jax.conv_kernels, ws_jax.fan_in_axes
  if isinstance(model, NNXModel):
    where, axes = ws_jax.nnx.selectors(_abstract(model))
  axes = ws_jax.axes_by_path(_rules(axes_name), default=axes)
  return globs or where, axes


def check_axes(name: str) -> None:
  """Refuses a name that is not in `WS_AXES`, and is no list of `GLOB=AXIS`.

  Raises:
    ValueError: the message has the nearest name, or the form.
  """
  _rules(name)


def _rules(name: str) -> Mapping[str, ws_jax.Axes]:
  """Returns the axis rules of `model.ws_axes`, by shell pattern."""
  if "=" in name:
    return filter_axes(name.split())
  return lookup(WS_AXES, name, "model.ws_axes")


def with_gains(
  params: PyTree, where: ws_jax.Where, axes: ws_jax.Axes
) -> PyTree:
  """Adds a `gain` of ones beside each kernel that has none yet.

  The model does not know of them: `effective_params` multiplies the kernels.

  Args:
    params: Raw parameters, nested dicts.
    where: Selector of the kernels.
    axes: Rule for their fan-in axes.

  Raises:
    ValueError: nothing is selected, or a parameter that is not called `kernel`.
  """
  flat: dict[str, Any] = flax.traverse_util.flatten_dict(params, sep="/")
  for path, ones in ws_jax.init_gains(params, where=where, axes=axes).items():
    if path.rpartition("/")[2] != "kernel":
      raise ValueError(
        f"model.ws_gains=true is for parameters called kernel, not {path}"
      )
    flat.setdefault(f"{path.removesuffix('kernel')}gain", ones)
  return flax.traverse_util.unflatten_dict(flat, sep="/")


def _mode(model: Any, train: bool) -> dict[str, bool]:
  """Returns the arguments that tell a model whether it trains."""
  # The wrapper takes any arguments, and passes them on.
  wrapped = isinstance(model, ws_jax.linen.WeightStandardization)
  return _mode_of(type(model.module if wrapped else model), train)


@functools.cache
def _mode_of(kind: type, train: bool) -> dict[str, bool]:
  call: Any = kind.__call__
  takes = inspect.signature(call).parameters
  mode = {name: train for name in _TRAIN if name in takes}
  return mode | {name: not train for name in _NOT_TRAIN if name in takes}


def _apply_nnx(model, params, state, inputs, train, key, frozen):
  graph, like, random, rest = _structure(model, train, frozen)
  module = nnx.merge(
    graph,
    _filled(like, params),
    _fresh(random, jax.random.key(0) if key is None else key),
    _filled(rest, state),
  )
  outputs = module(inputs, **_mode(module, train))
  return outputs, _plain(_split(module)[3]) if train else state


def _split(module: nnx.Module) -> tuple[Any, Any, Any, Any]:
  """Returns structure, parameters, random state and the rest of a module."""
  graph, params, random, _, rest = nnx.split(
    module, nnx.Param, nnx.RngState, nnx.Intermediate, ...
  )
  return graph, params, random, rest


@functools.cache
def _structure(
  model: NNXModel, train: bool, frozen: tuple[str, ...]
) -> tuple[Any, Any, Any, Any]:
  module = nnx.eval_shape(lambda: model.module(nnx.Rngs(0)))
  module.train() if train else module.eval()
  stays = ws_jax.matching(*frozen)
  for path, part in nnx.iter_modules(module):
    name = "/".join(map(str, (*path, "mean")))
    if isinstance(part, nnx.BatchNorm) and stays(name, None):
      part.eval()
  return _split(module)


@functools.cache
def _abstract(model: NNXModel) -> nnx.Module:
  return nnx.eval_shape(lambda: model.module(nnx.Rngs(0)))


def _plain(state: Any) -> PyTree:
  """Returns the values of an `nnx.State` as nested dicts with text keys."""

  def texts(tree):
    if not isinstance(tree, dict):
      return tree
    return {str(name): texts(value) for name, value in tree.items()}

  return texts(nnx.to_pure_dict(state))


def _filled(like: Any, tree: PyTree) -> Any:
  """Returns an `nnx.State` with the structure of `like` and these values."""

  def pick(names, values):
    if not isinstance(names, dict):
      return values
    return {name: pick(one, values[str(name)]) for name, one in names.items()}

  state = jax.tree.map(lambda x: x, like)
  nnx.replace_by_pure_dict(state, pick(nnx.to_pure_dict(like), tree))
  return state


def _fresh(random: Any, key: jax.Array) -> Any:
  """Returns the random state of a module, made from one key."""
  leaves, treedef = jax.tree.flatten(random)
  fresh = []
  for i, leaf in enumerate(leaves):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      own = jax.random.fold_in(key, i)
      fresh.append(jax.random.split(own, leaf.shape) if leaf.shape else own)
    else:
      fresh.append(jnp.zeros(leaf.shape, leaf.dtype))
  return jax.tree.unflatten(treedef, fresh)
