"""Networks without normalization: their sizes, and the variance they keep."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ws_jax
from tests.quick import quick
from ws_jax import models
from ws_jax.core.kernels import path_string
from ws_jax.models.nfnet import create
from ws_jax.models.normfree import NFNet

# At 1000 classes, as timm counts them; dm_nfnet_f0 is its name of ours.
PUBLISHED = {
  "nf_resnet50": 25_557_032,
  "nf_resnet101": 44_549_160,
  "nfnet_f0": 71_489_284,
  "nfnet_f1": 132_634_256,
  "nfnet_f2": 193_779_228,
}


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shapes(model, channels=3) -> Any:
  """Shapes of the parameters, from tracing alone."""
  images = jnp.zeros((2, 64, 64, channels))
  init = lambda key: model.init(key, images, train=False)["params"]
  return jax.eval_shape(init, jax.random.key(0))


def drawn(tree) -> Any:
  """Parameters of these shapes as at first, but drawn by NumPy."""
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    name = path[-1].key
    values = rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape)
    if name != "kernel":
      values = np.full(leaf.shape, float(name == "gain"))
    return values.astype(np.float32)

  return jax.tree_util.tree_map_with_path(fill, tree)


def tiny(**settings) -> NFNet:
  default: dict[str, Any] = {
    "num_classes": 3,
    "block_sizes": (2, 2),
    "channels": (32, 64),
    "stem": "cifar",
    "stem_channels": 32,
    "sizes": (1, 3, 1),
    "inner": 0.5,
    "skip_init": True,
  }
  return NFNet(**default | settings)


def gains(params, above="") -> dict[str, jax.Array]:
  """Returns the gain beside each kernel, by the path of the kernel."""
  found = {}
  for name, value in params.items():
    if isinstance(value, dict):
      found |= gains(value, f"{above}{name}/")
    elif name == "gain":
      found[f"{above}kernel"] = value
  return found


def standardized(params):
  return ws_jax.weight_standardize(
    params, convention="nfnet", gains=gains(params)
  )


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name):
  params = shapes(create(name, num_outputs=1000))
  assert sum(p.size for p in jax.tree.leaves(params)) == PUBLISHED[name]


def test_every_convolution_has_a_gain_and_nothing_else_has():
  params = shapes(create("nfnet_f0", num_outputs=10))
  selected = {
    path_string(path)
    for path, leaf in jax.tree.leaves_with_path(params)
    if ws_jax.conv_kernels(path_string(path), leaf)
  }
  assert selected == set(gains(params))
  # The 57 of DeepMind's own: 4 of the stem, 4 a block, 4 projections, the last.
  assert len(selected) == 4 + 12 * 4 + 4 + 1


def test_groups_are_of_128_channels():
  params = shapes(create("nfnet_f0", num_outputs=10))
  sizes = [
    params[f"stage{stage}_block1"]["conv2"]["kernel"].shape
    for stage in (1, 2, 3)
  ]
  assert sizes == [(3, 3, 128, 128), (3, 3, 128, 256), (3, 3, 128, 768)]


def test_variance_is_what_arithmetic_says():
  # The first block projects and starts anew from 1; each adds alpha squared.
  model = tiny(block_sizes=(4,), channels=(64,))
  images, params = draw(8, 16, 16, 16), drawn(shapes(model, channels=16))
  for i in range(1, 5):
    params[f"stage1_block{i}"]["skip_gain"] = np.float32(1)

  @quick
  def variances(params):
    _, state = model.apply(
      {"params": standardized(params)},
      images,
      train=False,
      capture_intermediates=True,
      mutable=["intermediates"],
    )
    inside = state["intermediates"]
    names = ("stem", *(f"stage1_block{i}" for i in range(1, 5)))
    values = [inside[name]["__call__"][0] for name in names]
    return jnp.stack([jnp.var(v, (0, 1, 2)).mean() for v in values])

  got = np.asarray(variances(params))
  # A 3x3 sees zeros at the rim of 16 pixels, which takes a tenth.
  np.testing.assert_allclose(got, [1, 1.04, 1.08, 1.12, 1.16], rtol=0.15)
  np.testing.assert_allclose(np.diff(got[1:]), 0.04, rtol=0.35)


def test_without_standardization_the_gains_do_nothing():
  model, images = tiny(block_sizes=(1,), channels=(32,)), draw(2, 8, 8, 3)
  params = drawn(shapes(model))
  params["stage1_block1"]["skip_gain"] = np.float32(1)
  double = jax.tree_util.tree_map_with_path(
    lambda path, x: 2 * x if path[-1].key == "gain" else x, params
  )
  apply = quick(lambda p: model.apply({"params": p}, images, train=False))
  np.testing.assert_array_equal(apply(params), apply(double))
  one, two = (apply(quick(standardized)(p)) for p in (params, double))
  assert np.abs(one - two).max() > 1e-3


@pytest.mark.parametrize("skip_init", [True, False])
def test_blocks_start_as_their_shortcuts_and_can_leave_that(skip_init):
  model = tiny(block_sizes=(2,), channels=(32,), skip_init=skip_init)
  images, params = draw(2, 8, 8, 3), drawn(shapes(model))
  if not skip_init:
    init = quick(lambda: model.init(jax.random.key(0), images, train=False))
    first = init()["params"]["stage1_block2"]["conv3"]["gain"]
    params["stage1_block2"]["conv3"]["gain"] = np.asarray(first)

  @quick
  def loss_and_grads(params):
    def loss(params):
      out = model.apply({"params": standardized(params)}, images, train=False)
      return (out * draw(2, 3, seed=1)).sum()

    return jax.value_and_grad(loss)(params)

  start, grads = loss_and_grads(params)
  # A block without a projection can be changed inside, and nothing happens ...
  inside = params["stage1_block2"]["conv1"]
  inside["kernel"] = draw(*inside["kernel"].shape, seed=2)
  np.testing.assert_array_equal(loss_and_grads(params)[0], start)
  # ... but what switches it off gets a gradient.
  block = grads["stage1_block2"]
  switch = block["skip_gain"] if skip_init else block["conv3"]["gain"]
  assert np.abs(switch).max() > 0


@pytest.mark.parametrize("same_padding", [True, False])
def test_odd_images_fit_through_both_ways_of_a_block(same_padding):
  model = tiny(same_padding=same_padding, squeeze=0.5, final=2.0)
  images = jax.ShapeDtypeStruct((2, 27, 33, 1), jnp.float32)
  key = jax.random.key(0)
  init = lambda x: model.init_with_output(key, x, train=False)
  logits, _ = jax.eval_shape(init, images)
  assert (logits.shape, logits.dtype) == ((2, 3), jnp.float32)


def test_gains_biases_and_the_numbers_of_blocks_do_not_decay():
  params = shapes(create("nfnet_f0", num_outputs=10))
  mask = ws_jax.kernel_decay_mask(params)
  for path, decays in jax.tree.leaves_with_path(mask):
    assert decays == (path[-1].key == "kernel"), path_string(path)


def test_training_is_random_and_evaluation_is_not():
  model = create("nf_resnet8", num_outputs=3, width=0.5, stochastic_depth=0.5)
  images = draw(8, 8, 8, 3)
  variables = {"params": drawn(shapes(model))}
  variables["params"]["stage3_block1"]["skip_gain"] = np.float32(1)
  train = quick(
    lambda seed: model.apply(
      variables, images, train=True, rngs={"dropout": jax.random.key(seed)}
    )
  )
  np.testing.assert_array_equal(train(0), train(0))
  assert np.abs(train(0) - train(1)).max() > 0
  # What stays of a block is not scaled up: as in evaluation, or not at all.
  still = quick(lambda: model.apply(variables, images, train=False))()
  like = np.isclose(train(0), np.asarray(still), atol=1e-5).all(1)
  assert 0 < like.sum() < len(images)


def test_defaults_are_those_that_a_name_was_published_with():
  keys = models.keys("nfnet_f1")
  found = {name: keys[name].default for name in ("dropout", "ws_convention")}
  assert found == {"dropout": 0.3, "ws_convention": "nfnet"}
  assert models.keys("nf_resnet50")["ws_convention"].default == "timm_scaled"
  assert not {"norm", "num_groups"} & set(keys)
  model = models.create("nfnet_f1", num_outputs=2)
  assert (model.dropout, model.stochastic_depth, model.skip_init) == (
    0.3,
    0.25,
    True,
  )


def test_models_are_values():
  one, two = tiny(), tiny()
  assert one == two and hash(one) == hash(two) and one != tiny(alpha=0.1)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"name": "nfnet_f9"}, "unknown model 'nfnet_f9': did you mean 'nfnet_f"),
    ({"stem": "imgnet"}, "unknown stem 'imgnet': did you mean 'imagenet'"),
    ({"num_outputs": 0}, "num_outputs must be at least 1, not 0"),
    ({"width": 0.05}, "width 0.05 leaves less than 8 of the 128 channels"),
  ],
)
def test_models_that_cannot_be(settings, message):
  default: dict[str, Any] = {"name": "nfnet_f0", "num_outputs": 10}
  with pytest.raises(ValueError, match=message):
    models.create(**default | settings)
