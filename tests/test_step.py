import dataclasses
import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import ws_jax
from ws_jax import data, tasks
from ws_jax.data.memory import MemorySource
from ws_jax.train import backend, optim, step

NUMBERS = {"learning_rate": 0.3, "weight_decay": 0.01, "momentum": 0.9}


class Net(nn.Module):
  """A convolution, a norm, a head: what a step needs, quick to compile."""

  batch_norm: bool = False

  @nn.compact
  def __call__(self, x, *, train):
    x = nn.Conv(8, (3, 3), use_bias=False, name="conv")(x)
    if self.batch_norm:
      x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
    else:
      x = nn.GroupNorm(num_groups=2)(x)
    return nn.Dense(3, name="head")(nn.relu(x).mean((1, 2)))


def make(num_devices=1, convention="bit", batch_norm=False, **kwargs):
  task = tasks.ImageClassification(mean=(0.5,), std=(0.25,))
  return step.Program(
    task=task,
    model=Net(batch_norm),
    optimizer=optim.Optimizer(optim.Schedule("cosine", total_steps=8)),
    mesh=Mesh(np.array(jax.devices()[:num_devices]), ("data",)),
    convention=convention and ws_jax.get_convention(convention),
    **kwargs,
  )


@pytest.fixture(scope="module")
def arrays():
  rng = np.random.default_rng(0)
  return {
    "image": rng.integers(0, 256, (40, 6, 6, 1), dtype=np.uint8),
    "label": rng.integers(0, 3, 40, dtype=np.int32),
  }


def train(program, arrays, num_steps, micro_batches=1, *, block=None, **kwargs):
  seed, numbers = kwargs.get("seed", 0), kwargs.get("numbers", NUMBERS)
  indices = data.batch_indices(seed, 0, num_steps, 16, 40)
  indices = indices.reshape(num_steps, micro_batches, -1)
  everywhere = NamedSharding(program.mesh, PartitionSpec())
  arrays = jax.device_put(arrays, everywhere)
  state = step.init_state(program, arrays, seed, numbers)
  return step.train_block(program, state, arrays, indices, block=block)


def batches(program, arrays, size):
  """The arrays as an evaluation set."""
  whole = types.SimpleNamespace(train=arrays, test=arrays, num_train=40)
  return MemorySource(whole, 0, 16, 16, program.mesh).batches(size)


def assert_same(a, b, **tolerance):
  jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerance), a, b)


@pytest.mark.parametrize("convention", [None, "bit", "qiao"])
def test_a_step_is_plain_sgd_on_the_standardized_model(arrays, convention):
  program = make(convention=convention)
  before = jax.device_get(step.init_state(program, arrays, 0, NUMBERS).params)
  after = train(program, arrays, 1)
  chosen = data.batch_indices(0, 0, 1, 16, 40)[0]

  def loss(params):
    if convention:
      kernel = ws_jax.standardize(
        params["conv"]["kernel"], convention=convention
      )
      params = params | {"conv": {"kernel": kernel}}
    images = (arrays["image"][chosen] / 255.0 - 0.5) / 0.25
    logits = Net().apply({"params": params}, images, train=True)
    scores = jax.nn.log_softmax(logits)
    return -jnp.mean(scores[jnp.arange(16), arrays["label"][chosen]])

  grads = jax.grad(loss)(before)
  # Kernels decay, scales and biases do not; Nesterov's first step is 1.9 g.
  decayed = {"conv": 0.01, "head": 0.01}
  for name, leaves in before.items():
    for leaf, value in leaves.items():
      decay = decayed.get(name, 0.0) if leaf == "kernel" else 0.0
      gradient = grads[name][leaf] + decay * value
      np.testing.assert_allclose(
        after.params[name][leaf],
        value - 0.3 * 1.9 * gradient,
        rtol=1e-4,
        atol=1e-6,
      )


@pytest.mark.parametrize("micro_batches", [2, 16])
def test_micro_batches_change_nothing_for_gn_with_ws(arrays, micro_batches):
  program = make()
  whole = train(program, arrays, 3)
  parts = train(program, arrays, 3, micro_batches)
  assert_same(whole.params, parts.params, rtol=1e-4, atol=2e-6)
  assert_same(whole.sums, parts.sums, rtol=1e-5)


def test_micro_batches_do_change_batch_norm(arrays):
  program = make(batch_norm=True, convention=None)
  whole = train(program, arrays, 3)
  parts = train(program, arrays, 3, micro_batches=8)
  kernels = (s.params["conv"]["kernel"] for s in (whole, parts))
  assert np.max(np.abs(np.subtract(*kernels))) > 1e-3


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_the_compiled_loop_equals_a_dispatch_for_each_step(
  arrays, micro_batches
):
  """A block longer than its steps is padded, and the padding is not run."""
  program = make(batch_norm=True)
  dispatched = train(program, arrays, 3, micro_batches)
  looped = train(program, arrays, 3, micro_batches, block=5)
  assert int(looped.step) == 3
  assert_same(dispatched, looped, rtol=2e-5, atol=1e-6)


