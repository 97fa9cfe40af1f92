"""`scaling`: memory and communication of a step against the number of devices.

Nothing runs: a training step is compiled for virtual CPU devices, from shapes
alone, and the numbers are read off the compiled program. So a mesh of 64
devices can be looked at on a laptop.
"""

import functools
import math
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ws_jax.bench import Options, Row, Table, ours
from ws_jax.bench.worker import Worker
from ws_jax.train import optim, sharding
from ws_jax.train import step as steps

# Examples on each device (the batch grows with the devices), and other keys.
MODELS: dict[str, tuple[int, dict[str, Any]]] = {
  "resnet50": (32, {}),
  "bit_r152x4": (4, {"model__scan": True, "model__remat": True}),
}
IMAGE_SIZE = 224
# Devices along `data` and `model`, and whether the state is split over `data`.
LAYOUTS = (
  (1, 1, False),
  (8, 1, False),
  (8, 1, True),
  (4, 2, True),
  (64, 1, False),
  (64, 1, True),
)
# Ways to compile a step on one device.
VARIANTS: dict[str, dict[str, Any]] = {
  "as it stands": {},
  "remat": {"model__remat": True},
  "remat, convolutions kept": {
    "model__remat": True,
    "model__remat_keep": "convolutions",
  },
  "scan": {"model__scan": True},
  "scan, remat": {"model__scan": True, "model__remat": True},
}

