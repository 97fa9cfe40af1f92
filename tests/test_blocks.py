"""Blocks as a loop, and what is kept of them, change no number."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ws_jax.layers.norm import NormSpec
from ws_jax.models import resnet
from ws_jax.models.residual import ResNet

tiny = functools.partial(
  ResNet, num_classes=3, block_sizes=(3,), channels=4, version=2
)


def inputs(count=2):
  rng = np.random.default_rng(0)
  return rng.normal(size=(count, 8, 8, 3)).astype(np.float32)


def results(model, variables, images):
  """Loss, gradients and running statistics of one step."""

  @jax.jit
  def run(params):
    def loss(params):
      logits, state = model.apply(
        {**variables, "params": params},
        images,
        train=True,
        mutable=["batch_stats"],
      )
      return jnp.sum(logits**2), state

    return jax.value_and_grad(loss, has_aux=True)(params)

  return run(variables["params"])


@pytest.mark.parametrize(
  ("norm", "settings"),
  [
    (NormSpec("batch"), {"scan": True}),
    pytest.param(
      NormSpec(num_groups=2),
      {"scan": True, "remat": True, "remat_keep": "convolutions"},
      marks=pytest.mark.slow,
    ),
  ],
)
def test_a_loop_over_blocks_equals_the_blocks(norm, settings):
  images = inputs()
  plain, other = tiny(norm=norm), tiny(norm=norm, **settings)
  init = lambda model: model.init(jax.random.key(0), images, train=False)
  variables = jax.jit(init, static_argnums=0)(plain)
  same = jax.eval_shape(functools.partial(init, other))
  assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, same)
  got, true = (results(m, variables, images) for m in (other, plain))
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, got, true)
  apply = lambda model: model.apply(variables, images, train=False)
  np.testing.assert_allclose(apply(other), apply(plain), rtol=1e-4, atol=1e-5)


def convolutions(**settings):
  """The number of convolutions that a step is compiled of."""
  model = tiny(block_sizes=(6, 2), norm=NormSpec(num_groups=2), **settings)
  images = jax.ShapeDtypeStruct((8, 8, 8, 3), jnp.float32)
  shapes = jax.eval_shape(
    functools.partial(model.init, train=False), jax.random.key(0), images
  )

  def loss(variables, images):
    return model.apply(variables, images, train=False).sum()

  text = jax.jit(jax.grad(loss)).lower(shapes, images).as_text()
  return text.count("stablehlo.convolution")


def test_a_loop_compiles_each_kind_of_block_once():
  """Four blocks of the six are gone: eight convolutions, with two gradients."""
  unrolled, looped = convolutions(), convolutions(scan=True)
  assert unrolled - looped == 3 * 8
  assert convolutions(remat=True) > unrolled
  # The outputs of convolutions are there, so that none is computed again.
  assert convolutions(remat=True, remat_keep="convolutions") == unrolled


def test_a_loop_refuses_blocks_that_are_not_equal():
  with pytest.raises(ValueError, match="stochastic_depth=0.1 gives each its"):
    resnet.create_model(
      "resnet50", num_classes=2, scan=True, stochastic_depth=0.1
    )
