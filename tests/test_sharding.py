"""Runs on a mesh of devices equal a run on one, however arrays are split."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import Mesh

import ws_jax
from ws_jax import data, tasks
from ws_jax.data import place
from ws_jax.layers.norm import NormSpec
from ws_jax.train import checkpoint, optim, sharding, step

NUMBERS = {"learning_rate": 0.3, "weight_decay": 0.01, "momentum": 0.9}
# Data x model devices, and whether parameters are split over `data`.
LAYOUTS = {
  "4x1": ((4, 1), False),
  "4x1 sharded": ((4, 1), True),
  "2x2": ((2, 2), False),
  "2x2 sharded": ((2, 2), True),
  "1x4": ((1, 4), False),
}
NORMS = {
  "BN": (NormSpec("batch"), None),
  "BN of 4": (NormSpec("batch", batch_size=4), None),
  "BN of 2": (NormSpec("batch", batch_size=2), None),
  "GN+WS": (NormSpec("group", num_groups=2), "bit"),
}
# The cheapest that splits everything; the rest of the table takes minutes.
QUICK = [("2x2 sharded", "GN+WS", 2), ("4x1 sharded", "BN of 4", 1)]
TABLE = [
  pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
  for case in [
    (layout, norm, micro)
    for layout in LAYOUTS
    for norm in NORMS
    for micro in (1, 2)
  ]
]


class Net(nn.Module):
  """Two convolutions and a head: the least in which all can be split."""

  norm: NormSpec

  @nn.compact
  def __call__(self, x, *, train):
    for i in (1, 2):
      x = nn.Conv(8, (3, 3), use_bias=False, name=f"conv{i}")(x)
      x = nn.relu(self.norm.layer(name=f"norm{i}")(x, train=train))
    return nn.Dense(4, name="head")(x.mean((1, 2)))


def make(shape=(1, 1), sharded=False, norm="GN+WS", **kwargs):
  spec, convention = NORMS[norm]
  size = shape[0] * shape[1]
  devices = np.array(jax.devices()[:size]).reshape(shape)
  return step.Program(
    task=tasks.ImageClassification(mean=(0.5,), std=(0.25,), flip=True),
    model=Net(spec),
    optimizer=optim.Optimizer(
      optim.Schedule("cosine", total_steps=8), clip_norm=1.0
    ),
    mesh=Mesh(devices, ("data", "model")),
    convention=convention and ws_jax.get_convention(convention),
    sharded=sharded,
    **kwargs,
  )


@pytest.fixture(scope="module")
def arrays():
  rng = np.random.default_rng(0)
  return {
    "image": rng.integers(0, 256, (40, 6, 6, 1), dtype=np.uint8),
    "label": rng.integers(0, 4, 40, dtype=np.int32),
  }


def fresh(program, arrays):
  arrays = place.put(arrays, sharding.whole(program.mesh))
  return arrays, step.init_state(program, arrays, 0, NUMBERS)


def train(program, arrays, num_steps=3, micro_batches=1, state=None):
  first = 0 if state is None else int(state.step)
  indices = data.batch_indices(0, first, num_steps, 16, 40)
  indices = indices.reshape(num_steps, micro_batches, -1)
  arrays, start = fresh(program, arrays)
  return step.train_block(program, state or start, arrays, indices)


@functools.cache
def alone(norm, micro_batches):
  """The result of one device."""
  rng = np.random.default_rng(0)
  made = {
    "image": rng.integers(0, 256, (40, 6, 6, 1), dtype=np.uint8),
    "label": rng.integers(0, 4, 40, dtype=np.int32),
  }
  program = make(norm=norm, ema_decay=0.5)
  return jax.device_get(train(program, made, micro_batches=micro_batches))


def assert_close(got, expected):
  close = functools.partial(np.testing.assert_allclose, rtol=5e-4, atol=5e-6)
  jax.tree.map(close, jax.device_get(got), jax.device_get(expected))


@pytest.mark.parametrize(("layout", "norm", "micro_batches"), TABLE)
def test_a_mesh_computes_what_one_device_does(
  arrays, layout, norm, micro_batches
):
  shape, sharded = LAYOUTS[layout]
  program = make(shape, sharded, norm, ema_decay=0.5)
  got = train(program, arrays, micro_batches=micro_batches)
  assert_close(got, alone(norm, micro_batches))
  # Whatever the compiler chose inside, a step leaves arrays where they were.
  before = fresh(program, arrays)[1]
  where = lambda state: jax.tree.map(lambda x: x.sharding, state)
  same = jax.tree.map(
    lambda a, b, x: a.is_equivalent_to(b, x.ndim),
    *(where(before), where(got), got),
  )
  assert all(jax.tree.leaves(same))


def test_parameters_and_optimizer_state_are_stored_in_parts(arrays):
  held = {}
  for layout in ("4x1", "4x1 sharded", "2x2", "2x2 sharded"):
    state = fresh(make(*LAYOUTS[layout]), arrays)[1]
    kernel = state.params["conv2"]["kernel"]
    assert kernel.shape == (3, 3, 8, 8)
    trace = [
      x for x in jax.tree.leaves(state.opt_state) if x.shape == kernel.shape
    ]
    assert trace and all(x.sharding == kernel.sharding for x in trace)
    held[layout] = sharding.bytes_on_a_device(kernel) / kernel.nbytes
    assert state.params["norm2"]["scale"].sharding.is_fully_replicated
  assert held == {
    "4x1": 1.0,
    "4x1 sharded": 0.25,
    "2x2": 0.5,
    "2x2 sharded": 0.25,
  }


@pytest.mark.parametrize("shape", [(1, 4), (4, 1)])
def test_a_shape_that_no_axis_divides_stays_whole(shape):
  mesh = jax.sharding.AbstractMesh(shape, ("data", "model"))
  split = functools.partial(sharding.spec, mesh=mesh, sharded=True)
  assert split((3, 3, 1, 6)) == jax.P(None, None, None, None)
  assert split((128, 10)) in (jax.P("data", None), jax.P("model", None))
  assert split((7, 7, 3, 64))[3] is not None


@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_a_checkpoint_of_four_devices_goes_on_with_others(
  arrays, tmp_path, num_devices
):
  """And one of others with four: steps equal those without a break."""
  written = checkpoint.Checkpoints(tmp_path, keep=1)
  four = train(make((2, 2), True), arrays, 2)
  written.save(2, four)
  written.close()

  program = make((num_devices, 1), sharded=num_devices == 2)
  again = checkpoint.Checkpoints(tmp_path, keep=1)
  state, at = again.newest(fresh(program, arrays)[1])
  again.close()
  assert at == 2
  jax.tree.map(
    np.testing.assert_array_equal, jax.device_get(state), jax.device_get(four)
  )
  kernel = state.params["conv2"]["kernel"]
  assert len(kernel.sharding.device_set) == num_devices
  if num_devices == 1:  # the others are compiled by the slow tests above
    whole = train(make(), arrays, 3)
    assert_close(train(program, arrays, 1, state=state), whole)


def test_make_mesh_names_what_does_not_divide():
  assert dict(sharding.make_mesh(2).shape) == {"data": 2, "model": 2}
  with pytest.raises(ValueError, match="mesh.model=3 does not divide the 4"):
    sharding.make_mesh(3)