def test_four_devices_compute_what_one_does(arrays):
  """BatchNorm too: its statistics are those of the whole batch."""
  one = train(make(1, batch_norm=True), arrays, 3)
  four = train(make(4, batch_norm=True), arrays, 3)
  assert len(four.params["conv"]["kernel"].sharding.device_set) == 4
  assert_same(jax.device_get(one), jax.device_get(four), rtol=2e-4, atol=2e-6)


def test_a_sweep_of_numbers_compiles_once(arrays):
  program = make(ema_decay=0.5)
  train(program, arrays, 2)
  jitted = (
    step._jitted(step.train_step, donate=1),
    step._jitted(step._init_state, options=backend.options_to_compile_quickly),
  )
  before = [function._cache_size() for function in jitted]
  assert all(before)
  numbers = {"learning_rate": 0.01, "weight_decay": 0.0, "momentum": 0.5}
  train(program, arrays, 2, seed=7, numbers=numbers)
  assert [function._cache_size() for function in jitted] == before


def test_motion_is_the_step_over_the_size_of_the_kernels(arrays):
  program = make()
  states = [step.init_state(program, arrays, 0, NUMBERS)]
  states += [train(program, arrays, count) for count in (1, 2)]
  kernels = [
    [
      np.asarray(s.params[name]["kernel"], np.float64)
      for name in ("conv", "head")
    ]
    for s in states
  ]
  steps, rates = [], []
  for i in (1, 2):
    pairs = list(zip(kernels[i - 1], kernels[i], strict=True))
    rate = 0.3 * 0.5 * (1 + np.cos(np.pi * (i - 1) / 8))
    steps += [np.linalg.norm(b - a) / np.linalg.norm(a) for a, b in pairs]
    # The mean over filters of the squared norm of one.
    rates += [
      rate / np.mean(np.sum(a * a, axis=tuple(range(a.ndim - 1))))
      for a, _ in pairs
    ]
  got = step.means(states[2].motion)
  assert got["relative_step"] == pytest.approx(np.mean(steps), rel=1e-4)
  assert got["effective_learning_rate"] == pytest.approx(
    np.mean(rates), rel=1e-4
  )


def test_the_moving_average(arrays):
  program = make(ema_decay=0.75)
  plain = make()
  params = [step.init_state(plain, arrays, 0, NUMBERS).params["conv"]["kernel"]]
  for steps in (1, 2, 3):
    params.append(train(plain, arrays, steps).params["conv"]["kernel"])
  expected = np.asarray(params[0])
  for new in params[1:]:
    expected = 0.75 * expected + 0.25 * np.asarray(new)
  got = train(program, arrays, 3).ema_params["conv"]["kernel"]
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 40, 64])
def test_evaluation_sees_each_example_once(arrays, batch_size):
  program = make()
  state = step.init_state(program, arrays, 0, NUMBERS)
  got = step.evaluate(program, state, batches(program, arrays, batch_size))
  params = ws_jax.weight_standardize(state.params)
  images = (arrays["image"] / 255.0 - 0.5) / 0.25
  logits = np.asarray(Net().apply({"params": params}, images, train=False))
  right = np.argmax(logits, -1) == arrays["label"]
  scores = np.asarray(jax.nn.log_softmax(logits))
  scores = scores[np.arange(40), arrays["label"]]
  assert got["accuracy"] == pytest.approx(right.mean(), abs=1e-6)
  assert got["loss"] == pytest.approx(-np.mean(scores), rel=1e-5)


def test_evaluation_uses_the_moving_average(arrays):
  program = make(ema_decay=0.5)
  state = step.init_state(program, arrays, 0, NUMBERS)
  halved = jax.tree.map(lambda x: x * 0.5, state.params)
  plain = dataclasses.replace(program, ema_decay=None)
  expected = step.evaluate(
    plain,
    state.replace(params=halved, ema_params=None),
    batches(plain, arrays, 40),
  )
  got = step.evaluate(
    program, state.replace(ema_params=halved), batches(program, arrays, 40)
  )
  assert got == expected


def test_divergence_is_seen_at_its_step(arrays):
  program = make(divergence_factor=2.0)
  state = step.init_state(program, arrays, 0, NUMBERS)
  indices = data.batch_indices(0, 0, 1, 16, 40).reshape(1, 1, 16)
  state = step.train_block(program, state, arrays, indices)
  assert int(state.diverged_at) == -1
  broken = jax.tree.map(lambda x: x * np.float32(np.nan), state.params)
  state = step.train_block(
    program, state.replace(params=broken), arrays, indices
  )
  assert int(state.diverged_at) == 1
  state = step.train_block(program, state, arrays, indices)
  assert int(state.diverged_at) == 1


def test_a_loss_far_above_the_first_is_divergence(arrays):
  program = make(divergence_factor=2.0)
  state = step.init_state(program, arrays, 0, NUMBERS)
  indices = data.batch_indices(0, 0, 1, 16, 40).reshape(1, 1, 16)
  state = step.train_block(program, state, arrays, indices)
  big = state.params | {
    "head": jax.tree.map(lambda x: x * 100, state.params["head"])
  }
  state = step.train_block(program, state.replace(params=big), arrays, indices)
  assert int(state.diverged_at) == 1
