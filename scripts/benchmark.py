"""Times ws_jax and what it competes with, in turn within one run.

  python scripts/benchmark.py step --batch_size=1,64 --against=torch,flax
  python scripts/benchmark.py step --model=tc_resnet8 --against=torch
  python scripts/benchmark.py ws --against=torch --markdown=ws.md
  python scripts/benchmark.py step --setting='plain:XLA_FLAGS='
  python scripts/benchmark.py cost --to=experiments/cost
  python scripts/benchmark.py step --model=transformer_lm --arms=LN \
    --batch_size=1,16,64 --against=torch,torch_compile --dtype=bfloat16
  python scripts/benchmark.py step --model=resnet50 --size=224 \
    --dtype=bfloat16 --against=torch,torch_compile,torch_graphs

Each round times every contender once, so that a drift of the machine meets all
of them; quote the median of the ratios within rounds. PyTorch, plain Flax code
and other settings of the environment run in processes of their own, with the
same number of threads, and take their turn among the others. On a GPU all of
them share it, and float32 has its products in TF32, as is JAX's default.
PyTorch and timm come with `pip install -e '.[bench]'`.
"""

import importlib
import json
import os
import pathlib
import platform
import sys
from collections.abc import Sequence

from ws_jax.base import extras

with extras.program("train", by="scripts/benchmark.py"):
  from absl import app, flags, logging

from ws_jax.base import disk, names
from ws_jax.bench import (
  ARMS,
  BENCHMARKS,
  LIBRARIES,
  Options,
  Table,
  arms_of,
  cost,
  timing,
  worker,
)
from ws_jax.train import backend

_DEFAULT = Options()
_MODEL = flags.DEFINE_string("model", None, "Name of the model.")
_BATCH_SIZE = flags.DEFINE_list(
  "batch_size",
  [str(size) for size in _DEFAULT.batch_sizes],
  "Numbers of examples in a step; a table for each.",
)
_ARMS = flags.DEFINE_list(
  "arms",
  None,
  "Arms to time; ratios are to the last of them. Default: those of the model.",
)
_ROUNDS = flags.DEFINE_integer(
  "rounds", None, "Number of times each contender is timed."
)
_STEPS = flags.DEFINE_integer(
  "steps", _DEFAULT.steps, "Number of steps of a run, where runs are timed."
)
_STACK = flags.DEFINE_list(
  "stack", [], "Numbers of runs of a sweep in one program, on an accelerator."
)
_AGAINST = flags.DEFINE_list(
  "against", [], f"Libraries to compare with: {', '.join(LIBRARIES)}."
)
_SOURCE = flags.DEFINE_enum(
  "source", "memory", ["memory", "stream"], "Where input gets its images."
)
_WORKERS = flags.DEFINE_list(
  "workers", ["1", "2"], "Numbers of workers of the loaders of input, streamed."
)
_PHOTOGRAPHS = flags.DEFINE_list(
  "photographs", [], "Folders with photographs to cut these images from."
)
_DTYPE = flags.DEFINE_enum(
  "dtype", _DEFAULT.dtype, ["float32", "bfloat16"], "Dtype of the activations."
)
_SIZE = flags.DEFINE_integer(
  "size", _DEFAULT.size, "Height and width of the images of a step."
)
_SETTING = flags.DEFINE_multi_string(
  "setting",
  [],
  "NAME:VARIABLE=VALUE;VARIABLE=VALUE adds a contender: our program in a"
  " process with these environment variables. Repeatable.",
)
_JSON = flags.DEFINE_string(
  "json", None, "File to write the tables to, with every single time."
)
_TO = flags.DEFINE_string(
  "to",
  None,
  "Folder to write runs.csv, summary.md and figure.png to; of cost alone.",
)
_MARKDOWN = flags.DEFINE_string(
  "markdown", None, "File to write the tables to, as Markdown."
)


