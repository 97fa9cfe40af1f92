import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ws_jax.train import optim

PARAMS = {
  "conv": {"kernel": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)},
  "norm": {"scale": np.full(3, 2.0, np.float32)},
}


def gradient(params, step):
  return jax.tree.map(lambda p: np.cos(p + step).astype(np.float32), params)


def run(optimizer, numbers, steps):
  params = jax.tree.map(jnp.asarray, PARAMS)
  state = optimizer.init(params, **numbers)
  for step in range(steps):
    params, state = optimizer.update(gradient(params, step), state, params)
  return params


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", ["kernels", "all"])
def test_sgd_is_the_textbook_recursion(nesterov, decay):
  numbers = {"learning_rate": 0.3, "weight_decay": 0.1, "momentum": 0.8}
  schedule = optim.Schedule("cosine", total_steps=5, warmup_steps=2)
  optimizer = optim.Optimizer(schedule, nesterov=nesterov, decay=decay)
  got = run(optimizer, numbers, 5)

  for section, name in (("conv", "kernel"), ("norm", "scale")):
    w = PARAMS[section][name].astype(np.float64)
    velocity = np.zeros_like(w)
    wd = 0.1 if name == "kernel" or decay == "all" else 0.0
    for step in range(5):
      warmup = min(1.0, (step + 1) / 2)
      part = np.clip((step - 2) / 3, 0, 1)
      rate = 0.3 * warmup * 0.5 * (1 + np.cos(np.pi * part))
      g = np.cos(w + step) + wd * w
      velocity = 0.8 * velocity + g
      w = w - rate * (g + 0.8 * velocity if nesterov else velocity)
    np.testing.assert_allclose(got[section][name], w, rtol=2e-5)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_centralized_gradients_leave_the_mean_of_a_filter_alone(name):
  numbers = {"learning_rate": 0.3, "weight_decay": 0.0, "momentum": 0.8}
  plain = optim.Optimizer(optim.Schedule("constant", 5), name=name)
  moved = run(dataclasses.replace(plain, centralize=True), numbers, 5)
  drifted = run(plain, numbers, 5)
  mean = lambda params: np.asarray(params["conv"]["kernel"]).mean(0)
  if name == "sgd":  # Adam divides by another number for each weight
    np.testing.assert_allclose(mean(moved), mean(PARAMS), atol=1e-6)
  assert not np.allclose(mean(drifted), mean(PARAMS), atol=1e-2)
  assert not np.allclose(
    moved["conv"]["kernel"], PARAMS["conv"]["kernel"], atol=1e-2
  )
  # What is no kernel takes the same steps with it as without.
  np.testing.assert_array_equal(
    moved["norm"]["scale"], drifted["norm"]["scale"]
  )


def test_a_centralized_filter_keeps_its_mean_under_weight_decay():
  numbers = {"learning_rate": 0.3, "weight_decay": 0.1, "momentum": 0.8}
  schedule = optim.Schedule("constant", 5)
  got = run(optim.Optimizer(schedule, centralize=True), numbers, 5)
  np.testing.assert_allclose(
    np.asarray(got["conv"]["kernel"]).mean(0),
    PARAMS["conv"]["kernel"].mean(0),
    atol=1e-6,
  )


@pytest.mark.parametrize("b2", [0.999, 0.95])
def test_adamw_decays_apart_from_the_gradient(b2):
  numbers = {"learning_rate": 0.01, "weight_decay": 0.5, "momentum": 0.9}
  optimizer = optim.Optimizer(
    optim.Schedule("constant", 4), name="adamw", nesterov=False, b2=b2
  )
  got = run(optimizer, numbers, 4)
  w = PARAMS["conv"]["kernel"].astype(np.float64)
  m, v = np.zeros_like(w), np.zeros_like(w)
  for step in range(4):
    g = np.cos(w + step)
    m, v = 0.9 * m + 0.1 * g, b2 * v + (1 - b2) * g * g
    m_hat, v_hat = m / (1 - 0.9 ** (step + 1)), v / (1 - b2 ** (step + 1))
    w = w - 0.01 * (m_hat / (np.sqrt(v_hat) + 1e-8) + 0.5 * w)
  np.testing.assert_allclose(got["conv"]["kernel"], w, rtol=2e-5)


def test_the_numbers_are_data():
  """A new learning rate, decay or momentum must not trace the step again."""
  optimizer = optim.Optimizer(optim.Schedule("constant", 4))
  traces = []

  @jax.jit
  def update(grads, state, params):
    traces.append(1)
    return optimizer.update(grads, state, params)

  params = jax.tree.map(jnp.asarray, PARAMS)
  for rate in (0.1, 0.4):
    numbers = {"learning_rate": rate, "weight_decay": rate, "momentum": rate}
    state = optimizer.init(params, **numbers)
    moved, _ = update(gradient(PARAMS, 0), state, params)
  assert len(traces) == 1
  assert not np.allclose(moved["conv"]["kernel"], params["conv"]["kernel"])


