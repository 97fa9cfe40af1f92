"""A user's own file: models, data, a task and an optimizer."""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from ws_jax.tasks import Metric


class Net(nn.Module):
  """A Linen model without a `train` argument."""

  num_classes: int
  width: int = 8

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(self.width, (3, 3), name="conv")(x))
    x = nn.relu(nn.GroupNorm(2)(nn.Conv(self.width, (3, 3))(x)))
    return nn.Dense(self.num_classes, name="head")(x.mean((1, 2)))


class Noisy(nn.Module):
  """Dropout by `deterministic`, and a collection of another name."""

  num_classes: int

  @nn.compact
  def __call__(self, x, *, deterministic):
    seen = self.variable("counters", "seen", jnp.zeros, (), jnp.int32)
    if not deterministic and not self.is_initializing():
      seen.value += len(x)
    x = nn.relu(nn.Conv(8, (3, 3))(x)).mean((1, 2))
    x = nn.Dropout(0.5, deterministic=deterministic)(x)
    return nn.Dense(self.num_classes)(x)


class NNXNet(nnx.Module):
  """An NNX model with running statistics and dropout."""

  def __init__(self, num_classes, width=8, *, rngs):
    self.conv = nnx.Conv(1, width, (3, 3), rngs=rngs)
    self.norm = nnx.BatchNorm(width, rngs=rngs)
    self.blocks = nnx.List(
      [nnx.Linear(width, width, rngs=rngs) for _ in range(2)]
    )
    self.dropout = nnx.Dropout(0.1, rngs=rngs)
    self.head = nnx.Linear(width, num_classes, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.norm(self.conv(x))).mean((1, 2))
    for block in self.blocks:
      x = nnx.relu(block(x))
    return self.head(self.dropout(x))


def images(size=64, classes=3, seed=0):
  """Images whose class is the brightest third, learnable in a few steps."""
  rng = np.random.default_rng(seed)
  labels = np.arange(size, dtype=np.int32) % classes
  x = rng.integers(0, 60, (size, 9, 9, 1), dtype=np.uint8)
  for i, label in enumerate(labels):
    x[i, 3 * label : 3 * label + 3] += 150
  return {"x": x, "y": labels}


class Data:
  """Anything with `train` and `test`."""

  train = images()
  test = images(33, seed=1)


def make_data():
  """What `--config.data.name=my_lab:make_data` calls."""
  return Data


@dataclasses.dataclass(frozen=True)
class Brightness:
  """Regression: the mean brightness of an image, by its absolute error."""

  scale: float = 255.0

  METRIC = Metric("error", "min", "grey levels")
  num_outputs = 1

  def batch(self, arrays, indices, key):
    x = arrays["x"][indices].astype(jnp.float32) / self.scale
    return {"inputs": x, "target": x.mean((1, 2, 3))}

  def sums(self, outputs, batch, mask, training):
    off = outputs[:, 0] - batch["target"]
    return {
      "loss": jnp.sum(mask * off**2),
      "error": jnp.sum(mask * jnp.abs(off)) * self.scale,
      "count": jnp.sum(mask),
    }


slow_lion = functools.partial(optax.lion, b2=0.9)
