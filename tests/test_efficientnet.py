"""EfficientNet, and the two layers that it brought."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ws_jax
from tests.quick import quick
from ws_jax import config, models
from ws_jax.core import conventions
from ws_jax.core.kernels import path_string
from ws_jax.layers.norm import NormSpec
from ws_jax.layers.squeeze_excite import SqueezeExcite
from ws_jax.layers.stochastic_depth import StochasticDepth
from ws_jax.models.mbconv import EfficientNet, Stage
from ws_jax.train import calling

# At 1000 classes, as timm counts them.
PUBLISHED = {
  "efficientnet_b0": 5_288_548,
  "efficientnet_b1": 7_794_184,
  "efficientnet_b2": 9_109_994,
  "efficientnet_b3": 12_233_232,
}


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shapes(model, size=64) -> Any:
  """Shapes of the variables, from tracing alone."""
  images = jnp.zeros((2, size, size, 3))
  init = lambda key: model.init(key, images, train=False)
  return jax.eval_shape(init, jax.random.key(0))


def drawn(tree):
  """Arrays of these shapes, drawn by NumPy, which compiles nothing."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), tree
  )


def tiny(**settings) -> EfficientNet:
  default: dict[str, Any] = {
    "num_classes": 3,
    "stages": (Stage(1, 3, 1, 8, 1), Stage(6, 5, 2, 16, 2)),
    "stem_channels": 8,
    "stem_stride": 1,
    "final_channels": 24,
    "norm": NormSpec(num_groups=4),
    "dropout": 0.0,
    "stochastic_depth": 0.0,
    "dtype": jnp.float32,
  }
  return EfficientNet(**default | settings)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name):
  params = shapes(models.create(name, num_outputs=1000))["params"]
  assert sum(p.size for p in jax.tree.leaves(params)) == PUBLISHED[name]


def test_the_one_for_small_images_halves_them_three_times():
  small = models.create("efficientnet_cifar", num_outputs=10)
  large = models.create("efficientnet_b0", num_outputs=10)
  assert shapes(small) == shapes(large)
  strides = lambda model: [s.stride for s in model.stages] + [model.stem_stride]
  assert np.prod(strides(small)) == 8 and np.prod(strides(large)) == 32


def test_weight_standardization_takes_convolutions_and_not_the_dense_layers():
  model = models.create("efficientnet_b0", num_outputs=10)
  leaves = jax.tree.leaves_with_path(shapes(model)["params"])
  named = {path_string(path): leaf for path, leaf in leaves}
  taken = {p for p, leaf in named.items() if ws_jax.conv_kernels(p, leaf)}
  # A stem, 2 to 3 in each of 16 blocks, and the last.
  assert len(taken) == 1 + 2 + 15 * 3 + 1
  depthwise = {p for p in taken if p.endswith("depthwise/kernel")}
  assert len(depthwise) == 16
  # The patterns that leave the depthwise ones out, as the module says.
  rest = ws_jax.matching(
    *("stem/kernel", "*/expand/kernel", "*/project/kernel", "final/kernel")
  )
  assert {p for p, x in named.items() if rest(p, x)} == taken - depthwise
  for path in depthwise:
    size, _, inputs, _ = named[path].shape
    assert (size in (3, 5), inputs) == (True, 1)


@pytest.mark.parametrize(
  "kind", ["batch", "group", "layer", "instance", "none"]
)
def test_every_norm_has_the_same_parameters(kind):
  variables = shapes(tiny(norm=NormSpec(kind, num_groups=4)), 27)
  assert variables["params"] == shapes(tiny())["params"]
  assert ("batch_stats" in variables) == (kind == "batch")


@pytest.mark.parametrize("kind", ["batch", "group"])
@pytest.mark.parametrize("ws", [False, True])
def test_norm_and_standardization_are_a_two_by_two(kind, ws):
  model = tiny(norm=NormSpec(kind, num_groups=2))
  images = jnp.zeros((4, 9, 9, 3))

  def grads(variables):
    def loss(params):
      effective = ws_jax.weight_standardize(params) if ws else params
      logits, _ = model.apply(
        {**variables, "params": effective},
        images,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(1)},
      )
      return logits.sum()

    return jax.grad(loss)(variables["params"])

  variables = shapes(model)
  assert jax.eval_shape(grads, variables) == variables["params"]


def test_every_parameter_gets_a_gradient():
  model, images = tiny(norm=NormSpec(num_groups=2)), draw(4, 9, 9, 3)

  @quick
  def grads(params):
    def loss(params):
      effective = ws_jax.weight_standardize(params)
      logits = model.apply({"params": effective}, images, train=True)
      return (logits * draw(4, 3, seed=1)).sum()

    return jax.grad(loss)(params)

  params = drawn(shapes(model))["params"]
  for path, grad in jax.tree.leaves_with_path(grads(params)):
    assert np.isfinite(grad).all(), path_string(path)
    assert np.abs(grad).max() > 0, path_string(path)


