"""Text from a trained language model, token by token.

Start reading at `generate`. The model keeps the keys and values of what it has
seen (`ws_jax.models.transformer.Cache`), so that a token costs one token and
not a whole text; the logits are those of the whole text to round-off. The model
never sees more tokens than it was trained with: where the window is full, it
begins again with the second half of it.
"""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from ws_jax.data.text import tokenizers
from ws_jax.models.transformer import Cache, TransformerLM
from ws_jax.train.trained import Trained

PyTree = Any


def generate(
  run: Trained,
  prompt: str = "",
  *,
  length: int = 500,
  temperature: float = 1.0,
  top_k: int | None = None,
  seed: int = 0,
) -> str:
  """Returns text that a trained language model writes behind a prompt.

  Args:
    run: Run, as `ws_jax.train.load_run` returns it.
    prompt: Beginning of a document; may be empty.
    length: Number of tokens to write.
    temperature: Number that divides the logits; 0 takes the likeliest token.
    top_k: Number of the likeliest tokens of which one is drawn; None for all.
    seed: Seed of the draws; the same seed gives the same text.

  Returns:
    The new text, without the prompt.

  Raises:
    ValueError: the run is no language model of this package, or a number is
      out of range.

  Example:
    >>> from ws_jax import train
    >>> from ws_jax.train.generate import generate
    >>> run = train.load_run("workdirs/austen")  # doctest: +SKIP
    >>> generate(run, "It is a truth", length=100)  # doctest: +SKIP
  """
  model, task = run.program.model, run.program.task
  if not isinstance(model, TransformerLM):
    raise ValueError(
      f"{run.config.model.name} writes no text: needed is a run of"
      " model=transformer_lm"
    )
  _check(length, temperature, top_k, task.num_outputs)
  tokenizer = tokenizers.load(task.tokenizer)
  special = tokenizer.size - 1
  known = [special, *tokenizer.encode(prompt.encode()).tolist()]
  made: list[int] = []
  window = run.input_shape[0] - 1
  if window < 2:
    raise ValueError(f"a run of task.length={window} has no room to write in")
  key, params = jax.random.key(seed), run.variables["params"]
  while len(made) < length:
    seen = (known + made)[-window:]
    if len(known) + len(made) >= window:
      seen = seen[window // 2 :]
    num_new = min(window - len(seen), length - len(made))
    tokens = np.full((1, window), special, np.int32)
    tokens[0, : len(seen)] = seen
    written = _write(
      *(model, top_k, params, tokens, len(seen), num_new),
      *(jnp.float32(temperature), jax.random.fold_in(key, len(made))),
    )
    made += np.asarray(written)[0, len(seen) : len(seen) + num_new].tolist()
  return tokenizer.decode(made)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _write(
  model: TransformerLM,
  top_k: int | None,
  params: PyTree,
  tokens: jax.Array,
  num_seen: jax.Array,
  num_new: jax.Array,
  temperature: jax.Array,
  key: jax.Array,
) -> jax.Array:
  """Returns `tokens` [1, window] with `num_new` written behind `num_seen`."""
  apply = functools.partial(model.apply, {"params": params})
  logits, cache = read(model, params, tokens, num_seen)

  def body(i, carry):
    tokens, logits, cache = carry
    drawn = _draw(logits, temperature, top_k, jax.random.fold_in(key, i))
    place = num_seen + i
    tokens = jax.lax.dynamic_update_slice(tokens, drawn[:, None], (0, place))
    logits, cache = apply(drawn[:, None], cache=cache)
    return tokens, logits[:, -1], cache

  carry = (tokens, logits, cache)
  return jax.lax.fori_loop(0, num_new, body, carry)[0]


def read(
  model: TransformerLM,
  params: PyTree,
  tokens: jax.Array,
  num_seen: jax.typing.ArrayLike,
) -> tuple[jax.Array, Cache]:
  """Returns the logits behind a text, and the cache to go on with.

  Args:
    model: Decoder.
    params: Parameters to apply it with.
    tokens: Tokens [B, window], of which the first `num_seen` are the text; the
      others are never looked at.
    num_seen: Number of tokens of the text, 1 or more.

  Returns:
    Logits [B, vocabulary] of the token that comes next, and the cache.
  """
  batch, window = tokens.shape
  empty = model.empty_cache(batch, window)
  logits, cache = cast(
    tuple[jax.Array, Cache],
    model.apply({"params": params}, tokens, cache=empty),
  )
  # What stands in the cache behind the text is written over, place by place,
  # before a token sees it.
  last = jax.lax.dynamic_index_in_dim(logits, num_seen - 1, 1, keepdims=False)
  return last, cache.replace(length=jnp.asarray(num_seen, jnp.int32))


def _draw(logits, temperature, top_k, key):
  """Draws a token for each row [B, vocabulary]; never the special one."""
  logits = logits[:, :-1]
  likeliest = jnp.argmax(logits, axis=-1)
  if top_k is not None:
    least = jax.lax.top_k(logits, top_k)[0][:, -1:]
    logits = jnp.where(logits < least, -jnp.inf, logits)
  divisor = jnp.where(temperature > 0, temperature, 1.0)
  drawn = jax.random.categorical(key, logits / divisor)
  return jnp.where(temperature > 0, drawn, likeliest).astype(jnp.int32)


def _check(length, temperature, top_k, vocabulary) -> None:
  if length < 1:
    raise ValueError(f"length={length} must be greater than 0")
  if not 0 <= temperature < float("inf"):
    raise ValueError(f"temperature={temperature} must be finite and 0 or more")
  if top_k is not None and not 1 <= top_k < vocabulary:
    raise ValueError(
      f"top_k={top_k} must be from 1 to {vocabulary - 1}, the number of tokens"
    )
