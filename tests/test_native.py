"""The C++ that XLA calls, against float64 and XLA's own code."""

import contextlib
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ws_jax
from ws_jax import native
from ws_jax.base import disk
from ws_jax.layers import convolve, product
from ws_jax.layers.normalize import normalize
from ws_jax.train import record

ROOT = pathlib.Path(__file__).parents[1]
HAS_AVX512 = "avx512" in native.processor_flags()
# x, kernel, strides, padding, dilation, groups
CASES = {
  "plain": ((5, 9, 7, 3), (3, 3, 3, 16), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
  "blocks": ((4, 8, 8, 64), (3, 3, 64, 32), (1, 1), ((1, 1),) * 2, (1, 1), 1),
  "strided": (
    (3, 11, 10, 4),
    (7, 5, 4, 6),
    (2, 3),
    ((3, 3), (0, 2)),
    (1, 1),
    1,
  ),
  "1x1": ((1, 8, 8, 16), (1, 1, 16, 32), (2, 2), ((0, 0), (0, 0)), (1, 1), 1),
  "dilated": ((2, 9, 9, 4), (3, 3, 4, 5), (1, 1), ((2, 2), (2, 1)), (2, 2), 1),
  "grouped": ((3, 6, 6, 8), (3, 3, 2, 12), (1, 1), ((1, 1),) * 2, (1, 1), 4),
  "depthwise": ((2, 8, 8, 6), (3, 3, 1, 6), (2, 2), ((1, 1),) * 2, (1, 1), 6),
  "time": ((3, 20, 5), (4, 5, 7), (2,), ((1, 2),), (1,), 1),
  "volume": (
    (2, 4, 5, 6, 3),
    (3, 2, 3, 3, 4),
    (1,) * 3,
    ((1, 0),) * 3,
    (1,) * 3,
    1,
  ),
}


def load_or_skip(name):
  try:
    native.load(name)
  except RuntimeError as reason:
    if "failed on" in str(reason):  # our own code, which does not compile
      raise
    pytest.skip(f"there is none here: {reason}")


def enable(name, monkeypatch):
  load_or_skip(name)
  monkeypatch.setattr(native, "_enabled", {name})


@pytest.fixture
def convolution(monkeypatch):
  enable("convolution", monkeypatch)


@pytest.fixture
def normalization(monkeypatch):
  enable("normalization", monkeypatch)


@pytest.fixture
def standardization(monkeypatch):
  enable("standardization", monkeypatch)


def settings(case):
  x, kernel, strides, padding, dilation, groups = CASES[case]
  axes = "DHW"[-len(strides) :]
  how = {
    "dimension_numbers": (f"N{axes}C", f"{axes}IO", f"N{axes}C"),
    "rhs_dilation": dilation,
    "feature_group_count": groups,
  }
  return x, kernel, (strides, padding), how


def arrays(case, convolution=lax.conv_general_dilated):
  """Returns a function of x and kernel, both, and a cotangent of its result."""
  x, kernel, given, how = settings(case)
  rng = np.random.default_rng(0)
  apply = lambda x, kernel: convolution(x, kernel, *given, **how)
  x, kernel = (
    jnp.asarray(rng.standard_normal(shape), jnp.float32)
    for shape in (x, kernel)
  )
  dy = rng.standard_normal(jax.eval_shape(apply, x, kernel).shape)
  return apply, x, kernel, jnp.asarray(dy, jnp.float32)


def exact(case, x, kernel, dy):
  """Returns the result and both gradients, as float64 sums over positions."""
  _, _, (strides, padding), how = settings(case)
  groups, dilation = how["feature_group_count"], how["rhs_dilation"]
  x, kernel, dy = (np.asarray(a, np.float64) for a in (x, kernel, dy))
  x = np.pad(x, ((0, 0), *padding, (0, 0)))
  y, dx, dkernel = np.zeros_like(dy), np.zeros_like(x), np.zeros_like(kernel)
  inputs, outputs = kernel.shape[-2], kernel.shape[-1] // groups
  for position in np.ndindex(kernel.shape[:-2]):
    window = tuple(
      slice(i * d, i * d + (n - 1) * s + 1, s)
      for i, d, n, s in zip(
        position, dilation, y.shape[1:-1], strides, strict=True
      )
    )
    for group in range(groups):
      taken = slice(group * inputs, (group + 1) * inputs)
      made = slice(group * outputs, (group + 1) * outputs)
      seen = (slice(None), *window, taken)
      y[..., made] += x[seen] @ kernel[position][:, made]
      dx[seen] += dy[..., made] @ kernel[position][:, made].T
      dkernel[(*position, slice(None), made)] = np.tensordot(
        x[seen], dy[..., made], [range(x.ndim - 1)] * 2
      )
  inner = tuple(
    slice(low, size - high)
    for size, (low, high) in zip(x.shape[1:-1], padding, strict=True)
  )
  return y, dx[(slice(None), *inner)], dkernel


def assert_is_sum(got, want, dtype):
  """Checks a sum in float32 that is rounded once, to a dtype."""
  assert got.shape == want.shape and got.dtype == dtype
  error = np.abs(np.asarray(got, np.float64) - want)
  # Half of the distance to the next number.
  ulp = float(jnp.finfo(dtype).eps) if dtype == "bfloat16" else 0.0
  assert np.all(error <= 0.5 * ulp * np.abs(want) + 2e-6 * np.abs(want).max())


def is_ours(function, *arguments):
  return "ws_jax_convolve" in str(jax.make_jaxpr(function)(*arguments))


@pytest.mark.usefixtures("convolution")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "widened"])
def test_equals_the_sums_in_float64(case, dtype, monkeypatch):
  apply, *inputs = arrays(case, convolve.conv_general_dilated)
  if dtype == "widened":  # as a processor does that cannot multiply bfloat16
    monkeypatch.setattr(native, "_has_bfloat16", lambda: False)
    dtype = "bfloat16"
  x, kernel, dy = (a.astype(dtype) for a in inputs)
  assert is_ours(apply, x, kernel)

  @jax.jit
  def all_three(x, kernel, dy):
    y, pull_back = jax.vjp(apply, x, kernel)
    return y, *pull_back(dy)

  for got, want in zip(
    all_three(x, kernel, dy), exact(case, x, kernel, dy), strict=True
  ):
    assert_is_sum(got, want, dtype)


