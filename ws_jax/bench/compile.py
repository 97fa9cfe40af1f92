"""`compile`: from the start of a process to its first finished step."""

import functools
import pathlib
import tempfile
import time

from ws_jax.bench import DEFAULT_MODEL, Options, Table, timing
from ws_jax.bench.others import Recipe, recipes
from ws_jax.bench.ours import Step
from ws_jax.bench.worker import Worker


def run(options: Options) -> list[Table]:
  """Returns a table for each batch size; `cold` starts with an empty cache."""
  return [_table(options, batch_size) for batch_size in options.batch_sizes]


def _table(options: Options, batch_size: int) -> Table:
  model, arm = options.model or DEFAULT_MODEL, options.arms[-1]
  with tempfile.TemporaryDirectory() as folder:
    weights = str(pathlib.Path(folder, "weights.npz"))
    Step(model, arm, batch_size, weights, checked_steps=0)
    wanted = recipes(options, arm, weights, batch_size)
    own = wanted.pop("")
    full = pathlib.Path(folder, "full")

    def cold() -> float:
      with tempfile.TemporaryDirectory() as empty:
        return first_step(_with_cache(own, pathlib.Path(empty)))

    contenders: dict[str, timing.Contender] = {
      "cold": cold,
      "cached": lambda: first_step(_with_cache(own, full)),
    }
    for name, recipe in wanted.items():
      contenders[name] = functools.partial(first_step, recipe)
    contenders["cached"]()  # fills the cache
    seconds = timing.interleave(contenders, options.rounds or 3, warmup=0)
  return Table(
    f"compile: {model}, {arm}, 32x32, batch {batch_size}, process start to"
    " first finished step",
    timing.rows(seconds, against="cold"),
  )


def first_step(recipe: Recipe) -> float:
  """Starts a process, has it make one step, and returns the seconds."""
  began = time.perf_counter()
  with Worker(recipe.env, recipe.setup) as worker:
    worker.make(recipe.module, "Step", checked_steps=1, **recipe.arguments)
    return time.perf_counter() - began


def _with_cache(recipe: Recipe, folder: pathlib.Path) -> Recipe:
  # This cache holds JAX's programs alone. Our C++ has another, filled by setup.
  where = {"JAX_COMPILATION_CACHE_DIR": str(folder)}
  return recipe._replace(env=recipe.env | where)
