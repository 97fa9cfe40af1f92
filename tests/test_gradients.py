import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ws_jax
from ws_jax import gradients


def tree(dtype=np.float32):
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape) + 1, dtype)
  return {
    "Conv_0": {"kernel": normal(3, 3, 4, 5), "bias": normal(5)},
    "Dense_0": {"kernel": normal(6, 2), "bias": normal(2)},
    "Embed_0": {"embedding": normal(7, 3)},
    "norm": {"scale": normal(5)},
  }


def centralize(grads, **options):
  transformation = ws_jax.centralize_gradients(**options)
  updates, _ = transformation.update(grads, transformation.init(grads))
  return updates


def test_each_filter_loses_its_mean_and_nothing_else():
  grads = tree()
  got = centralize(grads)
  for layer, axes in (("Conv_0", (0, 1, 2)), ("Dense_0", (0,))):
    wide = np.asarray(grads[layer]["kernel"], np.float64)
    expected = wide - wide.mean(axes)
    np.testing.assert_allclose(got[layer]["kernel"], expected, atol=1e-6)
    assert got[layer]["bias"] is grads[layer]["bias"]
  assert got["Embed_0"]["embedding"] is grads["Embed_0"]["embedding"]
  convolutions = centralize(grads, where=ws_jax.conv_kernels)
  assert convolutions["Dense_0"]["kernel"] is grads["Dense_0"]["kernel"]


def test_optax_keeps_the_mean_of_a_flax_filter():
  """Its fan-in is all axes but the first, as in PyTorch's [out, in, H, W]."""
  grads = {"Conv_0": {"kernel": tree()["Conv_0"]["kernel"]}}
  grads = jax.tree.map(lambda g: g + jnp.arange(5.0).reshape(1, 1, 1, 5), grads)
  state = optax.centralize().init(grads)
  theirs, _ = optax.centralize().update(grads, state)
  mean = lambda t: np.abs(t["Conv_0"]["kernel"].mean((0, 1, 2))).max()
  assert mean(theirs) > 1
  assert mean(centralize(grads)) < 1e-6
  # In the layout that it is made for, both agree.
  turned = {"weight": grads["Conv_0"]["kernel"].transpose(3, 2, 0, 1)}
  theirs, _ = optax.centralize().update(turned, state)
  np.testing.assert_allclose(
    centralize(turned)["weight"], theirs["weight"], atol=1e-6
  )


def test_training_keeps_the_mean_of_every_filter():
  raw = {"Conv_0": {"kernel": tree()["Conv_0"]["kernel"]}}
  optimizer = optax.chain(
    ws_jax.centralize_gradients(), optax.sgd(0.1, momentum=0.9)
  )
  state = optimizer.init(raw)

  @jax.jit
  def step(raw, state):
    grads = jax.grad(lambda p: jnp.sum(p["Conv_0"]["kernel"] ** 3))(raw)
    updates, state = optimizer.update(grads, state, raw)
    return optax.apply_updates(raw, updates), state

  start = raw["Conv_0"]["kernel"]
  for _ in range(3):
    raw, state = step(raw, state)
  moved = raw["Conv_0"]["kernel"]
  assert jnp.abs(moved - start).max() > 0.1
  mean = lambda x: np.asarray(x, np.float64).mean((0, 1, 2))
  size = float(jnp.abs(moved).max())
  np.testing.assert_allclose(mean(moved), mean(start), atol=1e-6 * size)


def test_behind_weight_standardization_it_does_nothing():
  raw = {"Conv_0": {"kernel": tree()["Conv_0"]["kernel"]}}
  loss = lambda p: jnp.sum(
    ws_jax.weight_standardize(p)["Conv_0"]["kernel"] ** 3
  )
  grads = jax.grad(loss)(raw)["Conv_0"]["kernel"]
  got = centralize({"Conv_0": {"kernel": grads}})["Conv_0"]["kernel"]
  np.testing.assert_allclose(got, grads, atol=1e-6)


def test_axes_and_dtypes():
  stack = tree(jnp.bfloat16)["Conv_0"]["kernel"]
  got = centralize({"kernel": stack}, axes=ws_jax.all_but(0, -1))["kernel"]
  assert got.dtype == jnp.bfloat16
  wide = np.asarray(stack, np.float64)
  expected = wide - wide.mean((1, 2), keepdims=True)
  np.testing.assert_allclose(
    got.astype(jnp.float32), expected, rtol=2**-8, atol=1e-6
  )


def test_it_works_under_a_mask():
  grads = tree()
  mask = jax.tree_util.tree_map_with_path(
    lambda path, _: path[0].key == "Conv_0", grads
  )
  optimizer = optax.masked(ws_jax.centralize_gradients(), mask)
  got, _ = optimizer.update(grads, optimizer.init(grads))
  assert abs(got["Conv_0"]["kernel"].mean()) < 1e-6
  assert got["Dense_0"]["kernel"] is grads["Dense_0"]["kernel"]


def test_what_cannot_be_centralized_is_an_error_at_init():
  transformation = ws_jax.centralize_gradients()
  with pytest.raises(ValueError, match=r"Dense_0/kernel: fan-in 1 .*`where`"):
    transformation.init({"Dense_0": {"kernel": jnp.ones((1, 4))}})
  with pytest.raises(ValueError, match="paths seen: scale"):
    transformation.init({"scale": jnp.ones(4)})


