"""Holds reports of sweeps that are judged by another metric than accuracy."""

import json

import numpy as np
import pytest

from tests import synthetic
from ws_jax import report
from ws_jax.report import contents, gallery, metric, summary, tables
from ws_jax.report.metric import Metric
from ws_jax.sweep import rows

BITS = {"name": "bits_per_byte", "goal": "min", "unit": "bits per byte"}
ACCURACY = {"name": "accuracy", "goal": "max", "unit": "%"}
RATES = (0.02, 0.1, 0.5, 5.0)


@pytest.fixture(scope="module")
def bits(tmp_path_factory):
  """Returns the folder of a sweep that is judged by bits per byte."""
  out = tmp_path_factory.mktemp("bits")
  synthetic.fill(out, ["BN", "GN", "GN+WS"], RATES, [32, 128], metric=BITS)
  return out


@pytest.fixture(scope="module")
def same(tmp_path_factory):
  """Returns the folder of the same sweep, judged by accuracy."""
  out = tmp_path_factory.mktemp("accuracy")
  synthetic.fill(out, ["BN", "GN", "GN+WS"], RATES, [32, 128], metric=ACCURACY)
  return out


def texts(values):
  """Returns all text of nested lists, as one string."""
  return json.dumps(values, ensure_ascii=False, default=str)


def test_row_keeps_the_metric_of_the_task_and_its_best_evaluation(tmp_path):
  history = [
    {"step": 10, "eval/bits_per_byte": 1.5, "eval/loss": 3.0},
    {"step": 20, "eval/bits_per_byte": 1.25, "eval/loss": 4.0},
    {"step": 30, "eval/bits_per_byte": None, "eval/loss": 2.0},
  ]
  status = {"status": "done", "metric": BITS, "metrics": {"eval/loss": 2.0}}
  status["metrics"]["eval/bits_per_byte"] = 1.3
  config = {"model.norm": "group", "model.ws": True}
  row = rows.make("{}", "base", {}, config, status, history)
  expected = {
    "metric": "bits_per_byte",
    "metric_goal": "min",
    "metric_unit": "bits per byte",
    "best_step": 20,
    "best/eval/bits_per_byte": 1.25,
  }
  assert {name: row[name] for name in expected} == expected
  rows.append(tmp_path / "runs.csv", row)
  (read,) = rows.read(tmp_path / "runs.csv")
  assert metric.of([read]) == Metric(**BITS)
  # The metric comes first, whatever the order in which it was logged.
  line = "done, eval/bits_per_byte 1.3000, eval/loss 2.0000, 0 s"
  assert rows.verdict(row) == line


def test_unit_without_a_name_survives_the_file(tmp_path):
  plain = {"name": "bleu", "goal": "max", "unit": ""}
  row = rows.make("{}", "base", {}, {}, {"status": "done", "metric": plain})
  rows.append(tmp_path / "runs.csv", row)
  assert metric.of(rows.read(tmp_path / "runs.csv")) == Metric(**plain)


def test_rows_without_a_metric_mean_accuracy_or_follow_the_others():
  older = {"run": "old", "status": "done", "eval/accuracy": 0.9}
  failed = {"run": "failed", "status": "failed", "metric": None}
  named = {"run": "new", "metric": "accuracy", "metric_goal": "max"}
  assert metric.of([older]) == metric.of([failed]) == Metric()
  assert metric.of([failed, older, named | {"metric_unit": "%"}]) == Metric()
  other = {"run": "new", "metric": "loss", "metric_goal": "min"}
  assert metric.of([failed, other]) == Metric("loss", "min", "")


def test_metrics_that_are_mixed_are_refused(tmp_path):
  synthetic.fill(tmp_path, ["BN"], (0.1,), [128], (0,), metric=BITS)
  older = {"key": '{"seed":9}', "run": "old", "status": "done"}
  rows.append(tmp_path / "runs.csv", older | {"eval/accuracy": 0.9})
  with pytest.raises(ValueError, match="these runs have 2: bits_per_byte") as e:
    report.write(tmp_path)
  assert "accuracy (max, %) in 1 runs, one of them 'old'" in str(e.value)
  assert not list(tmp_path.glob("*.md"))


def test_goal_that_is_neither_of_two_is_refused():
  row = {"run": "a", "metric": "bleu", "metric_goal": "maximum"}
  with pytest.raises(ValueError, match="goal 'maximum': it must be max or min"):
    metric.of([row])


def test_best_is_the_lowest_where_less_is_better(bits, same):
  down = summary.analyze(report.read(bits)[0])
  up = summary.analyze(report.read(same)[0])
  assert down.metric == Metric(**BITS) and up.metric == Metric()
  for low, high in zip(down.best, up.best, strict=True):
    for name in ("arm", "learning_rate", "edge", "n", "largest_stable"):
      assert low[name] == high[name]
    expected = synthetic.loss_like(high["accuracy"])
    np.testing.assert_allclose(low["bits_per_byte"], expected)
    assert "accuracy" not in low and "largest_learning" not in low
  lowest = min(c["bits_per_byte"] or 9.0 for c in down.cells)
  assert down.top == lowest
  for low, high in zip(down.differences, up.differences, strict=True):
    assert (low["arm"], low["against"]) == (high["arm"], high["against"])
    np.testing.assert_allclose(low["difference"], -4 * high["difference"])


