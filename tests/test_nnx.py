"""The NNX modules compute what the function does, on raw parameters."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ws_jax
import ws_jax.linen
from ws_jax.core import kernels
from ws_jax.nnx import (
  WeightStandardization,
  WSConv,
  WSConvTranspose,
  WSLinear,
  selectors,
  standardized,
)


def images(*shape):
  return jax.random.normal(jax.random.key(1), shape)


def params(module: nnx.Module) -> dict[str, Any]:
  """Returns the parameters as a plain nested dict of arrays."""
  return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def assert_trees_close(a, b, atol=1e-5):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def square_sum(model, x):
  return jnp.sum(model(x) ** 2)


class Net(nnx.Module):
  """The NNX twin of LinenNet, with the same names and shapes."""

  def __init__(self, rngs, conv=nnx.Conv):
    self.Conv_0 = conv(2, 4, (3, 3), use_bias=False, rngs=rngs)
    self.BatchNorm_0 = nnx.BatchNorm(4, rngs=rngs)
    self.Conv_1 = conv(4, 4, (3, 3), feature_group_count=2, rngs=rngs)
    self.Dropout_0 = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
    self.Dense_0 = nnx.Linear(4, 3, rngs=rngs)

  def __call__(self, x):
    x = self.Conv_1(self.BatchNorm_0(self.Conv_0(x)))
    self.sow(nnx.Intermediate, "features", x)
    return self.Dense_0(self.Dropout_0(x).mean((1, 2)))


class LinenNet(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Conv(4, (3, 3), use_bias=False)(x)
    x = nn.BatchNorm(use_running_average=False, momentum=0.99)(x)
    x = nn.Conv(4, (3, 3), feature_group_count=2)(x)
    return nn.Dense(3)(x.mean((1, 2)))


# Without `sow`, which asks for `nnx.capture` around it.
class QuietNet(Net):
  def sow(self, *args, **kwargs):
    return False


PAIRS = [
  (WSConv, nnx.Conv, (3, 4, 3), {}, (2, 5, 3), (0, 1)),
  (WSConv, nnx.Conv, (3, 4, (3, 3)), {}, (2, 5, 5, 3), (0, 1, 2)),
  (
    WSConv,
    nnx.Conv,
    (4, 4, (3, 3), 2),
    {"feature_group_count": 4, "padding": "VALID", "use_bias": False},
    (2, 5, 5, 4),
    (0, 1, 2),
  ),
  (WSLinear, nnx.Linear, (5, 4), {}, (2, 5), (0,)),
  (WSConvTranspose, nnx.ConvTranspose, (3, 4, 2), {}, (2, 5, 3), (0, 1)),
  (
    WSConvTranspose,
    nnx.ConvTranspose,
    (3, 4, (2, 2)),
    {"transpose_kernel": True},
    (2, 5, 5, 3),
    (0, 1, 3),
  ),
]


@pytest.mark.parametrize(
  ("ws_class", "plain_class", "args", "kwargs", "shape", "axis"), PAIRS
)
def test_layer_is_the_plain_layer_on_the_standardized_kernel(
  ws_class, plain_class, args, kwargs, shape, axis
):
  x = images(*shape)
  ws = ws_class(*args, **kwargs, rngs=nnx.Rngs(0))
  plain = plain_class(*args, **kwargs, rngs=nnx.Rngs(0))
  raw = params(plain)
  assert_trees_close(params(ws), raw, atol=0)
  wrapped = WeightStandardization(plain)
  out = ws(x)
  np.testing.assert_allclose(wrapped(x), out, atol=1e-6)
  # Flax's own WeightNorm stores here what it computed with (flax#5576).
  assert_trees_close(params(ws), raw, atol=0)
  assert_trees_close(params(plain), raw, atol=0)
  folded = plain_class(*args, **kwargs, rngs=nnx.Rngs(1))
  kernel = ws_jax.standardize(raw["kernel"], axis=axis)
  nnx.update(folded, raw | {"kernel": kernel})
  np.testing.assert_allclose(folded(x), out, atol=1e-5)


def test_mask_is_applied_to_the_standardized_kernel():
  mask = jnp.ones((3, 3, 2, 4)).at[1].set(0.0)
  conv = WSConv(2, 4, (3, 3), mask=mask, rngs=nnx.Rngs(0))
  kernel = ws_jax.standardize(conv.kernel[...])
  plain = nnx.Conv(2, 4, (3, 3), rngs=nnx.Rngs(0))
  plain.kernel[...] = kernel * mask
  x = images(1, 5, 5, 2)
  np.testing.assert_allclose(conv(x), plain(x), atol=1e-5)


def test_all_routes_hold_equal_raw_parameters_after_training():
  x = images(2, 6, 6, 2)
  optimizer = optax.chain(
    optax.add_decayed_weights(0.1), optax.sgd(1e-2, momentum=0.9)
  )
  models = {
    "function": QuietNet(nnx.Rngs(0)),
    "wrapper": WeightStandardization(QuietNet(nnx.Rngs(0))),
    "layers": QuietNet(nnx.Rngs(0), conv=WSConv),
  }
  start = params(models["function"])

  @nnx.jit(static_argnums=2)
  def step(model, state, name):
    def loss(model):
      return square_sum(standardized(model) if name == "function" else model, x)

    state.update(model, nnx.grad(loss)(model))

  for name, model in models.items():
    state = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
    for _ in range(3):
      step(model, state, name)

  @jax.jit
  def pure_step(raw, state):
    def loss(raw):
      effective = ws_jax.weight_standardize(raw)
      stats = {"mean": jnp.zeros(4), "var": jnp.ones(4)}
      variables = {"params": effective, "batch_stats": {"BatchNorm_0": stats}}
      out, _ = LinenNet().apply(variables, x, mutable=["batch_stats"])
      return jnp.sum(out**2)

    updates, state = optimizer.update(jax.grad(loss)(raw), state, raw)
    return optax.apply_updates(raw, updates), state

  @jax.jit
  def linen_step(raw, state):
    def loss(raw):
      stats = {"mean": jnp.zeros(4), "var": jnp.ones(4)}
      variables = {"params": raw, "batch_stats": {"BatchNorm_0": stats}}
      model = ws_jax.linen.WeightStandardization(LinenNet())
      out, _ = model.apply(variables, x, mutable=["batch_stats"])
      return jnp.sum(out**2)

    updates, state = optimizer.update(jax.grad(loss)(raw), state, raw)
    return optax.apply_updates(raw, updates), state

  ends = []
  for linen in (pure_step, linen_step):
    raw, state = start, optimizer.init(start)
    for _ in range(3):
      raw, state = linen(raw, state)
    ends.append(raw)
  ends += [
    params(models["function"]),
    params(models["wrapper"].module),
    params(models["layers"]),
  ]
  moved = np.abs(ends[0]["Conv_0"]["kernel"] - start["Conv_0"]["kernel"]).max()
  assert moved > 1e-3
  for end in ends[1:]:
    assert_trees_close(end, ends[0], atol=1e-5)


def test_state_that_is_no_parameter_is_shared_with_the_module():
  x = images(2, 6, 6, 2)
  model = QuietNet(nnx.Rngs(0))
  wrapped = WeightStandardization(model)
  wrapped.train()
  first, second = wrapped(x), wrapped(x)
  assert model.Dropout_0.rngs.count[...] == 2
  assert float(jnp.abs(first - second).max()) > 0
  assert float(jnp.abs(model.BatchNorm_0.mean[...]).max()) > 0
  wrapped.eval()
  np.testing.assert_array_equal(wrapped(x), wrapped(x))


def test_sown_values_are_captured():
  x = images(2, 6, 6, 2)
  model = WeightStandardization(Net(nnx.Rngs(0)))
  out, sown = nnx.capture(model, nnx.Intermediate)(x)
  assert sown["module"]["features"][0].shape == (2, 6, 6, 4)
  assert out.shape == (2, 3)


def test_fold_makes_the_plain_model_equal():
  x = images(2, 6, 6, 2)
  model = WeightStandardization(QuietNet(nnx.Rngs(0)), convention="timm")
  model.eval()
  expected = model(x)
  deployed = standardized(model.module, convention="timm")
  assert type(deployed) is QuietNet
  np.testing.assert_allclose(deployed(x), expected, rtol=1e-6)
  plain = model.module
  state = nnx.state(plain, nnx.Param)
  folded = ws_jax.fold(state, convention="timm")
  nnx.update(plain, folded)
  np.testing.assert_allclose(plain(x), expected, rtol=1e-6)
  # The same holds for a model that is made of WS layers, by the same names.
  layers = QuietNet(
    nnx.Rngs(0), conv=functools.partial(WSConv, convention="timm")
  )
  layers.eval()
  np.testing.assert_allclose(layers(x), expected, rtol=1e-6)


def test_gain_scales_the_filters_and_learns():
  x = images(2, 5, 5, 3)
  settings = {"convention": "nfnet", "use_gain": True, "use_bias": False}
  conv = WSConv(3, 4, (3, 3), rngs=nnx.Rngs(0), **settings)
  out = conv(x)
  gain = jnp.array([0.0, 1.0, 2.0, 3.0])
  conv.gain[...] = gain
  np.testing.assert_allclose(conv(x), out * gain[None, None, None], atol=1e-5)
  grads = nnx.grad(square_sum)(conv, x)
  assert float(jnp.abs(grads["gain"][1:]).min()) > 0
  # The same gains are given from outside, by path.
  plain = nnx.Conv(3, 4, (3, 3), use_bias=False, rngs=nnx.Rngs(0))
  where = ws_jax.matching("kernel")
  gains = ws_jax.init_gains(nnx.state(plain, nnx.Param), where=where)
  gains = dict.fromkeys(gains, gain)
  other = standardized(plain, convention="nfnet", gains=gains)
  np.testing.assert_allclose(other(x), conv(x), atol=1e-6)


def test_split_and_merge_under_plain_jax():
  x = images(2, 5, 5, 2)
  model = WeightStandardization(QuietNet(nnx.Rngs(0)))
  model.eval()
  graphdef, raw, rest = nnx.split(model, nnx.Param, ...)
  hash(graphdef)

  @jax.jit
  def loss(raw):
    return square_sum(nnx.merge(graphdef, raw, rest), x)

  grads = jax.jit(jax.grad(loss))(raw)
  assert_trees_close(grads, nnx.grad(square_sum)(model, x), atol=1e-4)
  np.testing.assert_allclose(loss(raw), square_sum(model, x), rtol=1e-5)


def expected_of_stack(layers, x):
  for i in range(3):
    conv = nnx.Conv(3, 3, (3, 3), rngs=nnx.Rngs(0))
    conv.kernel[...] = ws_jax.standardize(layers.kernel[i])
    x = x + conv(x)
  return x


@pytest.mark.parametrize("where", ["layer", "inside", "outside"])
def test_layers_stacked_by_vmap_run_under_scan(where):
  @nnx.split_rngs(splits=3)
  @nnx.vmap
  def create(rngs):
    return (WSConv if where == "layer" else nnx.Conv)(3, 3, (3, 3), rngs=rngs)

  @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
  def run(layer, x):
    if where == "inside":
      layer = standardized(layer)
    return x + nnx.remat(lambda layer, x: layer(x))(layer, x)

  layers = create(nnx.Rngs(0))
  x = images(1, 5, 5, 3)

  @nnx.jit
  def forward(layers, x):
    return run(standardized(layers) if where == "outside" else layers, x)

  # Bounds of a sum of 27 products a layer, in float32.
  np.testing.assert_allclose(
    forward(layers, x), expected_of_stack(layers, x), rtol=1e-4, atol=1e-3
  )
  grads = nnx.grad(lambda layers: jnp.sum(forward(layers, x)))(layers)
  # Each filter of each layer was centred over its own fan-in.
  assert float(jnp.abs(grads["kernel"][...].mean((1, 2, 3))).max()) < 1e-2
  assert float(jnp.abs(grads["kernel"][...]).min(0).max()) > 1e-2


def test_kernels_are_known_by_their_layers_not_by_name():
  class Block(nnx.Module):
    def __init__(self, rngs):
      self.stem = nnx.Conv(2, 4, 3, rngs=rngs)
      self.up = nnx.ConvTranspose(4, 6, 3, transpose_kernel=True, rngs=rngs)
      self.own = WSConv(6, 4, 3, convention="nfnet", rngs=rngs)
      self.query = nnx.LinearGeneral(4, (2, 2), rngs=rngs)
      self.blocks = nnx.List([nnx.Linear(4, 4, rngs=rngs)])

  block = Block(nnx.Rngs(0))
  raw, effective = params(block), params(standardized(block))
  raw["stem"]["kernel"] = ws_jax.standardize(raw["stem"]["kernel"])
  up = raw["up"]["kernel"]
  assert up.shape == (3, 6, 4)
  raw["up"]["kernel"] = ws_jax.standardize(up, axis=(0, 2))
  assert_trees_close(effective, raw, atol=1e-6)


class Blocks(nnx.Module):
  """A model with a layer of each kind, some with a kernel of many axes."""

  def __init__(self, rngs):
    self.stem = nnx.Conv(2, 4, 3, rngs=rngs)
    self.up = nnx.ConvTranspose(4, 6, 3, transpose_kernel=True, rngs=rngs)
    self.layers = nnx.List([nnx.Conv(6, 6, (3, 3), rngs=rngs)])
    self.own = WSConv(6, 4, 3, convention="nfnet", rngs=rngs)
    self.join = nnx.LinearGeneral((2, 2), (2, 2), axis=(-2, -1), rngs=rngs)
    self.query = nnx.LinearGeneral(4, (2, 2), rngs=rngs)
    self.head = nnx.Linear(4, 4, rngs=rngs)


CONVOLUTIONS = ["layers/0/kernel", "stem/kernel", "up/kernel"]


@pytest.mark.parametrize("abstract", [False, True])
@pytest.mark.parametrize("pure", [False, True])
def test_selectors_are_those_of_the_layers_for_state_and_dict(abstract, pure):
  make = lambda: Blocks(nnx.Rngs(0))
  where, axes = selectors(nnx.eval_shape(make) if abstract else make())
  block = make()
  raw = nnx.state(block, nnx.Param)
  raw = nnx.to_pure_dict(raw) if pure else raw
  chosen = kernels.select(raw, where)
  assert sorted(chosen) == CONVOLUTIONS
  got = {path: axes(path, leaf) for path, leaf in chosen.items()}
  assert got == {
    "layers/0/kernel": (0, 1, 2),
    "stem/kernel": (0, 1),
    "up/kernel": (0, 2),
  }
  effective = ws_jax.weight_standardize(raw, where=where, axes=axes)
  expected = kernels.by_path(nnx.state(standardized(block), nnx.Param))
  for path, leaf in kernels.by_path(effective).items():
    np.testing.assert_array_equal(leaf, expected[path])


def test_selectors_of_one_layer_take_its_kernel():
  for layer in (
    nnx.Linear(4, 2, rngs=nnx.Rngs(0)),
    nnx.Conv(4, 2, 3, rngs=nnx.Rngs(0)),
  ):
    where, _ = selectors(layer)
    assert list(kernels.select(params(layer), where)) == ["kernel"]


def test_described_axes_of_stacked_layers_are_those_that_are_used():
  @nnx.split_rngs(splits=5)
  @nnx.vmap
  def create(rngs):
    return nnx.Linear(3, 2, rngs=rngs)

  class Stack(nnx.Module):
    def __init__(self, rngs):
      self.stem = nnx.Conv(3, 3, 3, rngs=rngs)
      self.conv_layers = create(rngs)

  # By its name and its axes it is a convolution; by its layer it is not.
  where, axes = selectors(Stack(nnx.Rngs(0)))
  raw = params(Stack(nnx.Rngs(0)))
  rows = ws_jax.describe(raw, where=where, axes=axes)
  assert [row.path for row in rows if row.selected] == ["stem/kernel"]
  rows = ws_jax.describe(raw, where=ws_jax.matching("*/kernel"), axes=axes)
  got = {row.path: row.axes for row in rows if row.selected}
  assert got == {"conv_layers/kernel": (1,), "stem/kernel": (0, 1)}


def test_kernels_are_selected_by_the_paths_that_people_write():
  block = Blocks(nnx.Rngs(0))
  where = ws_jax.matching("stem/kernel", "layers/*")
  got = params(
    standardized(block, where=lambda p, x: where(p, x) and x.ndim > 1)
  )
  raw = params(block)
  changed = [
    path
    for path, leaf in kernels.by_path(raw).items()
    if not np.array_equal(leaf, kernels.by_path(got)[path])
  ]
  assert changed == ["layers/0/kernel", "stem/kernel"]


def test_shared_layers_stay_shared():
  class Tied(nnx.Module):
    def __init__(self, rngs):
      self.a = nnx.Conv(2, 2, (3, 3), rngs=rngs)
      self.b = self.a

  effective = standardized(Tied(nnx.Rngs(0)))
  assert effective.a is effective.b
  assert float(effective.a.kernel.std()) > 0.9


def test_half_precision_compute_on_float32_parameters():
  conv = WSConv(3, 4, (3, 3), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  assert conv.kernel.dtype == jnp.float32
  assert conv(images(2, 5, 5, 3)).dtype == jnp.bfloat16


def test_a_checkpoint_of_the_wrapper_loads_into_the_plain_module(tmp_path):
  import orbax.checkpoint as ocp

  model = WeightStandardization(QuietNet(nnx.Rngs(0)))
  raw = nnx.to_pure_dict(nnx.state(model.module, nnx.Param))
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "raw", raw)
    checkpointer.wait_until_finished()
    fresh = QuietNet(nnx.Rngs(1))
    like = nnx.to_pure_dict(nnx.state(fresh, nnx.Param))
    nnx.update(fresh, checkpointer.restore(tmp_path / "raw", like))
  assert_trees_close(params(fresh), raw, atol=0)
  x = images(1, 5, 5, 2)
  model.eval()
  fresh.eval()
  np.testing.assert_array_equal(WeightStandardization(fresh)(x), model(x))


def test_errors_name_what_is_wrong():
  conv = WSConv(1, 4, (1, 1), rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="^kernel: fan-in 1"):
    conv(images(2, 6, 6, 1))
  with pytest.raises(ValueError, match="'quiao'.*qiao"):
    WSConv(1, 4, (1, 1), convention="quiao", rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="'quiao'.*qiao"):
    WeightStandardization(conv, convention="quiao")
  model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
  with pytest.raises(ValueError, match="no kernel was selected; .*layers/0"):
    standardized(model)
  with pytest.raises(ValueError, match="Conv_0/kernel.*min_fan_in"):
    standardized(
      QuietNet(nnx.Rngs(0)), axes=lambda path, leaf: (leaf.ndim - 2,)
    )


def test_globs_choose_and_other_roles_are_left_out():
  class Net(nnx.Module):
    def __init__(self, rngs):
      self.stem = nnx.Conv(2, 4, (3, 3), rngs=rngs)
      self.head = nnx.Conv(4, 3, (1, 1), rngs=rngs)

  net = Net(nnx.Rngs(0))
  raw = params(net)
  for where, changed in [
    (None, "stem"),
    ("head/*", "head"),
    (["stem*"], "stem"),
  ]:
    effective = params(standardized(net, where=where))
    for name in ("stem", "head"):
      same = np.array_equal(effective[name]["kernel"], raw[name]["kernel"])
      assert same == (name != changed)


def test_layers_stacked_along_another_axis_are_refused():
  """The rule took the stacked axis for a part of the fan-in."""
  stacked = nnx.StateAxes({nnx.Param: 1, ...: None})

  @nnx.vmap(in_axes=(0,), out_axes=stacked)
  def make(key):
    return nnx.Conv(2, 4, (3, 3), rngs=nnx.Rngs(key))

  layers = make(jax.random.split(jax.random.key(0), 5))
  with pytest.raises(ValueError, match="stacked along another axis"):
    standardized(layers)