@pytest.mark.usefixtures("convolution")
@pytest.mark.parametrize("examples", [1, 2, 3, 7, 64])
def test_examples_are_split_without_a_trace(examples):
  x = jnp.asarray(
    np.random.default_rng(0).standard_normal((examples, 8, 8, 16)), jnp.float32
  )
  kernel = jnp.sin(jnp.arange(9.0 * 16 * 32).reshape(3, 3, 16, 32))
  conv = jax.jit(
    lambda x, kernel: convolve.conv_general_dilated(
      x,
      kernel,
      (1, 1),
      ((1, 1), (1, 1)),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
  )
  y, pull_back = jax.vjp(conv, x, kernel)
  _, dkernel = pull_back(y)
  one_by_one = [jax.vjp(conv, x[i : i + 1], kernel) for i in range(examples)]
  np.testing.assert_allclose(
    y, jnp.concatenate([y for y, _ in one_by_one]), rtol=1e-5, atol=1e-5
  )
  want = sum(np.float64(back(y)[1]) for y, back in one_by_one)
  assert np.abs(dkernel - want).max() / np.abs(want).max() < 1e-6
  # The sum is in the same order each time, whichever thread computes a part.
  for _ in range(5):
    np.testing.assert_array_equal(pull_back(y)[1], dkernel)


@pytest.mark.usefixtures("convolution")
@pytest.mark.parametrize("case", ["strided", "grouped", "time"])
def test_every_mode_of_differentiation_and_vmap(case):
  _, x, kernel, dy = arrays(case)

  def derivatives(convolution):
    apply, *_ = arrays(case, convolution)
    loss = lambda x, kernel: jnp.sum(jnp.sin(apply(x, kernel)))
    tangents = (jnp.cos(x), jnp.sin(kernel))
    gradient = jax.grad(loss, (0, 1))
    push = lambda function: jax.jvp(function, (x, kernel), tangents)[1]
    third = push(lambda *xk: jax.jvp(gradient, xk, tangents)[1])
    each = jax.vmap(jax.vmap(apply, (None, 0)), (0, None))
    several = each(jnp.stack([x, -x]), jnp.stack([kernel, 2 * kernel]))
    slopes = jax.vmap(lambda dy: jax.vjp(apply, x, kernel)[1](dy))
    again = jax.jvp(jax.checkpoint(loss), (x, kernel), tangents)
    return (
      push(apply), push(gradient), third, several, again,
      slopes(jnp.stack([dy, 3 * dy])),
    )  # fmt: skip

  ours = jax.tree.leaves(derivatives(convolve.conv_general_dilated))
  xla = jax.tree.leaves(derivatives(lax.conv_general_dilated))
  for mine, its in zip(ours, xla, strict=True):
    np.testing.assert_allclose(
      mine, its, rtol=1e-4, atol=1e-5 * float(jnp.abs(its).max())
    )


@pytest.mark.usefixtures("convolution")
def test_jitted_or_not_and_in_a_loop_it_is_the_same():
  apply, x, kernel, _ = arrays("plain", convolve.conv_general_dilated)
  y = apply(x, kernel)
  np.testing.assert_array_equal(jax.jit(apply)(x, kernel), y)
  _, stacked = lax.scan(
    lambda carry, x: (carry, apply(x, kernel)), 0, jnp.stack([x, x])
  )
  np.testing.assert_array_equal(stacked, jnp.stack([y, y]))


@pytest.mark.usefixtures("convolution")
def test_other_platforms_convolve_with_their_own():
  apply, x, kernel, _ = arrays("plain", convolve.conv_general_dilated)
  for platform, own in (("cpu", False), ("tpu", True)):
    exported = jax.export.export(
      jax.jit(apply),
      platforms=[platform],
      disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(
        "WsJaxConvolve"
      )],
    )(x, kernel)  # fmt: skip
    module = exported.mlir_module()
    assert ("stablehlo.convolution" in module) == own
    assert ("WsJaxConvolve" in module) != own


