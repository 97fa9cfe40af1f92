"""The Linen modules compute what the function does, on raw parameters."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ws_jax
from ws_jax.linen import (
  WeightStandardization,
  WSConv,
  WSConvTranspose,
  WSDense,
)

KEY = jax.random.key(0)


def init(module: nn.Module, x) -> dict[str, Any]:
  return dict(module.init(KEY, x))


def apply(module: nn.Module, variables, x, **options) -> Any:
  return module.apply(variables, x, **options)


class Net(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Conv(4, (3, 3), use_bias=False)(x)
    x = nn.BatchNorm(use_running_average=not train)(x)
    x = nn.Conv(4, (3, 3), feature_group_count=2)(x)
    self.sow("intermediates", "features", x)
    x = nn.Dropout(0.5, deterministic=not train)(x)
    return nn.Dense(3)(x.mean((1, 2)))


def images(*shape):
  return jax.random.normal(jax.random.key(1), shape)


def assert_trees_close(a, b, atol=1e-5):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


PAIRS = [
  (WSConv(4, (3,)), nn.Conv(4, (3,)), (2, 5, 3), (0, 1)),
  (WSConv(4, (3, 3)), nn.Conv(4, (3, 3)), (2, 5, 5, 3), (0, 1, 2)),
  (
    WSConv(4, (3, 3), feature_group_count=4, strides=2, padding="VALID"),
    nn.Conv(4, (3, 3), feature_group_count=4, strides=2, padding="VALID"),
    (2, 5, 5, 4),
    (0, 1, 2),
  ),
  (WSDense(4), nn.Dense(4), (2, 5), (0,)),
  (
    WSConvTranspose(4, (2, 2), strides=(2, 2)),
    nn.ConvTranspose(4, (2, 2), strides=(2, 2)),
    (2, 5, 5, 3),
    (0, 1, 2),
  ),
  (
    WSConvTranspose(4, (2, 2), transpose_kernel=True),
    nn.ConvTranspose(4, (2, 2), transpose_kernel=True),
    (2, 5, 5, 3),
    (0, 1, 3),
  ),
]


@pytest.mark.parametrize(("ws", "plain", "shape", "axis"), PAIRS)
def test_layer_is_the_plain_layer_on_the_standardized_kernel(
  ws, plain, shape, axis
):
  x = images(*shape)
  variables = init(ws, x)
  # A wrapper that standardizes during init as well would store std 1.
  assert_trees_close(variables, init(plain, x), atol=0)
  kernel = ws_jax.standardize(variables["params"]["kernel"], axis=axis)
  expected = {"params": variables["params"] | {"kernel": kernel}}
  assert_trees_close(apply(ws, variables, x), apply(plain, expected, x))
  wrapped = WeightStandardization(plain)
  assert_trees_close(init(wrapped, x), variables, atol=0)
  assert_trees_close(apply(wrapped, variables, x), apply(plain, expected, x))


def test_wrapped_model_has_the_same_variables_and_is_the_function_applied():
  x = images(2, 6, 6, 2)
  plain, wrapped = Net(), WeightStandardization(Net(), convention="qiao")
  variables = init(wrapped, x)
  assert_trees_close(variables, init(plain, x), atol=0)
  effective = ws_jax.weight_standardize(variables["params"], convention="qiao")
  folded = variables | {"params": effective}
  for train in [False, True]:
    options = {
      "train": train,
      "rngs": {"dropout": jax.random.key(2)},
      "mutable": ["batch_stats", "intermediates"] if train else False,
    }
    assert_trees_close(
      apply(wrapped, variables, x, **options),
      apply(plain, folded, x, **options),
    )


def test_training_with_the_wrapper_is_training_with_the_function():
  x = images(2, 6, 6, 2)
  plain, wrapped = Net(), WeightStandardization(Net())
  variables = init(plain, x)
  rest = {"batch_stats": variables["batch_stats"]}

  def by_wrapper(params):
    return jnp.sum(apply(wrapped, {"params": params, **rest}, x) ** 2)

  def by_function(params):
    effective = ws_jax.weight_standardize(params)
    return jnp.sum(apply(plain, {"params": effective, **rest}, x) ** 2)

  a = b = variables["params"]
  step = lambda p, g: p - 1e-3 * g
  for _ in range(3):
    a = jax.tree.map(step, a, jax.jit(jax.grad(by_wrapper))(a))
    b = jax.tree.map(step, b, jax.jit(jax.grad(by_function))(b))
  assert_trees_close(a, b, atol=1e-6)
  # Raw parameters stay raw: lecun_normal, fan-in 18, is 0.24, not 1.
  assert float(a["Conv_0"]["kernel"].std()) < 0.4


def test_fold_makes_the_plain_model_equal():
  x = images(2, 6, 6, 2)
  wrapped = WeightStandardization(Net(), convention="timm")
  variables = init(wrapped, x)
  params = ws_jax.fold(variables["params"], convention="timm")
  got = apply(Net(), variables | {"params": params}, x)
  np.testing.assert_allclose(got, apply(wrapped, variables, x), rtol=1e-6)


def test_fold_makes_a_plain_layer_of_one_with_gains():
  x = images(2, 5, 5, 3)
  layer = WSConv(4, (3, 3), convention="nfnet", use_gain=True)
  raw = init(layer, x)["params"] | {"gain": jnp.array([0.5, 1.0, 2.0, 3.0])}
  gains = {"kernel": raw["gain"]}
  where = ws_jax.matching("kernel")
  folded = ws_jax.fold(raw, where=where, convention="nfnet", gains=gains)
  del folded["gain"]
  got = apply(nn.Conv(4, (3, 3)), {"params": folded}, x)
  expected = apply(layer, {"params": raw}, x)
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_gain_scales_the_filters_and_learns():
  x = images(2, 5, 5, 3)
  conv = WSConv(4, (3, 3), convention="nfnet", use_gain=True, use_bias=False)
  variables = init(conv, x)
  out = apply(conv, variables, x)
  gain = jnp.array([0.0, 1.0, 2.0, 3.0])
  params = variables["params"] | {"gain": gain}
  got = apply(conv, {"params": params}, x)
  np.testing.assert_allclose(got, out * gain[None, None, None], atol=1e-5)
  grads = jax.grad(lambda p: jnp.sum(apply(conv, {"params": p}, x) ** 2))(
    params
  )
  assert float(jnp.abs(grads["gain"][1:]).min()) > 0


@pytest.mark.parametrize("wrap", [False, True])
def test_a_boxed_kernel_is_standardized_with_its_gain(wrap):
  """The key of the box was part of the path, so that no gain belonged to it."""
  x = images(2, 5, 5, 3)
  init_fn = nn.with_partitioning(
    nn.initializers.lecun_normal(), (None, None, None, "model")
  )
  if wrap:
    conv = WeightStandardization(nn.Conv(4, (3, 3), kernel_init=init_fn))
  else:
    conv = WSConv(
      4, (3, 3), kernel_init=init_fn, convention="nfnet", use_gain=True
    )
  boxed = init(conv, x)
  assert isinstance(boxed["params"]["kernel"], nn.Partitioned)
  np.testing.assert_allclose(
    apply(conv, boxed, x), apply(conv, nn.unbox(boxed), x), atol=1e-6
  )


def test_layers_inside_a_model_under_jit_scan_and_remat():
  class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
      return x + nn.remat(WSConv)(3, (3, 3))(x), None

  stack = nn.scan(
    Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
  )()
  x = images(1, 5, 5, 3)
  params = stack.init(KEY, x, None)["params"]
  out, _ = jax.jit(stack.apply)({"params": params}, x, None)
  expected = x
  for i in range(3):
    layer = jax.tree.map(lambda p, i=i: p[i], jax.tree.leaves(params))
    bias, kernel = layer
    effective = {"bias": bias, "kernel": ws_jax.standardize(kernel)}
    expected += apply(nn.Conv(3, (3, 3)), {"params": effective}, expected)
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-3)


def test_half_precision_compute_on_float32_parameters():
  x = images(2, 5, 5, 3)
  conv = WSConv(4, (3, 3), dtype=jnp.bfloat16)
  variables = init(conv, x)
  assert variables["params"]["kernel"].dtype == jnp.float32
  assert apply(conv, variables, x).dtype == jnp.bfloat16


def test_errors_name_what_is_wrong():
  x = images(2, 6, 6, 1)
  conv = WSConv(4, (1, 1))
  with pytest.raises(ValueError, match="^kernel: fan-in 1"):
    apply(conv, init(conv, x), x)
  model = WeightStandardization(nn.Sequential([nn.Dense(3)]))
  with pytest.raises(ValueError, match="no kernel was selected; .*layers_0"):
    apply(model, init(model, x), x)


def test_another_method_of_a_module_is_standardized_too():
  """`apply(method=)` found no such method on the wrapper."""

  class Coder(nn.Module):
    def setup(self):
      self.conv = nn.Conv(3, (3, 3))

    def __call__(self, x):
      return self.conv(x)

    def encode(self, x):
      return 2 * self.conv(x)

  wrapped = WeightStandardization(Coder(), where="conv/*")
  x = jnp.ones((1, 4, 4, 2))
  variables = wrapped.init(jax.random.key(0), x)
  twice = wrapped.clone(method="encode").apply(variables, x)
  np.testing.assert_array_equal(twice, 2 * wrapped.apply(variables, x))