def test_fraction_to_be_minimized_has_the_ranges_of_its_complement(same):
  data, _ = report.read(same)
  for row in data:
    if row["eval/accuracy"] is not None:
      row["eval/error_rate"] = 1 - row["eval/accuracy"]
    row |= {"metric": "error_rate", "metric_goal": "min", "metric_unit": "%"}
  down, up = summary.analyze(data), summary.analyze(report.read(same)[0])
  for low, high in zip(down.best, up.best, strict=True):
    for name in ("low", "high", "decades", "step_low", "step_high"):
      np.testing.assert_allclose(low[name], high[name], rtol=1e-9)
  assert tables.cells(down)[0][3] == "test error rate %"
  assert tables.differences(down)[0][3] == "difference (points)"


def test_usable_is_within_one_percent_of_the_best_where_there_are_no_points():
  arm = {"model.norm": "batch", "model.ws": False}
  data = []
  for rate, value in ((0.01, 2.04), (0.1, 2.0), (1.0, 2.02), (10.0, 4.0)):
    overrides = arm | {"optim.learning_rate": rate, "seed": 0}
    status = {"status": "done", "metric": BITS}
    status["metrics"] = {"eval/bits_per_byte": value}
    key = json.dumps(overrides)
    data.append(rows.make(key, key, overrides, overrides, status))
  (best,) = summary.analyze(data).best
  # Halfway to 2.04 on the one side, all the way to 2.02 on the other.
  np.testing.assert_allclose((best["low"], best["high"]), (10**-1.5, 1.0))


def test_report_of_another_metric_does_not_speak_of_accuracy(bits, tmp_path):
  out = tmp_path / "copy"
  lines = report.write(bits, out, "Bytes", ["svg"])
  assert lines[0][3:5] == ("test bits per byte", "test loss")
  for name in ("best", "summary", "width", "differences"):
    table = (out / f"{name}.md").read_text(encoding="utf-8")
    assert "accuracy" not in table and "learns" not in table
  page = (out / "report.html").read_text(encoding="utf-8")
  assert "accuracy" not in page.replace("Accuracy", "accuracy")
  assert "Bits per byte against learning rate" in page
  assert "lowest mean test bits per byte" in page
  assert "worse by at most 1 % of the best value" in page
  assert "the first is better below 0" in page
  (head, *cells) = rows.read(out / "summary.csv")
  assert "bits_per_byte" in head and "accuracy" not in head
  data, histories = report.read(bits)
  results = summary.analyze(data)
  shown = contents.curves(results, histories, {})
  assert shown["metrics"] == [
    *("test bits per byte", "test loss", "training loss")
  ]
  assert all(run["series"][0] for run in shown["runs"] if run["best"])
  assert "accuracy" not in texts(shown)


def test_numbers_of_a_table_have_four_digits(bits):
  results = summary.analyze(report.read(bits)[0])
  cell = next(c for c in results.cells if c["bits_per_byte"] is not None)
  line = tables.cells(results)[1 + results.cells.index(cell)]
  mean, std = cell["bits_per_byte"], cell["bits_per_byte_std"]
  assert line[3] == f"{mean:.3f} ± {std:.3f}"
  lines = tables.differences(results)
  assert lines[0][3] == "difference (bits per byte)"
  assert lines[1][3] == f"{results.differences[0]['difference']:+.3f}"


def test_figures_of_another_metric_are_labelled_and_coloured_by_it(bits):
  data, histories = report.read(bits)
  results = summary.analyze(data)
  found = {f.name: f for f in gallery.figures_of(results, histories)}
  names = ("figure", "relative_step", "heat_optimizer_batch")
  assert [*found] == [*names, "by_optimizer_batch", "curves"]
  for name in ("figure", "relative_step", "curves"):
    for ax in found[name].draw().axes:
      assert ax.get_ylabel() == "test bits per byte"
  # A cross among the best values would look like a result.
  crosses = [
    line
    for ax in found["figure"].draw().axes
    for line in ax.lines
    if line.get_marker() == "x" and len(np.asarray(line.get_xydata()))
  ]
  assert crosses and "grey band" in found["figure"].caption
  for line in crosses:
    assert (np.asarray(line.get_ydata()) > 0.5).all()
  assert "up to 20 % of the best value" in found[names[2]].caption
  labels = [ax.get_ylabel() for ax in found["by_optimizer_batch"].draw().axes]
  assert labels == ["test bits per byte, best rate", "usable range (decades)"]
  ax = found[names[2]].draw().axes[0]
  best = min(
    (c for c in results.cells if c["arm"] == "BN" and c["bits_per_byte"]),
    key=lambda c: c["bits_per_byte"],
  )
  framed = [p for p in ax.patches if p.get_linewidth() == 2]
  column = results.rates.index(best["learning_rate"])
  assert any(round(p.get_x() + 0.5) == column for p in framed)
  words = {text.get_text().partition("\n")[0] for text in ax.texts}
  assert f"{best['bits_per_byte']:.2f}" in words
  image = ax.images[0].get_array()
  assert image is not None
  assert image.min() >= -1 and image.max() <= 0


def test_metric_that_is_the_loss_is_shown_once(tmp_path):
  loss = {"name": "loss", "goal": "min", "unit": "nats"}
  synthetic.fill(tmp_path, ["BN"], RATES, [128], (0, 1), metric=loss)
  data, _ = report.read(tmp_path)
  results = summary.analyze(data)
  for lines in (tables.cells(results), tables.best(results)):
    assert [word for word in lines[0] if "loss" in word] == ["test loss (nats)"]
  assert [*contents.logged(results.metric)] == ["eval/loss", "train/loss"]