@pytest.mark.usefixtures("convolution")
def test_what_it_does_not_take_is_left_to_xla():
  _, x, kernel, _ = arrays("plain")
  *_, given, how = settings("plain")
  call = convolve.conv_general_dilated
  usual = lambda x, kernel: call(x, kernel, *given, **how)
  assert is_ours(usual, x, kernel)
  for dtypes in (("float16", "float16"), ("bfloat16", "float32")):
    mixed = [a.astype(d) for a, d in zip((x, kernel), dtypes, strict=True)]
    with contextlib.suppress(TypeError):  # XLA wants one dtype
      assert not is_ours(usual, *mixed)
  strides, padding = given
  for changed in (
    lambda x, k: call(x, k, strides, "SAME", **how),
    lambda x, k: call(x, k, strides, ((-1, 1), (1, 1)), **how),
    lambda x, k: call(x, k, *given, **how, lhs_dilation=(2, 1)),
    lambda x, k: call(
      x, k.transpose(3, 2, 0, 1), *given,
      **how | {"dimension_numbers": ("NHWC", "OIHW", "NHWC")},
    ),
    lambda x, k: call(x[:0], k, *given, **how),
  ):  # fmt: skip
    assert not is_ours(changed, x, kernel)
    assert changed(x, kernel).ndim == 4


