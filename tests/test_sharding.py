"""Runs on a mesh of devices equal a run on one, however arrays are split."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

import ws_jax
from tests import small
from tests.quick import quick
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
# One that splits everything; the rest of the table takes minutes.
QUICK = [("2x2 sharded", "GN+WS", 2)]
TABLE = [
  pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
  for case in [
    (layout, norm, micro)
    for layout in LAYOUTS
    for norm in NORMS
    for micro in (1, 2)
  ]
]


def make(shape=(1, 1), sharded=False, norm="GN+WS", **kwargs):
  spec, convention = NORMS[norm]
  size = shape[0] * shape[1]
  devices = np.array(jax.devices()[:size]).reshape(shape)
  return step.Program(
    task=tasks.ImageClassification(mean=(0.5,), std=(0.25,), flip=True),
    model=small.Net(spec),
    optimizer=optim.Optimizer(
      optim.Schedule("cosine", total_steps=8), clip_norm=1.0
    ),
    mesh=Mesh(devices, ("data", "model")),
    convention=convention and ws_jax.get_convention(convention),
    sharded=sharded,
    **kwargs,
  )


def arrays_on(program):
  return place.put(small.images()["train"], sharding.whole(program.mesh))


def fresh(program):
  return step.init_state(program, arrays_on(program), 0, NUMBERS)


def train(program, num_steps=3, micro_batches=1, state=None):
  first = 0 if state is None else int(state.step)
  indices = data.batch_indices(0, first, num_steps, 16, 100)
  indices = indices.reshape(num_steps, micro_batches, -1)
  state = state or fresh(program)
  return step.train_block(program, state, arrays_on(program), indices)


@functools.cache
def alone(norm, micro_batches):
  """Returns the result of one device."""
  program = make(norm=norm, ema_decay=0.5)
  return jax.device_get(train(program, micro_batches=micro_batches))


def assert_close(got, expected):
  close = functools.partial(np.testing.assert_allclose, rtol=5e-4, atol=5e-6)
  jax.tree.map(close, jax.device_get(got), jax.device_get(expected))


@pytest.mark.parametrize(("layout", "norm", "micro_batches"), TABLE)
def test_a_mesh_computes_what_one_device_does(layout, norm, micro_batches):
  shape, sharded = LAYOUTS[layout]
  program = make(shape, sharded, norm, ema_decay=0.5)
  got = train(program, micro_batches=micro_batches)
  assert_close(got, alone(norm, micro_batches))
  # Whatever the compiler chose inside, a step leaves arrays where they were.
  before = fresh(program)
  where = lambda state: jax.tree.map(lambda x: x.sharding, state)
  same = jax.tree.map(
    lambda a, b, x: a.is_equivalent_to(b, x.ndim),
    *(where(before), where(got), got),
  )
  assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("streamed", [True, False])
def test_micro_batches_of_a_stream_stay_on_their_devices(streamed):
  """Taken by their indices, all images of the step went to every device."""
  program = make((4, 1))
  task = dataclasses.replace(program.task, streamed=streamed)
  program = dataclasses.replace(program, task=task)
  by_example = sharding.by_example(program.mesh)
  images = jax.tree.map(lambda x: x[:16], small.images()["train"])
  arrays = place.put(images, by_example)
  indices = np.arange(16, dtype=np.int32).reshape(2, 8)
  state = fresh(program)
  lowered = step._jitted(step.train_step).lower(program, state, arrays, indices)
  text = lowered.compile().as_text()
  moves = "all-gather|all-to-all|collective-permute|all-reduce"
  moved = re.findall(rf"= u8\[[\d,]+\]\S* (?:{moves})", text)
  assert bool(moved) != streamed


@pytest.mark.slow
def test_a_task_of_the_users_own_gets_the_examples_of_a_stream():
  """Its indices reached behind the end of each micro-batch but the first."""
  # As a stream lays 2 micro-batches of 8 for 4 devices: by device first.
  order = np.arange(16).reshape(2, 4, 2).swapaxes(0, 1).ravel()
  indices = np.argsort(order).astype(np.int32).reshape(1, 2, 8)
  images = {k: x[order] for k, x in small.images()["train"].items()}
  states = []
  for streamed in (True, False):
    program = make((4, 1))
    task = dataclasses.replace(program.task, streamed=streamed)
    program = dataclasses.replace(program, task=task)
    arrays = place.put(images, sharding.by_example(program.mesh))
    train_step = quick(step.train_step, static_argnums=0)
    states.append(train_step(program, fresh(program), arrays, indices[0]))
  assert_close(states[0].params, states[1].params)


def test_parameters_and_optimizer_state_are_stored_in_parts():
  held = {}
  for layout in ("4x1", "4x1 sharded", "2x2", "2x2 sharded"):
    state = fresh(make(*LAYOUTS[layout]))
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


@pytest.mark.parametrize(
  "num_devices", [1, 2, pytest.param(4, marks=pytest.mark.slow)]
)
def test_a_checkpoint_of_four_devices_goes_on_with_others(
  tmp_path, num_devices
):
  """To the same bits as read, and to the steps of a run without a break."""
  written = checkpoint.Checkpoints(tmp_path, keep=1)
  four = train(make((2, 2), True), 2)
  written.save(2, four)
  written.close()

  program = make((num_devices, 1), sharded=num_devices == 2)
  again = checkpoint.Checkpoints(tmp_path, keep=1)
  state, at = again.newest(fresh(program))
  again.close()
  assert at == 2
  jax.tree.map(
    np.testing.assert_array_equal, jax.device_get(state), jax.device_get(four)
  )
  kernel = state.params["conv2"]["kernel"]
  assert len(kernel.sharding.device_set) == num_devices
  if num_devices == 4:
    assert_close(train(program, 1, state=state), train(make(), 3))


def test_make_mesh_names_what_does_not_divide():
  assert dict(sharding.make_mesh(2).shape) == {"data": 2, "model": 2}
  with pytest.raises(ValueError, match="mesh.model=3 does not divide the 4"):
    sharding.make_mesh(3)
