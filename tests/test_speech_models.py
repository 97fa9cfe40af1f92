"""Networks of keyword spotting: published sizes, padding, and WS on them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ws_jax
from tests.quick import quick
from ws_jax import models
from ws_jax.layers.norm import NORMS, NormSpec
from ws_jax.models import speech

# All for the 12 classes of Speech Commands: ten words, silence, unknown.
CLASSES = 12
# Table 1 of Tang and Lin (2018): thousands of parameters. Their batch norm has
# neither scale nor bias, so those do not count.
RES = {
  "res8": 110_307,  # 110K
  "res8_narrow": 19_905,  # 19.9K
  "res15": 237_882,  # 238K
  "res15_narrow": 42_648,  # 42.6K
  "res26": 438_357,  # 438K
  "res26_narrow": 78_387,  # 78.4K
}
# Table 2 of Choi et al. (2019), where the moving statistics count as well.
TC_RESNET = {
  ("tc_resnet8", 1.0): (65_836, "66K"),
  ("tc_resnet8", 1.5): (145_260, "145K"),
  ("tc_resnet14", 1.0): (136_940, "137K"),
  ("tc_resnet14", 1.5): (304_620, "305K"),
}
# Table 4 of Zhang et al. (2017): bytes, of weights with the norms folded in and
# of the two largest maps that are needed at once, each of one byte.
DS_CNN = {"ds_cnn_s": 38.6, "ds_cnn_m": 189.2, "ds_cnn_l": 497.6}
FAMILIES = ("res8_narrow", "tc_resnet8", "ds_cnn_s")


def make(name, kind="batch", **settings) -> Any:
  norm = NormSpec(kind, num_groups=1)
  given = {"num_outputs": CLASSES, "norm": norm}
  return models.create(name, **given | settings)


def variables(model, frames=101, bands=40) -> Any:
  features = jax.ShapeDtypeStruct((2, frames, bands), jnp.float32)
  init = lambda x: model.init(jax.random.key(0), x, train=False)
  return jax.eval_shape(init, features)


def initialized(model, x) -> Any:
  """Variables in numbers; compiled, which is quicker than op by op."""
  return quick(lambda x: model.init(jax.random.key(0), x, train=False))(x)


def count(tree, leave_out=()):
  flat = jax.tree.leaves_with_path(tree)
  return sum(
    leaf.size
    for path, leaf in flat
    if ws_jax.core.kernels.path_string(path).split("/")[-1] not in leave_out
    or "head" in ws_jax.core.kernels.path_string(path)
  )


def features(frames=101, bands=40, batch=2, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(batch, frames, bands)).astype(np.float32)


@pytest.mark.parametrize("name", RES)
def test_res_has_the_published_number_of_parameters(name):
  got = count(variables(make(name))["params"], leave_out=("scale", "bias"))
  assert got == RES[name]


@pytest.mark.parametrize(("name", "width"), TC_RESNET)
def test_tc_resnet_has_the_published_number_of_parameters(name, width):
  got = count(variables(make(name, width=width)))
  expected, published = TC_RESNET[name, width]
  assert got == expected
  assert f"{got / 1000:.0f}K" == published


@pytest.mark.parametrize("name", DS_CNN)
def test_ds_cnn_has_the_published_size(name):
  model = make(name)
  folded = count(variables(model, 49, 10)["params"], leave_out=("scale",))

  def maps(x):
    parts = model.init(jax.random.key(0), x, train=False)
    _, state = model.apply(
      parts, x, train=False, capture_intermediates=True, mutable=True
    )
    return state["intermediates"]

  inside = jax.eval_shape(maps, jax.ShapeDtypeStruct((1, 49, 10), jnp.float32))
  largest = sum(
    inside[layer]["__call__"][0].size for layer in ("conv0", "depthwise_conv1")
  )
  assert round((folded + largest) / 1000, 1) == DS_CNN[name]


@pytest.mark.parametrize("name", speech.MODELS)
def test_every_model_makes_logits_from_any_length(name):
  model = make(name)
  for frames, bands in ((101, 40), (49, 12), (30, 25)):
    shape = jax.ShapeDtypeStruct((3, frames, bands), jnp.float32)
    both = lambda x: model.init_with_output(jax.random.key(0), x, train=False)
    logits, _ = jax.eval_shape(both, shape)
    assert (logits.shape, logits.dtype) == ((3, CLASSES), jnp.float32)


def with_statistics(model, frames):
  """Returns variables whose batch statistics and biases are not the first."""
  rng = np.random.default_rng(1)
  parts = initialized(model, features(frames))
  return jax.tree.map(
    lambda x: x + 0.3 * rng.uniform(size=x.shape).astype(np.float32), parts
  )


@pytest.mark.parametrize("name", FAMILIES)
def test_more_padding_changes_nothing(name):
  # As far as a layer sees beyond the end of the clip there must be padding.
  model, clip = make(name), features(frames=60)
  parts = with_statistics(model, 60)
  apply = quick(lambda x: model.apply(parts, x, train=False))
  short, long = (
    apply(np.pad(clip, ((0, 0), (0, frames - 60), (0, 0))))
    for frames in (320, 400)
  )
  np.testing.assert_allclose(short, long, rtol=1e-4)


def test_a_clip_of_padding_alone_gets_the_bias_of_the_head():
  model = make("tc_resnet8")
  parts = with_statistics(model, 20)
  logits = model.apply(parts, jnp.zeros((1, 20, 40)), train=False)
  np.testing.assert_allclose(logits[0], parts["params"]["head"]["bias"])


def loss_and_gradients(model, params, rest, x, standardize):
  def loss(params):
    if standardize:
      params = ws_jax.weight_standardize(params)
    logits, new = model.apply(
      {"params": params, **rest},
      x,
      train=True,
      mutable=list(rest),
      rngs={"dropout": jax.random.key(2)},
    )
    return jnp.square(logits - 1).mean(), new

  return quick(jax.value_and_grad(loss, has_aux=True))(params)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("kind", NORMS)
def test_every_norm_trains_with_and_without_ws(kind, standardize):
  model = make("tc_resnet8", kind, width=0.5, dropout=0.2)
  x = features(40)
  parts = initialized(model, x)
  params = parts.pop("params")
  (loss, new), grads = loss_and_gradients(model, params, parts, x, standardize)
  assert np.isfinite(loss)
  assert ("batch_stats" in new) == (kind.startswith("batch"))
  for path, grad in jax.tree.leaves_with_path(grads):
    assert np.isfinite(grad).all()
    # The scale of a layer's one group is undone by the next norm.
    undone = path[-1].key == "group_scale" and grad.size == 1
    assert undone or np.abs(grad).max() > 0, path


@pytest.mark.parametrize("name", speech.MODELS)
def test_ws_standardizes_each_filter_over_its_own_inputs(name):
  model = make(name)
  shapes = variables(model)["params"]
  flat = jax.tree.leaves_with_path(shapes)
  paths = [ws_jax.core.kernels.path_string(path) for path, _ in flat]
  convs = {
    path for path in paths if path.endswith("/kernel") and "head" not in path
  }
  chosen = {
    path
    for path, (_, leaf) in zip(paths, flat, strict=True)
    if ws_jax.conv_kernels(path, leaf)
  }
  assert chosen == convs, "a kernel that WS would pass over in silence"


def test_ws_on_one_dimensional_and_depthwise_kernels():
  for name, layer, fan_in in (
    ("tc_resnet8", "block1_conv1", 9 * 16),
    ("tc_resnet8", "block2_conv_shortcut", 24),
    ("ds_cnn_s", "depthwise_conv2", 9),
    ("ds_cnn_s", "conv1", 64),
    ("res8_narrow", "conv3", 9 * 19),
  ):
    model = make(name)
    params = initialized(model, features())["params"]
    kernel = ws_jax.weight_standardize(params)[layer]["kernel"]
    filters = np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])
    assert len(filters) == fan_in
    np.testing.assert_allclose(filters.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(filters.std(0), 1, atol=1e-2)


def test_kernels_start_with_the_variance_of_their_fan_in():
  params = initialized(make("ds_cnn_l"), features())
  for layer, fan_in in (("depthwise_conv1", 9), ("conv1", 276)):
    variance = np.var(params["params"][layer]["kernel"])
    assert variance == pytest.approx(2 / fan_in, rel=0.1)


def test_bfloat16_activations_keep_float32_logits():
  model = make("tc_resnet8", dtype=jnp.bfloat16)
  x = features()
  parts = initialized(model, x)
  assert model.apply(parts, x, train=False).dtype == jnp.float32
  dtypes = {str(p.dtype) for p in jax.tree.leaves(parts["params"])}
  assert dtypes == {"float32"}


def test_equal_settings_make_equal_models():
  assert make("res15") == make("res15")
  assert hash(make("ds_cnn_s")) == hash(make("ds_cnn_s"))
  assert make("tc_resnet8") != make("tc_resnet8", width=1.5)


@pytest.mark.parametrize(
  ("name", "settings", "said"),
  [
    ("tc_resnet9", {}, "did you mean 'tc_resnet"),
    ("res15", {"norm": NormSpec("group", 8)}, "possible: 1, 3, 5, 9, 15, 45"),
    ("tc_resnet8", {"width": 0.01}, "leaves none of the 16 channels"),
    ("ds_cnn_s", {"num_outputs": 0}, "at least 1"),
  ],
)
def test_what_cannot_be_made_is_refused(name, settings, said):
  with pytest.raises(ValueError, match=said):
    make(name, **settings)
