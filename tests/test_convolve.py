"""The filter gradient by products, against float64 sums and XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ws_jax.layers import convolve
from ws_jax.train import backend

NHWC = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
# (examples, height, width, in, out, kernel, strides, padding)
CASES = (
  (1, 8, 8, 3, 4, (3, 3), (1, 1), ((1, 1), (1, 1))),
  (2, 9, 7, 5, 2, (3, 3), (2, 2), ((1, 1), (1, 1))),
  (4, 8, 8, 4, 6, (1, 1), (2, 2), ((0, 0), (0, 0))),
  (3, 11, 10, 3, 4, (7, 5), (2, 3), ((3, 3), (0, 2))),
)


def arrays(case):
  n, height, width, inputs, outputs, size, strides, pads = case
  rng = np.random.default_rng(0)
  x = rng.standard_normal((n, height, width, inputs))
  kernel = rng.standard_normal((*size, inputs, outputs))
  shape = jax.eval_shape(
    lambda x, k: lax.conv_general_dilated(x, k, strides, pads, **NHWC),
    x.astype(np.float32),
    kernel.astype(np.float32),
  ).shape
  return x, kernel, rng.standard_normal(shape), strides, pads


def both(function, x, kernel, dy, strides, pads):
  x, kernel, dy = (jnp.asarray(a, jnp.float32) for a in (x, kernel, dy))
  call = lambda x, kernel: function(x, kernel, strides, pads, **NHWC)
  y, pull_back = jax.vjp(call, x, kernel)
  return y, *pull_back(dy)


@pytest.mark.parametrize("case", CASES)
def test_equals_xla_and_the_sum_in_float64(case):
  x, kernel, dy, strides, pads = arrays(case)
  ours = both(convolve.conv_general_dilated, x, kernel, dy, strides, pads)
  xla = both(lax.conv_general_dilated, x, kernel, dy, strides, pads)
  for mine, its in zip(ours, xla, strict=True):
    np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-5)
  padded = np.pad(x, ((0, 0), *pads, (0, 0)))
  exact = np.zeros_like(kernel)
  _, rows, columns, _ = dy.shape
  for i, j in np.ndindex(kernel.shape[:2]):
    seen = padded[:, i :: strides[0], j :: strides[1]][:, :rows, :columns]
    exact[i, j] = np.einsum("nhwc,nhwo->co", seen, dy)
  error = np.abs(ours[2] - exact).max() / np.abs(exact).max()
  assert error < 1e-6


def test_second_derivatives():
  x, kernel, _, strides, pads = arrays(CASES[1])

  def curvature(function):
    def loss(kernel):
      y = function(jnp.asarray(x, jnp.float32), kernel, strides, pads, **NHWC)
      return jnp.sum(jnp.sin(y))

    k = jnp.asarray(kernel, jnp.float32)
    return jax.jvp(jax.grad(loss), (k,), (jnp.ones_like(k),))[1]

  np.testing.assert_allclose(
    curvature(convolve.conv_general_dilated),
    curvature(lax.conv_general_dilated),
    rtol=1e-3,
    atol=1e-3,
  )


def test_bfloat16_sums_in_float32():
  x, kernel, dy, strides, pads = arrays((2, 32, 32, 1, 1, *CASES[0][5:]))
  x, kernel, dy = (jnp.ones(a.shape, jnp.bfloat16) for a in (x, kernel, dy))
  call = lambda k: convolve.conv_general_dilated(x, k, strides, pads, **NHWC)
  (dw,) = jax.vjp(call, kernel)[1](dy)
  assert dw.dtype == jnp.bfloat16
  # In bfloat16 a sum of ones would stop at 256.
  assert dw[1, 1, 0, 0] == 2048


def by_products(x, kernel, **how):
  call = lambda x, k: convolve.conv_general_dilated(
    x, k, (1, 1), ((1, 1), (1, 1)), **how
  )
  return "custom_vjp" in str(jax.make_jaxpr(call)(x, kernel))


def test_where_it_is_not_for():
  x, kernel = jnp.ones((4, 8, 8, 4)), jnp.ones((3, 3, 4, 4))
  assert by_products(x, kernel, **NHWC)
  assert not by_products(jnp.ones((5, 8, 8, 4)), kernel, **NHWC)
  assert not by_products(x, kernel, **NHWC, rhs_dilation=(2, 2))
  grouped = jnp.ones((3, 3, 1, 4))
  assert not by_products(x, grouped, **NHWC, feature_group_count=4)
  oihw = {"dimension_numbers": ("NHWC", "OIHW", "NHWC")}
  assert not by_products(x, jnp.ones((4, 4, 3, 3)), **oihw)
  string = lambda x: convolve.conv_general_dilated(
    x, kernel, (1, 1), "SAME", **NHWC
  )
  assert "custom_vjp" not in str(jax.make_jaxpr(string)(x))


def inside_fusions(convolution):
  """Counts the convolutions inside of fusions, in one step of descent."""

  def step(x, kernel, dy):
    call = lambda k: convolution(x, k, (1, 1), ((1, 1), (1, 1)), **NHWC)
    (grad,) = jax.vjp(call, kernel)[1](dy)
    return kernel - 0.1 * grad

  options = backend.options_to_run_fast()
  x, kernel = jnp.ones((8, 8, 8, 64)), jnp.ones((3, 3, 64, 64))
  compiled = (
    jax.jit(step, compiler_options=options).lower(x, kernel, x).compile()
  )
  before, _, _ = compiled.as_text().partition("ENTRY")
  return before.count(" convolution(")


@pytest.mark.skipif(
  jax.default_backend() != "cpu" or not backend.options_to_run_fast(),
  reason="a choice of XLA's CPU backend",
)
def test_the_filter_gradient_is_not_fused_with_the_update():
  if not inside_fusions(lax.conv_general_dilated):
    pytest.skip("XLA keeps them apart on this processor")
  assert inside_fusions(convolve.conv_general_dilated) == 0
