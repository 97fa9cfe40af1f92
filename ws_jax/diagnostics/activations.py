"""The outputs of the layers of a Flax Linen model, channel by channel."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

PyTree = Any
ModuleSelector = Callable[[str, nn.Module], bool]


def norm_layers(path: str, module: nn.Module) -> bool:
  """Selects normalization layers by the name of their class.

  Example:
    >>> norm_layers("stem/norm", nn.GroupNorm(num_groups=4))
    True
    >>> norm_layers("head", nn.Dense(10))
    False
  """
  del path
  # A model of this package without normalization has `Affine` in its place.
  return type(module).__name__.endswith(("Norm", "Affine"))


def capture(
  model: nn.Module,
  variables: PyTree,
  *args: Any,
  where: ModuleSelector = norm_layers,
  **kwargs: Any,
) -> dict[str, jax.Array]:
  """Returns the outputs of some of the layers of a Linen model.

  Args:
    model: Any Linen model; it is not changed.
    variables: Parameters and other collections of the model.
    *args: Arguments to call the model with.
    where: Selector `(path, module) -> bool` of the layers. A path is
      "stage1_block1/norm1"; `ws_jax.matching` and `matching_regex` will do.
    **kwargs: Arguments by name to call the model with, for example
      `train=True`. Running statistics that the call writes are thrown away.

  Returns:
    The outputs as `{path: output}`, in the order in which the layers end. The
    second call of a layer has "#2" behind its path, and so on.

  Raises:
    ValueError: Nothing was selected; the message lists the paths.

  Example:
    >>> model = nn.Sequential([nn.Dense(8), nn.LayerNorm(), nn.Dense(2)])
    >>> x = jnp.ones((4, 3))
    >>> found = capture(model, model.init(jax.random.key(0), x), x)
    >>> {path: y.shape for path, y in found.items()}
    {'layers_1': (4, 8)}
  """
  seen, order = [], []

  def wanted(module: nn.Module, method: str) -> bool:
    path = "/".join(module.path)
    if method != "__call__":
      return False
    seen.append(path)
    if not where(path, module):
      return False
    order.append(path)
    return True

  collections = [name for name in variables if name != "params"]
  _, state = model.apply(
    variables,
    *args,
    mutable=[*collections, "intermediates"],
    capture_intermediates=wanted,
    **kwargs,
  )
  if not order:
    raise ValueError(f"no layer was selected; paths: {', '.join(seen)}")
  flat = traverse_util.flatten_dict(state["intermediates"])
  outputs: dict[str, Any] = {
    "/".join(keys[:-1]): calls
    for keys, calls in flat.items()
    if keys[-1] == "__call__"
  }
  return {
    path if not call else f"{path}#{call + 1}": output
    for path in dict.fromkeys(order)
    for call, output in enumerate(outputs[path])
  }


class ChannelStats(NamedTuple):
  """Moments of each channel, over all examples and positions.

  Attributes:
    mean: Mean of each channel, `[C]`.
    std: Standard deviation of each channel, `[C]`.
    max: Largest value of each channel, `[C]`.
  """

  mean: jax.Array
  std: jax.Array
  max: jax.Array

  @property
  def dead(self) -> jax.Array:
    """Share of the channels that a ReLU passes for no example at all.

    It is the same before the ReLU and behind it.
    """
    return jnp.mean(self.max <= 0, dtype=jnp.float32)

  @property
  def margin(self) -> jax.Array:
    """Mean over standard deviation of each channel before its ReLU, `[C]`.

    This is the distance from elimination singularities (Qiao et al. 2019,
    arXiv:1911.09738): at -3 a ReLU turns off all but one value in 700, and at
    +3 it is linear. BN keeps the margin at bias over scale; norms over channels
    keep only the average of a group.
    """
    return self.mean / jnp.maximum(self.std, 1e-12)

  @property
  def constant_power(self) -> jax.Array:
    """Part of the mean square that does not depend on the input.

    This is the power of the channels' means over the whole power (ProxyNorm,
    Labatie et al. 2021, arXiv:2106.03743); at 1 the layer's output does not
    depend on its input.
    """
    return self.squared_mean / jnp.maximum(
      self.squared_mean + self.variance, 1e-30
    )

  @property
  def squared_mean(self) -> jax.Array:
    """Average over the channels of the squared mean.

    It and `variance` are the two lines of a signal propagation plot (Brock et
    al. 2021, arXiv:2101.08692).
    """
    return jnp.mean(self.mean**2)

  @property
  def variance(self) -> jax.Array:
    """Average over the channels of the variance."""
    return jnp.mean(self.std**2)


def channel_stats(outputs: jax.Array) -> ChannelStats:
  """Returns the moments of each channel, in float32.

  Args:
    outputs: Array `[B, ..., C]`.

  Example:
    >>> stats = channel_stats(jnp.array([[1.0, -2.0], [3.0, -4.0]]))
    >>> stats.mean.tolist(), float(stats.dead)
    ([2.0, -3.0], 0.5)
  """
  rows = outputs.reshape(-1, outputs.shape[-1]).astype(jnp.float32)
  return ChannelStats(rows.mean(0), rows.std(0), rows.max(0))


def activation_stats(
  model: nn.Module,
  variables: PyTree,
  *args: Any,
  where: ModuleSelector = norm_layers,
  **kwargs: Any,
) -> dict[str, ChannelStats]:
  """Returns the moments of each channel of some layers of a Linen model.

  If `where` selects the blocks of a network at initialization, this is its
  signal propagation. If it selects the inputs or outputs of ReLUs, this shows
  the dead channels.

  Args:
    model: Any Linen model; it is not changed.
    variables: Parameters and other collections of the model.
    *args: Arguments to call the model with.
    where: Selector of the layers, as in `capture`.
    **kwargs: Arguments by name to call the model with.

  Returns:
    The moments as `{path: ChannelStats}`.

  Raises:
    ValueError: Nothing was selected; the message lists the paths.

  Example:
    >>> model = nn.Sequential([nn.Dense(8), nn.LayerNorm(), nn.relu])
    >>> x = jax.random.normal(jax.random.key(0), (64, 3))
    >>> stats = activation_stats(model, model.init(jax.random.key(1), x), x)
    >>> float(stats["layers_1"].dead)
    0.0
  """
  found = capture(model, variables, *args, where=where, **kwargs)
  return {path: channel_stats(output) for path, output in found.items()}
