"""Holds figures to what they may show, by what Matplotlib was told to draw."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import synthetic
from ws_jax import report
from ws_jax.report import (
  figures,
  gallery,
  groups,
  panels,
  summary,
  tables,
  ticks,
)
from ws_jax.report.metric import Metric
from ws_jax.sweep import arms, rows


def make(arm, overrides, seed, value=None, **more):
  """Returns the row of a run, which has diverged if it has no value."""
  overrides = arms.ARMS[arm] | overrides | {"seed": seed}
  status = {
    "status": "diverged" if value is None else "done",
    "step": 10,
    "metrics": {} if value is None else {"eval/accuracy": value},
  }
  key = json.dumps(overrides)
  return rows.make(key, key, overrides, overrides, status) | more


def points(line):
  return np.asarray(line.get_xydata(), float).reshape(-1, 2)


def crosses(ax):
  lines = [line for line in ax.lines if line.get_marker() == "x"]
  return np.concatenate([points(line) for line in lines])


def drawn(ax):
  """Returns the points of each arm that is drawn as a line with markers."""
  every = [points(x) for x in ax.lines if x.get_marker() in "osD^v"]
  return [line for line in every if len(line)]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
  out = tmp_path_factory.mktemp("sweep")
  rates = (0.02, 0.2, 5.0)
  synthetic.fill(out, ["BN", "GN", "GN+WS"], rates, [32, 512], (0, 1))
  data, histories = report.read(out)
  return summary.analyze(data), histories


def test_panels_that_are_compared_have_one_y_axis(sweep):
  """Regression: each panel had its own, so batches could not be compared."""
  for figure in gallery.figures_of(*sweep):
    axes = figure.draw().axes
    if figure.name.startswith("heat"):
      continue
    for label, own in itertools.groupby(axes, lambda ax: ax.get_ylabel()):
      limits = {ax.get_ylim() for ax in own}
      assert len(limits) == 1, (figure.name, label)


def test_crosses_of_diverged_runs_lie_beside_the_values(sweep):
  """Regression: they lay among the values, at -12 to 16 %."""
  found = {f.name: f for f in gallery.figures_of(*sweep)}
  for name in ("figure", "relative_step", "curves"):
    axes = found[name].draw().axes
    assert sum(len(crosses(ax)) for ax in axes) > 0
    least = min(line[:, 1].min() for ax in axes for line in drawn(ax))
    for ax in axes:
      assert (crosses(ax)[:, 1] < least).all()
      # No number is written along the rail.
      rail = crosses(ax)[:, 1].max(initial=-np.inf)
      written = [
        y
        for y, label in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)
        if label.get_text() != "×"
      ]
      assert rail < min(written) and max(written) <= 100


def test_rail_of_a_loss_is_above_it():
  loss = Metric("loss", "min", "nats")
  cells = [
    {"arm": "BN", "learning_rate": r, "loss": x, "loss_std": 9.0, "diverged": d}
    for r, x, d in ((0.1, 2.0, 0), (1.0, 3.0, 0), (10.0, None, 1))
  ]
  (ax,) = figures.sheet([panels.against_rate(cells, loss)], 1).axes
  assert crosses(ax)[0, 1] > points(ax.lines[0])[:, 1].max()
  assert crosses(ax)[0, 1] < ax.get_ylim()[1]
  ends = np.concatenate([c.get_segments() for c in ax.collections])[..., 1]
  assert ends.min() == 0  # A loss that is never negative.


def test_error_bars_stay_within_what_can_be():
  """Regression: bars passed 0 and 100 %."""
  data = [
    make("BN", {"optim.learning_rate": rate}, seed, value)
    for rate, own in ((0.1, (0.99, 1.0, 0.7)), (1.0, (0.02, 0.0, 0.3)))
    for seed, value in enumerate(own)
  ]
  results = summary.analyze(data)
  (ax,) = figures.sheet([panels.against_rate(results.cells, Metric())], 1).axes
  bars = np.concatenate([c.get_segments() for c in ax.collections])[..., 1]
  assert bars.min() == 0 and bars.max() == 100
  # The other half of a bar is what it was.
  high = next(c for c in results.cells if c["learning_rate"] == 0.1)
  low = 100 * (high["accuracy"] - high["accuracy_std"])
  assert np.isclose(bars, low).any()


def test_lines_over_steps_never_run_backwards():
  """Regression: they went in the order of the rates, back and forth."""
  rates = (0.01, 0.1, 1.0, 10.0)
  steps = (3e-3, 2e-2, 1e-2, 5e-2)
  data = [
    make("BN", {"optim.learning_rate": rate}, 0, 0.5 + rate / 100)
    | {"relative_step": step}
    for rate, step in zip(rates, steps, strict=True)
  ]
  cells = summary.analyze(data).cells
  panel = panels.against_rate(cells, Metric(), key="relative_step")
  (ax,) = figures.sheet([panel], 1).axes
  (line,) = drawn(ax)
  assert (np.diff(line[:, 0]) > 0).all() and len(line) == 4


def boxes(ax):
  """Returns the boxes of the labels along the x axis, from left to right."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  FigureCanvasAgg(ax.figure).draw()
  labels = [x for x in ax.get_xticklabels() if x.get_text()]
  found = [label.get_window_extent() for label in labels]
  turned = any(label.get_rotation() for label in labels)
  return found, turned


