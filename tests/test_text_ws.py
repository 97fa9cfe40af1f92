"""WS of transformers: which kernels, which filters, with learned gains."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ws_jax
import ws_jax.linen
from ws_jax import config, models, train, weights
from ws_jax.train import build, calling
from ws_jax.weights import __main__ as verbs

TEXT = "to be, or not to be: that is the question.\n" * 40
SETTINGS = {
  "data.eval_split": "test",
  "data.batch_size": 4,
  "data.eval_batch_size": 4,
  "task.name": "language_model",
  "task.length": 16,
  "model.name": "transformer_lm",
  "model.norm": "layer",
  "model.layers": 1,
  "model.dim": 16,
  "model.heads": 2,
  "model.ws": True,
  "model.ws_convention": "timm_scaled",
  "optim.name": "adamw",
  "optim.nesterov": False,
  "optim.learning_rate": 0.01,
  "optim.warmup_steps": 0,
  "train.steps": 2,
}


@pytest.fixture(scope="module")
def decoder():
  """A decoder, its parameters with gains, and tokens."""
  model = models.create(
    "transformer_lm", num_outputs=11, layers=1, dim=16, heads=2
  )
  tokens = jax.random.randint(jax.random.key(0), (2, 8), 0, 10)
  params = model.init(jax.random.key(1), tokens)["params"]
  params = jax.tree.map(lambda x: x + 0.05, params)
  globs = models.ws_where("transformer_lm")
  where, axes = calling.selection(model, globs)
  params = calling.with_gains(params, where, axes)
  rng = np.random.default_rng(0)
  fill = lambda path, x: (
    1 + 0.3 * rng.normal(size=x.shape).astype(np.float32)
    if path[-1].key == "gain"
    else x
  )
  return model, jax.tree_util.tree_map_with_path(fill, params), tokens


def by_dense_layers(convention, use_gain):
  """Computes each layer of a decoder by `WSDense` on a matrix."""

  def call(next_call, args, kwargs, context):
    layer = context.module
    if not isinstance(layer, nn.DenseGeneral):
      return next_call(*args, **kwargs)
    (x,), own = args, layer.variables["params"]
    inputs = 1 if isinstance(layer.axis, int) else len(layer.axis)
    shape = own["kernel"].shape
    kernel = own["kernel"].reshape(np.prod(shape[:inputs]), -1)
    params = {"kernel": kernel}
    if use_gain:
      params["gain"] = own["gain"].reshape(-1)
    dense = ws_jax.linen.WSDense(
      kernel.shape[1],
      use_bias=False,
      convention=convention,
      use_gain=use_gain,
      parent=None,
    )
    flat = x.reshape(*x.shape[: x.ndim - inputs], -1)
    y = dense.apply({"params": params}, flat)
    return y.reshape(*y.shape[:-1], *shape[inputs:])

  return call


@pytest.mark.parametrize(
  ("convention", "use_gain"), [("bit", False), ("timm_scaled", True)]
)
def test_tree_ws_of_a_decoder_is_that_of_dense_layers(
  decoder, convention, use_gain
):
  model, params, tokens = decoder
  raw = params if use_gain else without_gains(params)
  effective = calling.effective_params(
    model,
    raw,
    ws_jax.get_convention(convention),
    models.ws_where("transformer_lm"),
  )
  got = model.apply({"params": effective}, tokens)
  with nn.intercept_methods(by_dense_layers(convention, use_gain)):
    expected = model.apply({"params": raw}, tokens)
  plain = model.apply({"params": raw}, tokens)
  scale = float(jnp.abs(expected).max())
  np.testing.assert_allclose(got / scale, expected / scale, atol=1e-5)
  assert float(jnp.abs(got - plain).max()) > 0.01 * scale


def without_gains(tree):
  if not isinstance(tree, dict):
    return tree
  return {k: without_gains(v) for k, v in tree.items() if k != "gain"}


def test_filters_of_the_outputs_are_joint_or_of_each_head(decoder):
  model, params, _ = decoder
  params = without_gains(params)

  def out(axes_name):
    effective = calling.effective_params(
      model,
      params,
      ws_jax.BIT,
      models.ws_where("transformer_lm"),
      axes_name,
    )
    others = effective["block1"]["attention"]["query"]["kernel"]
    np.testing.assert_allclose(others.mean(0), 0, atol=1e-6)
    return np.asarray(effective["block1"]["attention"]["out"]["kernel"])

  joint, per_head = out("joint"), out("per_head")
  assert joint.shape == (2, 8, 16)
  np.testing.assert_allclose(joint.std((0, 1)), 1, atol=1e-4)
  np.testing.assert_allclose(per_head.std(1), 1, atol=1e-4)
  assert np.abs(joint.mean(1)).max() > 0.05
  # The rule by name that the configuration stands for.
  rule = ws_jax.axes_by_path({"*attention/out/kernel": ws_jax.all_but(0, -1)})
  by_hand = ws_jax.weight_standardize(
    params,
    where=ws_jax.matching(*models.ws_where("transformer_lm")),
    axes=rule,
  )
  np.testing.assert_array_equal(
    by_hand["block1"]["attention"]["out"]["kernel"], per_head
  )


def test_a_run_learns_the_gains_of_attention_and_mlp_alone(tmp_path):
  (tmp_path / "own.txt").write_text(TEXT)
  wanted = {"data.name": str(tmp_path / "own.txt"), "model.ws_gains": True}
  c = config.apply(
    config.default(), SETTINGS | wanted | {"model.ws_axes": "per_head"}
  )
  train.train_and_evaluate(c, tmp_path / "run")
  run = train.load_run(tmp_path / "run")
  gains = {
    path: leaf
    for path, leaf in ws_jax.core.kernels.by_path(run.params).items()
    if path.endswith("gain")
  }
  assert {path: leaf.shape for path, leaf in gains.items()} == {
    "block1/attention/key/gain": (2, 8),
    "block1/attention/out/gain": (2, 16),
    "block1/attention/query/gain": (2, 8),
    "block1/attention/value/gain": (2, 8),
    "block1/mlp/down/gain": (16,),
    "block1/mlp/up/gain": (64,),
  }
  for path, leaf in gains.items():
    assert np.abs(leaf - 1).max() > 1e-3, path
  # Whoever reads or folds the run gets kernels with the gains in them.
  out = tmp_path / "plain.npz"
  assert verbs.main(["fold", str(tmp_path / "run"), str(out)]) == 0
  folded = ws_jax.core.kernels.by_path(weights.read_params(out))
  for path, leaf in ws_jax.core.kernels.by_path(run.variables).items():
    np.testing.assert_allclose(folded[path], leaf, atol=1e-6, err_msg=path)
  kernel = run.variables["params"]["block1"]["mlp"]["up"]["kernel"]
  gain = gains["block1/mlp/up/gain"]
  np.testing.assert_allclose(kernel.std(0) * 4 / gain, 1, atol=5e-3)


@pytest.mark.parametrize(
  ("name", "expected"),
  [("transformer_classifier", 6), ("text_cnn", 3), ("resnet20", 20)],
)
def test_ws_is_for_the_kernels_of_the_model_without_being_told(name, expected):
  inputs = {"num_inputs": 9} if name != "resnet20" else {}
  more = {"layers": 1} if name.startswith("transformer") else {}
  if name == "resnet20":
    from ws_jax.layers.norm import NormSpec

    more = {"norm": NormSpec("group", num_groups=8)}
  model = models.create(name, num_outputs=3, **inputs, **more)
  shape = (1, 8) if inputs else (1, 8, 8, 3)
  dtype = jnp.int32 if inputs else jnp.float32
  params = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros(shape, dtype), train=False)
  )["params"]
  where, _ = calling.selection(model, models.ws_where(name))
  assert len(ws_jax.core.kernels.select(params, where)) >= expected
  for path in ws_jax.core.kernels.select(params, where):
    assert "embed" not in path and "head" not in path


def test_an_unknown_rule_for_axes_is_refused_by_name(tmp_path):
  (tmp_path / "own.txt").write_text(TEXT)
  wanted = {"data.name": str(tmp_path / "own.txt")}
  wanted |= {"model.ws_axes": "perhead"}
  c = config.apply(config.default(), SETTINGS | wanted)
  with pytest.raises(config.ConfigError, match="did you mean 'per_head'"):
    build.start(c)
