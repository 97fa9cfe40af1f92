"""The same networks in plain Flax code, as one writes it without ws_jax.

Every layer standardizes its own kernel, the norms are `nn.GroupNorm` and
`nn.BatchNorm`, the settings are the defaults, and the loop is in Python. It
runs in a worker, because our process sets XLA up differently.
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
    """Returns the parameter; the kernel is standardized."""
    value = super().param(name, *args, **kwargs)
    if name == "kernel":
      value = naive(value)
    return value


def naive(kernel: jax.Array) -> jax.Array:
  """Standardizes by `jnp.mean` and `jnp.var`, with the epsilon of `BIT`."""
  mean = jnp.mean(kernel, axis=(0, 1, 2), keepdims=True)
  var = jnp.var(kernel, axis=(0, 1, 2), keepdims=True)
  return (kernel - mean) / jnp.sqrt(var + 1e-10)


class Block(nn.Module):
  """The residual block of `ws_jax.models.resnet`, version 1."""

  make_conv: Any
  make_norm: Any
  convs: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[B, H, W, C]` to `[B, H, W, C']`, strided where a layer is."""
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
  """The network of `ws_jax.models.ResNet` with the stem for small images."""

  model: str
  arm: str

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
    """Maps images `[B, H, W, C]` to logits `[B, 10]`."""
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
  """Does one step as Flax's examples do; returns the state and the loss."""

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
  """Returns logits, computed with the running statistics."""
  variables = {"params": state.params, "batch_stats": state.batch_stats}
  return state.apply_fn(variables, images, train=False)


def make_state(
  model: str,
  arm: str,
  images: jax.Array,
  learning_rate: optax.ScalarOrSchedule,
  params: Any = None,
) -> State:
  """Returns a new state that starts from `params`, or from random ones."""
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
    model: Name of a model in `ws_jax.models`.
    arm: Name of an arm in `ARMS`.
    weights: Path of the file that `ours.Step` wrote.
    learning_rate: Learning rate of SGD, which has Nesterov momentum 0.9 and
      weight decay 5e-4 on kernels.
    checked_steps: Number of steps done when it is made; their losses are kept.

  Attributes:
    losses: Losses of these first steps.
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
    """Does a step, waits for it, and returns the seconds."""
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
    model: Name of a model in `ws_jax.models`.
    arm: Name of an arm in `ARMS`.
    data: Path of a file with the normalized images and the labels of both
      splits.
    steps: Number of steps.
    batch_size: Number of examples in a step, drawn at random.
    learning_rate: Peak of the cosine schedule; the optimizer is that of `Step`.
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
    """Trains, and returns the test accuracy."""
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
