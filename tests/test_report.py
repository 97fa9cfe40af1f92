"""Tables against NumPy, and figures that are really drawn."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from ws_jax import figures, report, rows

ROOT = pathlib.Path(__file__).parents[1]

BN = {"model.norm": "batch", "model.ws": False}
GN = {"model.norm": "group", "model.ws": False}
GN_WS = {"model.norm": "group", "model.ws": True}


def row(arm, rate, seed, accuracy=None, status="done", **more):
  overrides = {**arm, "optim.learning_rate": rate, "seed": seed, **more}
  metrics = {} if accuracy is None else {"eval/accuracy": accuracy}
  if accuracy is not None:
    metrics["eval/loss"] = 2 * (1 - accuracy)
  name = rows.arm(arm["model.norm"], arm["model.ws"])
  status = {
    "status": status,
    "metrics": metrics,
    "seconds": {"compile": 1.0 + seed, "train": 10.0, "eval": 0.5},
  }
  key, run = json.dumps(overrides), f"{name}-{rate}-{seed}"
  return rows.make(key, run, overrides, overrides, status)


def sweep():
  """Three arms, three rates, three seeds, some of which diverge."""
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
    rows.arm(norm, ws)
    for norm in ("batch", "group", "layer", "instance", "none", "new")
    for ws in (False, True)
  ]
  assert names == [
    *("BN", "BN+WS", "GN", "GN+WS", "LN", "LN+WS", "IN", "IN+WS"),
    *("no norm", "WS", "new", "new+WS"),
  ]


def test_cells_are_the_means_and_spreads_over_seeds():
  data = sweep()
  cells = report.summarize(data)
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
  cells = report.summarize(sweep())
  lost = cell(cells, "GN", 10.0)
  assert lost["diverged"] == 3 and lost["done"] == 0
  assert lost["accuracy"] is None and lost["accuracy_std"] is None
  some = cell(cells, "BN", 10.0)
  assert some["diverged"] == 1 and some["done"] == 2 and some["runs"] == 3
  assert some["accuracy"] is not None


def test_metrics_of_a_diverged_run_do_not_enter_the_mean():
  data = [row(BN, 0.1, 0, 0.9), row(BN, 0.1, 1, 0.1, "diverged")]
  (got,) = report.summarize(data)
  assert got["accuracy"] == 0.9 and got["accuracy_std"] is None


def test_what_else_was_varied_is_never_pooled():
  data = [
    row(BN, 0.1, 0, 0.8, **{"data.batch_size": 32}),
    row(BN, 0.1, 0, 0.9, **{"data.batch_size": 64}),
    # Of the arm, not of the sweep: no column.
    row(GN, 0.1, 0, 0.7, **{"data.batch_size": 32, "model.num_groups": 8}),
  ]
  assert report.varied_keys(data) == ["data.batch_size"]
  cells = report.summarize(data)
  assert [(c["arm"], c["data.batch_size"]) for c in cells] == [
    ("BN", 32),
    ("BN", 64),
    ("GN", 32),
  ]
  lines = report.table(cells, ["data.batch_size"])
  assert lines[0][:3] == ("arm", "learning rate", "data.batch_size")
  assert lines[2][2] == "64"


def test_table_reads_as_it_should():
  lines = report.table(report.summarize(sweep()))
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
  # One run: no spread, and words instead of a count of one.
  one = report.table(report.summarize([row(BN, 3.0, 0, None, "diverged")]))
  assert one[1] == ("BN", "3", "-", "-", "1", "yes", "12")


def test_failed_runs_have_a_column_only_if_there_are_any():
  failed = row(BN, 0.1, 0, None, "failed")
  failed["optim.learning_rate"] = None  # It failed before that was known.
  lines = report.table(report.summarize([failed, row(BN, 0.1, 1, 0.9)]))
  assert lines[0][-3:] == ("diverged", "failed", "seconds")
  assert lines[1][-2] == "yes" and lines[2][-2] == "no"


def test_markdown_is_a_table():
  lines = report.markdown(report.table(report.summarize(sweep()))).splitlines()
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
  """Points of a line [n, 2]."""
  return np.asarray(line.get_xydata(), float)


def has_color(image, name):
  value = figures.COLORS[name].removeprefix("#")
  color = np.array([int(value[i : i + 2], 16) for i in (0, 2, 4)])
  near = np.abs(image - color).max(axis=-1) < 8
  return near.sum() > 50


def test_figure_shows_every_arm_and_what_diverged():
  cells = report.summarize(sweep())
  drawing = figures.accuracy(cells)
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
  (ax,) = figures.accuracy(report.summarize(data)).axes
  assert [t.get_text() for t in ax.get_xticklabels()] == ["BN", "GN+WS"]
  assert ax.get_xlabel() == "learning rate 0.1"


@pytest.mark.parametrize("status", ["failed", "diverged"])
def test_figure_of_a_sweep_with_no_result_is_still_a_figure(status):
  drawing = figures.accuracy(report.summarize([row(BN, 0.1, 0, None, status)]))
  assert pixels(drawing).std() > 0


def test_colors_are_told_apart_by_lightness_within_a_norm():
  # What is left of a colour in print, or for someone who sees none.
  def lightness(name):
    value = figures.COLORS[name].removeprefix("#")
    rgb = np.array([int(value[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    # Without the linear foot of sRGB, which is for colours darker than these.
    return ((rgb + 0.055) / 1.055) ** 2.4 @ [0.2126, 0.7152, 0.0722]

  for name in ("BN", "GN", "LN", "IN"):
    assert lightness(name) > 1.35 * lightness(f"{name}+WS")


def fill(out):
  """A folder as a sweep leaves it, with the curve of each run."""
  for r in sweep():
    rows.append(out / "runs.csv", r)
    workdir = out / r["run"]
    workdir.mkdir()
    best = r.get("eval/accuracy") or 0.2
    points = [
      {"step": 20 * (i + 1), "eval/accuracy": best * part}
      for i, part in enumerate((0.6, 0.8, 1.0))
    ]
    points.insert(0, {"step": 10, "train/loss": 2.0})
    text = "".join(json.dumps(point) + "\n" for point in points)
    (workdir / "metrics.jsonl").write_text(text)


def test_report_of_a_folder_and_its_copy(tmp_path):
  out, copy = tmp_path / "out", tmp_path / "copy"
  out.mkdir()
  fill(out)
  command = [sys.executable, str(ROOT / "scripts" / "report.py"), "out"]
  done = subprocess.run(
    [*command, "--to=copy", "--title=A test"],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)},
  )
  assert done.returncode == 0, done.stderr
  assert "copy/figure.png" in done.stdout and "GN+WS" in done.stdout
  files = {path.name for path in copy.iterdir()}
  summary = {"summary.csv", "summary.md"}
  assert files == summary | {"runs.csv", "figure.png", "figure.svg"}
  assert rows.read(copy / "runs.csv") == rows.read(out / "runs.csv")
  cells = rows.read(copy / "summary.csv")
  assert cells == report.summarize(rows.read(out / "runs.csv"))
  assert (copy / "figure.png").read_bytes()[:4] == b"\x89PNG"
  # The copy is a report of its own, without the curves: they are not in it.
  before = (copy / "summary.csv").read_bytes()
  report.write(copy)
  assert (copy / "summary.csv").read_bytes() == before


def test_curves_are_a_second_panel(tmp_path):
  fill(tmp_path)
  data = rows.read(tmp_path / "runs.csv")
  curves = report.read_curves(data, tmp_path)
  assert len(curves) == len(data)
  np.testing.assert_array_equal(curves[0].steps, [20, 40, 60])
  drawing = figures.accuracy(report.summarize(data), (), curves)
  assert len(drawing.axes) == 2
  drawn = [ln for ln in drawing.axes[1].lines if len(xy(ln)) == 3]
  assert len(drawn) == len(data)
  # A folder without them, as what is committed, has one panel.
  assert report.read_curves(data, tmp_path / "elsewhere") == []


def test_folder_without_rows_is_a_clear_error(tmp_path):
  with pytest.raises(ValueError, match="no rows in .* run scripts/sweep.py"):
    report.write(tmp_path)
