"""Attention in C++, against the formula in float64 and against JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_native import enable
from ws_jax.layers import attention

# texts, queries, keys, heads, channels, parts, mask
CASES = {
  "decoder": (2, 256, 256, 2, 32, 4, "documents"),
  "last block short": (2, 100, 100, 3, 20, 4, "documents"),
  "encoder": (3, 24, 24, 4, 16, 1, "lengths"),
  "one mask for all": (2, 65, 65, 1, 7, 1, "causal"),
  "cached": (2, 3, 130, 2, 8, 1, "cached"),
  "one token": (1, 1, 1, 1, 5, 1, "lengths"),
}
TYPES = {"float32": 3e-6, "bfloat16": 1e-2}


@pytest.fixture(autouse=True)
def native_attention(monkeypatch):
  enable("attention", monkeypatch)


def seen(kind, texts, queries, keys):
  """Returns a mask, in the smallest of its shapes."""
  if kind == "lengths":
    lengths = 1 + np.arange(texts) * (keys - 1) // max(1, texts - 1)
    return np.arange(keys) < lengths[:, None, None, None]
  mask = np.tri(queries, keys, keys - queries, bool)[None, None]
  if kind == "documents":
    mask = np.repeat(mask, texts, 0)
    mask[0, 0, 70:, :70] = False
  return mask


def arguments(case, dtype="float32"):
  """Returns a function of query, key and value, these, and a cotangent."""
  texts, queries, keys, heads, channels, parts, kind = CASES[case]
  rng = np.random.default_rng(0)
  draw = lambda length: jnp.asarray(
    2 * rng.standard_normal((texts, length, heads, channels)), dtype
  )
  mask = jnp.asarray(seen(kind, texts, queries, keys))
  attend = lambda *arrays: attention.attend(*arrays, mask, parts)
  lengths = (queries, keys, keys, queries)
  *arrays, dy = map(draw, lengths)
  return attend, tuple(arrays), dy, mask


def exact(arrays, dy, mask):
  """Returns the result and the three gradients, in float64."""
  wide = [np.asarray(a, np.float64).swapaxes(1, 2) for a in (*arrays, dy)]
  query, key, value, slope = wide
  scale = query.shape[-1] ** -0.5
  logits = np.where(mask, query @ key.swapaxes(2, 3) * scale, -np.inf)
  odds = np.exp(logits - logits.max(-1, keepdims=True))
  odds /= odds.sum(-1, keepdims=True)
  to_odds = slope @ value.swapaxes(2, 3)
  to_logits = odds * (to_odds - (odds * to_odds).sum(-1, keepdims=True))
  found = (
    odds @ value,
    to_logits @ key * scale,
    to_logits.swapaxes(2, 3) @ query * scale,
    odds.swapaxes(2, 3) @ slope,
  )
  return [array.swapaxes(1, 2) for array in found]


def both(attend):
  """Returns the jitted result and gradients."""

  @jax.jit
  def results(arrays, dy):
    y, pull_back = jax.vjp(attend, *arrays)
    return y, *pull_back(dy)

  return results


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", TYPES)
def test_attention_is_the_formula_in_float64(case, dtype):
  attend, arrays, dy, mask = arguments(case, dtype)
  results = both(attend)
  text = results.lower(arrays, dy).as_text()
  assert "WsJaxAttendBackward" in text and "dot_general" not in text
  expected = exact(arrays, dy, mask)
  for got, want in zip(results(arrays, dy), expected, strict=True):
    assert got.shape == want.shape and got.dtype == dtype
    error = np.abs(np.asarray(got, np.float64) - want).max()
    assert error <= TYPES[dtype] * max(1, np.abs(want).max())


def test_attention_is_the_same_each_time():
  attend, arrays, dy, _ = arguments("decoder")
  results = both(attend)
  first = results(arrays, dy)
  for _ in range(5):
    jax.tree.map(np.testing.assert_array_equal, results(arrays, dy), first)


def test_what_is_hidden_changes_nothing():
  attend, (query, key, value), dy, mask = arguments("encoder")
  results, unseen = both(attend), ~mask[:, 0, 0, :, None, None]
  before = results((query, key, value), dy)
  key, value = (jnp.where(unseen, 1e4, x) for x in (key, value))
  for got, want in zip(results((query, key, value), dy), before, strict=True):
    np.testing.assert_array_equal(got, want)


def test_a_query_that_sees_nothing_sees_all_alike():
  _, (query, key, value), _, mask = arguments("encoder")
  y = attention.attend(query, key, value, mask & False)
  mean = np.broadcast_to(value.mean(1, keepdims=True), y.shape)
  np.testing.assert_allclose(y, mean, atol=1e-6)


def test_what_is_not_finite_comes_out_so():
  attend, (query, key, value), dy, _ = arguments("decoder")
  for bad in (np.nan, np.inf):
    y, *slopes = both(attend)((query.at[1, 9, 1, 3].set(bad), key, value), dy)
    lost = ~np.isfinite(y).all(-1)
    assert np.argwhere(lost).tolist() == [[1, 9, 1]]
    assert not np.isfinite(slopes[1][1, :10, 1]).any()


def test_large_products_do_not_overflow():
  attend, arrays, dy, mask = arguments("decoder")
  arrays = tuple(100 * x for x in arrays)
  y, *slopes = both(attend)(arrays, dy)
  np.testing.assert_allclose(y, exact(arrays, dy, mask)[0], rtol=1e-3, atol=0.5)
  assert all(np.isfinite(x).all() for x in slopes)


def test_derivatives_of_derivatives_are_those_in_jax(monkeypatch):
  attend, arrays, _, _ = arguments("encoder")
  tangents = jax.tree.map(jnp.cos, arrays)

  def derivatives():
    gradient = jax.grad(lambda *a: jnp.sin(attend(*a)).sum(), (0, 1, 2))
    stacked = jax.vmap(attend)(*(jnp.stack([x, -x]) for x in arrays))
    return jax.jvp(gradient, arrays, tangents), stacked

  ours = derivatives()
  monkeypatch.setattr("ws_jax.native._enabled", set())
  jax.tree.map(
    lambda got, want: np.testing.assert_allclose(
      got, want, rtol=1e-4, atol=1e-5 * float(jnp.abs(want).max())
    ),
    ours,
    derivatives(),
  )
