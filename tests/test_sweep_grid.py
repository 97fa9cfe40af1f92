"""Checks the plan of a sweep: its points, its runs and the names of both."""

import numpy as np
import pytest

from ws_jax import config
from ws_jax.sweep import grid


def test_product_takes_whole_arms_and_its_last_axis_is_the_fastest():
  arms = [{"model.norm": "batch", "model.ws": False}, {"model.norm": "group"}]
  axes = {"optim.momentum": [0.0, 0.9], "seed": [3]}
  assert list(grid.product(arms, **axes)) == [
    {**arm, "optim.momentum": momentum, "seed": 3}
    for arm in arms
    for momentum in (0.0, 0.9)
  ]


def test_axes_that_cannot_be_combined_are_refused():
  with pytest.raises(ValueError, match="'seed' is set by two axes"):
    list(grid.product([{"seed": 1}], seed=[2]))
  with pytest.raises(ValueError, match="one length, got"):
    list(grid.zipped(seed=[1, 2], width=[1]))


@pytest.mark.parametrize(
  ("low", "high", "num"), [(1e-3, 10.0, 9), (0.05, 3.2, 7), (1, 2, 2)]
)
def test_log_grid_has_its_ends_and_equal_ratios(low, high, num):
  rates = grid.log_grid(low, high, num)
  np.testing.assert_allclose(rates, np.geomspace(low, high, num), rtol=5e-3)
  assert rates[0] == low and rates[-1] == high and len(rates) == num


@pytest.mark.parametrize(
  "bad", [(0.0, 1.0, 3), (1.0, 0.1, 3), (0.1, 1.0, 1), (1.0, 1.001, 5)]
)
def test_log_grid_refuses_what_is_no_grid(bad):
  with pytest.raises(ValueError, match="log_grid needs|equal to 3 digits"):
    grid.log_grid(*bad)


def test_runs_that_share_a_compile_are_neighbours_and_equal_ones_are_one():
  # The norm is the fastest axis here, which is the slowest order to run in.
  points = [
    {"optim.learning_rate": rate, "seed": seed, "model.norm": norm}
    for rate in (0.1, 1.0)
    for seed in (0, 1)
    for norm in ("batch", "group")
  ]
  runs = grid.plan([*points, points[0]])
  assert [r.overrides["model.norm"] for r in runs] == ["batch"] * 4 + [
    "group"
  ] * 4
  assert len({r.structure for r in runs}) == 2
  # The order within one program is the order given.
  assert [r.overrides["optim.learning_rate"] for r in runs[:4]] == [
    0.1,
    0.1,
    1.0,
    1.0,
  ]


def test_key_does_not_depend_on_order_or_number_type():
  (a,) = grid.plan([{"seed": 1, "optim.momentum": 0.9}])
  (b,) = grid.plan([{"optim.momentum": np.float64(0.9), "seed": np.int64(1)}])
  assert a.key == b.key == '{"optim.momentum":0.9,"seed":1}'


def test_folder_names_read_well_and_are_safe():
  long = [{"data.dir": "/some/where else"}]
  runs = grid.plan(
    [
      {"model.name": "resnet8", "model.ws": True, "optim.learning_rate": 0.4},
      {},
      {"data.name": "mnist", "model.name": "resnet8"},
      {"train.steps": 5, "eval.steps": 6},
      *long,
    ]
  )
  assert [r.name for r in runs[:4]] == [
    "model=resnet8,ws=true,learning_rate=0.4",
    "base",
    "data=mnist,model=resnet8",
    "train.steps=5,eval.steps=6",
  ]
  assert runs[4].name.startswith("dir=-some-where-else-")
  # Two runs must not share a folder because letters were replaced.
  other = grid.plan([{"data.dir": "/some/where-else"}])[0]
  assert other.name != runs[4].name


def test_runs_that_would_share_a_folder_are_refused():
  with pytest.raises(ValueError, match="would share the folder"):
    grid.plan([{"model.ws": True}, {"model.ws": "true"}])


def test_filter_keeps_runs_that_have_all_terms():
  points = list(
    grid.product(
      [{"model.norm": "batch"}, {"model.norm": "group"}],
      **{"optim.learning_rate": [0.1, 0.4, 1.0]},
    )
  )
  kept = grid.plan(points, "norm=group,learning_rate=0.*")
  assert [r.name for r in kept] == [
    "norm=group,learning_rate=0.1",
    "norm=group,learning_rate=0.4",
  ]
  with pytest.raises(ValueError, match="no run has 'norm=grup'; terms are: .*"):
    grid.plan(points, "norm=grup")


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (None, r"such as \{.*\}, not None$"),
    ({"seed": 1}, "not a dict$"),
    ("seed", "not a str$"),
    ([config.default()], r"not of a ConfigDict \(point 1\)"),
    (
      [{"seed": 1}, grid.product(seed=[2])],
      r"a generator \(point 2\); write `y",
    ),
    (
      [{"seed": np.arange(3)}],
      r"'seed' is a ndarray of shape \(3,\): it must",
    ),
    ([{"seed": {1, 2}}], "'seed' is a set: it must"),
    ([{"optim": {"momentum": 0.9}}], "'optim' is a dict: it must"),
    ([{3: 1}], "3 is an int, and no dotted key"),
  ],
)
def test_what_is_no_sweep_is_refused_by_what_it_is(given, message):
  with pytest.raises(ValueError, match=message):
    grid.plan(given)


def test_numpy_scalars_are_numbers_and_sequences_are_kept():
  point = {"seed": np.int64(3), "optim.boundaries": (np.float32(0.5), 1)}
  (run,) = grid.plan([point])
  assert run.overrides == {"seed": 3, "optim.boundaries": (0.5, 1)}
  assert type(run.overrides["seed"]) is int
