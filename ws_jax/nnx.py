"""Weight Standardization as Flax NNX modules.

For those who write their own modules, or have somebody else's. The stored
`nnx.Param`s are the raw ones, always: a forward pass runs on a copy of the
module in which the kernels, and nothing else, are replaced. Whatever is not a
parameter (batch statistics, random number streams) is shared with the copy, so
that what a forward pass writes there stays.

Paths are written as `nnx.to_pure_dict` nests the parameters: "conv1/kernel",
"layers/0/kernel". Names are those of `ws_jax.linen`; NNX calls a dense layer
`Linear`, so `WSDense` is also `WSLinear`.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from ws_jax import (
  BIT,
  Axes,
  Convention,
  Selector,
  Where,
  all_but,
  conv_kernels,
  fan_in_axes,
  get_convention,
  weight_standardize,
)
from ws_jax.core.kernels import verdict_on

M = TypeVar("M", bound=nnx.Module)

_CONVOLUTIONS = (nnx.Conv, nnx.ConvTranspose)
_LAYERS = (*_CONVOLUTIONS, nnx.Linear)  # layers whose fan-in axes are known
_NO_CONVOLUTIONS = (nnx.Linear, nnx.LinearGeneral, nnx.Einsum)


def standardized(
  module: M,
  *,
  where: Where | None = None,
  axes: Axes | None = None,
  convention: str | Convention = BIT,
  gains: Mapping[str, jax.Array] | None = None,
) -> M:
  """Returns a copy of a module whose kernels are standardized.

  Call it inside the function that is differentiated, and differentiate with
  respect to the module given: its parameters are the raw ones, and are left as
  they are. With several forward passes in a step it need run only once. Called
  outside of training, the copy is the plain module to deploy.

  Args:
    module: Layer or whole model.
    where: Selector `(path, leaf) -> bool` of the kernels, a glob or a list of
      globs. None for the selector of `selectors`.
    axes: Rule `(path, leaf) -> tuple` for the fan-in axes. None for that of
      `selectors`.
    convention: Name of `ws_jax.CONVENTIONS`, or a `Convention`.
    gains: Gains `{path: [out] array}` as in `ws_jax.weight_standardize`, or
      None.

  Returns:
    A module of the same type. Its parameters are new; all of its other state is
    that of `module` itself.

  Raises:
    ValueError: As `ws_jax.weight_standardize`.

  Example:
    >>> conv = nnx.Conv(3, 16, (3, 3), rngs=nnx.Rngs(0))
    >>> def loss(conv, images):
    ...   return jnp.sum(standardized(conv)(images) ** 2)
    >>> grads = nnx.grad(loss)(conv, jnp.ones((2, 8, 8, 3)))
    >>> grads["kernel"].shape
    (3, 3, 3, 16)
    >>> float(standardized(conv).kernel.std()) > 0.99
    True
    >>> float(conv.kernel.std()) < 0.3
    True
  """
  own_where, own_axes = selectors(module)
  graphdef, params, rest = nnx.split(module, nnx.Param, ...)
  effective = weight_standardize(
    params,
    where=where or own_where,
    axes=axes or own_axes,
    convention=convention,
    gains=gains,
  )
  return nnx.merge(graphdef, effective, rest)


def selectors(module: nnx.Module) -> tuple[Selector, Axes]:
  """Returns the default selector and axis rule of a module.

  NNX knows which layer holds a kernel, so both go by the layer where
  `conv_kernels` and `fan_in_axes` can only go by names. They are for the
  functions of `ws_jax` that take a tree (`weight_standardize`, `describe`,
  `fold`), and work on the `nnx.State` of the parameters and on its pure dict
  alike. They hold no reference to the module.

  Args:
    module: Layer or whole model; an abstract one of `nnx.eval_shape` will do.

  Returns:
    The selector, which takes the kernel if `module` is one layer, and else
    those of `nnx.Conv` and `nnx.ConvTranspose`; layers that standardize
    themselves (`WSConv`) are left out, and so are those that `conv_kernels`
    leaves out by their role. And the axis rule, which returns the fan-in axes
    of the layer, or of one layer of a stack that `nnx.vmap` made.
    Parameters of layers that are not NNX's own are left to `conv_kernels` and
    `fan_in_axes`.

  Example:
    >>> rngs = nnx.Rngs(0)
    >>> head = nnx.Linear(8, 2, rngs=rngs)
    >>> model = nnx.Sequential(nnx.Conv(3, 8, 3, rngs=rngs), head)
    >>> where, axes = selectors(model)
    >>> raw = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    >>> effective = weight_standardize(raw, where=where, axes=axes)
    >>> float(effective["layers"][0]["kernel"].std()) > 0.99
    True
    >>> effective["layers"][1]["kernel"] is raw["layers"][1]["kernel"]
    True
  """
  alone = isinstance(module, _LAYERS) and not isinstance(module, _Standardized)
  taken, rules = {}, {}
  for keys, layer in nnx.iter_modules(module):
    path = "/".join(map(str, (*keys, "kernel")))
    if isinstance(layer, (*_LAYERS, nnx.LinearGeneral)):
      rules[path] = _layer_axes(layer)
    if isinstance(layer, _Standardized):
      taken[path] = False
    elif isinstance(layer, _CONVOLUTIONS):
      taken[path] = True
    elif isinstance(layer, _NO_CONVOLUTIONS):
      taken[path] = alone

  def where(path: str, leaf: Any) -> bool:
    if alone:
      return path == "kernel"
    if path not in taken:
      return conv_kernels(path, leaf)
    return taken[path] and not verdict_on(path, leaf).role

  def axes(path: str, leaf: Any) -> tuple[int, ...]:
    return rules.get(path, fan_in_axes)(path, leaf)

  return where, axes


class WeightStandardization(nnx.Module):
  """A module that computes with standardized kernels.

  The parameters are those of `module`, one level down in the state. Other
  methods than `__call__`, and what the forward pass does to attributes that are
  not `nnx.Variable`s, need `standardized` itself.

  Attributes:
    module: Module given; its parameters stay raw.
    where: Selector of the kernels; see `standardized`.
    axes: Rule for the fan-in axes; see `standardized`.
    convention: Convention to follow; see `standardized`.

  Raises:
    ValueError: The convention is unknown. When called: as `standardized`.

  Example:
    >>> conv = nnx.Conv(3, 16, (3, 3), rngs=nnx.Rngs(0))
    >>> model = WeightStandardization(conv, convention="qiao")
    >>> model(jnp.ones((2, 8, 8, 3))).shape
    (2, 8, 8, 16)
  """

  def __init__(
    self,
    module: nnx.Module,
    *,
    where: Where | None = None,
    axes: Axes | None = None,
    convention: str | Convention = BIT,
  ):
    self.module = module
    self.where = where
    self.axes = axes
    self.convention = get_convention(convention)

  def __call__(self, *args, **kwargs):
    """Calls a standardized copy of the wrapped module."""
    module: Any = standardized(
      self.module,
      where=self.where,
      axes=self.axes,
      convention=self.convention,
    )
    return module(*args, **kwargs)


class _Standardized:
  """A mixin, in front of a layer of NNX, that standardizes its kernel.

  Attributes:
    convention: Convention to follow.
    use_gain: Whether the layer has a gain.
    gain: Factor per filter `[out_features]`, ones at first, or None.
  """

  def __init__(
    self,
    *args: Any,
    convention: str | Convention = BIT,
    use_gain: bool = False,
    **kwargs: Any,
  ):
    super().__init__(*args, **kwargs)
    layer: Any = self
    layer.convention = get_convention(convention)
    layer.use_gain = use_gain
    # A constant asks for no random key: the kernel of a seed is that of the
    # plain layer.
    gain = jnp.ones((layer.out_features,), layer.param_dtype)
    layer.gain = nnx.Param(gain) if use_gain else nnx.data(None)

  def __call__(self, *args: Any, **kwargs: Any) -> jax.Array:
    """Applies the plain layer, with the standardized kernel."""
    layer: Any = self
    kernel = weight_standardize(
      {"kernel": layer.kernel[...]},
      where=lambda path, leaf: True,
      axes=_layer_axes(layer),
      convention=layer.convention,
      gains={"kernel": layer.gain[...]} if layer.use_gain else None,
    )["kernel"]
    effective = nnx.map(
      lambda path, leaf: leaf.replace(kernel) if path == ("kernel",) else leaf,
      layer,
    )
    plain: Any = super(_Standardized, effective)
    return plain.__call__(*args, **kwargs)


class WSConv(_Standardized, nnx.Conv):
  """`nnx.Conv` with a standardized kernel; same arguments, same parameters.

  Attributes:
    convention: Name of `ws_jax.CONVENTIONS`, or a `Convention`.
    use_gain: Whether there is a parameter "gain" `[out_features]`, ones at
      first, that scales the filters; for the scaled conventions ("nfnet",
      "timm_scaled").

  Raises:
    ValueError: The convention is unknown. When called: the fan-in is too small.

  Example:
    >>> settings = {"convention": "nfnet", "use_gain": True}
    >>> conv = WSConv(3, 16, (3, 3), rngs=nnx.Rngs(0), **settings)
    >>> conv(jnp.ones((2, 8, 8, 3))).shape
    (2, 8, 8, 16)
    >>> sorted(nnx.state(conv, nnx.Param))
    ['bias', 'gain', 'kernel']
  """


class WSConvTranspose(_Standardized, nnx.ConvTranspose):
  """`nnx.ConvTranspose` with a standardized kernel, of either layout.

  Attributes:
    convention: Convention to follow; see `WSConv`.
    use_gain: Whether the layer has a gain; see `WSConv`.

  Example:
    >>> up = WSConvTranspose(3, 4, (2, 2), strides=(2, 2), rngs=nnx.Rngs(0))
    >>> up(jnp.ones((1, 8, 8, 3))).shape
    (1, 16, 16, 4)
  """


class WSLinear(_Standardized, nnx.Linear):
  """`nnx.Linear` with a standardized kernel: `WSDense` of `ws_jax.linen`.

  Attributes:
    convention: Convention to follow; see `WSConv`.
    use_gain: Whether the layer has a gain; see `WSConv`.

  Example:
    >>> linear = WSLinear(8, 4, convention="timm", rngs=nnx.Rngs(0))
    >>> linear(jnp.ones((2, 8))).shape
    (2, 4)
  """


# The name that `ws_jax.linen` has for it.
WSDense = WSLinear


def _layer_axes(layer: Any) -> Axes:
  """Returns the axis rule of a layer, or of a stack of such layers.

  The rule raises a ValueError if the layers are stacked along another axis than
  the first ones.
  """
  if isinstance(layer, nnx.LinearGeneral):
    batch, inputs = len(layer.batch_axis), len(layer.in_features)
    outputs = layer.out_features
    shape = (None,) * (batch + inputs) + tuple(outputs)
    kept = (*range(batch), *range(-len(outputs), 0))
  else:
    linear = isinstance(layer, nnx.Linear)
    shape = (
      (layer.in_features, layer.out_features) if linear else layer.kernel_shape
    )
    kept = (-2 if getattr(layer, "transpose_kernel", False) else -1,)

  def axes(path: str, leaf: Any) -> tuple[int, ...]:
    stacked = leaf.ndim - len(shape)
    own = leaf.shape[max(stacked, 0) :]
    if len(own) != len(shape) or any(
      wanted not in (None, n) for wanted, n in zip(shape, own, strict=True)
    ):
      raise ValueError(
        f"{type(layer).__name__} {list(own)} is stacked along another axis than"
        f" the first of {list(leaf.shape)}: give its fan-in with axes="
      )
    front = tuple(range(stacked))
    return all_but(*front, *(i + stacked if i >= 0 else i for i in kept))(
      path, leaf
    )

  return axes