def options() -> Options:
  """Returns the options that the flags give.

  Raises:
    ValueError: an arm or a library is unknown, a setting has another form, or
      an extra is not installed.
  """
  arms = tuple(_ARMS.value or arms_of(_MODEL.value))
  for arm in arms:
    names.lookup(ARMS, arm, "arm")
  for library in _AGAINST.value:
    names.lookup(LIBRARIES, library, "library")
    if library != "flax":
      extras.need("bench", by=f"--against={library}")
  if _TO.value:
    extras.need("report", by="the figure of --to")
  return Options(
    model=_MODEL.value,
    batch_sizes=tuple(int(size) for size in _BATCH_SIZE.value),
    arms=arms,
    rounds=_ROUNDS.value,
    steps=_STEPS.value,
    stacks=tuple(int(number) for number in _STACK.value),
    source=_SOURCE.value,
    workers=tuple(int(number) for number in _WORKERS.value),
    photographs=tuple(_PHOTOGRAPHS.value),
    against=tuple(_AGAINST.value),
    dtype=_DTYPE.value,
    size=_SIZE.value,
    settings=dict(setting(text) for text in _SETTING.value),
  )


def setting(text: str) -> tuple[str, dict[str, str]]:
  """Parses `NAME:VARIABLE=VALUE;...` into the name and the variables."""
  name, colon, rest = text.partition(":")
  pairs = [pair.partition("=") for pair in rest.split(";") if pair]
  if not (name and colon) or not all(equals for _, equals, _ in pairs):
    raise ValueError(f"--setting={text}: expected NAME:VARIABLE=VALUE;...")
  return name, {variable: value for variable, _, value in pairs}


def share_gpu() -> None:
  """Leaves memory of a GPU to other processes; hides it from them on a CPU.

  JAX takes three quarters of the memory when it starts, unless told not to.
  """
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  if os.environ.get("JAX_PLATFORMS") == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def save(tables: Sequence[Table], text: str, about: dict) -> None:
  """Writes the files that were asked for."""
  if _MARKDOWN.value:
    disk.write_text(pathlib.Path(_MARKDOWN.value), text)
  if _JSON.value:
    record = {
      "command": sys.argv[1:],
      "about": about,
      "tables": [vars(table) for table in tables],
    }
    disk.write_json(pathlib.Path(_JSON.value), record)
  if _TO.value:
    cost.write(tables, pathlib.Path(_TO.value), about)


def main(argv: list[str]) -> None:
  """Runs the benchmark that is named first; exits 1 if it cannot be run."""
  if len(argv) != 2:
    known = "\n".join(f"  {k:8}{text}" for k, text in BENCHMARKS.items())
    raise app.UsageError(f"give one benchmark:\n{known}")
  logging.set_verbosity(logging.WARNING)
  try:
    names.lookup(BENCHMARKS, argv[1], "benchmark")
    if _TO.value and argv[1] != "cost":
      raise ValueError(
        "--to is for the benchmark cost; else --json, --markdown"
      )
    chosen = options()
    share_gpu()
    print(backend.configure(), flush=True)
    benchmark = importlib.import_module(f"ws_jax.bench.{argv[1]}")
    tables = benchmark.run(chosen)
  except (ValueError, worker.WorkerError) as error:
    sys.exit(f"error: {error}")
  about = backend.describe() | {"processor": processor()}
  text = "\n".join(timing.markdown(table) for table in tables)
  text += f"\n{json.dumps(about)}\n"
  print(text)
  save(tables, text, about)


def processor() -> str:
  """Returns the processor's model and the number of cores we may use."""
  info = pathlib.Path("/proc/cpuinfo")
  lines = info.read_text().splitlines() if info.exists() else []
  models = [x.partition(":")[2] for x in lines if x.startswith("model name")]
  name = models[0].strip() if models else platform.processor()
  return f"{len(os.sched_getaffinity(0))} cores of {name}"


if __name__ == "__main__":
  app.run(main)
