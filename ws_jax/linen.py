"""Weight Standardization as Flax Linen modules.

For those who write their own modules. The stored parameters are the raw ones,
under the names that the plain modules give them, and the standardized kernels
exist in the forward pass only; a module that is being initialized is the plain
one. To standardize a whole model as it is, `ws_jax.weight_standardize` in front
of `apply` is simpler, and runs once in a step with several forward passes.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from ws_jax import (
  BIT,
  Axes,
  Convention,
  Where,
  all_but,
  conv_kernels,
  fan_in_axes,
  weight_standardize,
)

_LAYERS = (nn.Conv, nn.ConvLocal, nn.ConvTranspose, nn.Dense)


class WeightStandardization(nn.Module):
  """A module that computes with standardized kernels.

  Its parameters are those of the wrapped module, at the same paths: what was
  trained without the wrapper loads into it, and the other way round.

  Attributes:
    module: Layer or whole model to wrap.
    where: Selector `(path, leaf) -> bool` of the kernels, a glob or a tuple of
      globs. None for the kernel if `module` is one layer, else for
      `conv_kernels`.
    axes: Rule `(path, leaf) -> tuple` for the fan-in axes. None for the layer's
      own if `module` is one layer, else for `fan_in_axes`.
    convention: Name of `ws_jax.CONVENTIONS`, or a `Convention`.
    method: Name of the method of `module` that a call is for, as in
      `wrapped.clone(method="encode").apply(variables, inputs)`.

  Raises:
    ValueError: As `ws_jax.weight_standardize`.

  Example:
    >>> import jax.numpy as jnp
    >>> conv = WeightStandardization(nn.Conv(16, (3, 3)))
    >>> images = jnp.ones((2, 8, 8, 3))
    >>> variables = conv.init(jax.random.key(0), images)
    >>> jax.tree.map(jnp.shape, variables["params"])
    {'bias': (16,), 'kernel': (3, 3, 3, 16)}
    >>> conv.apply(variables, images).shape
    (2, 8, 8, 16)
  """

  module: nn.Module
  where: Where | None = None
  axes: Axes | None = None
  convention: str | Convention = BIT
  method: str = "__call__"

  def setup(self):
    nn.share_scope(self, self.module)

  def __call__(self, *args, **kwargs):
    """Calls the wrapped module, or another method of it."""
    layer = isinstance(self.module, _LAYERS)
    return _call_standardized(
      lambda module: getattr(module, self.method)(*args, **kwargs),
      self.module,
      where=self.where or (_is_the_kernel if layer else conv_kernels),
      axes=self.axes or (_layer_axes(self.module) if layer else fan_in_axes),
      convention=self.convention,
    )


class WSConv(nn.Conv):
  """`nn.Conv` with a standardized kernel; same arguments, same parameters.

  Attributes:
    convention: Name of `ws_jax.CONVENTIONS`, or a `Convention`.
    use_gain: Whether there is a parameter "gain" `[features]`, ones at first,
      that scales the filters; for the scaled conventions ("nfnet",
      "timm_scaled").

  Example:
    >>> import jax.numpy as jnp
    >>> conv = WSConv(16, (3, 3), convention="nfnet", use_gain=True)
    >>> variables = conv.init(jax.random.key(0), jnp.ones((2, 8, 8, 3)))
    >>> jax.tree.map(jnp.shape, variables["params"])
    {'bias': (16,), 'gain': (16,), 'kernel': (3, 3, 3, 16)}
  """

  convention: str | Convention = BIT
  use_gain: bool = False

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Applies the convolution to `[batch, ..., in]`."""
    return _layer(self, nn.Conv, inputs)


class WSConvTranspose(nn.ConvTranspose):
  """`nn.ConvTranspose` with a standardized kernel, of either layout.

  Attributes:
    convention: Convention to follow; see `WSConv`.
    use_gain: Whether the layer has a gain; see `WSConv`.

  Example:
    >>> import jax.numpy as jnp
    >>> up = WSConvTranspose(4, (2, 2), strides=(2, 2), transpose_kernel=True)
    >>> out, _ = up.init_with_output(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    >>> out.shape
    (1, 16, 16, 4)
  """

  convention: str | Convention = BIT
  use_gain: bool = False

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Applies the transposed convolution to `[batch, ..., in]`."""
    return _layer(self, nn.ConvTranspose, inputs)


class WSDense(nn.Dense):
  """`nn.Dense` with a standardized kernel.

  Attributes:
    convention: Convention to follow; see `WSConv`.
    use_gain: Whether the layer has a gain; see `WSConv`.

  Example:
    >>> import jax.numpy as jnp
    >>> dense = WSDense(4, convention="timm")
    >>> out, _ = dense.init_with_output(jax.random.key(0), jnp.ones((2, 8)))
    >>> out.shape
    (2, 4)
  """

  convention: str | Convention = BIT
  use_gain: bool = False

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Applies the layer to `[..., in]`."""
    return _layer(self, nn.Dense, inputs)


def _layer(layer: Any, plain: type[nn.Module], inputs: jax.Array) -> jax.Array:
  """Calls the plain class of a WS layer with the standardized kernel."""
  gains = None
  if layer.use_gain:
    shape = (layer.features,)
    gain = layer.param("gain", nn.initializers.ones, shape, layer.param_dtype)
    gains = {"kernel": gain}
  return _call_standardized(
    lambda lifted: plain.__call__(lifted, inputs),
    layer,
    where=_is_the_kernel,
    axes=_layer_axes(layer),
    convention=layer.convention,
    gains=gains,
  )


def _call_standardized(
  call: Callable, module: nn.Module, **settings: Any
) -> Any:
  """Calls a function of a module that sees standardized kernels.

  Args:
    call: Function of the module.
    module: Module whose parameters are the raw ones.
    **settings: Arguments of `weight_standardize`.
  """
  # `init` stores what it computes with: if the kernel were replaced there too,
  # the standardized one would become the raw parameter.
  if module.is_initializing():
    return call(module)

  def effective(variables):
    return {"params": weight_standardize(variables["params"], **settings)}

  return nn.map_variables(call, "params", trans_in_fn=effective)(module)


def _is_the_kernel(path: str, leaf: Any) -> bool:
  """Selects the kernel among the parameters of one layer."""
  del leaf
  return path == "kernel"


def _layer_axes(layer: nn.Module) -> Axes:
  """Returns the axis rule of one layer."""
  if isinstance(layer, nn.ConvTranspose) and layer.transpose_kernel:
    return all_but(-2)
  if isinstance(layer, nn.ConvLocal):
    return lambda path, leaf: (leaf.ndim - 2,)
  return all_but(-1)
