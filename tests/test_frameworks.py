"""Models of four libraries that know nothing of `weight_standardize`.

One network in four libraries: a convolution, a depthwise one and a dense head.
Each holds its kernels under other names and in another layout; all are trained
from the same numbers, and must end with the same ones.
"""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ws_jax

X = np.random.default_rng(0).normal(size=(2, 5, 5, 2)).astype(np.float32)


def start():
  """Returns the kernels to start from, in the layout of Flax."""
  rng = np.random.default_rng(1)
  shapes = {"first": (3, 3, 2, 4), "second": (3, 3, 1, 4), "head": (4, 3)}
  return {
    name: jnp.asarray(0.1 + 0.3 * rng.normal(size=shape), jnp.float32)
    for name, shape in shapes.items()
  }


class LinenNet(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(4, (3, 3), use_bias=False, name="first")(x))
    x = nn.Conv(
      4, (3, 3), feature_group_count=4, use_bias=False, name="second"
    )(x)
    return nn.Dense(3, use_bias=False, name="head")(nn.relu(x).mean((1, 2)))


def linen_net():
  params = {name: {"kernel": kernel} for name, kernel in start().items()}
  read = lambda params: {name: p["kernel"] for name, p in params.items()}
  return params, lambda p, x: LinenNet().apply({"params": p}, x), read


class NNXNet(nnx.Module):
  def __init__(self, rngs):
    options = {"use_bias": False, "rngs": rngs}
    self.first = nnx.Conv(2, 4, (3, 3), **options)
    self.second = nnx.Conv(4, 4, (3, 3), feature_group_count=4, **options)
    self.head = nnx.Linear(4, 3, **options)

  def __call__(self, x):
    x = nnx.relu(self.second(nnx.relu(self.first(x))))
    return self.head(x.mean((1, 2)))


def nnx_net():
  model = NNXNet(nnx.Rngs(0))
  for name, kernel in start().items():
    getattr(model, name).kernel[...] = kernel
  graphdef, params, rest = nnx.split(model, nnx.Param, ...)

  def read(params):
    pure = nnx.to_pure_dict(params)
    return {name: layer["kernel"] for name, layer in pure.items()}

  return params, lambda p, x: nnx.merge(graphdef, p, rest)(x), read


def haiku_net():
  def net(x):
    x = jax.nn.relu(hk.Conv2D(4, 3, with_bias=False, name="first")(x))
    second = hk.Conv2D(
      4, 3, feature_group_count=4, with_bias=False, name="second"
    )
    x = jax.nn.relu(second(x))
    return hk.Linear(3, with_bias=False, name="head")(x.mean((1, 2)))

  model = hk.without_apply_rng(hk.transform(net))
  params = {name: {"w": kernel} for name, kernel in start().items()}
  shapes = jax.eval_shape(model.init, jax.random.key(0), X)
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
  read = lambda params: {name: p["w"] for name, p in params.items()}
  return params, model.apply, read


def equinox_net():
  class EquinoxNet(eqx.Module):
    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    head: eqx.nn.Linear

    def __call__(self, x):  # [channel, H, W]
      x = jax.nn.relu(self.second(jax.nn.relu(self.first(x))))
      return self.head(x.mean((1, 2)))

  options = {"use_bias": False, "key": jax.random.key(0)}
  same = {"padding": 1, **options}
  model = EquinoxNet(
    eqx.nn.Conv2d(2, 4, 3, **same),
    eqx.nn.Conv2d(4, 4, 3, groups=4, **same),
    eqx.nn.Linear(4, 3, **options),
  )
  weights = lambda m: [m.first.weight, m.second.weight, m.head.weight]
  # [H, W, in, out] -> [out, in, H, W], and [in, out] -> [out, in].
  swap = lambda k: k.transpose((3, 2, 0, 1)) if k.ndim == 4 else k.T
  model = eqx.tree_at(weights, model, [swap(k) for k in start().values()])
  params, static = eqx.partition(model, eqx.is_inexact_array)

  def apply(params, x):
    return jax.vmap(eqx.combine(params, static))(x.transpose((0, 3, 1, 2)))

  def read(params):
    back = lambda k: k.transpose((2, 3, 1, 0)) if k.ndim == 4 else k.T
    first, second, head = map(back, weights(params))
    return {"first": first, "second": second, "head": head}

  return params, apply, read


def train(params, apply, *, standardize):
  def loss(raw):
    effective = ws_jax.weight_standardize(raw) if standardize else raw
    return jnp.mean(apply(effective, X) ** 2)

  step = jax.jit(lambda raw, grads: raw - 0.05 * grads)
  grad = jax.jit(jax.grad(loss))
  for _ in range(3):
    params = jax.tree.map(step, params, grad(params))
  return params


@pytest.fixture(scope="module")
def expected():
  """Returns the kernels after training, selected and laid out by hand."""

  def apply(kernels, x):
    kernels = {
      name: ws_jax.standardize(k, axis=(0, 1, 2)) if k.ndim == 4 else k
      for name, k in kernels.items()
    }
    for name, groups in [("first", 1), ("second", 4)]:
      x = jax.lax.conv_general_dilated(
        x,
        kernels[name],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
      )
      x = jax.nn.relu(x)
    return x.mean((1, 2)) @ kernels["head"]

  return train(start(), apply, standardize=False)


@pytest.mark.parametrize(
  "net", [linen_net, nnx_net, haiku_net, equinox_net], ids=lambda f: f.__name__
)
def test_raw_parameters_train_alike_in_every_library(net, expected):
  params, apply, read = net()
  trained = read(train(params, apply, standardize=True))
  assert float(jnp.abs(trained["second"] - start()["second"]).max()) > 1e-3
  for name, kernel in expected.items():
    np.testing.assert_allclose(trained[name], kernel, atol=1e-5, err_msg=name)
  # Deployed: plain weights, in the plain model.
  folded = apply(ws_jax.fold(params), X)
  effective = apply(ws_jax.weight_standardize(params), X)
  np.testing.assert_array_equal(folded, effective)