@pytest.mark.usefixtures("convolution")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
  ("x", "kernel", "summed"),
  [
    ((2, 12, 5), (5, 7), 1),  # up
    ((3, 8, 6), (6, 2, 4), 1),  # query
    ((1, 21, 2, 4), (2, 4, 9), 2),  # out
  ],
)
def test_products_equal_the_sums_in_float64(x, kernel, summed, dtype):
  rng = np.random.default_rng(0)
  x, kernel = (jnp.asarray(rng.standard_normal(s), dtype) for s in (x, kernel))
  axes = (tuple(range(x.ndim - summed, x.ndim)), tuple(range(summed)))
  apply = lambda x, kernel: product.dot_general(x, kernel, (axes, ((), ())))
  assert is_ours(apply, x, kernel)
  y, pull_back = jax.vjp(apply, x, kernel)
  dy = jnp.asarray(rng.standard_normal(y.shape), dtype)
  wide = [np.asarray(a, np.float64) for a in (x, kernel, dy)]
  places = tuple(range(x.ndim - summed))
  outputs = tuple(range(summed - kernel.ndim, 0))
  wanted = (
    np.tensordot(wide[0], wide[1], axes),
    np.tensordot(
      wide[2], wide[1], [outputs, tuple(range(summed, kernel.ndim))]
    ),
    np.tensordot(wide[0], wide[2], [places, places]),
  )
  for got, want in zip((y, *pull_back(dy)), wanted, strict=True):
    assert_is_sum(got, want, dtype)


@pytest.mark.usefixtures("convolution")
def test_products_of_several_runs_are_products():
  """Regression: a kernel for each run made of them a convolution in groups."""
  x, kernel = jnp.ones((3, 2, 16, 5)), jnp.ones((3, 5, 7))
  apply = lambda x, k: product.dot_general(x, k, (((2,), (0,)), ((), ())))
  each = jax.vmap(lambda x, k: jax.vjp(apply, x, k)[1](jnp.ones((2, 16, 7))))
  text = jax.jit(each).lower(x, kernel).as_text()
  assert "dot_general" in text and "convolution" not in text
  for one in (each(x, kernel), jax.jit(each)(x, kernel)):
    np.testing.assert_array_equal(one[0], 7 * np.ones(x.shape))
    np.testing.assert_array_equal(one[1], 32 * np.ones(kernel.shape))


@pytest.mark.usefixtures("convolution")
def test_which_products_are_left_to_xla():
  x, kernel = jnp.ones((16, 5)), jnp.ones((5, 7))
  plain = (((1,), (0,)), ((), ()))
  multiply = product.dot_general
  assert is_ours(lambda x, k: multiply(x, k, plain), x, kernel)
  highest = lax.Precision.HIGHEST
  for function in (
    lambda x, k: multiply(x[:15], k, plain),
    lambda x, k: multiply(x, k, plain, highest),
    lambda x, k: multiply(x, k, plain, None, jnp.float32),
    lambda x, k: multiply(x.T, k.T, (((0,), (1,)), ((), ()))),
    lambda x, k: multiply(x[None], k[None], (((2,), (1,)), ((0,), (0,)))),
    lambda x, k: multiply(*(a.astype("float16") for a in (x, k)), plain),
  ):
    assert not is_ours(function, x, kernel)
    assert np.all(function(x, kernel) == 5)


@pytest.mark.usefixtures("convolution")
def test_products_of_a_batch_without_a_number_are_exported():
  """Regression: whether it was large enough was asked before all else."""
  from jax import export

  (batch,) = export.symbolic_shape("batch")
  x = jax.ShapeDtypeStruct((batch, 3, 4), jnp.float32)
  kernel = jnp.ones((4, 5))
  apply = lambda x: product.dot_general(x, kernel, (((2,), (0,)), ((), ())))
  with native.portable():
    exported = export.export(jax.jit(apply))(x)
  assert exported.out_avals[0].shape == (batch, 3, 5)


# x, examples together, groups
NORMS = {
  "group": ((5, 6, 7, 16), 1, 4),
  "group of odd channels": ((3, 4, 5, 21), 1, 7),
  "group of all widths": ((2, 9, 119), 1, 17),
  "layer": ((4, 8, 8, 64), 1, 1),
  "instance": ((4, 3, 3, 40), 1, 40),
  "batch": ((6, 5, 4, 32), 6, 32),
  "ghost batch": ((6, 5, 19), 2, 19),
  "one position": ((8, 33), 8, 33),
}