@pytest.mark.parametrize(
  "values",
  [
    np.geomspace(2e-5, 3.0, 40),
    np.geomspace(0.00112, 0.00113, 5),
    np.geomspace(0.1, 0.9, 17),
    [0.1, 0.11, 0.12, 0.126, 1.0, 10.0],
    [0.005, 0.0118, 0.0281, 0.0666, 0.158, 0.375, 0.889, 2.11, 5.0],
    [0.1],
  ],
)
@pytest.mark.parametrize("key", ["learning_rate", "relative_step"])
def test_labels_along_an_axis_do_not_touch(values, key):
  """Regression: labels of the relative step ran into each other."""
  cells = [
    {"arm": "BN", "learning_rate": x, "relative_step": x, "accuracy": 0.5,
     "accuracy_std": None, "diverged": 0} for x in map(float, values)
  ]  # fmt: skip
  panel = panels.against_rate(cells, Metric(), key=key)
  (ax,) = figures.sheet([panel], 1).axes
  found, turned = boxes(ax)
  assert len(found) > 1 or len(values) == 1
  for left, right in itertools.pairwise(found):
    # Labels that are turned end under their places, and lie side by side.
    gap = right.x1 - left.x1 - 10 if turned else right.x0 - left.x1
    assert gap > 0


def searched(count=40, seeds=(0,)):
  """Returns the rows of a random search over three keys, with two arms."""
  rng = np.random.default_rng(0)
  data = []
  for _ in range(count):
    point = {
      "optim.learning_rate": float(10 ** rng.uniform(-3, 0)),
      "optim.weight_decay": float(10 ** rng.uniform(-5, -2)),
      "optim.momentum": float(rng.choice([0.0, 0.9])),
    }
    for arm, seed in itertools.product(("BN", "GN+WS"), seeds):
      value = None if rng.uniform() < 0.1 else rng.uniform(0.5, 0.9)
      data.append(make(arm, point, seed, value))
  return data


def test_random_search_has_a_panel_for_each_key_and_none_for_each_point():
  """Regression: every point of a search was a setting with its own panel."""
  results = summary.analyze(searched())
  assert results.searched == ["optim.weight_decay", "optim.momentum"]
  assert results.kept == [] and results.settings() == [()]
  (figure,) = gallery.figures_of(results, {})
  axes = figure.draw().axes
  labels = [ax.get_xlabel() for ax in axes]
  assert labels == ["learning rate", "weight decay", "momentum"]
  for ax in axes:
    assert sum(len(line) for line in drawn(ax)) + len(crosses(ax)) == 80
    assert all(x.get_linestyle() == "None" for x in ax.lines if len(points(x)))


def test_search_reports_the_best_point_of_each_arm():
  data = searched(seeds=(0, 1))
  results = summary.analyze(data)
  assert [entry["arm"] for entry in results.best] == ["BN", "GN+WS"]
  for entry in results.best:
    means = {}
    for row in data:
      if arms.arm_of(row) == entry["arm"]:
        means.setdefault(row["optim.learning_rate"], []).append(row)
    whole = [
      (np.mean([row["eval/accuracy"] for row in own]), rate)
      for rate, own in means.items()
      if all(row["status"] == "done" for row in own)
    ]
    expected, rate = max(whole)
    assert entry["learning_rate"] == rate and entry["points"] == 40
    np.testing.assert_allclose(entry["accuracy"], expected, rtol=1e-12)
    own = means[rate][0]
    assert entry["optim.weight_decay"] == own["optim.weight_decay"]
    assert results.is_best(own)
  (difference,) = results.differences
  first, second = results.best
  expected = second["accuracy"] - first["accuracy"]
  np.testing.assert_allclose(difference["difference"], expected, rtol=1e-9)


