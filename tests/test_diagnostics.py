"""Diagnostics, on problems whose answer is known."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ws_jax
from ws_jax import diagnostics, models
from ws_jax.layers import norm
from ws_jax.layers.normalize import normalize


def symmetric(*eigenvalues):
  """Returns a float64 matrix with these eigenvalues, in random directions."""
  size = len(eigenvalues)
  turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))
  return turn @ np.diag(eigenvalues) @ turn.T


def quadratic(matrix):
  matrix = jnp.asarray(matrix, jnp.float32)
  return lambda tree: 0.5 * jnp.vdot(tree["x"], matrix @ tree["x"])


def normal(*shape, seed=0):
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


def test_along_the_gradient_of_a_quadratic():
  matrix = symmetric(5.0, 2.0, 1.0, -1.0)
  x = np.random.default_rng(1).normal(size=4)
  parts = [0.05, 0.1, 0.4]
  loss = quadratic(matrix)
  walk = diagnostics.along_gradient(loss, {"x": jnp.float32(x)}, parts)
  grad = matrix @ x
  unit = grad / np.linalg.norm(grad)
  steps = np.array(parts) * np.linalg.norm(x)
  ends = x - steps[:, None] * unit
  losses = 0.5 * np.einsum("ni,ij,nj->n", ends, matrix, ends)
  curvature = np.linalg.norm(matrix @ unit)
  expected = diagnostics.AlongGradient(
    0.5 * x @ matrix @ x, np.linalg.norm(grad), steps, losses, steps * curvature
  )
  for name, got, wanted in zip(walk._fields, walk, expected, strict=True):
    np.testing.assert_allclose(got, wanted, rtol=1e-4, err_msg=name)
  np.testing.assert_allclose(walk.beta_smoothness, curvature, rtol=1e-4)
  np.testing.assert_allclose(
    walk.predictiveness,
    steps[-1] * curvature / np.linalg.norm(grad),
    rtol=1e-4,
  )
  seen = [expected.loss, *losses]
  np.testing.assert_allclose(
    walk.loss_variation, max(seen) - min(seen), rtol=1e-4
  )


def test_nothing_is_nan_where_the_gradient_is_zero():
  walk = diagnostics.along_gradient(lambda x: x.sum() * 0, jnp.ones(3), [0.1])
  measured = walk.loss_variation, walk.predictiveness, walk.beta_smoothness
  assert [float(x) for x in measured] == [0, 0, 0]


@pytest.mark.parametrize(
  "eigenvalues", [(7.0, 3.0, 1.0), (4.0, 1.0, -9.0), (-1.0, -2.0, -6.0)]
)
def test_sharpness_is_the_largest_eigenvalue_not_the_largest_magnitude(
  eigenvalues,
):
  found = diagnostics.sharpness(
    quadratic(symmetric(*eigenvalues)), {"x": normal(3)}
  )
  np.testing.assert_allclose(found.eigenvalue, max(eigenvalues), rtol=1e-3)
  assert found.residual < 0.05


class Net(nn.Module):
  """A model of two convolutions, with a norm of ours each, and a head."""

  kind: str = "group"

  @nn.compact
  def __call__(self, x, train=True):
    spec = norm.NormSpec(self.kind, num_groups=2)
    for i in range(2):
      x = nn.Conv(4, (3, 3), use_bias=False, name=f"conv{i}")(x)
      x = nn.relu(spec.layer(name=f"norm{i}")(x, train=train))
    return nn.Dense(3, name="head")(x.mean((1, 2)))


IMAGES = normal(6, 5, 5, 2)
LABELS = jnp.arange(6) % 3


def net_loss(kind, standardize=False):
  model = Net(kind)
  variables = model.init(jax.random.key(0), IMAGES)
  state = {k: v for k, v in variables.items() if k != "params"}

  def loss(params):
    if standardize:
      params = ws_jax.weight_standardize(params)
    logits, _ = model.apply(
      {"params": params, **state}, IMAGES, mutable=list(state)
    )
    return -jax.nn.log_softmax(logits)[jnp.arange(6), LABELS].mean()

  return loss, variables["params"]


def rescale(params, factors):
  """Multiplies the kernels of `Net` by these factors."""
  scaled = {
    f"conv{i}": {"kernel": factor * params[f"conv{i}"]["kernel"]}
    for i, factor in enumerate(factors)
  }
  return {**params, **scaled}


@pytest.mark.slow
def test_sharpness_sees_through_a_norm_with_its_own_backward_pass():
  """Such a layer has no forward mode, so the Hessian is reverse on reverse."""
  inputs = normal(8, 3)

  def loss(weights):
    y, _, _ = normalize(inputs @ weights, jnp.ones(4), jnp.zeros(4), 8, 4)
    return jnp.mean(jnp.cos(y + 1) * jnp.arange(4.0)[None])

  weights = normal(3, 4, seed=1)
  found = diagnostics.sharpness(loss, weights, num_iterations=60)
  hessian = jax.jacrev(jax.grad(loss))(weights).reshape(12, 12)
  largest = np.linalg.eigvalsh(np.asarray(hessian, np.float64))[-1]
  np.testing.assert_allclose(found.eigenvalue, largest, rtol=0.01)


@pytest.mark.parametrize(
  ("kind", "standardize"), [("batch", False), ("group", True)]
)
def test_own_units_make_the_scale_of_kernels_invisible(kind, standardize):
  loss, params = net_loss(kind, standardize)
  results = []
  for factors in ((1.0, 1.0), (5.0, 0.5)):
    scaled, coordinates, frame = diagnostics.in_own_units(
      loss, rescale(params, factors)
    )
    walk = diagnostics.along_gradient(scaled, coordinates, [0.03, 0.3], frame)
    found = diagnostics.sharpness(scaled, coordinates, frame, num_iterations=8)
    results.append([*walk, walk.beta_smoothness, found.eigenvalue])
  for before, after in zip(*results, strict=True):
    np.testing.assert_allclose(after, before, rtol=0.02)


def test_without_own_units_smaller_kernels_look_sharper():
  """The trap: one network, drawn at two scales."""
  loss, params = net_loss("batch")
  scaled, coordinates, frame = diagnostics.in_own_units(loss, params)
  parts = {"conv0/kernel", "conv1/kernel"}
  assert set(coordinates) == parts
  betas, sharp = [], []
  for factor in (1.0, 0.1):
    kernels = {path: factor * coordinates[path] for path in parts}
    walk = diagnostics.along_gradient(scaled, kernels, [0.1], frame)
    betas.append(walk.beta_smoothness)
    found = diagnostics.sharpness(scaled, kernels, frame, num_iterations=8)
    sharp.append(found.eigenvalue * 2 * factor**2)  # two kernels of norm 1
    np.testing.assert_allclose(sharp[-1], sharp[0], rtol=0.02)
  # 100, but for the eps of the normalization.
  np.testing.assert_allclose(betas[1] / betas[0], 100, rtol=0.05)


def test_own_units_of_one_kernel_are_eigenvalue_times_squared_norm():
  kernel = 3.0 * normal(3, 3, 2, 4)
  loss = lambda params: jnp.sum(jnp.sin(params["conv/kernel"]) ** 2)
  params = {"conv/kernel": kernel}
  scaled, coordinates, frame = diagnostics.in_own_units(loss, params)
  own = diagnostics.sharpness(scaled, coordinates, frame, num_iterations=60)
  raw = diagnostics.sharpness(loss, params, num_iterations=60)
  np.testing.assert_allclose(
    own.eigenvalue, raw.eigenvalue * jnp.sum(kernel**2), rtol=1e-3
  )


@pytest.mark.parametrize("kind", ["batch", "group", "none"])
def test_removed_terms_are_what_standardizing_takes_from_the_gradient(kind):
  """std^2 |dL/draw|^2 = |g|^2 (1 - mean - radial), g by the effective one."""
  loss, params = net_loss(kind)
  params = rescale(params, (0.3, 2.0))
  effective, pull_back = jax.vjp(ws_jax.weight_standardize, params)
  grads = jax.grad(loss)(effective)
  (raw_grads,) = pull_back(grads)
  found = diagnostics.removed_terms(grads, params)
  assert set(found) == {"conv0/kernel", "conv1/kernel"}
  again = diagnostics.removed_terms(grads, effective)
  for layer in ("conv0", "conv1"):
    terms = found[f"{layer}/kernel"]
    std = np.asarray(params[layer]["kernel"], np.float64).std((0, 1, 2))
    raw = np.asarray(raw_grads[layer]["kernel"], np.float64)
    whole = np.sum(np.asarray(grads[layer]["kernel"], np.float64) ** 2)
    left = 1 - terms.mean - terms.radial
    np.testing.assert_allclose(
      left, np.sum((std * raw) ** 2) / whole, rtol=1e-3
    )
    np.testing.assert_allclose(terms.squared_norm, whole, rtol=1e-4)
    np.testing.assert_allclose(again[f"{layer}/kernel"], terms, atol=1e-5)
    # BN lets no gradient along a filter pass; the others do.
    assert (terms.radial < 1e-5) == (kind == "batch")
    assert 1e-4 < terms.mean < 1


def test_removed_terms_of_no_gradient_are_zero():
  kernel = normal(3, 3, 2, 4)
  found = diagnostics.removed_terms({"w": kernel * 0}, {"w": kernel})["w"]
  assert [float(x) for x in found] == [0, 0, 0]


def test_channel_stats_are_the_moments():
  outputs = normal(7, 3, 2, 5) * jnp.arange(1.0, 6).reshape(1, 1, 1, 5)
  outputs -= jnp.arange(5.0).reshape(1, 1, 1, 5) ** 2 * 10
  stats = diagnostics.channel_stats(outputs)
  wide = np.asarray(outputs, np.float64).reshape(-1, 5)
  np.testing.assert_allclose(stats.mean, wide.mean(0), rtol=1e-5)
  np.testing.assert_allclose(stats.std, wide.std(0), rtol=1e-4)
  np.testing.assert_allclose(stats.max, wide.max(0), rtol=1e-5)
  np.testing.assert_allclose(
    stats.margin, wide.mean(0) / wide.std(0), rtol=1e-4
  )
  power = (wide**2).mean()
  np.testing.assert_allclose(
    stats.squared_mean + stats.variance, power, rtol=1e-5
  )
  np.testing.assert_allclose(
    stats.constant_power, (wide.mean(0) ** 2).mean() / power, rtol=1e-5
  )


def test_a_channel_is_dead_when_its_relu_never_opens():
  dead = jnp.where(jnp.arange(8) < 3, -50.0, 0.0)
  outputs = normal(16, 4, 4, 8) + dead.reshape(1, 1, 1, 8)
  for y in (outputs, nn.relu(outputs)):
    assert diagnostics.channel_stats(y).dead == 3 / 8
  constant = diagnostics.channel_stats(jnp.zeros((16, 8)) + dead[None])
  assert constant.constant_power == 1.0
  silent = diagnostics.channel_stats(jnp.zeros((16, 8)))
  assert silent.dead == 1.0 and silent.constant_power == 0.0


def test_bn_keeps_its_distance_at_bias_over_scale_and_gn_does_not():
  """A channel norm cannot promise this distance, after Qiao et al. 2019."""
  images = normal(32, 6, 6, 8) + 4 * normal(8, seed=1).reshape(1, 1, 1, 8)
  margins = {}
  for kind in ("batch", "group"):
    layer = norm.NormSpec(kind, num_groups=2).layer()
    variables = layer.init(jax.random.key(0), images, train=True)
    scale, bias = jnp.arange(1.0, 9), normal(8, seed=2)
    variables = {**variables, "params": {"scale": scale, "bias": bias}}
    (stats,) = diagnostics.activation_stats(
      layer, variables, images, train=True
    ).values()
    margins[kind] = np.abs(stats.margin - bias / scale).max()
  assert margins["batch"] < 1e-4
  assert margins["group"] > 1


def test_signal_behind_a_relu_has_the_mean_that_standardizing_takes_away():
  """He-initialized: squared mean 1 / pi, variance 1 - 1 / pi (Brock 2021)."""
  model = nn.Dense(512, kernel_init=nn.initializers.he_normal())
  inputs = nn.relu(normal(1024, 400))
  variables = model.init(jax.random.key(0), inputs)
  everything = lambda path, module: True
  (plain,) = diagnostics.activation_stats(
    model, variables, inputs, where=everything
  ).values()
  np.testing.assert_allclose(plain.squared_mean, 1 / np.pi, rtol=0.1)
  np.testing.assert_allclose(plain.variance, 1 - 1 / np.pi, rtol=0.1)
  scaled = ws_jax.weight_standardize(
    variables, where=ws_jax.dense_kernels, convention="nfnet"
  )
  (found,) = diagnostics.activation_stats(
    model, scaled, inputs, where=everything
  ).values()
  assert found.squared_mean < 0.002


@pytest.mark.parametrize("remat", [False, True])
def test_capture_sees_every_norm_of_a_resnet_in_the_order_of_its_depth(remat):
  model = models.create_model(
    "resnet20",
    num_classes=2,
    width=0.25,
    norm=norm.NormSpec("batch"),
    remat=remat,
  )
  images = normal(2, 8, 8, 1)
  shapes = {}

  def look(key):
    variables = model.init(key, images, train=False)
    blocks = ws_jax.matching_regex(r"block\d+$")
    for where in (diagnostics.norm_layers, blocks):
      found = diagnostics.capture(
        model, variables, images, where=where, train=True
      )
      shapes[where] = {path: y.shape for path, y in found.items()}

  jax.eval_shape(look, jax.random.key(0))
  norms, blocks = shapes.values()
  assert len(norms) == 21 and next(iter(norms)) == "stem_norm"
  assert norms["stage3_block3/norm2"] == (2, 2, 2, 16)
  assert list(blocks) == [
    f"stage{i}_block{j}" for i in (1, 2, 3) for j in (1, 2, 3)
  ]


class Foreign(nn.Module):
  """A Linen model as others write them: setup, one layer called twice."""

  def setup(self):
    self.dense = nn.Dense(4)
    self.layers = [nn.LayerNorm() for _ in range(11)]
    self.norm = nn.BatchNorm(use_running_average=False)

  def __call__(self, x):
    for layer in self.layers:
      x = layer(x)
    return self.norm(self.dense(nn.relu(self.norm(self.dense(x)))))


def test_capture_works_for_any_linen_model():
  x = normal(8, 4)
  variables = Foreign().init(jax.random.key(0), x)
  found = diagnostics.capture(Foreign(), variables, x)
  layers = [f"layers_{i}" for i in range(11)]
  assert list(found) == [*layers, "norm", "norm#2"]
  np.testing.assert_allclose(found["norm#2"].mean(0), 0, atol=1e-5)
  np.testing.assert_allclose(
    found["norm#2"],
    Foreign().apply(variables, x, mutable="batch_stats")[0],
    atol=1e-6,
  )
  with pytest.raises(ValueError, match=r"no layer was selected.*layers_10"):
    diagnostics.capture(
      Foreign(), variables, x, where=lambda path, module: False
    )


@pytest.mark.slow
def test_all_of_it_can_be_compiled_as_one():
  model = nn.Sequential([nn.Dense(8), nn.LayerNorm(), nn.relu])
  inputs = normal(16, 3)
  params = model.init(jax.random.key(0), inputs)["params"]

  def loss(params):
    return jnp.mean(model.apply({"params": params}, inputs)[:, :3] * inputs)

  def everything(params):
    walk = diagnostics.along_gradient(loss, params, [0.1])
    found = diagnostics.sharpness(loss, params, num_iterations=1)
    stats = diagnostics.activation_stats(model, {"params": params}, inputs)
    terms = diagnostics.removed_terms(
      jax.grad(loss)(params), params, where=ws_jax.dense_kernels
    )
    return walk, found, stats, terms

  apart, together = everything(params), jax.jit(everything)(params)
  for one, other in zip(
    jax.tree.leaves(apart), jax.tree.leaves(together), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
