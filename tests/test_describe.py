"""The table of what `weight_standardize` does to each leaf, and why."""

import jax.numpy as jnp
import numpy as np
import pytest

import ws_jax


def params():
  kernel = np.random.default_rng(0).normal(size=(3, 3, 8, 4)) * 0.1 + 2
  kernel[..., 1] = 5.0
  return {
    "Conv_0": {"kernel": jnp.asarray(kernel, jnp.float32)},
    "Conv_1": {"kernel": jnp.ones((1, 1, 1, 8))},
    "Dense_0": {"kernel": jnp.ones((8, 2)), "bias": jnp.ones(2)},
    "count": jnp.int32(1),
  }


def test_rows_hold_the_raw_moments_and_the_reasons():
  rows = {row.path: row for row in ws_jax.describe(params())}
  conv = rows["Conv_0/kernel"]
  assert conv.selected
  assert (conv.axes, conv.fan_in, conv.dead) == ((0, 1, 2), 72, 1)
  np.testing.assert_allclose(conv.mean, 5.0, rtol=1e-6)
  np.testing.assert_allclose(conv.std, 0.1 * 0.75**0.5, rtol=0.1)
  assert conv.var_over_eps < 1e-3
  assert rows["Conv_1/kernel"].reason == "an error: fan-in below 3"
  assert rows["Dense_0/kernel"].reason == "a matrix"
  assert rows["Dense_0/bias"].reason == "not named as a kernel"
  assert rows["count"].reason == "not a floating-point array"


def test_eps_is_measured_where_the_convention_has_it():
  kernel = np.random.default_rng(0).normal(size=(3, 3, 8, 1)) * 1e-3
  tree = {"Conv_0": {"kernel": jnp.asarray(kernel, jnp.float32)}}
  var = kernel.var()
  for name, expected in {
    "timm": var / 1e-6,
    "big_vision": var / 1e-10,
    "nfnet": var * 72 / 1e-4,
  }.items():
    (row,) = ws_jax.describe(tree, convention=name)
    np.testing.assert_allclose(row.var_over_eps, expected, rtol=1e-4)


def test_it_prints_a_line_per_leaf_and_a_sum():
  table = ws_jax.describe(params(), where=ws_jax.matching("Conv_0/*"))
  lines = str(table).splitlines()
  assert len(table) == 5
  assert len(lines) == 7
  assert lines[0].split()[:3] == ["path", "shape", "fan-in"]
  assert lines[-1].startswith("1 of 5 leaves standardized, (w - mean) / sqrt")
  assert "left out by `where`" in lines[2]


def test_nothing_selected_is_a_table_too():
  table = ws_jax.describe({"Dense_0": {"kernel": jnp.ones((8, 2))}})
  assert [row.selected for row in table] == [False]
  with pytest.raises(ValueError, match="did you mean 'bit'"):
    ws_jax.describe({}, convention="bitt")


def test_a_summary_counts_what_is_taken_and_what_is_left_out():
  zeros = lambda *shape: {"kernel": np.zeros(shape, np.float32)}
  tree = params() | {
    "stem": zeros(3, 3, 3, 8),
    "m": zeros(5, 5, 3, 8),
    "head": zeros(1, 1, 8, 2),
    "attention": {"query": zeros(8, 2, 4), "key": zeros(8, 2, 4)},
    "filters": zeros(3, 3, 8, 8)["kernel"],
  }
  assert ws_jax.core.describe.summarize(tree) == (
    "4 kernels (2 3x3, 1 1x1, 1 5x5), left out: 2 attention, 1 dense, 1 of"
    " another name, 1 head"
    "; by their shape alone: m/kernel"
  )
  # What the user has said is no guess.
  chosen = ws_jax.core.describe.summarize(tree, where=["m/*", "attention/*"])
  assert chosen.startswith("3 kernels (2 attention, 1 5x5), left out: 2 3x3")
  assert "alone" not in chosen
