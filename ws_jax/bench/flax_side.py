"""The same networks as plain Flax code would have them.

What one writes without this package: every layer standardizes its own kernel,
`nn.GroupNorm` and `nn.BatchNorm`, default settings, a Python loop. Runs in a
worker, because ours may have other settings of XLA.
"""

import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from flax.training import train_state

from ws_jax import models
from ws_jax.bench import ARMS


class WSConv(nn.Conv):
  """A convolution that standardizes its kernel when it fetches it."""

  def param(self, name: str, *args: Any, **kwargs: Any) -> Any:
    """As `nn.Module.param`; the kernel comes out standardized."""
    value = super().param(name, *args, **kwargs)
    if name == "kernel":
      value = naive(value)
    return value


def naive(kernel: jax.Array) -> jax.Array:
  """Weight Standardization by `jnp.mean` and `jnp.var`, eps as in `BIT`."""
  mean = jnp.mean(kernel, axis=(0, 1, 2), keepdims=True)
  var = jnp.var(kernel, axis=(0, 1, 2), keepdims=True)
  return (kernel - mean) / jnp.sqrt(var + 1e-10)


class Block(nn.Module):
  """As `ws_jax.models.resnet.Block`, version 1."""

  make_conv: Any
  make_norm: Any
  convs: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[B, H, W, C]` to the same of the block's channels."""
    y, stride = x, 1
    for i, (channels, size, step) in enumerate(self.convs, 1):
      y = self.make_conv(channels, size, step, f"conv{i}")(y)
      y = self.make_norm(f"norm{i}")(y)
      y = nn.relu(y) if i < len(self.convs) else y
      stride *= step
    if stride > 1 or x.shape[-1] != y.shape[-1]:
      x = self.make_conv(y.shape[-1], 1, stride, "projection")(x)
      x = self.make_norm("projection_norm")(x)
    return nn.relu(x + y)


class ResNet(nn.Module):
  """As `ws_jax.models.ResNet` with the stem for small images."""

  model: str
  arm: str

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
    """Images `[B, H, W, C]` to logits of ten classes."""
    settings, arm = models.MODELS[self.model], ARMS[self.arm]

    def make_conv(channels, size, stride, name):
      layer = WSConv if arm["model.ws"] else nn.Conv
      return layer(
        channels,
        (size, size),
        (stride, stride),
        padding=(size - 1) // 2,
        use_bias=False,
        name=name,
      )

    def make_norm(name):
      if arm["model.norm"] == "group":
        return nn.GroupNorm(num_groups=8, epsilon=1e-5, name=name)
      return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, name=name
      )

    width = settings["channels"]
    x = nn.relu(make_norm("stem_norm")(make_conv(width, 3, 1, "stem")(x)))
    for stage, size in enumerate(settings["block_sizes"]):
      channels = width * 2**stage
      for i in range(size):
        stride = 2 if stage and not i else 1
        convs = ((channels, 3, stride), (channels, 3, 1))
        if settings["bottleneck"]:
          convs = (channels, 1, 1), (channels, 3, stride), (4 * channels, 1, 1)
        name = f"stage{stage + 1}_block{i + 1}"
        x = Block(make_conv, make_norm, convs, name=name)(x)
    return nn.Dense(10, name="head")(x.mean((1, 2)))


class State(train_state.TrainState):
  """Flax's own state, with the running statistics of BatchNorm."""

  batch_stats: Any


@jax.jit
def train_step(state, images, labels):
  """One step, as Flax's examples write it; returns the state and the loss."""

  def loss_fn(params):
    logits, updates = state.apply_fn(
      {"params": params, "batch_stats": state.batch_stats},
      images,
      mutable=["batch_stats"],
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), updates

  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
  (loss, updates), grads = grad_fn(state.params)
  state = state.apply_gradients(grads=grads)
  return state.replace(batch_stats=updates.get("batch_stats", {})), loss


@jax.jit
def predict(state, images):
  """Logits with the running statistics."""
  variables = {"params": state.params, "batch_stats": state.batch_stats}
  return state.apply_fn(variables, images, train=False)


def make_state(
  model: str,
  arm: str,
  images: jax.Array,
  learning_rate: optax.ScalarOrSchedule,
  params: Any = None,
) -> State:
  """A fresh state; with `params`, these are where it starts."""
  network = ResNet(model, arm)
  variables = network.init(jax.random.key(0), images[:1])
  kernels = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
  return State.create(
    apply_fn=network.apply,
    params=variables["params"] if params is None else params,
    batch_stats=variables.get("batch_stats", {}),
    tx=optax.chain(
      optax.add_decayed_weights(5e-4, mask=kernels),
      optax.sgd(learning_rate, momentum=0.9, nesterov=True),
    ),
  )


class Step:
  """A training step on a batch that is ready: forward, backward, update.

  Args:
    model: a name of `ws_jax.models`.
    arm: a name of `ARMS`.
    weights: the file that `ours.Step` wrote.
    learning_rate: of SGD with Nesterov momentum 0.9 and weight decay 5e-4 on
      kernels.
    checked_steps: so many steps are done at once, and their losses kept.

  Attributes:
    losses: of the first steps.
  """

  def __init__(
    self,
    model: str,
    arm: str,
    weights: str,
    learning_rate: float,
    checked_steps: int = 3,
  ):
    with np.load(weights, allow_pickle=False) as file:
      arrays = dict(file)
    self.images = jnp.asarray(arrays.pop("inputs"))
    self.labels = jnp.asarray(arrays.pop("labels"))
    params = jax.tree.map(
      jnp.asarray, traverse_util.unflatten_dict(arrays, sep="/")
    )
    self.state = make_state(model, arm, self.images, learning_rate, params)
    self.losses = [self._step() for _ in range(checked_steps)]

  def __call__(self) -> float:
    """Steps, waits, and returns the seconds."""
    began = time.perf_counter()
    self._step()
    return time.perf_counter() - began

  def _step(self) -> float:
    self.state, loss = train_step(self.state, self.images, self.labels)
    jax.block_until_ready(self.state)
    return float(loss)


class Run:
  """A run from its start to its test accuracy.

  Args:
    model: a name of `ws_jax.models`.
    arm: a name of `ARMS`.
    data: a file with the images, normalized, and labels of both splits.
    steps: how many.
    batch_size: examples in a step, drawn at random.
    learning_rate: the peak of a cosine; otherwise as in `Step`.
  """

  def __init__(
    self,
    model: str,
    arm: str,
    data: str,
    steps: int,
    batch_size: int,
    learning_rate: float,
  ):
    with np.load(data, allow_pickle=False) as file:
      self.arrays = dict(file)
    self.steps, self.batch_size = steps, batch_size
    schedule = optax.cosine_decay_schedule(learning_rate, steps)
    images = jnp.asarray(self.arrays["train_image"][:1])
    self.state = make_state(model, arm, images, schedule)

  def __call__(self) -> float:
    """Trains; returns the test accuracy."""
    rng = np.random.default_rng(0)
    images, labels = self.arrays["train_image"], self.arrays["train_label"]
    for _ in range(self.steps):
      chosen = rng.integers(0, len(labels), self.batch_size)
      self.state, _ = train_step(self.state, images[chosen], labels[chosen])
    images, labels = self.arrays["test_image"], self.arrays["test_label"]
    correct = 0
    for i in range(0, len(labels), 500):
      logits = predict(self.state, images[i : i + 500])
      found = np.argmax(logits, axis=-1)
      correct += int((found == labels[i : i + 500]).sum())
    return correct / len(labels)
