"""`step`: a training step of each arm, against other libraries and settings."""

import contextlib
import pathlib
import tempfile
from typing import Any

import jax

from ws_jax.bench import DEFAULT_MODEL, Options, Table, speech, text, timing
from ws_jax.bench.others import Others
from ws_jax.bench.ours import Step


def run(options: Options) -> list[Table]:
  """Returns a table for each batch size."""
  with contextlib.ExitStack() as stack:
    others = Others(options, stack)
    return [_table(options, others, size) for size in options.batch_sizes]


def _table(options: Options, others: Others, batch_size: int) -> Table:
  model = options.model or DEFAULT_MODEL
  how: dict[str, Any] = (
    {} if options.dtype == "float32" else {"model__dtype": options.dtype}
  )
  if options.size != Options().size:
    how["size"] = options.size
  contenders: dict[str, timing.Contender] = {}
  with tempfile.TemporaryDirectory() as folder:
    for arm in options.arms:
      weights = str(pathlib.Path(folder, f"{arm}.npz"))
      step = Step(model, arm, batch_size, weights, **how)
      contenders[arm] = step
      contenders |= others.make(arm, weights, step.losses, batch_size)
      if model in speech.MODELS:
        # Whole steps, as a run does them, and what a loop would make of them.
        whole: dict[str, Any] = {"checked_steps": 0, "clips": True, **how}
        ways = {"": False, ", in a loop": True}
        if jax.default_backend() != "cpu":
          ways.pop("")  # elsewhere every run is in a loop
        for words, loop in ways.items():
          contenders[f"{arm} from clips{words}"] = Step(
            model, arm, batch_size, loop=loop, **whole
          )
  seconds = timing.interleave(contenders, options.rounds or 20)
  rows = timing.rows(seconds, options.arms[-1], examples=batch_size)
  for row in rows:
    step = contenders[row["contender"]]
    if isinstance(step, Step):
      row["peak MB"] = step.peak() / 1e6
  length = text.LENGTHS.get(model)
  for row in rows if length else ():
    row["tokens/s"] = length * row["examples/s"]
  inputs = f"{length} tokens" if length else f"{options.size}x{options.size}"
  if model in speech.MODELS:
    inputs = "clips of one second"
  return Table(
    f"step: {model}, {inputs}, batch {batch_size}, {_arithmetic(options)}", rows
  )


def _arithmetic(options: Options) -> str:
  """Returns the dtype, and the GPU where it is one."""
  device = jax.devices()[0]
  if device.platform != "gpu":
    return options.dtype
  # The default of JAX, and what `torch_step` asks PyTorch for.
  low = {"float32": "float32 with products in TF32"}
  return f"{low.get(options.dtype, options.dtype)}, on {device.device_kind}"