def test_grids_and_single_changes_are_no_search():
  grid = [
    make("BN", {"optim.learning_rate": rate, "optim.weight_decay": decay}, 0, 1)
    for rate in (0.1, 0.2, 0.4, 0.8, 1.6)
    for decay in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
  ]
  assert groups.searched_keys(grid, ["optim.weight_decay"]) == []
  # A key with very many values is an axis, also in a grid.
  many = [
    make("BN", {"optim.learning_rate": rate, "optim.weight_decay": decay}, 0, 1)
    for rate in (0.1, 0.2)
    for decay in np.geomspace(1e-5, 1, 13).tolist()
  ]
  keys = ["optim.weight_decay"]
  assert groups.searched_keys(many, keys) == keys
  # Splits that change together, each with every rate.
  splits = [
    make("BN", {"data.eval_split": f"only-{i}", "data.train_split": f"no-{i}",
                "optim.learning_rate": rate}, 0, 1)
    for rate in (0.05, 0.2) for i in range(10)
  ]  # fmt: skip
  keys = ["data.eval_split", "data.train_split"]
  assert groups.searched_keys(splits, keys) == []
  # Rates that were scaled by hand.
  scaled = [
    make("BN", {"data.batch_size": 2**i, "optim.learning_rate": 2.0**i}, 0, 1)
    | {"optimizer_batch": 2**i} for i in range(5)
  ]  # fmt: skip
  assert groups.searched_keys(scaled, ["data.batch_size"]) == []
  base = {"optim.momentum": 0.9, "optim.clip_norm": None, "train.epochs": 3}
  base["optim.learning_rate"] = 3.0
  changes = [{}, {"optim.momentum": 0.0}, {"optim.clip_norm": 0.1}]
  single = [make("BN", base | x, 0, 1) for x in changes]
  keys = ["optim.momentum", "optim.clip_norm"]
  assert groups.searched_keys(single, keys) == []


def test_of_very_many_settings_the_nearest_to_the_best_are_shown(tmp_path):
  synthetic.fill(
    tmp_path, ["BN"], (0.1,), [32, 64, 128, 256], (0,),
    **{"train.epochs": [1, 2, 3], "optim.momentum": [0.5, 0.9]},
  )  # fmt: skip
  results = summary.analyze(report.read(tmp_path)[0])
  assert len(results.settings()) == 24
  first, *_ = gallery.figures_of(results, {})
  assert len(first.panels) == 6
  assert "6 of the 24 settings" in first.caption
  best = max(results.best, key=lambda entry: entry["accuracy"])
  title = tables.setting_of(results.setting(best), results.kept)
  assert title in [panel.title for panel in first.panels]


@settings(max_examples=100, deadline=None)
@given(
  st.floats(-1e6, 1e6),
  st.floats(1e-6, 1e6),
  st.floats(-9, 9),
  st.floats(1e-3, 12),
)
def test_ticks_are_few_round_and_within(low, width, log, decades):
  high = low + max(width, 1e-6 * abs(low))
  found = ticks.of_numbers(low, high)
  assert 2 <= len(found) <= 7 and found == sorted(set(found))
  slack = 1e-6 * (high - low)
  assert low - slack <= found[0] and found[-1] <= high + slack
  found = ticks.of_logarithm(log, log + decades)
  assert 1 <= len(found) <= 7 and found == sorted(set(found))
  at = np.log10(found)
  assert (at > log - 1e-6).all() and (at < log + decades + 1e-6).all()


def test_names_are_no_formulas():
  """Regression: a dollar sign in a title could end the report."""
  data = [make("BN", {"optim.learning_rate": x}, 0, 0.5) for x in (0.1, 1.0)]
  for row in data:
    row["model.norm"] = r"$\frac{"
  cells = summary.analyze(data).cells
  panel = panels.against_rate(cells, Metric(unit="$x_"), r"$\bad$ & $")
  drawing = figures.sheet([panel], 1, r"cost: $5 to $6\frac")
  svg = report._svg(drawing)
  assert r"$\bad$ &amp; $" in svg and "cost: $5" in svg