_COLLECTIVE = re.compile(
  r"= (?P<type>.*?) "
  r"(?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all"
  r"|collective-permute)(?:-start)?\("
)
_SHAPE = re.compile(r"(?P<dtype>[a-z]+\d*)\[(?P<sizes>[\d,]*)\]")
# The devices that take part: [groups, devices of each], lists of them, or axes.
_GROUPS = re.compile(
  r"replica_groups=(?:\[\d+,(?P<size>\d+)\]|\{\{(?P<list>[\d,]+)\}"
  r"|mesh\[(?P<mesh>[^\]]*)\] ?\{(?P<axes>[^}]*)\})"
)
_BYTES = {"pred": 1, "bf16": 2}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.-]+) \(.*\{$")
_LOOP = re.compile(r" while\(.*body=%?(?P<body>[\w.-]+)")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')


def run(options: Options) -> list[Table]:
  """Returns for each model a table of meshes, and one of remat and scan."""
  chosen = MODELS
  if options.model:
    chosen = {options.model: (options.batch_sizes[0], {})}
  tables = []
  for model, (examples, overrides) in chosen.items():
    tables += [
      _layouts(model, examples, overrides),
      _variants(model, examples),
    ]
  return tables


def _layouts(model: str, examples: int, overrides: dict[str, Any]) -> Table:
  rows = [
    _compiled(data * along, model, examples, [data, along], sharded, overrides)
    for data, along, sharded in LAYOUTS
  ]
  settings = "".join(f", {name.removeprefix('model__')}" for name in overrides)
  return Table(f"scaling: {_what(model, examples)}{settings}", rows)


def _variants(model: str, examples: int) -> Table:
  rows: list[Row] = []
  for name, overrides in VARIANTS.items():
    row = _compiled(1, model, examples, [1, 1], False, overrides)
    kept = ("peak MB", "GFLOP", "compile CPU s")
    rows.append({"step": name} | {column: row[column] for column in kept})
  return Table(f"scaling: on one device, {_what(model, examples)}", rows)


def _compiled(devices, model, examples, mesh, sharded, overrides) -> Row:
  """Returns the row of a step that is compiled in a process of its own."""
  flag = f"--xla_force_host_platform_device_count={devices}"
  with Worker({"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}) as worker:
    made = worker.make(
      *("scaling", "Compiled"),
      model=model,
      examples=examples,
      mesh=mesh,
      sharded=sharded,
      **overrides,
    )
    return worker.get(made, "row")


def _what(model: str, examples: int) -> str:
  return (
    f"{model}, GN+WS, {IMAGE_SIZE}x{IMAGE_SIZE}, float32, {examples} examples a"
    " device; numbers of one device and one step"
  )


class Compiled:
  """A training step, compiled for a mesh and not run.

  Args:
    model: Name of a model in `ws_jax.models`.
    examples: Number of examples for each of the devices.
    mesh: Numbers of devices along `data` and `model`; all devices there are.
    sharded: Whether parameters and optimizer state are split over `data`.
    size: Height and width of the images.
    **overrides: Other keys of the configuration, with `__` for the dot.

  Attributes:
    row: Numbers of one device, for a table.
    text: The compiled program.
  """

  def __init__(
    self,
    model: str,
    examples: int,
    mesh: tuple[int, int] = (1, 1),
    sharded: bool = False,
    size: int = IMAGE_SIZE,
    **overrides: Any,
  ):
    data, along = mesh
    batch = examples * data * along
    setup = ours.set_up(
      model,
      "GN+WS",
      batch,
      ours.noise(batch, size),
      model__stem=None,
      mesh__model=along,
      mesh__params="sharded" if sharded else "replicated",
      **overrides,
    )
    c, program = setup.config, setup.program
    assert program.mesh.size == data * along, "one process for each mesh"
    began = time.process_time()  # of all threads, whatever else is running
    compiled = self._compile(program, c, batch, size)
    plan, cost = compiled.memory_analysis(), compiled.cost_analysis()
    self.text = compiled.as_text()
    moved = traffic(self.text)
    places = plan.argument_size_in_bytes + plan.output_size_in_bytes
    peak = places - plan.alias_size_in_bytes + plan.temp_size_in_bytes
    self.row = {
      "devices": data * along,
      "data x model": f"{data} x {along}",
      "state": "sharded" if sharded else "replicated",
      "state MB": plan.alias_size_in_bytes / 1e6,
      "peak MB": peak / 1e6,
      # What is in a loop is counted once there.
      "GFLOP": "" if c.model.get("scan") else cost["flops"] / 1e9,
      "all-reduce MB": moved.get("all-reduce", 0) / 1e6,
      "all-gather MB": moved.get("all-gather", 0) / 1e6,
      "other MB": sum(
        value
        for kind, value in moved.items()
        if kind not in ("all-reduce", "all-gather")
      )
      / 1e6,
      "compile CPU s": time.process_time() - began,
    }

  def _compile(self, program, c, batch: int, size: int) -> Any:
    mesh = program.mesh
    shaped = lambda x, place: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=place
    )
    whole = lambda x: shaped(x, sharding.whole(mesh))
    part = lambda x: shaped(
      x, sharding.place_of(x.shape, mesh, sharded=program.sharded)
    )
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
    labels = jax.ShapeDtypeStruct((1,), jnp.int32)
    arrays = jax.tree.map(whole, {"image": images, "label": labels})
    init = functools.partial(steps._init_state, program)
    state = jax.eval_shape(init, arrays, 0, optim.hyperparams(c.optim))
    state = jax.tree.map(whole, state).replace(
      params=jax.tree.map(part, state.params),
      opt_state=jax.tree.map(part, state.opt_state),
    )
    indices = jax.ShapeDtypeStruct(
      (1, batch), jnp.int32, sharding=sharding.by_example(mesh, axis=1)
    )
    step = ours.jit(steps.train_step, static_argnums=0, donate_argnums=1)
    return step.lower(program, state, arrays, indices).compile()


def traffic(text: str) -> dict[str, float]:
  """Returns the bytes that a device sends in a compiled program, by collective.

  They are counted as on a ring of the n devices that take part, which sends the
  fewest: an all-reduce of B bytes sends 2 B (n - 1) / n from each device, and
  an all-gather to B bytes B (n - 1) / n. What is in a loop counts as often as
  the loop is known to run.

  Args:
    text: Compiled program, as HLO.

  Example:
    >>> traffic("x = f32[1000]{0} all-reduce(y), replica_groups=[1,4]<=[4]")
    {'all-reduce': 6000.0}
    >>> traffic("x = f32[8] all-gather(y), replica_groups=mesh['a'=4] {'a'}")
    {'all-gather': 24.0}
  """
  sent: dict[str, float] = {}
  times, place = _times(text), ""
  for line in text.splitlines():
    if header := _COMPUTATION.match(line):
      place = header["name"]
    found = _COLLECTIVE.search(line)
    if not found:
      continue
    kind, size = found["kind"], _bytes(found["type"])
    n = _group(line)
    share = {
      "all-reduce": 2 * (n - 1) / n,
      "reduce-scatter": n - 1,  # of the result, which is a part
      "collective-permute": 1,
    }.get(kind, (n - 1) / n)
    sent[kind] = sent.get(kind, 0.0) + share * size * times(place)
  return sent


def _times(text: str) -> Callable[[str], int]:
  """Returns a function that tells how often a computation runs in a step."""
  loops: dict[str, tuple[str, int]] = {}  # by body: where it is, and how often
  place = ""
  for line in text.splitlines():
    if header := _COMPUTATION.match(line):
      place = header["name"]
    if loop := _LOOP.search(line):
      trips = _TRIPS.search(line)
      loops[loop["body"]] = place, int(trips[1]) if trips else 1

  def times(name: str) -> int:
    outer, trips = loops.get(name, ("", 1))
    return trips * times(outer) if outer else trips

  return times


def _bytes(text: str) -> int:
  """Returns the bytes of a type, which may be a tuple of several."""
  total = 0
  for found in _SHAPE.finditer(text):
    bits = re.sub(r"\D", "", found["dtype"])
    each = _BYTES.get(found["dtype"], int(bits or 8) // 8)
    sizes = [int(x) for x in found["sizes"].split(",") if x]
    total += each * math.prod(sizes)
  return total


def _group(line: str) -> int:
  """Returns the number of devices that take part in a collective."""
  found = _GROUPS.search(line)
  if not found:
    return 2  # a permutation sends to one other
  if found["size"]:
    return int(found["size"])
  if found["list"]:
    return len(found["list"].split(","))
  sizes = dict(re.findall(r"'(\w+)'=(\d+)", found["mesh"]))
  # A part of an axis is written 'name':(what is before it)size.
  axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found["axes"])
  return math.prod(int(part or sizes[name]) for name, part in axes)
