"""Normalization against float64, and the laws each kind has to keep."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ws_jax.layers.norm import NORMS, BatchNorm, GroupNorm, NormSpec
from ws_jax.layers.normalize import normalize

EPSILON = 1e-5
# (examples together, groups) of each kind on 4 examples with 6 channels.
SHARING = {
  "batch": (4, 6),
  "ghost": (2, 6),
  "group": (1, 3),
  "layer": (1, 1),
  "instance": (1, 6),
  "both": (2, 3),
}


def draw(*shape, seed=0, mean=0.0, std=1.0):
  rng = np.random.default_rng(seed)
  return rng.normal(mean, std, shape).astype(np.float32)


def reference(x, scale, bias, examples, groups, epsilon=EPSILON):
  """Normalizes in float64, with the variance by its definition."""
  shape = (x.shape[0] // examples, -1, groups, x.shape[-1] // groups)
  values = np.asarray(x, np.float64).reshape(shape)
  mean = values.mean((1, 3), keepdims=True)
  var = np.square(values - mean).mean((1, 3), keepdims=True)
  y = ((values - mean) / np.sqrt(var + epsilon)).reshape(x.shape)
  return y * scale + bias, mean[:, 0, :, 0], var[:, 0, :, 0]


def slope(function, point, direction, step=1e-5):
  """Returns the central difference of a float64 function in a direction."""
  up = function(point + step * direction)
  return (up - function(point - step * direction)) / (2 * step)


@pytest.mark.parametrize("shape", [(4, 6), (4, 5, 6), (4, 7, 3, 6)])
@pytest.mark.parametrize("kind", SHARING)
def test_values_are_those_of_float64(kind, shape):
  x, scale, bias = draw(*shape, mean=0.5), draw(6, seed=1), draw(6, seed=2)
  got = jax.jit(normalize, static_argnums=(3, 4))(
    x, scale, bias, *SHARING[kind]
  )
  for ours, true in zip(
    got, reference(x, scale, bias, *SHARING[kind]), strict=True
  ):
    np.testing.assert_allclose(ours, true, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", SHARING)
def test_gradients_are_those_of_float64(kind):
  shape = (4, 5, 3, 6)
  point = (draw(*shape), draw(6, seed=1), draw(6, seed=2))
  # Weights on all three results: statistics pass gradients too.
  weights = (draw(*shape, seed=3), draw(4, 6, seed=4), draw(4, 6, seed=5))

  def loss(implementation, *arguments):
    results = implementation(*arguments, *SHARING[kind])
    return sum(
      (result * weight[tuple(map(slice, result.shape))]).sum()
      for result, weight in zip(results, weights, strict=True)
    )

  grads = jax.grad(lambda *a: loss(normalize, *a), argnums=(0, 1, 2))(*point)
  for i, (value, grad) in enumerate(zip(point, grads, strict=True)):
    for seed in range(3):
      direction = draw(*value.shape, seed=10 + seed).astype(np.float64)
      args = [np.float64(p) for p in point]

      def along(v, i=i, args=args):
        return loss(reference, *args[:i], v, *args[i + 1 :])

      true = slope(along, args[i], direction)
      ours = np.vdot(np.float64(grad), direction)
      np.testing.assert_allclose(ours, true, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("mean", [-100.0, 100.0])
@pytest.mark.parametrize("kind", ["batch", "group"])
def test_a_large_mean_does_not_swamp_a_small_deviation(kind, mean):
  x = draw(4, 16, 16, 6, mean=mean, std=0.01)
  # The first guess at the mean is taken from the top left.
  x[:, :2] += 0.05
  sharing = (*SHARING[kind], 1e-12)
  one, zero = np.ones(6, np.float32), np.zeros(6, np.float32)
  y, _, var = normalize(x, one, zero, *sharing)
  true, _, true_var = reference(x, one, zero, *sharing)
  # A mean of 100 in float32 is good to 4e-6, which is 4e-4 deviations.
  np.testing.assert_allclose(y, true, atol=1e-3)
  np.testing.assert_allclose(var, true_var, rtol=1e-4)
  groups = sharing[1]
  flax = nn.GroupNorm(groups, epsilon=1e-12) if kind == "group" else None
  if flax:
    variables = flax.init(jax.random.key(0), x)
    assert np.abs(flax.apply(variables, x) - true).max() > 0.1


def test_a_constant_input_gives_the_bias_and_finite_gradients():
  x, scale, bias = np.full((4, 5, 6), 100.1, np.float32), draw(6), draw(6)
  y, _, var = normalize(x, scale, bias, 1, 3)
  np.testing.assert_allclose(y, np.broadcast_to(bias, y.shape), atol=5e-2)
  assert (np.asarray(var) >= 0).all()
  grads = jax.grad(lambda x: jnp.sin(normalize(x, scale, bias, 1, 3)[0]).sum())
  assert np.isfinite(grads(x)).all()


def test_bfloat16_is_normalized_in_float32():
  x = jnp.asarray(draw(4, 9, 6, mean=2.0), jnp.bfloat16)
  scale, bias = draw(6, seed=1), draw(6, seed=2)
  y, mean, var = normalize(x, scale, bias, 1, 3)
  true = reference(np.float64(x), scale, bias, 1, 3)
  assert (y.dtype, mean.dtype, var.dtype) == (x.dtype, "float32", "float32")
  np.testing.assert_allclose(np.float64(y), true[0], rtol=5e-3, atol=1e-2)
  np.testing.assert_allclose(mean, true[1], rtol=1e-5)
  np.testing.assert_allclose(var, true[2], rtol=1e-5)
  dx, dscale = jax.grad(
    lambda *a: (normalize(*a, 1, 3)[0] ** 2).sum(), argnums=(0, 1)
  )(x, scale, bias)
  assert (dx.dtype, dscale.dtype) == (x.dtype, "float32")


def test_a_float32_layer_does_not_round_its_result_to_a_bfloat16_input():
  x = jnp.asarray(draw(4, 9, 6), jnp.bfloat16)
  layer = GroupNorm(3)
  y, _ = layer.init_with_output(jax.random.key(0), x)
  true = reference(np.float64(x), 1, 0, 1, 3)[0]
  assert y.dtype == jnp.float32
  np.testing.assert_allclose(y, true, atol=1e-5)


@pytest.mark.slow
def test_vmap_remat_and_second_derivatives():
  x, scale, bias = draw(3, 4, 5, 6), draw(6, seed=1), draw(6, seed=2)

  def loss(x):
    return jnp.sin(normalize(x, scale, bias, 2, 3)[0]).sum()

  each = np.stack([jax.grad(loss)(v) for v in x])
  np.testing.assert_allclose(jax.vmap(jax.grad(loss))(x), each, atol=1e-5)
  np.testing.assert_allclose(
    jax.grad(jax.checkpoint(loss))(x[0]), each[0], atol=1e-5
  )
  # A Hessian-vector product, as sharpness needs it, against a difference.
  v = draw(4, 5, 6, seed=7)
  _, product = jax.jvp(jax.grad(loss), (x[0],), (v,))
  about = slope(jax.grad(loss), x[0], v, step=1e-2)
  np.testing.assert_allclose(product, about, atol=3e-2, rtol=3e-2)


def build(kind, **settings):
  layer = NormSpec(kind, **settings).layer()
  x = draw(8, 5, 3, 8, mean=1.0)
  return layer, layer.init(jax.random.key(0), x, train=True), x


def train(layer, variables, x) -> tuple[Any, Any]:
  return layer.apply(variables, x, train=True, mutable=["batch_stats"])


def evaluate(layer, variables, x) -> Any:
  return layer.apply(variables, x, train=False)


# Batch-channel normalization has parameters of its groups besides.
PLAIN = [kind for kind in NORMS if not kind.startswith("batch_channel")]


@pytest.mark.parametrize("kind", PLAIN)
def test_layers_share_one_parameter_tree(kind):
  layer, variables, x = build(kind)
  shapes = jax.tree.map(jnp.shape, variables["params"])
  assert shapes == {"scale": (8,), "bias": (8,)}
  y, state = train(layer, variables, x)
  assert y.shape == x.shape and y.dtype == jnp.float32
  assert ("batch_stats" in state) == (kind == "batch")


@pytest.mark.parametrize(
  ("kind", "settings", "sharing"),
  [
    ("batch", {}, (8, 8)),
    ("batch", {"batch_size": 2}, (2, 8)),
    ("group", {}, (1, 8)),
    ("group", {"num_groups": 2}, (1, 2)),
    ("group", {"channels_per_group": 2}, (1, 4)),
    ("layer", {}, (1, 1)),
    ("instance", {}, (1, 8)),
  ],
)
def test_layers_share_statistics_as_they_say(kind, settings, sharing):
  layer, variables, x = build(kind, **settings)
  y, _ = train(layer, variables, x)
  np.testing.assert_allclose(y, reference(x, 1, 0, *sharing)[0], atol=1e-5)


def test_none_leaves_scale_and_bias():
  layer, _, x = build("none")
  params = {"scale": draw(8), "bias": draw(8, seed=1)}
  y = evaluate(layer, {"params": params}, x)
  np.testing.assert_allclose(y, x * params["scale"] + params["bias"], atol=1e-6)


def test_scale_init_is_used():
  layer = NormSpec("batch").layer(scale_init=nn.initializers.zeros)
  y, _ = layer.init_with_output(jax.random.key(0), draw(2, 8), train=True)
  np.testing.assert_array_equal(y, 0)


def test_a_ghost_batch_is_the_batch_it_would_be_alone():
  layer, variables, x = build("batch", batch_size=2)
  whole = BatchNorm()
  y, state = train(layer, variables, x)
  parts = [train(whole, variables, x[i : i + 2]) for i in range(0, 8, 2)]
  np.testing.assert_allclose(
    y, np.concatenate([part for part, _ in parts]), atol=1e-5
  )
  average = jax.tree.map(lambda *s: sum(s) / 4, *[s for _, s in parts])
  for ours, true in zip(
    jax.tree.leaves(state), jax.tree.leaves(average), strict=True
  ):
    np.testing.assert_allclose(ours, true, rtol=1e-5)


def test_running_statistics_follow_the_momentum():
  layer, variables, x = build("batch", momentum=0.75)
  stats: Any = variables["batch_stats"]
  np.testing.assert_array_equal(stats["mean"], 0)  # init changes nothing
  np.testing.assert_array_equal(stats["var"], 1)
  for _ in range(2):
    _, state = train(layer, {**variables, "batch_stats": stats}, x)
    stats = state["batch_stats"]
  _, mean, var = reference(x, 1, 0, 8, 8)
  share = 1 - 0.75**2
  np.testing.assert_allclose(stats["mean"], share * mean[0], rtol=1e-5)
  np.testing.assert_allclose(stats["var"], 0.75**2 + share * var[0], rtol=1e-5)
  # Evaluation uses them, one example at a time if need be.
  y = evaluate(layer, {**variables, "batch_stats": stats}, x[:1])
  mean, var = np.asarray(stats["mean"]), np.asarray(stats["var"])
  true = (x[:1] - mean) / np.sqrt(var + EPSILON)
  np.testing.assert_allclose(y, true, atol=1e-5)


def test_training_mode_does_not_silently_lose_the_running_statistics():
  layer, variables, x = build("batch")
  with pytest.raises(Exception, match="batch_stats"):
    layer.apply(variables, x, train=True)


@pytest.mark.parametrize("kind", NORMS)
def test_padded_examples_do_not_reach_the_others(kind):
  layer, variables, x = build(kind)
  padded = np.concatenate([x[:3], np.full_like(x[3:], 1e6)])
  batched = kind.startswith("batch")
  for call in (evaluate,) if batched else (evaluate, train):
    got, true = call(layer, variables, padded), call(layer, variables, x)
    if call is train:
      got, true = got[0], true[0]
    np.testing.assert_array_equal(got[:3], true[:3])


def test_batch_statistics_are_global_on_a_mesh():
  devices = jax.devices()
  assert len(devices) == 4
  mesh = Mesh(np.array(devices), ("data",))
  split = NamedSharding(mesh, PartitionSpec("data"))
  x, weight = draw(8, 5, 3, 8), draw(8, 5, 3, 8, seed=1)
  for spec in (NormSpec("batch"), NormSpec("batch", batch_size=4), NormSpec()):
    layer = spec.layer()
    variables = layer.init(jax.random.key(0), x, train=True)

    @jax.jit
    def step(variables, x, layer=layer):
      def loss(params, x):
        y, state = train(layer, {**variables, "params": params}, x)
        return (y * weight).sum(), state

      return jax.grad(loss, argnums=(0, 1), has_aux=True)(
        variables["params"], x
      )

    alone = jax.tree.leaves(step(variables, x))
    spread = jax.tree.leaves(step(variables, jax.device_put(x, split)))
    for one, four in zip(alone, spread, strict=True):
      np.testing.assert_allclose(one, four, atol=1e-5)


def test_specs_are_values():
  a, b = NormSpec("batch", batch_size=4), NormSpec("batch", batch_size=4)
  assert a == b and hash(a) == hash(b) and a.layer() == b.layer()
  assert a != dataclasses.replace(a, batch_size=8)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"kind": "grup"}, "unknown norm 'grup': did you mean 'group'"),
    ({"num_groups": 2, "channels_per_group": 4}, "not both 2 and 4"),
    ({"num_groups": 0}, "num_groups must be at least 1, not 0"),
    ({"batch_size": -1}, "batch_size must be at least 1, not -1"),
    ({"momentum": 1.0}, "below 1, not 1.0"),
    ({"epsilon": -1.0}, "not be negative"),
  ],
)
def test_specs_that_cannot_be(settings, message):
  with pytest.raises(ValueError, match=message):
    NormSpec(**settings)


def test_groups_that_the_channels_cannot_form():
  with pytest.raises(
    ValueError, match="12 channels cannot form 8 groups; poss"
  ):
    NormSpec().check(12)
  with pytest.raises(ValueError, match="groups of 5 .*: 1, 2, 3, 4, 6, 12"):
    NormSpec(channels_per_group=5).check(12)
  with pytest.raises(ValueError, match="6 channels cannot form 4 groups"):
    GroupNorm(num_groups=4).init(jax.random.key(0), draw(2, 6))
  NormSpec("instance", num_groups=5).check(12)  # not a number it uses


def test_a_normalization_batch_that_does_not_divide_the_batch():
  layer, variables, x = build("batch", batch_size=3)
  with pytest.raises(ValueError, match="batch of 3 does not divide .* 8 ex"):
    layer.apply(variables, x, train=True, mutable=["batch_stats"])