def test_gains_do_not_decay():
  params = tree()
  gains = ws_jax.init_gains(params)
  # The gains of stacked layers look like a matrix, named as a kernel.
  both = {
    "gains": gains | {"stack/kernel": jnp.ones((3, 5))},
    "means": gains,
    "params": params,
  }
  mask = ws_jax.kernel_decay_mask(both)
  assert jax.tree.structure(mask) == jax.tree.structure(both)
  flat = jax.tree.leaves_with_path(mask)
  decaying = [jax.tree_util.keystr(p, simple=True) for p, on in flat if on]
  assert decaying == ["paramsConv_0kernel", "paramsDense_0kernel"]
  assert not any(ws_jax.kernel_decay_mask(gains).values())

  optimizer = optax.chain(
    optax.add_decayed_weights(0.1, mask=ws_jax.kernel_decay_mask),
    optax.scale(-1.0),
  )
  zeros = jax.tree.map(jnp.zeros_like, both)
  updates, _ = optimizer.update(zeros, optimizer.init(both), both)
  assert not any(map(jnp.any, jax.tree.leaves(updates["gains"])))
  np.testing.assert_allclose(
    updates["params"]["Conv_0"]["kernel"],
    -0.1 * params["Conv_0"]["kernel"],
    rtol=1e-6,
  )


def test_attention_kernels_decay():
  params = {"attention": {"query": {"kernel": jnp.ones((8, 2, 4))}}}
  (decays,) = jax.tree.leaves(ws_jax.kernel_decay_mask(params))
  assert decays


def monitored(rate, **options):
  monitor = ws_jax.monitor_effective_learning_rates(rate, **options)
  return optax.chain(optax.trace(0.9), optax.scale(-0.1), monitor)


@pytest.mark.parametrize("center", [True, False])
def test_the_monitor_sees_the_step_and_leaves_it_alone(center):
  schedule = lambda count: 0.1 / (1 + count)
  params = {"Conv_0": tree()["Conv_0"], "Dense_0": tree()["Dense_0"]}
  plain = optax.chain(optax.trace(0.9), optax.scale(-0.1))
  observed = monitored(schedule, center=center)
  states = plain.init(params), observed.init(params)
  for count in range(2):
    grads = jax.tree.map(lambda p, c=count: jnp.sin(p + c), params)
    expected, plain_state = plain.update(grads, states[0], params)
    got, state = observed.update(grads, states[1], params)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    states = plain_state, state
    wide = lambda x: np.asarray(x["Conv_0"]["kernel"], np.float64)
    part = lambda x: x - x.mean((0, 1, 2)) if center else x
    size = np.linalg.norm(part(wide(params)))
    seen = ws_jax.effective_learning_rates(state)
    assert seen.count == count + 1
    assert seen.relative_step.keys() == {"Conv_0/kernel"}
    np.testing.assert_allclose(
      seen.relative_step["Conv_0/kernel"],
      np.linalg.norm(part(wide(got))) / size,
      rtol=1e-5,
    )
    np.testing.assert_allclose(
      seen.effective_learning_rate["Conv_0/kernel"],
      schedule(count) * 5 / size**2,
      rtol=1e-5,
    )
    params = optax.apply_updates(params, got)


def test_effective_learning_rate_predicts_the_turn_of_scaled_filters():
  """A kernel of twice the size turns alike at four times the rate."""
  kernel = tree()["Conv_0"]["kernel"]

  def turn(scale, rate):
    raw = {"Conv_0": {"kernel": scale * kernel}}
    optimizer = optax.chain(
      optax.sgd(rate), ws_jax.monitor_effective_learning_rates(rate)
    )
    loss = lambda p: jnp.sum(
      jnp.sin(ws_jax.weight_standardize(p)["Conv_0"]["kernel"])
    )
    _, state = optimizer.update(jax.grad(loss)(raw), optimizer.init(raw), raw)
    seen = ws_jax.effective_learning_rates(state)
    return [seen.relative_step, seen.effective_learning_rate]

  for got, same in zip(turn(1.0, 0.1), turn(2.0, 0.4), strict=True):
    np.testing.assert_allclose(
      got["Conv_0/kernel"], same["Conv_0/kernel"], rtol=1e-5
    )
    assert got["Conv_0/kernel"] > 0


def test_the_monitor_is_found_in_any_optimizer_or_missed_clearly():
  params = {"Conv_0": tree()["Conv_0"]}
  build = lambda rate: optax.chain(optax.adam(rate), monitored(0.5))
  optimizer = optax.inject_hyperparams(build)(rate=0.1)
  state = optimizer.init(params)
  update = jax.jit(optimizer.update, donate_argnums=1)
  _, state = update(params, state, params)
  seen = ws_jax.effective_learning_rates(state)
  assert seen.count == 1
  assert seen.effective_learning_rate["Conv_0/kernel"] > 0
  alone = ws_jax.monitor_effective_learning_rates().init(params)
  assert alone.effective_learning_rate == {}
  assert seen.relative_step["Conv_0/kernel"] > 0
  for other, count in [
    (optax.adam(0.1), 0),
    (optax.chain(*[optimizer] * 2), 2),
  ]:
    with pytest.raises(ValueError, match=f"{count} monitors in the state"):
      ws_jax.effective_learning_rates(other.init(params))
  monitor = ws_jax.monitor_effective_learning_rates()
  with pytest.raises(ValueError, match="needs the parameters"):
    monitor.update(params, monitor.init(params))
  with pytest.raises(ValueError, match="paths seen: scale"):
    monitor.init({"scale": jnp.ones(4)})


def test_the_package_exports_these_and_knows_no_others():
  assert ws_jax.centralize_gradients is gradients.centralize_gradients
  assert ws_jax.kernel_decay_mask is gradients.kernel_decay_mask
  assert set(ws_jax.__all__) <= set(dir(ws_jax))
  with pytest.raises(AttributeError, match="no attribute 'centralise'"):
    ws_jax.centralise  # noqa: B018