def test_randomness_is_of_training_and_of_its_key():
  model = tiny(dropout=0.5, stochastic_depth=0.5)
  images, variables = draw(2, 8, 8, 3), drawn(shapes(model))

  @quick
  def train(seed):
    rngs = {"dropout": jax.random.key(seed)}
    return model.apply(variables, images, train=True, rngs=rngs)

  outputs = [train(seed) for seed in (0, 0, 1)]
  np.testing.assert_array_equal(outputs[0], outputs[1])
  assert np.abs(outputs[0] - outputs[2]).max() > 0
  # Evaluation, and training without any rate, ask for no key.
  for one, training in ((model, False), (tiny(), True)):
    apply = lambda v, m=one, t=training: m.apply(v, images, train=t)
    assert jax.eval_shape(apply, variables).shape == (2, 3)


def test_depth_falls_from_first_block_to_last():
  model = models.create("efficientnet_b0", num_outputs=10)
  rates = []

  def watch(next_call, args, kwargs, context):
    if isinstance(context.module, StochasticDepth):
      rates.append(context.module.rate)
    return next_call(*args, **kwargs)

  with nn.intercept_methods(watch):
    shapes(model, 32)
  # The 9 blocks with a shortcut of their own, of 16.
  numbers = [2, 4, 6, 7, 9, 10, 12, 13, 14]
  np.testing.assert_allclose(rates, [0.2 * i / 16 for i in numbers])


def test_defaults_are_those_that_a_name_was_published_with():
  default = lambda name: models.keys(name)["dropout"].default
  assert default("efficientnet_b1") == 0.2
  assert default("efficientnet_b3") == 0.3
  assert models.create("efficientnet_b3", num_outputs=2).dropout == 0.3


def test_models_are_values():
  one, two = tiny(), tiny()
  assert one == two and hash(one) == hash(two) and one != tiny(dropout=0.5)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"name": "efficientnet_b9"}, "unknown model 'efficientnet_b9': did you"),
    ({"num_outputs": 0}, "num_outputs must be at least 1, not 0"),
    ({"norm": NormSpec(num_groups=32)}, "16 channels cannot form 32 groups"),
  ],
)
def test_models_that_cannot_be(settings, message):
  default: dict[str, Any] = {"name": "efficientnet_b0", "num_outputs": 10}
  with pytest.raises(ValueError, match=message):
    models.create(**default | settings)


def test_squeeze_and_excitation_is_what_its_parameters_say():
  x = draw(2, 3, 5, 8)
  layer = SqueezeExcite(hidden=4, gain=2.0)
  y, variables = layer.init_with_output(jax.random.key(0), x)
  p: Any = jax.tree.map(np.float64, variables["params"])
  hidden = x.mean((1, 2)) @ p["squeeze"]["kernel"] + p["squeeze"]["bias"]
  gate = np.maximum(hidden, 0) @ p["excite"]["kernel"] + p["excite"]["bias"]
  true = x * (2 / (1 + np.exp(-gate)))[:, None, None]
  np.testing.assert_allclose(y, true, rtol=1e-5)


def test_stochastic_depth_keeps_the_mean_only_if_it_is_to():
  x = jnp.ones((4000, 2))
  rngs = {"dropout": jax.random.key(0)}
  for rescale, kept in ((True, 1 / 0.7), (False, 1.0)):
    layer = StochasticDepth(0.3, rescale=rescale)
    y = np.asarray(layer.apply({}, x, train=True, rngs=rngs))
    # An example is kept or left out as a whole.
    assert set(y.min(1).round(4)) == {0.0, np.float32(kept).round(4)}
    assert (y.min(1) == y.max(1)).all()
    np.testing.assert_allclose((y[:, 0] > 0).mean(), 0.7, atol=0.03)
    np.testing.assert_array_equal(layer.apply({}, x, train=False), x)
  with pytest.raises(ValueError, match="below 1, not 1.5"):
    StochasticDepth(1.5)


@pytest.mark.parametrize("name", ["efficientnet_cifar", "ds_cnn_s"])
@pytest.mark.parametrize("how", ["standardize", "scale", "leave"])
def test_depthwise_kernels_are_standardized_scaled_or_left(name, how):
  changed = config.apply(
    config.default(), {"model.name": name, "model.ws_depthwise": how}
  )
  config.check(changed)
  rng = np.random.default_rng(0)
  plain = lambda *shape: 1 + rng.normal(size=shape).astype(np.float32)
  params = {
    "depthwise_conv1": {"kernel": plain(3, 3, 1, 8)},
    "conv1": {"kernel": plain(3, 3, 8, 8)},
  }
  bit = conventions.BIT
  found = calling.effective_params(None, params, bit, depthwise=how)
  kernel = found["depthwise_conv1"]["kernel"]
  raw = params["depthwise_conv1"]["kernel"]
  wanted = {
    "standardize": (raw - raw.mean((0, 1, 2))) / raw.std((0, 1, 2)),
    "scale": raw / raw.std((0, 1, 2)),
    "leave": raw,
  }[how]
  np.testing.assert_allclose(kernel, wanted, rtol=1e-4, atol=1e-5)
  other = np.asarray(found["conv1"]["kernel"])
  np.testing.assert_allclose(other.mean((0, 1, 2)), 0, atol=1e-5)
  with pytest.raises(config.ConfigError, match="standardize or scale or"):
    config.check(config.apply(changed, {"model.ws_depthwise": "spare"}))
