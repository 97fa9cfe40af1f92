"""Sets a run up: from a configuration to a program, its data and its state.

`start` is the one way in: the loop, the estimate of a sweep, the benchmarks and
the diagnostics all go through it. What can be refused without data is refused
first, and nothing is compiled or written here.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

import ws_jax
from ws_jax import config as config_lib
from ws_jax import data, models, tasks
from ws_jax.base import names
from ws_jax.data import stream
from ws_jax.data.memory import MemorySource
from ws_jax.data.stream.source import StreamSource
from ws_jax.layers import norm
from ws_jax.models import common
from ws_jax.train import backend, calling, optim, sharding, step, transfer

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# Keys of `config.model` that are not passed to the model as they stand.
_COMMON_KEYS = (
  *("name", "ws", "ws_convention", "ws_where", "ws_axes", "ws_gains"),
  *common.NORM_KEYS,
  *common.DEPTHWISE_KEYS,
  *common.DTYPE_KEYS,
)


@dataclasses.dataclass(frozen=True)
class Setup:
  """A run that is ready to be trained.

  Attributes:
    config: Resolved configuration, locked.
    dataset: Data in host memory, or where the images of a stream are.
    program: All that shapes the compiled step.
    source: Gives each step its examples.
    init_from: Parameters and other collections to start from, or None.
    notes: Lines that tell the user which arrays start anew, and which stay.
  """

  config: ml_collections.ConfigDict
  dataset: data.Dataset
  program: step.Program
  source: MemorySource | StreamSource
  init_from: dict[str, Any] | None = None
  notes: tuple[str, ...] = ()

  @property
  def block(self) -> int | None:
    """Number of steps that one compiled loop runs; None: each is dispatched."""
    c = self.config
    if backend.debug_flag():
      return None  # so that the step that shows it is known
    if self.dataset.stream is not None:
      return None  # the images of several steps would wait on the device
    native = models.convolves_natively(c.model.name)
    return backend.steps_of_a_loop(
      c.train.log_every_steps, c.model.get("dtype", "float32"), native
    )

  def state(self) -> step.TrainState:
    """Returns a fresh state, on the devices; this compiles."""
    arrays, _ = self.source.block(0, 0)
    hyperparams = optim.hyperparams(self.config.optim)
    state = step.init_state(self.program, arrays, self.config.seed, hyperparams)
    if self.init_from is None:
      return state
    c = self.config
    return transfer.start_from(
      state, self.init_from, tuple(c.init_skip), tuple(c.init_zero)
    )


def start(
  config: ml_collections.ConfigDict,
  *,
  model: Any = None,
  task: Any = None,
  dataset: Any = None,
  optimizer: Any = None,
  trains: bool = True,
  loaded: data.Dataset | None = None,
) -> Setup:
  """Sets a run up.

  Args:
    config: Configuration after all overrides; it is not changed.
    model: Model in the place of `config.model.name`: a Flax Linen module, an
      NNX module, or a class of `nnx.Module`.
    task: Task in the place of `config.task.name`.
    dataset: Data in the place of `config.data.name`: anything with `train` and
      `test`.
    optimizer: Function in the place of `config.optim.name` that returns an
      optax transformation, as `optax.lion`.
    trains: Whether the run is trained: then it may not see what it is
      evaluated on.
    loaded: Data of this configuration that another run has loaded.

  Raises:
    ConfigError: the configuration cannot be run; one line.
  """
  try:
    config = _named(
      config, model=model, task=task, data=dataset, optim=optimizer
    )
    config_lib.check(config)
    wanted = request(config, dataset, trains)
    mesh = sharding.make_mesh(config.mesh.model)
    # A stream is open as soon as its names are listed.
    opened = data.load(wanted) if wanted.stream else loaded
    info = opened.info if opened else data.read_info(wanted)
    resolved = config_lib.resolve(
      config,
      num_examples=info.train_size,
      num_devices=mesh.shape["data"] if trains else 1,
    )
    # For their errors; the number of outputs is not known before the task.
    build_model(resolved, num_outputs=info.num_classes or 1, model=model)
    parts = build_optimizer(resolved, optimizer)
    loaded = opened or data.load(wanted)
    program = build_program(resolved, loaded, model, task, parts)
    init_from, notes = None, ()
    if resolved.init_from is not None:
      init_from = transfer.read(resolved.init_from)
    if resolved.init_from is not None or resolved.optim.freeze:
      left = tuple(resolved.init_skip), tuple(resolved.init_zero)
      examples = resolved.optim.micro_batch_size
      notes = transfer.check(
        program, loaded, init_from, *left, examples=examples
      )
  except ValueError as error:
    # The user's mistake, as opposed to a ValueError from inside a running
    # program.
    raise config_lib.ConfigError(" ".join(str(error).split())) from error
  except OSError as error:  # of the user's data, as nothing is written yet
    where = f"{error.filename}: " if error.filename else ""
    raise config_lib.ConfigError(f"{where}{error.strerror or error}") from error
  make = MemorySource if loaded.stream is None else StreamSource
  source = make(
    loaded,
    resolved.seed,
    resolved.data.batch_size,
    resolved.optim.micro_batch_size,
    program.mesh,
  )
  return Setup(resolved, loaded, program, source, init_from, notes)


def _named(
  config: ml_collections.ConfigDict, **given: Any
) -> ml_collections.ConfigDict:
  """Returns a copy that names the objects given, for the record of the run."""
  config = config.copy_and_resolve_references()
  for section, one in given.items():
    if one is not None:
      config_lib.use_object(config, section, one)
  return config


def request(
  config: ml_collections.ConfigDict, dataset: Any = None, trains: bool = True
) -> data.Request:
  """Returns which data a configuration asks for.

  Args:
    config: Configuration, resolved or not.
    dataset: Data in the place of the ones that are named.
    trains: Whether a run is trained on them.
  """
  c = config.data
  return data.Request(
    name=c.name if dataset is None else dataset,
    dir=c.dir,
    train_split=c.train_split,
    eval_split=c.eval_split,
    input_key=c.input_key,
    label_key=c.label_key,
    options=tasks.options(config.task.name, config.task),
    may_overlap=not trains,
    stream=_stream(c) if c.source == "stream" else None,
  )


def _stream(c: ml_collections.ConfigDict) -> stream.Options:
  """Returns how the images of a stream are decoded, from `config.data`."""
  fields = [field.name for field in dataclasses.fields(stream.Options)]
  return stream.Options(**{name: c[name] for name in fields})


def build_model(
  config: ml_collections.ConfigDict,
  num_outputs: int,
  model: Any = None,
  num_inputs: int | None = None,
) -> Any:
  """Makes the model of a configuration, in the form that a step takes.

  Args:
    config: Configuration, resolved or not.
    num_outputs: Number of outputs for each example.
    model: Model in the place of the one that is named.
    num_inputs: Number of tokens, for a model of text.

  Raises:
    ValueError: a wrong name or number.
  """
  if model is not None:
    return calling.wrap(model)
  c = config.model
  settings = {name: _plain(c[name]) for name in c if name not in _COMMON_KEYS}
  if num_inputs is not None:
    settings["num_inputs"] = num_inputs
  if "norm" in c and "num_groups" not in c:
    settings["norm"] = c.norm  # The model's own kinds.
  elif "norm" in c:
    settings["norm"] = norm.NormSpec(
      kind=c.norm,
      num_groups=None if c.channels_per_group else c.num_groups,
      channels_per_group=c.channels_per_group,
      batch_size=c.norm_batch_size,
      momentum=c.norm_momentum,
    )
  if "dtype" in c:
    settings["dtype"] = names.lookup(_DTYPES, c.dtype, "model.dtype")
  made = models.create(c.name, num_outputs=num_outputs, **settings)
  return calling.wrap(made)


def build_optimizer(
  config: ml_collections.ConfigDict, optimizer: Any = None
) -> optim.Optimizer:
  """Makes the optimizer of a resolved configuration.

  Raises:
    ValueError: a wrong name or argument, or a weight decay for an optimizer of
      the user's own that takes none.
  """
  o = config.optim
  own: dict[str, Any] = {"name": o.name}
  if optimizer is None and ":" in o.name:
    optimizer = names.load_object(o.name, "optimizer")
  if optimizer is not None:
    own = optim.own(optimizer, o.name, _plain(o.kwargs))
  schedule = optim.Schedule(
    o.schedule,
    total_steps=config.train.steps,
    warmup_steps=o.warmup_steps,
    boundaries=tuple(o.boundaries),
    factor=o.boundary_factor,
  )
  made = optim.Optimizer(
    schedule,
    b2=o.b2,
    nesterov=o.nesterov,
    decay=o.decay,
    centralize=o.centralize,
    clip_norm=o.clip_norm,
    adaptive_clip=o.adaptive_clip,
    rest_factor=o.rest_factor,
    freeze=tuple(o.freeze),
    **own,
  )
  if "weight_decay" in made.ignores() and o.weight_decay:
    raise ValueError(
      f"optimizer {o.name} takes no weight_decay: set optim.weight_decay=0"
    )
  return made


def build_program(
  config: ml_collections.ConfigDict,
  dataset: data.Dataset,
  model: Any = None,
  task: Any = None,
  optimizer: optim.Optimizer | None = None,
) -> step.Program:
  """Makes the program of a resolved configuration and its data.

  Args:
    config: Resolved configuration.
    dataset: Data, which decide the number of outputs and the normalization.
    model: Model in the place of the one that is named.
    task: Task in the place of the one that is named.
    optimizer: Optimizer in the place of the one that is named.

  Raises:
    ValueError: a wrong name or number, or WS that finds no kernel.
  """
  convention = ws_jax.get_convention(config.model.ws_convention)
  calling.check_axes(config.model.ws_axes)
  if task is None:
    settings = {n: _plain(x) for n, x in config.task.items() if n != "name"}
    task = tasks.create(config.task.name, dataset, **settings)
  else:
    task = tasks.check(task, config.task.name)
  num_outputs = getattr(task, "num_outputs", None) or dataset.num_classes
  program = step.Program(
    task=task,
    model=build_model(
      config, num_outputs or 1, model, getattr(task, "num_inputs", None)
    ),
    optimizer=optimizer or build_optimizer(config),
    mesh=sharding.make_mesh(config.mesh.model),
    sharded=config.mesh.params == "sharded",
    convention=convention if config.model.ws else None,
    ws_where=_ws_where(config.model, model),
    ws_axes=config.model.ws_axes,
    ws_gains=config.model.ws_gains,
    ws_depthwise=config.model.get("ws_depthwise", "standardize"),
    frozen_norms=(
      tuple(config.optim.freeze) if config.optim.freeze_statistics else ()
    ),
    ema_decay=config.optim.ema_decay,
    divergence_factor=config.train.divergence_factor,
  )
  own = model is not None or ":" in f"{config.model.name}{config.task.name}"
  # Models of images do not suit other tasks, nor does WS of convolutions alone.
  own = own or not isinstance(task, tasks.ImageClassification)
  if own and dataset.train:
    check_program(program, dataset, config.optim.micro_batch_size or 2)
  return program


def _ws_where(c: ml_collections.ConfigDict, model: Any) -> tuple[str, ...]:
  """Returns the patterns of the parameters that WS is for."""
  named = () if model is not None else models.ws_where(c.name)
  return tuple(c.ws_where) or named


def check_program(
  program: step.Program, dataset: data.Dataset, examples: int = 2
) -> None:
  """Traces a step of a user's own model or task, for errors that help.

  Args:
    program: The program.
    dataset: Its data.
    examples: Number of examples, which a normalization batch must divide.

  Raises:
    ValueError: the model or the task raises, WS finds no kernel, a collection
      changes its shape in a step, or `sums` lacks an entry; one line.
  """
  arrays = calling.abstract(dataset.train)

  def forward(arrays):
    indices = jnp.zeros((examples,), jnp.int32)
    batch = program.task.batch(arrays, indices, jax.random.key(0))
    params, state = step.init_params(
      program, jax.random.key(0), batch["inputs"]
    )
    outputs, new = calling.apply(
      program.model,
      step.effective_params(program, params),
      state,
      batch["inputs"],
      train=True,
      key=jax.random.key(1),
    )
    mask = jnp.ones(indices.shape, jnp.float32)
    if isinstance(program.task, tuple(tasks.TASKS.values())):
      _check_outputs(program, dataset, outputs)
    sums = program.task.sums(outputs, batch, mask, True)
    return state, new, sums

  try:
    state, new, sums = jax.eval_shape(forward, arrays)
  except ValueError:
    raise
  except Exception as error:
    raise ValueError(
      f"a first look at model and task failed: {type(error).__name__}: {error}"
    ) from error
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  if shapes(state) != shapes(new):
    raise ValueError(
      f"the model's collections change in a step: {shapes(state)} become"
      f" {shapes(new)}; they must keep their shapes and dtypes"
    )
  wanted = {"loss", "count", *tasks.metric_names(program.task)}
  if set(sums) != wanted:
    raise ValueError(
      f"sums of task {type(program.task).__name__} has {sorted(sums)}, but must"
      f" have {sorted(wanted)}"
    )


def _check_outputs(
  program: step.Program, dataset: data.Dataset, outputs: Any
) -> None:
  """Refuses a model with fewer outputs than there are classes or tokens.

  A label without an output would count as an answer that costs nothing.
  """
  wanted = getattr(program.task, "num_outputs", None) or dataset.num_classes
  shape = getattr(outputs, "shape", None)
  if wanted and shape is not None and (not shape or shape[-1] < wanted):
    raise ValueError(
      f"the model has outputs {list(shape)}, and there are {wanted} classes:"
      f" needed is [..., {wanted}]"
    )


@functools.singledispatch
def _plain(value: Any) -> Any:
  return value


@_plain.register
def _(value: ml_collections.ConfigDict) -> Any:
  return value.to_dict()
