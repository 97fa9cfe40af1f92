"""Conventions against float64 NumPy, laws of the method, extreme kernels."""

import functools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ws_jax
from tests.test_native import enable
from ws_jax import CONVENTIONS, Convention, standardize, weight_standardize

AXES = (0, 1, 2)
RESCALING = sorted(n for n, c in CONVENTIONS.items() if c.rescale)
CENTRING = sorted(n for n, c in CONVENTIONS.items() if c.center)
FULL = sorted(set(RESCALING) & set(CENTRING))

# Written from the publications, not from the fields of `Convention`; w is one
# filter [fan-in].
REFERENCE = {
  "qiao": lambda w: (w - w.mean()) / (w.std(ddof=1) + 1e-5),
  "bcn": lambda w: (w - w.mean()) / np.sqrt(w.var(ddof=1) + 1e-5),
  "bit": lambda w: (w - w.mean()) / np.sqrt(w.var() + 1e-10),
  "big_vision": lambda w: (w - w.mean()) / (w.std() + 1e-5),
  "uncertainty_baselines": lambda w: (w - w.mean()) / np.sqrt(w.var() + 1e-5),
  "timm": lambda w: (w - w.mean()) / np.sqrt(w.var() + 1e-6),
  "timm_bit": lambda w: (w - w.mean()) / np.sqrt(w.var() + 1e-8),
  "timm_scaled": lambda w: (w - w.mean()) / np.sqrt((w.var() + 1e-5) * w.size),
  "nfnet": lambda w: (w - w.mean()) / np.sqrt(max(w.var() * w.size, 1e-4)),
  "mmcv": lambda w: (w - w.mean()) / (w.std(ddof=1) + 1e-5),
  "composer": lambda w: (w - w.mean()) / np.sqrt(w.var() + 1e-10),
  "center": lambda w: w - w.mean(),
  "scale": lambda w: w / np.sqrt(w.var() + 1e-10),
}


@pytest.fixture(params=["XLA", "C++"])
def code(request, monkeypatch):
  """Lets one of the two standardize that can: both follow the same laws."""
  if request.param == "C++":
    enable("standardization", monkeypatch)


by_both = pytest.mark.usefixtures("code")


def normal(shape, seed=0, dtype=np.float64):
  return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def by_filter(function, kernel):
  """Applies a function of one filter to each filter of `[..., out]`."""
  flat = np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])
  return np.stack([function(w) for w in flat.T], -1).reshape(kernel.shape)


def test_every_convention_has_a_reference():
  assert REFERENCE.keys() == CONVENTIONS.keys()


@by_both
@pytest.mark.parametrize("scale", [1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_convention_equals_numpy(name, scale):
  kernel = (scale * (normal((3, 3, 6, 4)) + 0.3)).astype(np.float32)
  expected = by_filter(REFERENCE[name], kernel)
  got = standardize(kernel, convention=name)
  assert got.dtype == jnp.float32
  size = np.abs(expected).max()
  np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6 * size)


@by_both
@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_gradient_equals_finite_differences_of_numpy(name):
  kernel = 0.02 * normal((2, 1, 3, 2)) + 0.01
  kernel = kernel.astype(np.float32).astype(np.float64)
  weight = normal(kernel.shape, 1)

  def loss(k):
    return np.vdot(by_filter(REFERENCE[name], k), weight)

  expected = np.zeros_like(kernel)
  for i in np.ndindex(kernel.shape):
    step = np.zeros_like(kernel)
    step[i] = 1e-7
    expected[i] = (loss(kernel + step) - loss(kernel - step)) / 2e-7

  @jax.jit
  @jax.grad
  def grad(k):
    return jnp.vdot(standardize(k, convention=name), jnp.float32(weight))

  got = grad(jnp.float32(kernel))
  size = np.abs(expected).max()
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * size)