def test_clip_norm_bounds_the_whole_gradient():
  optimizer = optim.Optimizer(
    optim.Schedule("constant", 1), nesterov=False, clip_norm=0.5
  )
  numbers = {"learning_rate": 1.0, "weight_decay": 0.0, "momentum": 0.0}
  got = run(optimizer, numbers, 1)
  moved = jax.tree.map(lambda a, b: a - b, got, PARAMS)
  norm = np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(moved)))
  np.testing.assert_allclose(norm, 0.5, rtol=1e-5)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_the_rest_has_a_learning_rate_of_its_own(name):
  """In all but convolution kernels it is that of a run at a lower rate."""
  params = {
    "conv": {"kernel": jnp.ones((3, 3, 2, 4))},
    "norm": {"scale": jnp.ones(4), "bias": jnp.zeros(4)},
    "head": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)},
  }
  results = []
  for rate, factor in ((3.0, 1.0), (3.0, 0.1), (0.3, 1.0)):
    schedule = optim.Schedule("constant", 1)
    optimizer = optim.Optimizer(schedule, name=name, rest_factor=factor)
    state = optimizer.init(
      params, learning_rate=rate, weight_decay=0.1, momentum=0.9
    )
    grads = jax.tree.map(lambda x: x + 1, params)
    moved, _ = optimizer.update(grads, state, params)
    results.append(moved)
  fast, mixed, slow = results
  np.testing.assert_allclose(mixed["conv"]["kernel"], fast["conv"]["kernel"])
  for layer in ("norm", "head"):
    for leaf, expected in slow[layer].items():
      np.testing.assert_allclose(mixed[layer][leaf], expected, rtol=1e-5)
      assert not np.allclose(expected, fast[layer][leaf], rtol=0.01)


def test_adaptive_clip_bounds_each_unit_but_not_the_head():
  params = {
    "conv": {"kernel": np.full((3, 3, 2, 4), 0.1, np.float32)},
    "head": {"kernel": np.full((4, 2), 0.1, np.float32)},
  }
  grads = jax.tree.map(np.ones_like, params)
  optimizer = optim.Optimizer(
    optim.Schedule("constant", 1), nesterov=False, adaptive_clip=0.01
  )
  numbers = {"learning_rate": 1.0, "weight_decay": 0.0, "momentum": 0.0}
  state = optimizer.init(params, **numbers)
  new, _ = optimizer.update(grads, state, params)
  moved = params["conv"]["kernel"] - new["conv"]["kernel"]
  unit = lambda x: np.sqrt(np.sum(np.square(x), axis=(0, 1, 2)))
  np.testing.assert_allclose(
    unit(moved), 0.01 * unit(params["conv"]["kernel"]), rtol=1e-4
  )
  np.testing.assert_allclose(
    params["head"]["kernel"] - new["head"]["kernel"], 1.0, rtol=1e-5
  )


@pytest.mark.parametrize(
  ("schedule", "expected"),
  [
    (optim.Schedule("constant", 10), {0: 1, 9: 1}),
    (optim.Schedule("constant", 10, 4), {0: 0.25, 3: 1, 9: 1}),
    (optim.Schedule("step", 9), {0: 1, 2: 1, 3: 0.1, 5: 0.1, 6: 0.01, 8: 0.01}),
    (optim.Schedule("cosine", 10), {0: 1, 5: 0.5, 10: 0}),
    (optim.Schedule("cosine", 10, 2), {0: 0.5, 1: 1, 2: 1, 6: 0.5, 10: 0}),
    (optim.Schedule("one_cycle", 10), {0: 0.04, 3: 1, 10: 1e-4}),
    (optim.Schedule("one_cycle", 10, 5), {0: 0.04, 5: 1, 10: 1e-4}),
  ],
)
def test_schedule(schedule, expected):
  got = {step: float(schedule(step)) for step in expected}
  assert got == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (
      lambda: optim.Schedule("cosin", 1),
      "schedule 'cosin': did you .* 'cosine'",
    ),
    (
      lambda: optim.Optimizer(optim.Schedule("step", 1), name="adam"),
      "optimizer 'adam': did you mean 'adamw'",
    ),
    (
      lambda: optim.Optimizer(optim.Schedule("step", 1), decay="kernel"),
      "did you mean 'kernels'",
    ),
  ],
)
def test_unknown_names(make, message):
  with pytest.raises(ValueError, match=message):
    make()
