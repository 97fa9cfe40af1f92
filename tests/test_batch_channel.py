"""Batch-channel normalization against NumPy, and the law of its estimate."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ws_jax.layers.batch_channel import (
  BatchChannelNorm,
  EstimatedBatchChannelNorm,
)
from ws_jax.layers.norm import NormSpec

EPSILON = 1e-5


def draw(*shape, seed=0, mean=0.0):
  rng = np.random.default_rng(seed)
  return rng.normal(mean, 1.0, shape).astype(np.float32)


def build(kind=BatchChannelNorm, **settings) -> Any:
  """Returns a layer of two groups with drawn parameters, and an input."""
  layer = kind(num_groups=2, **settings)
  x = draw(8, 5, 3, 6, mean=0.7)
  variables = layer.init(jax.random.key(0), x, train=False)
  params = {
    name: 1 + 0.3 * draw(*value.shape, seed=i)
    for i, (name, value) in enumerate(sorted(variables["params"].items()))
  }
  return layer, {**variables, "params": params}, x


def train(layer, variables, x) -> Any:
  y, state = layer.apply(variables, x, train=True, mutable=["batch_stats"])
  return y, {**variables, **state}


def channel_norm(x, params):
  """Returns the second half, with one scale and bias a group, in float64."""
  values = np.float64(x).reshape(len(x), -1, 2, 3)
  mean = values.mean((1, 3), keepdims=True)
  var = values.var((1, 3), keepdims=True)
  y = (values - mean) / np.sqrt(var + EPSILON)
  y = y * params["group_scale"][:, None] + params["group_bias"][:, None]
  return y.reshape(x.shape)


def batch_norm(x, params, mean, var):
  y = (np.float64(x) - np.asarray(mean)) / np.sqrt(np.float64(var) + EPSILON)
  return y * params["scale"] + params["bias"]


def moments(x):
  flat = np.float64(x).reshape(-1, x.shape[-1])
  return flat.mean(0), flat.var(0)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_training_normalizes_by_the_batch_and_then_by_groups(batch_size):
  layer, variables, x = build(batch_size=batch_size)
  y, after = train(layer, variables, x)
  parts = np.split(x, len(x) // (batch_size or len(x)))
  params = variables["params"]
  true = [
    channel_norm(batch_norm(part, params, *moments(part)), params)
    for part in parts
  ]
  np.testing.assert_allclose(y, np.concatenate(true), atol=2e-5)
  stats = np.mean([moments(part) for part in parts], axis=0)
  np.testing.assert_allclose(
    after["batch_stats"]["mean"], 0.1 * stats[0], rtol=1e-4
  )
  np.testing.assert_allclose(
    after["batch_stats"]["var"], 0.9 + 0.1 * stats[1], rtol=1e-4
  )


def test_the_estimate_moves_first_and_normalizes_then():
  layer, variables, x = build(EstimatedBatchChannelNorm, momentum=0.75)
  y, after = train(layer, variables, x)
  mean, _ = moments(x)
  squares = np.square(np.float64(x)).reshape(-1, 6).mean(0)  # around the old 0
  stats = after["batch_stats"]
  np.testing.assert_allclose(stats["mean"], 0.25 * mean, rtol=1e-4)
  np.testing.assert_allclose(stats["var"], 0.75 + 0.25 * squares, rtol=1e-4)
  params = variables["params"]
  true = batch_norm(x, params, stats["mean"], stats["var"])
  np.testing.assert_allclose(y, channel_norm(true, params), atol=2e-5)
  # Evaluation with these statistics is the same function.
  again = layer.apply(after, x, train=False)
  np.testing.assert_allclose(again, y, atol=1e-6)


def test_on_an_input_that_stands_still_the_estimate_becomes_the_batch():
  layer, variables, x = build(EstimatedBatchChannelNorm, momentum=0.5)
  real, _, _ = build()
  true, _ = train(real, variables, x)
  distances = []
  for _ in range(24):
    y, variables = train(layer, variables, x)
    distances.append(np.abs(y - true).max())
  assert distances[0] > 0.1
  assert distances[-1] < 2e-5
  # By the momentum at each step: a power of it, as long as rounding is far.
  assert distances[10] < distances[2] * 0.5**6


def test_one_example_at_a_time_estimates_the_batch():
  layer, variables, x = build(EstimatedBatchChannelNorm, momentum=0.99)
  real, _, _ = build()
  true, _ = train(real, variables, x)
  step = jax.jit(lambda variables, x: train(layer, variables, x))
  for _ in range(150):
    for i in range(len(x)):
      y, variables = step(variables, x[i : i + 1])
  stats = variables["batch_stats"]
  mean, var = moments(x)
  np.testing.assert_allclose(stats["mean"], mean, atol=0.03)
  np.testing.assert_allclose(stats["var"], var, rtol=0.1)
  np.testing.assert_allclose(y, true[-1:], atol=0.1)


def test_no_gradient_goes_through_estimated_statistics():
  layer, variables, x = build(EstimatedBatchChannelNorm)
  _, after = train(layer, variables, x)
  weight = draw(*x.shape, seed=9)
  through = jax.grad(lambda x: (train(layer, variables, x)[0] * weight).sum())
  fixed = jax.grad(
    lambda x: (layer.apply(after, x, train=False) * weight).sum()
  )
  np.testing.assert_allclose(through(x), fixed(x), atol=1e-4)
  real, _, _ = build()
  other = jax.grad(lambda x: (train(real, variables, x)[0] * weight).sum())
  assert np.abs(other(x) - fixed(x)).max() > 0.01


def test_initialization_does_not_move_the_statistics():
  for kind in (BatchChannelNorm, EstimatedBatchChannelNorm):
    layer = kind(num_groups=2)
    stats = layer.init(jax.random.key(0), draw(2, 4, 4, 6), train=True)
    np.testing.assert_array_equal(stats["batch_stats"]["mean"], 0)
    np.testing.assert_array_equal(stats["batch_stats"]["var"], 1)


def test_a_bfloat16_layer_keeps_float32_statistics():
  layer, variables, x = build(EstimatedBatchChannelNorm, dtype=jnp.bfloat16)
  y, after = train(layer, variables, jnp.asarray(x, jnp.bfloat16))
  assert y.dtype == jnp.bfloat16
  assert after["batch_stats"]["mean"].dtype == jnp.float32
  exact, _ = train(build(EstimatedBatchChannelNorm)[0], variables, x)
  np.testing.assert_allclose(np.float32(y), exact, atol=0.1)


def test_a_last_scale_of_zero_switches_the_layer_off():
  zeros = jax.nn.initializers.zeros
  layer = BatchChannelNorm(num_groups=2, scale_init=zeros)
  y, _ = layer.init_with_output(jax.random.key(0), draw(2, 6), train=True)
  np.testing.assert_array_equal(y, 0)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"num_groups": 4}, "6 channels cannot form 4 groups"),
    ({"channels_per_group": 5}, "6 channels cannot form groups of 5 channels"),
  ],
)
def test_layers_that_cannot_be(settings, message):
  layer, x = BatchChannelNorm(**settings), draw(8, 6)
  with pytest.raises(ValueError, match=message):
    layer.init_with_output(jax.random.key(0), x, train=False)


def test_a_normalization_batch_that_does_not_divide_the_batch():
  layer, variables, x = build(batch_size=3)
  with pytest.raises(ValueError, match="batch of 3 does not divide .* 8 ex"):
    layer.apply(variables, x, train=True, mutable=["batch_stats"])


def test_a_spec_hands_its_settings_on():
  spec = NormSpec("batch_channel_estimated", num_groups=4, momentum=0.5)
  assert spec.layer() == EstimatedBatchChannelNorm(num_groups=4, momentum=0.5)
  spec = NormSpec("batch_channel", channels_per_group=2, batch_size=8)
  assert spec.layer() == BatchChannelNorm(channels_per_group=2, batch_size=8)
  with pytest.raises(ValueError, match="7 channels cannot form groups of 2"):
    spec.check(7)