def test_formula_says_what_is_computed():
  assert CONVENTIONS["qiao"].formula == "(w - mean) / (std_unbiased + 1e-05)"
  assert CONVENTIONS["nfnet"].formula == (
    "(w - mean) / sqrt(max(var * n, 0.0001) / n) / sqrt(n)"
  )
  assert CONVENTIONS["center"].formula == "w - mean"
  assert all(c.source for c in CONVENTIONS.values())


shapes = st.sampled_from([(3, 3, 2, 3), (1, 1, 8, 4), (5, 2, 3), (7, 2)])
seeds = st.integers(0, 2**16)
scales = st.floats(1e-2, 1e2)
# The same examples in every run: one in a thousand that fails must not stop
# somebody else's work by chance.
some = hypothesis.settings(
  max_examples=25,
  deadline=None,
  database=None,
  derandomize=True,
  # The same code computes all examples.
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)


@by_both
@some
@hypothesis.given(shapes, seeds, scales, st.sampled_from(FULL))
def test_mean_is_zero_and_variance_one(shape, seed, scale, name):
  kernel = (scale * normal(shape, seed)).astype(np.float32)
  convention = CONVENTIONS[name]
  got = np.asarray(standardize(kernel, convention=name), np.float64)
  axes = tuple(range(len(shape) - 1))
  fan_in = math.prod(shape[:-1])
  if convention.fan_in_scale:
    got = got * fan_in**0.5
  np.testing.assert_allclose(got.mean(axes), 0, atol=2e-6)
  # eps is at most 1e-5, the variance at least about a tenth of scale squared.
  loss = 1e-5 / (kernel.std(axes).min() ** 2) + 1e-5 / kernel.std(axes).min()
  np.testing.assert_allclose(
    got.var(axes, ddof=convention.ddof), 1, atol=2 * loss + 1e-5
  )


@by_both
@some
@hypothesis.given(shapes, seeds, scales, st.floats(-3, 3))
def test_shift_and_positive_scale_change_nothing(shape, seed, scale, shift):
  kernel = normal(shape, seed, np.float32)
  channels = np.arange(1, shape[-1] + 1, dtype=np.float32)
  moved = np.float32(scale) * kernel * channels + np.float32(shift) * channels
  tight = Convention(eps=1e-30)
  np.testing.assert_allclose(
    standardize(moved, convention=tight),
    standardize(kernel, convention=tight),
    atol=2e-5 * (1 + abs(shift) / scale),
  )


@some
@hypothesis.given(shapes, seeds, st.sampled_from(FULL))
def test_standardizing_twice_is_standardizing_once(shape, seed, name):
  convention = CONVENTIONS[name]
  kernel = normal(shape, seed, np.float32)
  once = standardize(kernel, convention=name)
  twice = standardize(once, convention=name)
  # eps changes the result by this share: the first time of the kernel's
  # variance, the second time of a variance of 1, or of 1 / fan-in.
  fan_in = math.prod(shape[:-1]) if convention.fan_in_scale else 1
  variances = kernel.var(tuple(range(kernel.ndim - 1)))
  lost = convention.eps * (1 / variances.min() + fan_in)
  np.testing.assert_allclose(twice, once, rtol=lost, atol=2e-6)


@jax.jit
@jax.grad
def slope(kernel, weight):
  return jnp.vdot(standardize(kernel), weight)


@by_both
@some
@hypothesis.given(shapes, seeds, scales)
def test_gradient_is_the_closed_form(shape, seed, scale):
  kernel = scale * normal(shape, seed)
  weight = normal(shape, seed + 1)
  axes = tuple(range(len(shape) - 1))
  std = kernel.std(axes)
  unit = (kernel - kernel.mean(axes)) / std
  expected = (
    weight - weight.mean(axes) - (weight * unit).mean(axes) * unit
  ) / std
  got = slope(jnp.asarray(kernel, jnp.float32), jnp.float32(weight))
  size = np.abs(expected).max()
  np.testing.assert_allclose(got, expected, atol=2e-5 * max(size, 1 / scale))
  # The two directions that cannot matter have no gradient.
  got = np.asarray(got, np.float64)
  length = np.abs(got).sum()
  assert np.abs(got.sum(axes)).max() <= 2e-6 * length + 1e-6 / scale
  along = (got * (kernel - kernel.mean(axes))).sum(axes)
  assert np.abs(along).max() <= 1e-5 * length * np.abs(kernel).max() + 1e-5


