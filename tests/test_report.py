"""Holds tables to NumPy, and draws the figures."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests import synthetic
from ws_jax import report
from ws_jax.report import figures, gallery, groups, panels, summary, tables
from ws_jax.report.metric import Metric
from ws_jax.sweep import arms, rows

ROOT = pathlib.Path(__file__).parents[1]

BN = {"model.norm": "batch", "model.ws": False}
GN = {"model.norm": "group", "model.ws": False}
GN_WS = {"model.norm": "group", "model.ws": True}


def row(arm, rate, seed, accuracy=None, status="done", **more):
  overrides = {**arm, "optim.learning_rate": rate, "seed": seed, **more}
  metrics = {} if accuracy is None else {"eval/accuracy": accuracy}
  if accuracy is not None:
    metrics["eval/loss"] = 2 * (1 - accuracy)
  name = arms.arm(arm["model.norm"], arm["model.ws"])
  status = {
    "status": status,
    "metrics": metrics,
    "seconds": {"compile": 1.0 + seed, "train": 10.0, "eval": 0.5},
  }
  key, run = json.dumps(overrides), f"{name}-{rate}-{seed}"
  return rows.make(key, run, overrides, overrides, status)


def sweep():
  """Returns rows of three arms, rates and seeds, some of which diverge."""
  rng = np.random.default_rng(0)
  result = []
  for i, arm in enumerate((GN_WS, BN, GN)):
    for rate in (1.0, 0.1, 10.0):
      for seed in range(3):
        lost = rate == 10.0 and (arm is GN or (arm is BN and seed == 1))
        accuracy = None if lost else 0.8 + 0.02 * i + 0.01 * rng.normal()
        end = "diverged" if lost else "done"
        result.append(row(arm, rate, seed, accuracy, end))
  return result


def cell(cells, arm, rate):
  wanted = (arm, rate)
  (found,) = [c for c in cells if (c["arm"], c["learning_rate"]) == wanted]
  return found


def test_arms_have_the_names_of_the_papers():
  names = [
    arms.arm(norm, ws)
    for norm in ("batch", "group", "layer", "instance", "none", "new")
    for ws in (False, True)
  ]
  assert names == [
    *("BN", "BN+WS", "GN", "GN+WS", "LN", "LN+WS", "IN", "IN+WS"),
    *("no norm", "WS", "new", "new+WS"),
  ]


def test_every_arm_that_has_a_name_has_a_colour_of_its_own():
  assert [*figures.COLORS] == [*arms.ARMS]
  assert len(set(figures.COLORS.values())) == len(arms.ARMS)


def test_cells_are_the_means_and_spreads_over_seeds():
  data = sweep()
  cells = summary.analyze(data).cells
  assert len(cells) == 9
  for arm, key in (("BN", BN), ("GN", GN), ("GN+WS", GN_WS)):
    for rate in (0.1, 1.0):
      values = np.array(
        [
          r["eval/accuracy"]
          for r in data
          if r["optim.learning_rate"] == rate and {k: r[k] for k in key} == key
        ],
        np.float64,
      )
      got = cell(cells, arm, rate)
      assert got["runs"] == got["done"] == len(values) == 3
      mean = values.sum() / 3
      spread = np.sqrt(((values - mean) ** 2).sum() / 2)
      np.testing.assert_allclose(got["accuracy"], mean, rtol=1e-12)
      np.testing.assert_allclose(got["accuracy_std"], spread, rtol=1e-12)
      np.testing.assert_allclose(got["loss"], 2 * (1 - mean), rtol=1e-12)
      np.testing.assert_allclose(got["seconds"], 12.5, rtol=1e-12)
      np.testing.assert_allclose(got["seconds_std"], 1.0, rtol=1e-12)


def test_diverged_runs_are_counted_and_not_averaged():
  cells = summary.analyze(sweep()).cells
  lost = cell(cells, "GN", 10.0)
  assert lost["diverged"] == 3 and lost["done"] == 0
  assert lost["accuracy"] is None and lost["accuracy_std"] is None
  some = cell(cells, "BN", 10.0)
  assert some["diverged"] == 1 and some["done"] == 2 and some["runs"] == 3
  assert some["accuracy"] is not None


def test_metrics_of_a_diverged_run_do_not_enter_the_mean():
  data = [row(BN, 0.1, 0, 0.9), row(BN, 0.1, 1, 0.1, "diverged")]
  (got,) = summary.analyze(data).cells
  assert got["accuracy"] == 0.9 and got["accuracy_std"] is None


def test_what_else_was_varied_is_never_pooled():
  data = [
    row(BN, 0.1, 0, 0.8, **{"data.batch_size": 32}),
    row(BN, 0.1, 0, 0.9, **{"data.batch_size": 64}),
    # A key that belongs to the arm has no column.
    row(GN, 0.1, 0, 0.7, **{"data.batch_size": 32, "model.num_groups": 8}),
  ]
  assert groups.varied_keys(data) == ["data.batch_size"]
  cells = summary.analyze(data).cells
  assert [(c["arm"], c["data.batch_size"]) for c in cells] == [
    ("BN", 32),
    ("GN", 32),
    ("BN", 64),
  ]
  lines = tables.cells(summary.analyze(data))
  assert lines[0][:3] == ("arm", "optimizer batch", "learning rate")
  assert lines[3][:3] == ("BN", "64", "0.1")


def test_how_ws_is_done_means_nothing_without_ws():
  """Plain runs stand beside each kind of WS, and lists of paths are text."""
  where = {"model.ws_where": ["*/key/*", "*/mlp/*"], "model.ws_axes": "joint"}
  plain = row(GN, 0.1, 0, 0.7, **where, **{"model.ws_gains": False})
  with_ws = row(GN_WS, 0.1, 0, 0.8, **where, **{"model.ws_gains": True})
  found = [groups.value(plain, key) for key in (*where, "model.ws_gains")]
  assert found == [None, None, None]
  assert groups.value(with_ws, "model.ws_where") == "*/key/*, */mlp/*"
  assert groups.value(with_ws, "model.ws_gains") is True


def test_rms_is_the_name_of_an_arm():
  assert arms.arm("rms", True) == "RMS+WS"
  assert arms.in_order(["RMS+WS", "RMS", "LN"]) == ["LN", "RMS", "RMS+WS"]


def test_table_reads_as_it_should():
  lines = tables.cells(summary.analyze(sweep()))
  assert lines[0] == (
    *("arm", "learning rate", "test accuracy %", "test loss"),
    *("runs", "diverged", "seconds"),
  )
  assert [line[:2] for line in lines[1:4]] == [
    ("BN", "0.1"),
    ("BN", "1"),
    ("BN", "10"),
  ]
  by_cell = {line[:2]: line for line in lines}
  assert by_cell["GN", "10"][2:] == ("-", "-", "3", "3", "12 ± 1")
  assert by_cell["BN", "10"][5] == "1"
  assert by_cell["BN", "1"][5] == "no"
  assert "±" in by_cell["BN", "1"][2]
  # One run has no spread, and a word instead of the count 1.
  one = tables.cells(summary.analyze([row(BN, 3.0, 0, None, "diverged")]))
  assert one[1] == ("BN", "3", "-", "-", "1", "yes", "12")


def test_failed_runs_have_a_column_only_if_there_are_any():
  failed = row(BN, 0.1, 0, None, "failed")
  failed["optim.learning_rate"] = None  # It failed before that was known.
  lines = tables.cells(summary.analyze([failed, row(BN, 0.1, 1, 0.9)]))
  assert lines[0][-3:] == ("diverged", "failed", "seconds")
  assert lines[1][-2] == "no" and lines[2][-2] == "yes"


def test_markdown_is_a_table():
  lines = tables.cells(summary.analyze(sweep()))
  lines = tables.markdown(lines).splitlines()
  assert len(lines) == 2 + 9
  assert {line.count("|") for line in lines} == {8}
  assert len({len(line) for line in lines}) == 1
  assert set(lines[1]) == {"|", "-"}


def pixels(drawing):
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  canvas = FigureCanvasAgg(drawing)
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def xy(line):
  """Returns the points of a line [n, 2]."""
  return np.asarray(line.get_xydata(), float)


def has_color(image, name):
  value = figures.COLORS[name].removeprefix("#")
  color = np.array([int(value[i : i + 2], 16) for i in (0, 2, 4)])
  near = np.abs(image - color).max(axis=-1) < 8
  return near.sum() > 50


def test_figure_shows_every_arm_and_what_diverged():
  cells = summary.analyze(sweep()).cells
  drawing = figures.sheet([panels.against_rate(cells, Metric())], 1)
  image = pixels(drawing)
  for arm in ("BN", "GN", "GN+WS"):
    assert has_color(image, arm)
  assert not has_color(image, "LN+WS")
  (ax,) = drawing.axes
  (legend,) = drawing.legends
  labels = [text.get_text() for text in legend.get_texts()]
  assert sorted(labels) == ["BN", "GN", "GN+WS", "diverged"]
  assert [t.get_text() for t in ax.get_xticklabels()] == ["0.1", "1", "10"]
  crosses = [line for line in ax.lines if line.get_marker() == "x"]
  crosses = [line for line in crosses if len(xy(line))]
  # BN lost one seed at the highest rate, GN all three.
  assert len(crosses) == 2
  for line in crosses:
    np.testing.assert_allclose(xy(line)[:, 0], 10.0, rtol=0.1)
  bn = next(line for line in ax.lines if len(xy(line)) == 3)
  rates = (0.1, 1.0, 10.0)
  expected = [100 * cell(cells, "BN", rate)["accuracy"] for rate in rates]
  np.testing.assert_allclose(xy(bn)[:, 1], expected, rtol=1e-12)


def test_figure_of_one_rate_puts_the_arms_side_by_side():
  data = [row(arm, 0.1, s, 0.9) for arm in (BN, GN_WS) for s in (0, 1)]
  (ax,) = figures.sheet(
    [panels.against_rate(summary.analyze(data).cells, Metric())], 1
  ).axes
  assert [t.get_text() for t in ax.get_xticklabels()] == ["BN", "GN+WS"]
  assert ax.get_xlabel() == "learning rate 0.1"


@pytest.mark.parametrize("status", ["failed", "diverged"])
def test_figure_of_a_sweep_with_no_result_is_still_a_figure(status):
  cells = summary.analyze([row(BN, 0.1, 0, None, status)]).cells
  drawing = figures.sheet([panels.against_rate(cells, Metric())], 1)
  assert pixels(drawing).std() > 0


def test_colors_of_a_norm_differ_in_lightness():
  # Lightness is what is left of a colour in black and white.
  def lightness(name):
    value = figures.COLORS[name].removeprefix("#")
    rgb = np.array([int(value[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    # The linear part of sRGB is for colours darker than these.
    return ((rgb + 0.055) / 1.055) ** 2.4 @ [0.2126, 0.7152, 0.0722]

  for name in ("BN", "GN", "LN", "IN"):
    assert lightness(name) > 1.35 * lightness(f"{name}+WS")


def test_every_arm_can_be_recognized_without_colour():
  every = figures.looks([*figures.COLORS, "one of tomorrow", "another+WS"])
  shapes = {
    name: (look["marker"], look["markerfacecolor"] == "white")
    for name, look in every.items()
  }
  # Arms of one norm, which share a figure, differ in shape or filling.
  for norm in ("BN", "GN", "LN", "IN"):
    own = [s for name, s in shapes.items() if name.split("+")[0] == norm]
    assert len(set(own)) == len(own)
  assert len({look["color"] for look in every.values()}) == len(every)


def test_report_of_a_folder_and_its_copy(tmp_path):
  out, copy = tmp_path / "out", tmp_path / "copy"
  out.mkdir()
  synthetic.fill(out, ["BN", "GN+WS"], (0.01, 0.1, 1.0, 5.0), [128], (0, 1))
  command = [sys.executable, str(ROOT / "scripts" / "report.py"), "out"]
  done = subprocess.run(
    [*command, "--to=copy", "--title=A test"],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)},
  )
  assert done.returncode == 0, done.stderr
  assert "copy/report.html" in done.stdout and "GN+WS" in done.stdout
  files = {path.name for path in copy.iterdir()}
  assert files == {
    *("runs.csv", "report.html", "headline.md"),
    *("summary.csv", "summary.md", "best.csv", "best.md"),
    *("width.md", "width_steps.md", "differences.csv", "differences.md"),
    *(f"figure.{x}" for x in report.FORMATS),
    *(f"relative_step.{x}" for x in report.FORMATS),
  }
  assert (copy / "figure.pdf").read_bytes().startswith(b"%PDF-")
  data, histories = report.read(out)
  assert rows.read(copy / "runs.csv") == data
  for r in data:
    # It is not the last one, at which the learning rate has decayed to 0.
    logged = histories[r["run"]]["train/relative_step"][1]
    assert r["relative_step"] == np.mean(logged) > logged[-1]
  results = summary.analyze(data)
  assert rows.read(copy / "summary.csv") == results.cells
  assert rows.read(copy / "best.csv") == results.best
  assert rows.read(copy / "differences.csv") == results.differences
  assert (copy / "figure.png").read_bytes()[:4] == b"\x89PNG"
  # A report of the copy has no curves, as the copy does not have them.
  files = ("summary.csv", "best.csv", "relative_step.svg")
  before = [(copy / name).read_bytes() for name in files]
  report.write(copy, title="A test", formats=["svg"])
  for name, content in zip(files, before, strict=True):
    assert (copy / name).read_bytes() == content


def test_report_is_the_same_where_the_locale_is_not_utf_8(tmp_path):
  """Regression: the tables once ended at their first sign there."""
  out = tmp_path / "größe"
  out.mkdir()
  synthetic.fill(out, ["BN", "GN"], (0.01, 0.1, 5.0), [128], (0, 1))
  reason = {"key": "{}", "run": "odd", "status": "failed", "reason": "≤ 3 µs"}
  rows.append(out / "runs.csv", reason | {"model.norm": "batch", "seed": 0})
  command = [sys.executable, str(ROOT / "scripts" / "report.py"), out.name]
  env = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)}
  ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
  for to, more in (("utf", {"PYTHONUTF8": "1"}), ("ascii", ascii_only)):
    done = subprocess.run(
      [*command, f"--to={to}", "--figures=svg"],
      cwd=tmp_path,
      capture_output=True,
      env=env | more,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert ("+-" if to == "ascii" else "±").encode() in done.stdout
  files = {path.name for path in (tmp_path / "utf").iterdir()}
  assert files == {path.name for path in (tmp_path / "ascii").iterdir()}
  for name in files:
    expected = (tmp_path / "utf" / name).read_bytes()
    assert (tmp_path / "ascii" / name).read_bytes() == expected, name
  page = (tmp_path / "ascii" / "report.html").read_text(encoding="utf-8")
  assert "Sweep größe" in page and "≤ 3 µs" in page
  assert "../gr%C3%B6%C3%9Fe/" in page


def test_curves_are_a_second_panel_of_a_single_setting(tmp_path):
  rates = (0.01, 0.1, 5.0)
  synthetic.fill(tmp_path, ["GN"], rates, [128], (0, 1))
  data, histories = report.read(tmp_path)
  lost = next(r for r in data if r["status"] == "diverged")
  steps, losses = histories[lost["run"]]["train/loss"]
  assert np.isfinite(losses).all() and steps[0] == 23
  results = summary.analyze(data)
  (first, _) = gallery.figures_of(results, histories)
  drawing = first.draw()
  assert len(drawing.axes) == 2
  drawn = [line for line in drawing.axes[1].lines if len(xy(line)) == 5]
  done = [r for r in data if r["status"] == "done"]
  assert len(drawn) == len(done) == 4
  final = sorted(100 * r["eval/accuracy"] for r in done)
  ends = sorted(xy(line)[-1, 1] for line in drawn)
  np.testing.assert_allclose(ends, final, rtol=1e-12)
  # A folder without curves, such as a committed one, has one panel.
  (first, _) = gallery.figures_of(results, {})
  assert len(first.draw().axes) == 1


@pytest.mark.parametrize(
  "name",
  [
    "ablation",
    "lr_batch_size",
    "micro_batch",
    "norm_batch",
    "quickstart",
    "rate_limit",
  ],
)
def test_committed_table_is_what_the_committed_rows_say(name):
  data, _ = report.read(ROOT / "experiments" / name)
  results = summary.analyze(data)
  committed = ROOT / "experiments" / name / "summary.md"
  lines = tables.cells(results)
  assert tables.markdown(lines) == committed.read_text()


def test_rows_from_before_steps_were_measured_have_no_figure_of_them():
  data, _ = report.read(ROOT / "experiments" / "rate_limit")
  assert names(data) == ["figure"]
  best = summary.analyze(data).best
  assert all(entry["step_low"] is None for entry in best)


def names(data):
  return [f.name for f in gallery.figures_of(summary.analyze(data), {})]


def test_what_is_varied_decides_which_figures_there_are(tmp_path):
  assert names(sweep()) == ["figure"]
  batches = [
    row(arm, rate, 0, 0.8, **{"data.batch_size": batch, "train.epochs": 2})
    for arm in (BN, GN)
    for rate in (0.1, 1.0)
    for batch in (32, 64)
  ]
  assert names(batches) == [
    *("figure", "heat_optimizer_batch", "by_optimizer_batch")
  ]
  both = batches + [
    row(BN, 0.1, 0, 0.8, **{"data.batch_size": 32, "train.epochs": 4})
  ]
  assert names(both) == [
    *("figure", "heat_optimizer_batch", "by_optimizer_batch"),
    *("heat_epochs", "by_epochs"),
  ]
  # Without a second rate there is no map of rates.
  one = [r for r in batches if r["optim.learning_rate"] == 0.1]
  assert names(one) == ["figure", "by_optimizer_batch"]


def test_arm_without_a_normalization_batch_is_shown_at_each_of_them():
  key = "model.norm_batch_size"
  data = [row(GN, 0.1, seed, 0.8 + seed / 100) for seed in (0, 1)]
  for batch in (2, 128):
    for seed in (0, 1):
      data.append(row(BN, 0.1, seed, 0.7 + batch / 1e3, **{key: batch}))
      # An experiment may vary it for GN too, which trains one run twice.
      data.append(row(GN, 0.1, seed, 0.8 + seed / 100, **{key: batch}))
  for r in data:
    r["normalization_batch"] = r.get(key) if r["model.norm"] == "batch" else 1
  results = summary.analyze(data)
  assert results.varied == [key]
  assert results.settings() == [(2,), (128,)]
  gn = next(cell for cell in results.cells if cell["arm"] == "GN")
  assert gn[key] is None and gn["runs"] == 6
  # Two seeds, not six.
  np.testing.assert_allclose(gn["accuracy_std"], 0.01 / np.sqrt(2), rtol=1e-9)
  assert [(d["arm"], d[key], d["n"]) for d in results.differences] == [
    ("GN", 2, 2),
    ("GN", 128, 2),
  ]
  (_, by) = gallery.figures_of(results, {})
  (ax,) = by.draw().axes
  level = next(line for line in ax.lines if line.get_linestyle() == "--")
  np.testing.assert_allclose(xy(level), [[2, 80.5], [128, 80.5]])


def test_best_rate_is_stable_and_says_where_it_lies():
  data = [
    *(row(BN, rate, s, acc) for rate, acc in ((0.1, 0.7), (1.0, 0.8))
      for s in (0, 1)),
    row(BN, 10.0, 0, 0.9),  # The best one, but the other seed diverged.
    row(BN, 10.0, 1, None, "diverged"),
    *(row(GN, rate, 0, acc) for rate, acc in ((0.1, 0.5), (1.0, 0.6))),
    row(GN, 10.0, 0, None, "interrupted"),
    row(GN_WS, 0.1, 0, None, "diverged"),
  ]  # fmt: skip
  results = summary.analyze(data)
  bn, gn, gn_ws = results.best
  assert (bn["learning_rate"], bn["edge"], bn["n"]) == (1.0, "inside", 2)
  assert bn["largest_stable"] == 1.0 and not bn["stable_open"]
  assert bn["accuracy"] == 0.8 and bn["rates"] == 3
  # A tenth of a decade: on the way to 0.1 the score falls from 0.8 to 0.7.
  np.testing.assert_allclose(bn["low"], 10**-0.1)
  assert bn["high"] == 1.0 and not bn["open_high"]
  assert (gn["learning_rate"], gn["edge"]) == (1.0, "open")
  assert gn_ws["learning_rate"] is None and gn_ws["largest_stable"] is None
  lines = tables.best(results)
  assert [(line[1], line[-1]) for line in lines[1:]] == [
    ("1", "inside"),
    ("1", "not known: a neighbour is missing"),
    ("-", "-"),
  ]
  assert tables.width(results)[1][1:5] == ("0.7943", "1", "0.10", "1")


def test_each_budget_has_a_best_rate_of_its_own():
  key = "train.epochs"
  data = [
    row(BN, rate, 0, accuracy, **{key: epochs})
    for rate, epochs, accuracy in (
      *((0.1, 1, 0.6), (1.0, 1, 0.7)),
      *((0.1, 4, 0.9), (1.0, 4, 0.8)),
    )
  ]
  results = summary.analyze(data)
  found = results.best
  assert [(b[key], b["learning_rate"]) for b in found] == [(1, 1.0), (4, 0.1)]
  line = tables.best(results)[1]
  assert line[:3] == ("BN", "1", "1")
  assert line[-1] == "at the grid's edge: the highest"


def test_sensitivity_takes_seeds_with_every_rate_and_the_first_loss():
  data = []
  for seed in (0, 1, 2):
    for rate, loss in ((0.1, 0.5), (1.0, 0.3 + seed / 10), (10.0, None)):
      end = "done" if loss else "diverged"
      end = "failed" if seed == 2 and rate == 0.1 else end
      r = row(BN, rate, seed, 0.5 if loss else None, end)
      r |= {"eval/loss": loss, "train/first_loss": 2.3}
      data.append(r | {"relative_step": rate / 10})
  (found,) = summary.analyze(data).best
  # (0.5 + 0.3 + 2.3) / 3 - 0.3, and (0.5 + 0.4 + 2.3) / 3 - 0.4.
  expected = np.array([3.1 / 3 - 0.3, 3.2 / 3 - 0.4])
  np.testing.assert_allclose(found["sensitivity"], expected.mean())
  np.testing.assert_allclose(found["sensitivity_std"], expected.std(ddof=1))
  assert found["sensitivity_n"] == 2
  # Three points in equal ratios: trapezoids count the outer two by half.
  expected = np.array(
    [(0.25 + 0.3 + 1.15) / 2 - 0.3, (0.25 + 0.4 + 1.15) / 2 - 0.4]
  )
  np.testing.assert_allclose(found["step_sensitivity"], expected.mean())
  assert (found["step_from"], found["step_to"]) == (0.01, 1.0)


def test_base_rates_are_the_axis_where_they_are_what_was_varied():
  key = "optim.base_learning_rate"
  data = []
  for base in (0.1, 0.2):
    for batch in (128, 256):
      r = row(BN, 0, 0, 0.8, **{"data.batch_size": batch, key: base})
      overrides = {"data.batch_size": batch, key: base, "seed": 0}
      r |= {"key": json.dumps(overrides), "optimizer_batch": batch}
      data.append(r | {"optim.learning_rate": base * batch / 256})
  results = summary.analyze(data)
  assert results.rates == [0.1, 0.2] and len(results.cells) == 4


def test_runs_to_come_are_known_from_the_plan(tmp_path):
  synthetic.fill(tmp_path, ["BN", "GN"], (0.1, 1.0), [32, 128], (0, 1),
                 missing=[0, 15])  # fmt: skip
  data, _ = report.read(tmp_path)
  assert len(data) == 16 and len(rows.read(tmp_path / "runs.csv")) == 14
  results = summary.analyze(data)
  cells = results.cells
  assert sum(cell["missing"] for cell in cells) == 2
  assert {cell["runs"] for cell in cells} == {2}
  partial = next(cell for cell in cells if cell["missing"])
  assert (partial["arm"], partial["data.batch_size"]) == ("BN", 32)
  assert partial["done"] == 1 and partial["accuracy_std"] is None
  assert "missing" in tables.cells(results)[0]


def test_folder_without_rows_is_a_clear_error(tmp_path):
  with pytest.raises(ValueError, match="no rows in .* run scripts/sweep.py"):
    report.write(tmp_path)


def test_a_plain_arm_stands_beside_every_convention_of_ws():
  row = {"model.norm": "batch", "model.ws": False, "model.ws_convention": "bit"}
  assert groups.value(row, "model.ws_convention") is None
  row["model.ws"] = True
  assert groups.value(row, "model.ws_convention") == "bit"
