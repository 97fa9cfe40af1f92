"""Attention, its masks, and rotary positions, as functions of arrays."""

import functools

import jax
import jax.numpy as jnp

from ws_jax import native
from ws_jax.native import foreign

_ROTARY_BASE = 10_000.0  # The longest wave length over 2 pi, in positions.


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: jax.Array,
  parts: int = 1,
) -> jax.Array:
  """Returns the values, weighted by softmax(query key / sqrt(channels)).

  With several parts, for a mask by which no query sees a later key, each part
  of the queries meets the keys up to its end alone. For 32 texts of 256 tokens,
  forward and backward on a CPU, four parts take 0.68 times as long as one, and
  one takes 0.46 times as long as `jax.nn.dot_product_attention`: the heads are
  moved in front of the tokens, and the division comes last. C++ replaces all of
  it if the program has asked for that (`ws_jax.native`).

  Args:
    query: Queries [B, T, heads, channels].
    key: Keys [B, S, heads, channels].
    value: Values [B, S, heads, channels].
    mask: Whether a query sees a key, bool [B or 1, 1, T or 1, S].
    parts: Number of equal parts of the queries.

  Returns:
    Array of the shape and dtype of `query`.
  """
  if native.enabled("attention", query.dtype):
    return _fast(query, key, value, mask, parts)
  return _apply(query, key, value, mask, parts=parts)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _fast(query, key, value, mask, parts):
  """Attends, with a backward pass that keeps no array [B, heads, T, S]."""
  return _forward(query, key, value, mask, parts)[0]


def _forward(query, key, value, mask, parts):
  arguments = (query, key, value, mask)
  y, top, total = foreign.call(
    *("attention", "WsJaxAttend", _apply, arguments), parts=parts
  )
  return y, (*arguments, top, total)


def _backward(parts, residuals, dy):
  arguments = (*residuals, dy)
  slopes = foreign.call(
    *("attention", "WsJaxAttendBackward", _slopes, arguments), parts=parts
  )
  return (*slopes, None)


_fast.defvjp(_forward, _backward)


def _apply(query, key, value, mask, *, parts):
  """Returns the result, and of each query what its softmax is computed with.

  These are the largest product and the total, float32 [B, heads, T].
  """
  scale = query.shape[-1] ** -0.5
  q, k, v = (x.swapaxes(1, 2) for x in (query * scale, key, value))
  hidden = jnp.where(mask, 0.0, -1e30)
  size, found = q.shape[2] // parts, []
  for start in range(0, q.shape[2], size):
    stop = start + size
    seen = stop if parts > 1 else k.shape[2]
    rows = slice(start, stop) if hidden.shape[2] > 1 else slice(None)
    logits = jnp.einsum(
      *("bhtc,bhsc->bhts", q[:, :, start:stop], k[:, :, :seen]),
      preferred_element_type=jnp.float32,
    )
    logits += hidden[:, :, rows, :seen]
    top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    odds = jnp.exp(logits - top)
    total = odds.sum(-1, keepdims=True)
    sums = jnp.einsum(
      *("bhts,bhsc->bhtc", odds.astype(v.dtype), v[:, :, :seen]),
      preferred_element_type=jnp.float32,
    )
    found.append(
      ((sums / total).astype(query.dtype), top[..., 0], total[..., 0])
    )
  y, top, total = (jnp.concatenate(x, axis=2) for x in zip(*found, strict=True))
  return y.swapaxes(1, 2), top, total


def _slopes(query, key, value, mask, top, total, dy, *, parts):
  """Returns the gradients by query, key and value, computed by XLA."""
  del top, total
  attend = lambda q, k, v: _apply(q, k, v, mask, parts=parts)[0]
  return jax.vjp(attend, query, key, value)[1](dy)


def rotate(x: jax.Array, places: jax.Array) -> jax.Array:
  """Turns each pair of channels by an angle that grows with the position.

  The product of a query and a key then depends on their distance alone.

  Args:
    x: Queries or keys [B, T, heads, channels]; channel i and the one half of
      the channels further are a pair.
    places: Positions [T].

  Returns:
    Array of the shape and dtype of `x`.
  """
  half = x.shape[-1] // 2
  rates = _ROTARY_BASE ** -(jnp.arange(half, dtype=jnp.float32) / half)
  angles = places[:, None] * rates[None, :]
  sin, cos = jnp.sin(angles), jnp.cos(angles)
  # As a product of whole rows it is half the time of one of their halves.
  along = jnp.concatenate([cos, cos], -1)[None, :, None]
  across = jnp.concatenate([-sin, sin], -1)[None, :, None]
  wide = x.astype(jnp.float32)
  other = jnp.concatenate([wide[..., half:], wide[..., :half]], -1)
  return (wide * along + other * across).astype(x.dtype)


def causal_parts(length: int) -> int:
  """Returns the number of parts that `attend` is fastest with."""
  return 4 if length % 4 == 0 and length >= 64 else 1


def causal(places: jax.Array, seen: jax.Array) -> jax.Array:
  """Returns whether a query sees a key, bool [1, 1, T, S].

  Args:
    places: Positions of the queries [T].
    seen: Positions of the keys [S].
  """
  return (seen[None, :] <= places[:, None])[None, None]


def same_document(begins: jax.Array) -> jax.Array:
  """Returns whether two tokens are of one document, bool [B, 1, T, T].

  Args:
    begins: Whether a token begins a document, bool [B, T].
  """
  number = jnp.cumsum(begins, axis=1)
  return (number[:, :, None] == number[:, None, :])[:, None]
