"""Weight Standardization as Flax NNX modules.

For those who write their own modules, or have somebody else's. The stored
`nnx.Param`s are the raw ones, always: a forward pass runs on a copy of the
module in which the kernels, and nothing else, are replaced. Whatever is not a
parameter (batch statistics, random number streams) is shared with the copy, so
that what a forward pass writes there stays.

The names are those of `ws_jax.linen`; NNX calls a dense layer `Linear`, so that
`WSDense` is `WSLinear` as well.
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
  all_but,
  conv_kernels,
  fan_in_axes,
  get_convention,
  weight_standardize,
)

M = TypeVar("M", bound=nnx.Module)

_LAYERS = (nnx.Conv, nnx.ConvTranspose, nnx.Linear)


def standardized(
  module: M,
  *,
  where: Selector | None = None,
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
    module: a layer or a whole model.
    where: `(path, leaf) -> bool`, which parameters are kernels. None stands for
      the kernel if `module` is one layer, else for those of `nnx.Conv` and
      `nnx.ConvTranspose`, and what `conv_kernels` takes besides; layers that
      standardize themselves (`WSConv`) are left alone.
    axes: `(path, leaf) -> tuple`, fan-in axes. None stands for those of the
      layer that holds the kernel (of one of a stack, if it was made by
      `nnx.vmap`), and for `fan_in_axes` in layers of other kinds.
    convention: a name of `ws_jax.CONVENTIONS` or a `Convention`.
    gains: optional `{path: [out] array}`, as in `ws_jax.weight_standardize`.

  Returns:
    A module of the same type. Its parameters are new; all of its other state is
    that of `module` itself.

  Raises:
    ValueError: as `ws_jax.weight_standardize`.

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
  layers = {
    "/".join(map(str, (*path, "kernel"))): layer
    for path, layer in nnx.iter_modules(module)
    if isinstance(layer, _LAYERS)
  }
  graphdef, params, rest = nnx.split(module, nnx.Param, ...)
  effective = weight_standardize(
    params,
    where=where or _kernels_of(module, layers),
    axes=axes or _axes_of(layers),
    convention=convention,
    gains=gains,
  )
  return nnx.merge(graphdef, effective, rest)


def selectors(module: nnx.Module) -> tuple[Selector, Axes]:
  layers = {
    "/".join(map(str, (*path, "kernel"))): layer
    for path, layer in nnx.iter_modules(module)
    if isinstance(layer, _LAYERS)
  }
  return _kernels_of(module, layers), _axes_of(layers)


class WeightStandardization(nnx.Module):
  """Wraps a module so that it computes with standardized kernels.

  The parameters are those of `module`, one level down in the state. Other
  methods than `__call__`, and what the forward pass does to attributes that are
  not `nnx.Variable`s, need `standardized` itself.

  Attributes:
    module: the module given; its parameters stay raw.
    where: as in `standardized`.
    axes: as in `standardized`.
    convention: as in `standardized`.

  Raises:
    ValueError: unknown convention; when called, as `standardized`.

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
    where: Selector | None = None,
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


class WSConv(nnx.Conv):
  """`nnx.Conv` with a standardized kernel; same arguments, same parameters.

  Attributes:
    convention: a name of `ws_jax.CONVENTIONS` or a `Convention`.
    use_gain: adds a parameter "gain" `[out_features]`, ones at first, that
      scales the filters; for the scaled conventions ("nfnet", "timm_scaled").

  Raises:
    ValueError: unknown convention; when called, a fan-in that is too small.

  Example:
    >>> settings = {"convention": "nfnet", "use_gain": True}
    >>> conv = WSConv(3, 16, (3, 3), rngs=nnx.Rngs(0), **settings)
    >>> conv(jnp.ones((2, 8, 8, 3))).shape
    (2, 8, 8, 16)
    >>> sorted(nnx.state(conv, nnx.Param))
    ['bias', 'gain', 'kernel']
  """

  def __init__(
    self,
    *args: Any,
    convention: str | Convention = BIT,
    use_gain: bool = False,
    **kwargs: Any,
  ):
    super().__init__(*args, **kwargs)
    _add_settings(self, convention, use_gain)

  def __call__(self, *args: Any, **kwargs: Any) -> jax.Array:
    """Applies the convolution to `[batch, ..., in]`."""
    return nnx.Conv.__call__(_effective(self), *args, **kwargs)