@by_both
@some
@hypothesis.given(shapes, seeds, st.sampled_from(FULL))
def test_what_cannot_matter_has_no_gradient_in_any_convention(
  shape, seed, name
):
  kernel, weight = (
    normal(shape, seed + i).astype(np.float32) for i in range(2)
  )
  loss = lambda k: jnp.vdot(standardize(k, convention=name), weight)
  got = np.asarray(jax.grad(loss)(kernel), np.float64)
  axes = tuple(range(len(shape) - 1))
  length = np.abs(got).sum()
  assert np.abs(got.sum(axes)).max() <= 1e-6 * length
  # Along the centred filter as much as eps is of its variance, or deviation.
  centred = kernel - kernel.mean(axes)
  std = kernel.std(axes).min()
  left = CONVENTIONS[name].eps * (1 / std**2 + 1 / std) + 2e-6
  along = np.abs((got * centred).sum(axes)).max()
  assert along <= left * length * np.abs(centred).max()


@pytest.mark.parametrize("groups", [2, 4])
def test_grouped_convolution_is_split_convolutions(groups):
  inputs, outputs = 8, 8
  kernel = jnp.asarray(normal((3, 3, inputs // groups, outputs)), jnp.float32)
  images = jnp.asarray(normal((1, 5, 5, inputs), 1), jnp.float32)
  convolve = functools.partial(
    jax.lax.conv_general_dilated,
    window_strides=(1, 1),
    padding="SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  together = convolve(images, standardize(kernel), feature_group_count=groups)
  parts = zip(
    jnp.split(images, groups, -1), jnp.split(kernel, groups, -1), strict=True
  )
  apart = [convolve(x, standardize(k)) for x, k in parts]
  np.testing.assert_allclose(together, jnp.concatenate(apart, -1), atol=2e-5)


EXTREMES = {
  "zero": lambda k: 0 * k,
  "constant": lambda k: 0 * k + 0.1,
  "huge": lambda k: 1e30 * k,
  "huge constant": lambda k: 0 * k + 1e30,
  "tiny": lambda k: 1e-30 * k,
  "mean far above std": lambda k: 10 + 1e-3 * k,
  "one constant filter": lambda k: k * (np.arange(k.shape[-1]) > 0) + 0.1,
  "small": lambda k: 1e-3 * k,
  "one weight": lambda k: 1e4 * (np.arange(k.size).reshape(k.shape) < 4),
}


@by_both
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", sorted(CONVENTIONS))
def test_extreme_kernels_stay_finite(name, dtype):
  dtype = jnp.dtype(dtype)
  largest = float(jnp.finfo(dtype).max)
  base = normal((3, 3, 4, 4))

  @jax.jit
  def both(kernel, weight):
    value, pull = jax.vjp(lambda k: standardize(k, convention=name), kernel)
    return value, pull(weight)[0]

  for kind, make in EXTREMES.items():
    kernel = jnp.asarray(np.clip(make(base), -largest, largest), dtype)
    weight = jnp.asarray(normal(base.shape, 1), dtype)
    value, grad = both(kernel, weight)
    assert value.dtype == grad.dtype == dtype
    assert jnp.isfinite(value).all(), kind
    assert jnp.isfinite(grad).all(), kind
    if "constant" in kind and "one" not in kind and name in CENTRING:
      assert not value.any(), kind


@by_both
@pytest.mark.parametrize("scale", [1e18, 1e30])
@pytest.mark.parametrize("name", FULL)
def test_huge_kernels_are_standardized_not_lost(name, scale):
  kernel = normal((3, 3, 4, 4))
  got = standardize(np.float32(scale * kernel), convention=name)
  tight = standardize(np.float32(kernel), convention=name)
  np.testing.assert_allclose(got, tight, rtol=2e-2, atol=1e-5)


@by_both
def test_a_mean_far_above_the_spread_costs_no_digits():
  kernel = (10 + 1e-3 * normal((3, 3, 64, 4))).astype(np.float32)
  got = standardize(kernel)
  np.testing.assert_allclose(
    got, by_filter(REFERENCE["bit"], kernel), atol=5e-6
  )


@by_both
@pytest.mark.parametrize("name", ["bit", "timm", "timm_bit", "qiao", "nfnet"])
def test_no_filter_keeps_a_mean_of_rounding(name):
  """The mean of a large filter meets the mean of its inputs fan-in times.

  Measured from the smallest weight, four deviations away, the mean was rounded
  to 1.8e-7 deviations; plain two-pass arithmetic leaves 9e-9.
  """
  kernel = np.float32(0.02 * normal((3, 3, 256, 128)) + 4e-4)
  got = np.asarray(standardize(kernel, convention=name), np.float64)
  left = got.mean((0, 1, 2)) / got.std((0, 1, 2))
  assert np.sqrt(np.mean(left**2)) < 3e-8


@by_both
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_moments_are_float32_for_half_precision_kernels(dtype):
  kernel = jnp.asarray(0.05 * normal((3, 3, 16, 4)), dtype)
  expected = by_filter(REFERENCE["bit"], np.asarray(kernel, np.float64))
  got = np.asarray(standardize(kernel), np.float64)
  # Half a unit in the last place of the result, and no more.
  half = float(jnp.finfo(dtype).eps) / 2
  np.testing.assert_allclose(got, expected, rtol=1.01 * half, atol=1e-6)


@by_both
def test_nan_stays_visible_and_in_its_filter():
  kernel = normal((3, 3, 4, 4), dtype=np.float32)
  kernel[0, 0, 0, 1] = np.nan
  got = np.asarray(standardize(kernel))
  assert np.isnan(got[..., 1]).all()
  assert np.isfinite(got[..., [0, 2, 3]]).all()


@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_float64_is_kept(name):
  kernel = 0.1 * normal((3, 3, 4, 4)) + 0.1
  with jax.enable_x64(True):
    got = standardize(jnp.asarray(kernel), convention=name)
    assert got.dtype == jnp.float64
    expected = by_filter(REFERENCE[name], kernel)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", sorted(CONVENTIONS))
def test_every_mode_and_order_stays_finite_at_the_extremes(name):
  base = normal((3, 3, 4, 4))
  stack = np.stack([make(base) for make in EXTREMES.values()])
  weight, tangent = (jnp.asarray(normal(base.shape, i), "f4") for i in (1, 2))

  def loss(kernel):
    return jnp.vdot(standardize(kernel, convention=name), weight)

  @jax.jit
  @jax.vmap
  def modes(kernel):
    forward = jax.jvp(loss, (kernel,), (tangent,))[1]
    grad, curved = jax.jvp(jax.grad(loss), (kernel,), (tangent,))
    return forward, jnp.vdot(grad, tangent), curved

  forward, reverse, curved = modes(jnp.asarray(stack, jnp.float32))
  assert jnp.isfinite(curved).all()
  # One derivative, whichever way it is taken.
  size = 1e-3 + np.abs(forward)
  np.testing.assert_allclose(forward / size, reverse / size, atol=1e-2)


@by_both
@pytest.mark.parametrize("name", ["bit", "nfnet"])
def test_nothing_of_the_size_of_the_kernels_is_kept(name):
  """The effective kernels and the gradients are stored, and no third array."""
  raw = {f"Conv_{i}": {"kernel": jnp.ones((3, 3, 64, 64))} for i in range(4)}
  gains = ws_jax.init_gains(raw) if name == "nfnet" else None

  @jax.jit
  def both(raw, cotangent):
    value, pull = jax.vjp(
      lambda raw: weight_standardize(raw, convention=name, gains=gains), raw
    )
    return value, pull(cotangent)

  memory = both.lower(raw, raw).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 0.5 * memory.argument_size_in_bytes / 2


@pytest.mark.parametrize("name", sorted(CONVENTIONS))
def test_transformations(name):
  f = functools.partial(standardize, convention=name)
  stack = jnp.asarray(normal((3, 2, 2, 3, 4)), jnp.float32)
  kernel, tangent = stack[0], stack[1]
  weight = jnp.asarray(normal(kernel.shape, 3), jnp.float32)

  each = jnp.stack([f(k) for k in stack])
  np.testing.assert_allclose(jax.vmap(f)(stack), each, atol=1e-6)
  scanned = jax.lax.scan(lambda c, k: (c, f(k)), 0, stack)[1]
  np.testing.assert_allclose(scanned, each, atol=1e-6)

  def loss(k):
    return jnp.sum(jnp.sin(f(k)) * weight)

  grad = jax.jit(jax.grad(loss))
  again = jax.jit(jax.grad(jax.checkpoint(loss)))
  np.testing.assert_allclose(again(kernel), grad(kernel), atol=1e-5)
  _, slope = jax.jit(lambda k: jax.jvp(loss, (k,), (tangent,)))(kernel)
  np.testing.assert_allclose(slope, jnp.vdot(grad(kernel), tangent), rtol=1e-4)

  # Second order, both ways, against finite differences of the gradient.
  @jax.jit
  def second_order(k):
    forward = jax.jvp(jax.grad(loss), (k,), (tangent,))[1]
    reverse = jax.grad(lambda k: jnp.vdot(jax.grad(loss)(k), tangent))(k)
    return forward, reverse

  forward, reverse = second_order(kernel)
  h = 1e-3
  numeric = (grad(kernel + h * tangent) - grad(kernel - h * tangent)) / (2 * h)
  size = float(jnp.abs(forward).max())
  np.testing.assert_allclose(forward, reverse, atol=1e-4 * size)
  np.testing.assert_allclose(forward, numeric, atol=5e-3 * size)


@pytest.mark.parametrize("shape", [(1, 1, 64, 5), (64, 5)])
def test_matrices_are_what_their_filters_are(shape):
  kernel = 0.1 * normal((4, 4, 4, 5), dtype=np.float32) + 1
  weight = normal(kernel.shape, 1, np.float32)
  gain, mean = np.float32([1, 2, 3, 4, 5]), np.float32([0, 1, 0, 2, 0])

  def both(kernel, weight, gain):
    f = lambda k, g: standardize(k, gain=g, mean=mean, convention="nfnet")
    value, pull = jax.vjp(f, kernel, gain)
    return value, *pull(weight)

  expected = both(kernel, weight, gain)
  got = both(kernel.reshape(shape), weight.reshape(shape), gain)
  for x, y in zip(got, expected, strict=True):
    np.testing.assert_allclose(x, y.reshape(x.shape), atol=2e-5)
  assert got[0].shape == got[1].shape == shape


@by_both
def test_axis_and_gain_follow_the_layout():
  kernel = normal((3, 3, 4, 5), dtype=np.float32)
  gain = np.arange(1, 6, dtype=np.float32)
  expected = standardize(kernel, gain=gain)
  plain = np.asarray(standardize(kernel))
  np.testing.assert_allclose(expected, plain * gain, rtol=1e-5, atol=1e-6)
  for axis in [(2, 3, 1), (-3, -2, -1)]:
    got = standardize(kernel.transpose(3, 2, 0, 1), axis=axis, gain=gain)
    np.testing.assert_allclose(
      got, np.asarray(expected).transpose(3, 2, 0, 1), atol=1e-5
    )
  slope = jax.grad(
    lambda g: standardize(kernel, gain=g, convention="nfnet")[0, 0, 0].sum()
  )(jnp.ones(5))
  np.testing.assert_allclose(
    slope,
    standardize(kernel, convention="nfnet")[0, 0, 0],
    rtol=1e-5,
    atol=1e-7,
  )


def test_sharded_fan_in_is_reduced_across_devices():
  mesh = jax.make_mesh((4,), ("x",))
  kernel = normal((3, 3, 8, 4), dtype=np.float32)
  weight = normal(kernel.shape, 1, np.float32)
  expected = standardize(kernel)
  for spec in [(None, None, "x", None), (None, None, None, "x")]:
    sharding = jax.NamedSharding(mesh, jax.P(*spec))
    got = standardize(jax.device_put(kernel, sharding))
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert got.sharding.is_equivalent_to(sharding, 4)
    raw, cotangent = jax.device_put((kernel, weight), sharding)
    (grad,) = jax.vjp(standardize, raw)[1](cotangent)
    np.testing.assert_allclose(grad, slope(kernel, weight), atol=1e-5)
    assert grad.sharding.is_equivalent_to(sharding, 4)


@pytest.mark.parametrize(
  ("kernel", "options", "message"),
  [
    (np.ones((3, 3, 4, 2)), {"convention": "tim"}, "did you mean 'timm'"),
    (np.ones((3, 3, 4, 2)), {"axis": 4}, "no axes"),
    (np.ones((3, 3, 4, 2)), {"axis": (0, -4)}, "twice"),
    (np.ones((3, 3, 4, 2)), {"gain": np.ones(4)}, r"must be \[2\]"),
    (np.ones(()), {}, "0 dimensions"),
    (np.ones(5), {}, "1 dimensions"),
    (np.ones((1, 1, 1, 8)), {}, "fan-in 1 .* leave this kernel out"),
    (np.ones((1, 1, 1, 8)), {"convention": "center"}, "fan-in 1 "),
    (np.ones((1, 1, 1, 8)), {"convention": "scale"}, "fan-in 1 "),
    (np.ones((1, 1, 2, 8)), {}, "fan-in 2 .*'nfnet'"),
  ],
)
def test_bad_input_is_a_clear_error(kernel, options, message):
  with pytest.raises(ValueError, match=message):
    standardize(jnp.asarray(kernel, jnp.float32), **options)


@pytest.mark.parametrize(
  "kernel", [np.ones((3, 4), int), np.ones((3, 4), bool)]
)
def test_only_floating_point_kernels(kernel):
  with pytest.raises(TypeError, match="floating point"):
    standardize(kernel)


def test_fan_in_two_can_be_had_where_it_learns():
  kernel = jnp.asarray(normal((1, 1, 2, 3)), jnp.float32)
  for name in ["nfnet", "timm_scaled", "center"]:
    assert jnp.isfinite(standardize(kernel, convention=name)).all()
  got = standardize(kernel, convention=Convention(min_fan_in=2))
  np.testing.assert_allclose(np.abs(got), 1, rtol=1e-5)


@pytest.mark.parametrize(
  "fields",
  [
    {"ddof": 2},
    {"eps": 0.0},
    {"eps": math.nan},
    {"eps_place": "varianc"},
    {"min_fan_in": 1},
    {"center": False, "rescale": False},
  ],
)
def test_impossible_conventions_are_refused(fields):
  with pytest.raises(ValueError, match=next(iter(fields))):
    Convention(**fields)
  with pytest.raises(TypeError, match="name or a"):
    standardize(np.ones((3, 2), np.float32), convention=fields)


def params():
  return {
    "Conv_0": {
      "kernel": jnp.asarray(normal((3, 3, 4, 5)), jnp.float32),
      "bias": jnp.ones(5),
    },
    "Conv_1": {"kernel": jnp.asarray(normal((1, 1, 5, 2)), jnp.bfloat16)},
    "Dense_0": {"kernel": jnp.ones((8, 2))},
    "step": jnp.int32(3),
    "temperature": jnp.float32(0.5),
    "table": {"kernel": jnp.ones((3, 3, 4, 5), jnp.int32)},
  }


def test_tree_keeps_all_but_the_selected_values():
  raw = params()
  got = weight_standardize(raw, convention="timm")
  assert jax.tree.structure(got) == jax.tree.structure(raw)
  assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, raw)
  assert jax.tree.map(jnp.result_type, got) == jax.tree.map(
    jnp.result_type, raw
  )
  assert got["Dense_0"]["kernel"] is raw["Dense_0"]["kernel"]
  assert got["Conv_0"]["bias"] is raw["Conv_0"]["bias"]
  assert got["table"]["kernel"] is raw["table"]["kernel"]
  assert got["temperature"] is raw["temperature"]
  for name in ["Conv_0", "Conv_1"]:
    np.testing.assert_array_equal(
      got[name]["kernel"], standardize(raw[name]["kernel"], convention="timm")
    )


def test_errors_name_the_path():
  raw = params()
  raw["Conv_1"]["kernel"] = jnp.ones((1, 1, 1, 5))
  with pytest.raises(ValueError, match=r"^Conv_1/kernel: fan-in 1"):
    weight_standardize(raw)
  with pytest.raises(ValueError, match="^step: no axis -1 in shape"):
    weight_standardize(raw, where=ws_jax.matching("step"))
  with pytest.raises(TypeError, match="^table/kernel: a kernel must be float"):
    weight_standardize(raw, where=ws_jax.matching("table/kernel"))
  with pytest.raises(ValueError, match=r"Conv_0/bias \[5\], Conv_0/kernel"):
    weight_standardize(raw, where=lambda path, leaf: False)
  with pytest.raises(ValueError, match="the tree is empty"):
    weight_standardize({})


def test_gains_belong_to_the_selected_kernels():
  raw = params()
  gains = ws_jax.init_gains(raw)
  assert sorted(gains) == ["Conv_0/kernel", "Conv_1/kernel"]
  plain = weight_standardize(raw, convention="nfnet")
  same = weight_standardize(raw, convention="nfnet", gains=gains)
  # A gain of one is another program, which may sum in another order.
  for name, rtol in (("Conv_0", 1e-5), ("Conv_1", 2**-7)):
    pair = (np.float32(tree[name]["kernel"]) for tree in (plain, same))
    np.testing.assert_allclose(*pair, rtol=rtol, atol=1e-6)
  doubled = gains | {"Conv_0/kernel": 2 * gains["Conv_0/kernel"]}
  got = weight_standardize(raw, convention="nfnet", gains=doubled)
  np.testing.assert_allclose(
    got["Conv_0"]["kernel"],
    2 * plain["Conv_0"]["kernel"],
    rtol=1e-5,
    atol=1e-6,
  )
  with pytest.raises(ValueError, match="did you mean 'Conv_0/kernel'"):
    weight_standardize(raw, gains=gains | {"Conv_0/kernl": jnp.ones(5)})
  with pytest.raises(ValueError, match="without a gain: Conv_1/kernel"):
    weight_standardize(raw, gains={"Conv_0/kernel": jnp.ones(5)})


def test_one_step_with_donation():
  @functools.partial(jax.jit, donate_argnums=0)
  def step(raw, weight):
    def loss(raw):
      effective = weight_standardize(raw)["Conv_0"]["kernel"]
      return jnp.vdot(effective, weight)

    return jax.tree.map(lambda p, g: p - g, raw, jax.grad(loss)(raw))

  kernel = normal((3, 3, 4, 5), dtype=np.float32)
  weight = normal((3, 3, 4, 5), 1, np.float32)
  raw = {"Conv_0": {"kernel": jnp.asarray(kernel)}}
  got = step(raw, weight)["Conv_0"]["kernel"]
  # The update has no mean, so the raw kernel keeps its own.
  np.testing.assert_allclose(got.mean(AXES), kernel.mean(AXES), atol=1e-6)
  assert np.abs(np.asarray(got) - kernel).max() > 0.1


def test_kernels_of_one_shape_share_a_trace():
  raw = {f"Conv_{i}": {"kernel": jnp.ones((3, 3, 4, 4))} for i in range(5)}
  jaxpr = jax.make_jaxpr(weight_standardize)(raw)
  inner = {id(eqn.params["jaxpr"].jaxpr) for eqn in jaxpr.eqns}
  assert len(jaxpr.eqns) == 5
  assert len(inner) == 1