def norm_arguments(case, mean=1.0, deviation=2.0):
  shape, examples, groups = NORMS[case]
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape)
  statistics = (shape[0] // examples, groups)
  x = mean + deviation * draw(*shape)
  arguments = (x, 1 + draw(shape[-1]), draw(shape[-1]))
  cotangents = (draw(*shape), draw(*statistics), draw(*statistics))
  as_float = lambda arrays: tuple(jnp.asarray(a, jnp.float32) for a in arrays)
  return as_float(arguments), as_float(cotangents), (examples, groups)


def exact_norm(arguments, cotangents, examples, groups, epsilon=1e-5):
  """Returns the results and the gradients, by the chain rule in float64."""
  x, scale, bias = (np.asarray(a, np.float64) for a in arguments)
  dy, dmean, dvar = (np.asarray(a, np.float64) for a in cotangents)
  sets, channels = len(x) // examples, x.shape[-1]
  grouped = (sets, -1, groups, channels // groups)
  rows, dys = x.reshape(grouped), dy.reshape(grouped)
  wide, deep = scale.reshape(groups, -1), bias.reshape(groups, -1)
  mean = rows.mean((1, 3), keepdims=True)
  var = rows.var((1, 3), keepdims=True)
  rstd = 1 / np.sqrt(var + epsilon)
  unit = (rows - mean) * rstd
  count = rows.shape[1] * rows.shape[3]
  dunit = dys * wide
  average = lambda a: a.mean((1, 3), keepdims=True)
  dx = rstd * (dunit - average(dunit) - unit * average(dunit * unit))
  dx += dmean[:, None, :, None] / count
  dx += dvar[:, None, :, None] * 2 * (rows - mean) / count
  per_channel = lambda a: a.sum((0, 1)).reshape(-1)
  return (
    (unit * wide + deep).reshape(x.shape), mean[:, 0, :, 0], var[:, 0, :, 0],
    dx.reshape(x.shape), per_channel(dys * unit), per_channel(dys),
  )  # fmt: skip


@pytest.mark.usefixtures("normalization")
@pytest.mark.parametrize("case", NORMS)
def test_norms_equal_the_formula_in_float64(case):
  arguments, cotangents, how = norm_arguments(case)

  @jax.jit
  def results(arguments, cotangents):
    out, pull_back = jax.vjp(lambda *a: normalize(*a, *how), *arguments)
    return *out, *pull_back(cotangents)

  assert (
    "WsJaxNormalizeBackward" in results.lower(arguments, cotangents).as_text()
  )
  expected = exact_norm(arguments, cotangents, *how)
  for got, want in zip(results(arguments, cotangents), expected, strict=True):
    assert got.shape == want.shape
    assert np.abs(got - want).max() / np.abs(want).max() < 2e-6


@pytest.mark.usefixtures("normalization")
@pytest.mark.parametrize("case", ["group", "batch"])
def test_norms_do_not_cancel(case):
  arguments, cotangents, how = norm_arguments(case, 100.0, 0.01)
  y, mean, var = normalize(*arguments, *how)
  expected = exact_norm(arguments, cotangents, *how)
  assert np.abs(y - expected[0]).max() / np.abs(expected[0]).max() < 2e-6
  np.testing.assert_allclose(mean, expected[1], rtol=1e-7)
  np.testing.assert_allclose(var, expected[2], rtol=2e-6)


@pytest.mark.usefixtures("normalization")
def test_norms_are_the_same_each_time():
  arguments, cotangents, how = norm_arguments("ghost batch")
  apply = jax.jit(lambda *a: jax.vjp(lambda *a: normalize(*a, *how), *a)[1])
  first = apply(*arguments)(cotangents)
  for _ in range(5):
    again = apply(*arguments)(cotangents)
    jax.tree.map(np.testing.assert_array_equal, again, first)


@pytest.mark.slow
def test_norms_and_their_second_derivatives_equal_those_in_jax(monkeypatch):
  arguments, _, how = norm_arguments("ghost batch")
  tangents = jax.tree.map(jnp.cos, arguments)

  def derivatives():
    def loss(x, scale, bias):
      y, mean, var = normalize(x, scale, bias, *how)
      return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.sin(mean) * var)

    gradient = jax.grad(loss, (0, 1, 2))
    _, hessian_product = jax.jvp(gradient, arguments, tangents)
    twice = jax.grad(lambda *a: sum(jnp.sum(g**2) for g in gradient(*a)))
    stacked = jax.vmap(loss, (0, None, None))(
      jnp.stack([arguments[0], -arguments[0]]), *arguments[1:]
    )
    return gradient(*arguments), hessian_product, twice(*arguments), stacked

  plain = derivatives()
  enable("normalization", monkeypatch)
  for ours, its in zip(
    jax.tree.leaves(derivatives()), jax.tree.leaves(plain), strict=True
  ):
    np.testing.assert_allclose(
      ours, its, rtol=1e-4, atol=1e-5 * float(jnp.abs(its).max())
    )


@pytest.mark.usefixtures("normalization")
def test_other_dtypes_are_normalized_in_jax():
  (x, scale, bias), _, how = norm_arguments("group")
  call = jax.jit(lambda x: normalize(x, scale, bias, *how))
  assert "WsJaxNormalize" in call.lower(x).as_text()
  assert "WsJaxNormalize" not in call.lower(x.astype(jnp.bfloat16)).as_text()


# Other laws of standardization are in test_standardize.py, for both codes.
@pytest.mark.parametrize("name", ["bit", "nfnet", "scale", "qiao"])
def test_kernels_and_their_second_derivatives_equal_those_in_jax(
  name, monkeypatch
):
  rng = np.random.default_rng(0)
  # 83 filters: those of a whole tile, of half of one, and three alone.
  kernel, weight = np.float32(rng.standard_normal((2, 3, 3, 5, 83)))
  gain = np.float32(rng.standard_normal(83))

  @jax.jit
  def derivatives():
    def loss(kernel, gain):
      effective = ws_jax.standardize(kernel, convention=name, gain=gain)
      return jnp.sum(jnp.sin(effective) * weight)

    gradient = jax.grad(loss, (0, 1))
    tangents = jax.tree.map(jnp.cos, (kernel, gain))
    _, hessian_product = jax.jvp(gradient, (kernel, gain), tangents)
    twice = jax.grad(
      lambda *a: sum(jnp.sum(g**2) for g in gradient(*a)), (0, 1)
    )
    stack = jnp.stack([kernel, -kernel])
    stacked = jax.vmap(gradient, (0, None))(stack, gain)
    return gradient(kernel, gain), hessian_product, twice(kernel, gain), stacked

  plain = derivatives()
  derivatives.clear_cache()
  enable("standardization", monkeypatch)
  assert "WsJaxStandardizeBackward" in derivatives.lower().as_text()
  for ours, its in zip(
    jax.tree.leaves(derivatives()), jax.tree.leaves(plain), strict=True
  ):
    largest = float(jnp.abs(its).max())
    np.testing.assert_allclose(ours, its, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.usefixtures("standardization")
def test_what_is_standardized_in_jax():
  """What was traced with C++ before is not what other machines get."""

  def is_native(x, **options):
    call = jax.jit(lambda x: ws_jax.standardize(x, **options))
    return "WsJaxStandardize" in call.lower(x).as_text()

  kernel = jnp.ones((3, 4, 8))
  assert is_native(kernel) and is_native(kernel.astype(jnp.bfloat16))
  assert is_native(kernel, axis=0) and not is_native(kernel, axis=1)
  assert not is_native(kernel[..., :0])
  with native.portable():
    assert not is_native(kernel)
  assert is_native(kernel)
  with jax.enable_x64(True):
    assert not is_native(kernel.astype(jnp.float64))


def test_only_who_asked_for_it_gets_it():
  apply, x, kernel, _ = arrays("plain", convolve.conv_general_dilated)
  assert not is_ours(apply, x, kernel)


def test_it_is_for_one_device(monkeypatch):
  assert jax.device_count() > 1
  assert native.enable() == ""
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  monkeypatch.setenv(native.SWITCH, "0")
  assert native.enable() == ""
  monkeypatch.setenv(native.SWITCH, "no")
  with pytest.raises(ValueError, match="WS_JAX_NATIVE=no: must be 0 or 1"):
    native.enable()


@pytest.mark.skipif(not HAS_AVX512, reason="a processor without AVX-512")
@pytest.mark.parametrize(
  ("lacks", "says"),
  [
    ("compiler", "by XLA (no C++ compiler: c++, g++, clang++)"),
    ("library", "by XLA (for oneDNN: pip install 'ws_jax[onednn]')"),
    (
      "a working compiler",
      "false failed on convolution.cc: exit code 1)",
    ),
  ],
)
def test_what_is_missing_is_said(lacks, says, monkeypatch, tmp_path):
  if lacks == "a working compiler":
    load_or_skip("convolution")  # without oneDNN it is that which is missing
  monkeypatch.setenv(native.SWITCH, "1")
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  monkeypatch.setattr(native, "load", native._build)  # XLA knows them already
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.setattr(native, "_enabled", set())
  if lacks == "compiler":
    monkeypatch.setenv("PATH", str(tmp_path))
  elif lacks == "library":
    monkeypatch.setattr(native, "_ONEDNN", ("no-such-package",))
  else:
    monkeypatch.setattr(native, "_COMPILERS", ("false",))
  assert says in native.enable()
  assert not native.enabled("convolution", jnp.float32)
  assert not list(tmp_path.rglob("convolution*.so"))


def test_a_run_says_what_is_native_calls_it_and_learns_the_same(tmp_path):
  """The programs and the record tell that it ran: both may round alike."""
  names = ["attention", "convolution"] * HAS_AVX512
  names += ["normalization", "standardization"]
  for name in names:
    load_or_skip(name)

  def run(switch):
    folder, programs = tmp_path / switch, tmp_path / f"programs-{switch}"
    env = {native.SWITCH: switch, "JAX_DUMP_IR_TO": str(programs)}
    done = subprocess.run(
      [
        sys.executable, "-m", "ws_jax.main",
        "--config=configs/fashion_mnist_10k.py:model=resnet8,width=0.25,"
        "num_groups=2,batch_size=7,train.steps=3,log_every_steps=1",
        f"--workdir={folder}",
      ],
      cwd=ROOT,
      env=os.environ | {"XLA_FLAGS": ""} | env,
      capture_output=True,
      text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = record.read_metrics(folder)
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) == 3
    compiled = "".join(path.read_text() for path in programs.iterdir())
    recorded = disk.read_json(folder / "status.json")["native"]
    return losses, compiled, recorded, done.stdout + done.stderr

  losses, compiled, recorded, said = run("1")
  plain_losses, plain, plain_recorded, plain_said = run("0")
  assert recorded == names and plain_recorded == []
  for name in names:
    assert f"{name} by " in said and f"{name} by " not in plain_said
    for handler in native._HANDLERS[name]:
      assert (handler in compiled) == (name != "attention")  # of a ResNet
      assert handler not in plain
  assert "stablehlo.convolution" in plain
  np.testing.assert_allclose(losses, plain_losses, rtol=1e-4)


def test_code_is_compiled_once(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  made = native._build("normalization")
  stamp = made.stat().st_mtime_ns
  monkeypatch.setenv("PATH", "")
  assert native._build("normalization") == made
  assert made.stat().st_mtime_ns == stamp
  assert [path.name for path in made.parent.iterdir()] == [made.name]