class WSConvTranspose(nnx.ConvTranspose):
  """`nnx.ConvTranspose` with a standardized kernel, of either layout.

  Attributes:
    convention: as in `WSConv`.
    use_gain: as in `WSConv`.

  Example:
    >>> up = WSConvTranspose(3, 4, (2, 2), strides=(2, 2), rngs=nnx.Rngs(0))
    >>> up(jnp.ones((1, 8, 8, 3))).shape
    (1, 16, 16, 4)
  """

  def __init__(
    self,
    *args: Any,
    convention: str | Convention = BIT,
    use_gain: bool = False,
    **kwargs: Any,
  ):
    super().__init__(*args, **kwargs)
    _add_settings(self, convention, use_gain)

  def __call__(self, *args: Any, **kwargs: Any) -> jax.Array:
    """Applies the transposed convolution to `[batch, ..., in]`."""
    return nnx.ConvTranspose.__call__(_effective(self), *args, **kwargs)


class WSLinear(nnx.Linear):
  """`nnx.Linear` with a standardized kernel: `WSDense` of `ws_jax.linen`.

  Attributes:
    convention: as in `WSConv`.
    use_gain: as in `WSConv`.

  Example:
    >>> linear = WSLinear(8, 4, convention="timm", rngs=nnx.Rngs(0))
    >>> linear(jnp.ones((2, 8))).shape
    (2, 4)
  """

  def __init__(
    self,
    *args: Any,
    convention: str | Convention = BIT,
    use_gain: bool = False,
    **kwargs: Any,
  ):
    super().__init__(*args, **kwargs)
    _add_settings(self, convention, use_gain)

  def __call__(self, *args: Any, **kwargs: Any) -> jax.Array:
    """Applies the layer to `[..., in]`."""
    return nnx.Linear.__call__(_effective(self), *args, **kwargs)


# The name that `ws_jax.linen` has for it.
WSDense = WSLinear

_WS_LAYERS = (WSConv, WSConvTranspose, WSLinear)


def _add_settings(
  layer: Any, convention: str | Convention, use_gain: bool
) -> None:
  layer.convention = get_convention(convention)
  layer.use_gain = use_gain
  # A constant asks for no random key: the kernel of a seed is that of the plain
  # layer.
  gain = jnp.ones((layer.out_features,), layer.param_dtype)
  layer.gain = nnx.Param(gain) if use_gain else nnx.data(None)


def _effective(layer: Any) -> Any:
  """A copy of a WS layer that holds the standardized kernel."""
  kernel = weight_standardize(
    {"kernel": layer.kernel[...]},
    where=lambda path, leaf: True,
    axes=_layer_axes(layer),
    convention=layer.convention,
    gains={"kernel": layer.gain[...]} if layer.use_gain else None,
  )["kernel"]
  return nnx.map(
    lambda path, leaf: leaf.replace(kernel) if path == ("kernel",) else leaf,
    layer,
  )


def _kernels_of(module: nnx.Module, layers: dict[str, Any]) -> Selector:
  if isinstance(module, _LAYERS) and not isinstance(module, _WS_LAYERS):
    return lambda path, leaf: _name(path) == "kernel"

  def where(path: str, leaf: Any) -> bool:
    layer = layers.get(_name(path))
    if isinstance(layer, _WS_LAYERS):
      return False
    is_conv = isinstance(layer, (nnx.Conv, nnx.ConvTranspose))
    return is_conv or conv_kernels(path, leaf)

  return where


def _axes_of(layers: dict[str, Any]) -> Axes:
  def axes(path: str, leaf: Any) -> tuple[int, ...]:
    layer = layers.get(_name(path))
    return (_layer_axes(layer) if layer else fan_in_axes)(path, leaf)

  return axes


def _layer_axes(layer: Any) -> Axes:
  def axes(path: str, leaf: Any) -> tuple[int, ...]:
    rank = 2 + len(getattr(layer, "kernel_size", ()))
    stacked = range(leaf.ndim - rank)
    out = -2 if getattr(layer, "transpose_kernel", False) else -1
    return all_but(*stacked, out)(path, leaf)

  return axes


def _name(path: str) -> str:
  """The path of a leaf of an `nnx.State`, as the modules see it."""
  return path.removesuffix("/value")
