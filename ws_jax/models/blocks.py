"""Equal blocks as one compiled loop, and what the backward pass keeps of them.

Both change how a network is compiled and how much memory it needs. Parameters,
their names and the results stay, so that a run may switch either on or off.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


def _keeps_convolutions(primitive: Any, *_: Any, **__: Any) -> bool:
  return primitive.name in ("conv_general_dilated", "ws_jax_convolve")


# By `remat_keep`: what is kept of a block that is computed again.
POLICIES: dict[str, Callable[..., bool] | None] = {
  "nothing": None,
  "convolutions": _keeps_convolutions,
}


def scan(
  module: nn.Module,
  block: nn.Module,
  names: Sequence[str],
  x: jax.Array,
  train: bool,
  *,
  remat: bool = False,
  keep: str = "nothing",
) -> jax.Array:
  """Applies blocks of equal shapes in a row, compiled once for all of them.

  Their parameters stay apart, under the name of each, and are stacked inside
  the program: a copy of them each step is the price. Random numbers (dropout)
  are others than without the loop. Not for the initialization.

  Args:
    module: Module that the blocks belong to, in its `__call__`.
    block: One of them, made with `parent=None`; called as `block(x, train)`.
    names: Names of the blocks in `module`.
    x: Input of the first block.
    train: Whether this is a training step.
    remat: Whether the backward pass computes each block a second time.
    keep: Name in `POLICIES`.

  Returns:
    The output of the last block.
  """
  own = {
    collection: [tree[name] for name in names]
    for collection, tree in module.variables.items()
    if names[0] in tree
  }
  moved = [c for c in own if c != "params" and module.is_mutable_collection(c)]
  stack = lambda trees: jax.tree.map(lambda *xs: jnp.stack(xs), *trees)
  stacked = {collection: stack(trees) for collection, trees in own.items()}
  keys = None
  if module.has_rng("dropout"):
    keys = jax.random.split(module.make_rng("dropout"), len(names))

  def body(x, given):
    variables, key = given
    rngs = None if key is None else {"dropout": key}
    return block.apply(variables, x, train, mutable=moved, rngs=rngs)

  if remat:
    body = jax.checkpoint(body, policy=POLICIES[keep], prevent_cse=False)
  x, after = lax.scan(body, x, (stacked, keys))
  for collection, tree in after.items():
    for i, name in enumerate(names):
      part = jax.tree.map(lambda array, i=i: array[i], tree)
      module.put_variable(collection, name, part)
  return x
