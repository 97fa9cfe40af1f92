"""`compile`: from the start of a process to its first finished step."""

import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from ws_jax.bench import DEFAULT_MODEL, Options, Table, timing
from ws_jax.bench.others import PLAIN, network
from ws_jax.bench.ours import LEARNING_RATE, Step
from ws_jax.bench.worker import Worker


def run(options: Options) -> list[Table]:
  """One table for each batch size; `cold` is with an empty cache."""
  return [_table(options, batch_size) for batch_size in options.batch_sizes]


def _table(options: Options, batch_size: int) -> Table:
  model, arm = options.model or DEFAULT_MODEL, options.arms[-1]
  with tempfile.TemporaryDirectory() as folder:
    weights = str(pathlib.Path(folder, "weights.npz"))
    Step(model, arm, batch_size, weights, checked_steps=0)
    warm = _cache(pathlib.Path(folder, "warm"))
    own = {"model": model, "arm": arm, "batch_size": batch_size}
    given = {"weights": weights, "learning_rate": LEARNING_RATE}

    def cold() -> float:
      with tempfile.TemporaryDirectory() as empty:
        return first_step("ours", own, _cache(pathlib.Path(empty)))

    contenders: dict[str, timing.Contender] = {
      "cold": cold,
      "cached": lambda: first_step("ours", own, warm),
    }
    if "flax" in options.against:
      contenders["flax"] = lambda: first_step(
        "flax_side", given | {"model": model, "arm": arm}, PLAIN
      )
    for name in options.against:
      if name != "flax":
        how = {"network": network(model, arm)}
        how |= {"compiled": name == "torch_compile"}
        contenders[name] = lambda how=how: first_step(
          "torch_side", given | how, PLAIN
        )
    first_step("ours", own, warm)  # fills the cache
    seconds = timing.interleave(contenders, options.rounds or 3, warmup=0)
  return Table(
    f"compile: {model}, {arm}, 32x32, batch {batch_size}, process start to"
    " first finished step",
    timing.rows(seconds, against="cold"),
  )


def first_step(
  module: str, arguments: Mapping[str, Any], env: Mapping[str, str | None]
) -> float:
  """Starts a process, has it make one step, and returns the seconds."""
  began = time.perf_counter()
  with Worker(env, "configure" if module == "ours" else "") as worker:
    worker.make(module, "Step", checked_steps=1, **arguments)
    return time.perf_counter() - began


def _cache(folder: pathlib.Path) -> dict[str, str | None]:
  return {"XDG_CACHE_HOME": str(folder), "JAX_COMPILATION_CACHE_DIR": None}
