"""A plain model becomes a scaled WS model without changing its function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ws_jax
from ws_jax import config
from ws_jax.layers.norm import NormSpec
from ws_jax.models import create_model
from ws_jax.train import build
from ws_jax.train import step as steps

SCALES = [1e-12, 1e-6, 1e-2, 1.0, 1e3, 1e6]


def badly_scaled(path, leaf, rng):
  """Returns filters of every size, with means up to far above the spread."""
  if "kernel" not in jax.tree_util.keystr(path) or leaf.ndim < 4:
    return leaf
  outputs = leaf.shape[-1]
  kernel = rng.normal(size=leaf.shape)
  kernel += rng.choice([0, 0.3, -30], outputs)
  kernel *= rng.choice(SCALES, outputs)
  kernel[..., 0] = 0
  kernel[..., 1] = 0.1
  return jnp.asarray(kernel, jnp.float32)


def assert_same_filters(got, plain, ulps):
  got, plain = (np.asarray(x, np.float64) for x in (got, plain))
  axes = tuple(range(plain.ndim - 1))
  size = np.abs(plain).max(axes, keepdims=True)
  allowed = ulps * np.finfo(np.float32).eps * size + 1e-45
  assert (np.abs(got - plain) / allowed).max() <= 1


def test_resnet_computes_the_same():
  norm = NormSpec(kind="group", num_groups=2)
  build = lambda dtype: create_model(
    "resnet8", num_classes=5, width=0.5, norm=norm, dtype=dtype
  )
  model = build(jnp.float32)
  rng = np.random.default_rng(0)
  images = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
  variables = jax.jit(lambda k: model.init(k, images, train=False))(
    jax.random.key(0)
  )
  plain = jax.tree_util.tree_map_with_path(
    lambda path, leaf: badly_scaled(path, leaf, rng), variables["params"]
  )
  raw, gains, means = ws_jax.from_plain(plain)

  @jax.jit
  def both(raw, gains, means):
    effective = ws_jax.weight_standardize(raw, gains=gains, means=means)
    return (
      effective,
      model.apply({"params": raw}, images, train=False),
      model.apply({"params": effective}, images, train=False),
    )

  effective, before, after = both(raw, gains, means)
  for got, expected in zip(
    jax.tree.leaves(effective), jax.tree.leaves(plain), strict=True
  ):
    assert_same_filters(got, expected, ulps=4)
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), plain)
    exact = np.asarray(
      jax.jit(build(jnp.float64).apply, static_argnames="train")(
        {"params": wide}, images.astype(np.float64), train=False
      )
    )
  size = np.abs(exact).max()
  assert size > 0.1
  # The plain model in float32 has a round-off of its own.
  own = np.abs(np.asarray(before) - exact).max()
  np.testing.assert_allclose(after, exact, atol=3 * own + 1e-6 * size)


@pytest.mark.slow
def test_trained_resnet_computes_the_same():
  """It has BatchNorm and no WS, and some steps of training on real images."""
  settings = {
    "model.name": "resnet8",
    "model.width": 0.25,
    "model.norm": "batch",
    "model.ws": False,
    "data.batch_size": 32,
    "train.steps": 12,
    "optim.learning_rate": 0.1,
  }
  c = config.apply(config.default(), settings)
  setup = build.start(c)
  dataset, program, state = setup.dataset, setup.program, setup.state()
  arrays, indices = setup.source.block(0, 12)
  start = jax.tree.map(np.asarray, state.params)
  state = steps.train_block(program, state, arrays, indices)
  plain, stats = jax.tree.map(np.asarray, (state.params, state.model_state))
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), plain, start)
  assert min(jax.tree.leaves(moved)) > 0
  images = program.task.batch(dataset.test, np.arange(16), None)["inputs"]

  @jax.jit
  def logits(params):
    variables = {"params": params, **stats}
    return program.model.apply(variables, images, train=False)

  raw, gains, means = ws_jax.from_plain(plain, convention="nfnet")
  effective = ws_jax.weight_standardize(
    raw, convention="nfnet", gains=gains, means=means
  )
  expected = np.asarray(logits(plain))
  largest = np.abs(expected).max()
  assert expected.std() > 1e-3 * largest
  np.testing.assert_allclose(
    logits(effective), expected, atol=5e-6 * largest, rtol=0
  )


@pytest.mark.parametrize("name", sorted(ws_jax.CONVENTIONS))
def test_every_convention_gives_the_kernel_back(name):
  rng = np.random.default_rng(0)
  kernel = badly_scaled(
    (jax.tree_util.DictKey("kernel"),), np.zeros((3, 3, 4, 12)), rng
  )
  plain = {"Conv_0": {"kernel": kernel}}
  raw, gains, means = ws_jax.from_plain(plain, convention=name)
  assert raw is plain
  assert gains["Conv_0/kernel"].shape == means["Conv_0/kernel"].shape == (12,)
  got = ws_jax.weight_standardize(
    raw, gains=gains, means=means, convention=name
  )["Conv_0"]["kernel"]
  assert_same_filters(got, kernel, ulps=4)
  # A constant filter keeps its constant to the bit.
  if name != "scale":
    np.testing.assert_array_equal(got[..., :2], kernel[..., :2])
  folded = ws_jax.fold(raw, gains=gains, means=means, convention=name)
  np.testing.assert_array_equal(folded["Conv_0"]["kernel"], got)


def test_other_layouts_and_dtypes():
  rng = np.random.default_rng(0)
  base = 0.02 * rng.normal(size=(5, 3, 4)) + 0.01
  stacked = ws_jax.all_but(0, -1)
  for dtype, bound in [("float64", 1e-15), ("bfloat16", 0), ("float16", 0)]:
    with jax.enable_x64(True):
      plain = {"conv": {"kernel": jnp.asarray(base, dtype)}}
      raw, gains, means = ws_jax.from_plain(plain, axes=stacked)
      assert gains["conv/kernel"].shape == (5, 4)
      wide = "float64" if dtype == "float64" else "float32"
      assert gains["conv/kernel"].dtype == means["conv/kernel"].dtype == wide
      got = ws_jax.weight_standardize(
        raw, axes=stacked, gains=gains, means=means
      )["conv"]["kernel"]
      assert got.dtype == dtype
      # Rounding to 16 bits removes the round-off of float32.
      np.testing.assert_allclose(
        got.astype(jnp.float64), plain["conv"]["kernel"], rtol=0, atol=bound
      )


def test_gradient_is_the_plain_one_without_two_directions():
  rng = np.random.default_rng(0)
  kernel = (0.05 * rng.normal(size=(3, 3, 4, 5)) + 0.2).astype(np.float32)
  kernel[..., 0] = 0.1  # a constant filter can learn too
  weight = rng.normal(size=kernel.shape).astype(np.float32)
  raw, gains, means = ws_jax.from_plain({"Conv_0": {"kernel": kernel}})

  def loss(raw, gains):
    effective = ws_jax.weight_standardize(raw, gains=gains, means=means)
    return jnp.vdot(effective["Conv_0"]["kernel"], weight)

  got, slope = jax.grad(loss, argnums=(0, 1))(raw, gains)
  wide, expected = (np.float64(x) for x in (kernel, weight))
  centred = wide - wide.mean((0, 1, 2))
  std = np.sqrt(np.square(centred).mean((0, 1, 2)))
  unit = centred / np.where(std > 1e-7, std, np.inf)
  along = (expected * unit).mean((0, 1, 2))
  np.testing.assert_allclose(
    got["Conv_0"]["kernel"],
    expected - expected.mean((0, 1, 2)) - along * unit,
    atol=1e-5,
  )
  np.testing.assert_allclose(slope["Conv_0/kernel"], 36 * along, rtol=1e-4)


def test_errors_name_the_path_and_the_tree():
  small = {"Conv_0": {"kernel": jnp.ones((1, 1, 1, 4))}}
  with pytest.raises(ValueError, match="Conv_0/kernel: fan-in 1"):
    ws_jax.from_plain(small)
  with pytest.raises(ValueError, match="paths seen: w"):
    ws_jax.from_plain({"w": jnp.ones((3, 4))})
  raw = {"Conv_0": {"kernel": jnp.ones((3, 3, 2, 4))}}
  for means, message in [
    ({}, "kernels without a mean: Conv_0/kernel"),
    ({"Conv_1/kernel": 0.0}, "mean for unknown kernel 'Conv_1/kernel'"),
    ({"Conv_0/kernel": jnp.ones(3)}, r"mean of shape \[3\] .*must be \[4\]"),
  ]:
    with pytest.raises(ValueError, match=message):
      ws_jax.weight_standardize(raw, means=means)
