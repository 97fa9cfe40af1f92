"""Holds reports of two sweeps side by side."""

import subprocess
import sys

import numpy as np
import pytest

from tests import synthetic, test_headline
from tests.test_report import ROOT
from ws_jax import report
from ws_jax.report import changes, gallery, reading, summary
from ws_jax.sweep import rows


@pytest.fixture(scope="module")
def both(tmp_path_factory):
  """Returns two folders that have GN and a batch in common."""
  top = tmp_path_factory.mktemp("both")
  for name, arms, batches in (
    ("before", ["BN", "GN"], [32, 128]),
    ("after", ["GN", "GN+WS"], [128]),
  ):
    (top / name).mkdir()
    synthetic.fill(top / name, arms, (0.02, 0.1, 0.5), batches, (0, 1))
  return top / "before", top / "after"


def pair(tmp_path, before, after, names=("a/before", "b/after")):
  """Writes two sweeps of one rate, from arm -> values of seeds."""
  outs = [tmp_path / name for name in names]
  for out, values in zip(outs, (before, after), strict=True):
    out.mkdir(parents=True)
    rows.write(out / "runs.csv", test_headline.sweep(values))
  return outs


def test_sweeps_are_told_apart_by_their_folders(both):
  sweep = reading.read_two(both)
  results = summary.analyze(sweep.rows)
  assert results.varied == ["data.batch_size", "sweep"]
  assert len(sweep.rows) == 24 + 12 and sweep.planned
  assert {row["run"].split("/")[0] for row in sweep.rows} == {"before", "after"}
  for run, folder in sweep.folders.items():
    name, own = run.split("/")
    assert (
      folder == dict(zip(("before", "after"), both, strict=True))[name] / own
    )
  own = {row["sweep"] for row in results.at(results.cells, (128, "after"))}
  assert own == {"after"}


def test_figures_put_the_sweeps_side_by_side(both):
  sweep = reading.read_two(both)
  results = summary.analyze(sweep.rows)
  first, *_ = gallery.figures_of(results, {})
  titles = [panel.title for panel in first.panels]
  assert titles[1:] == [
    f"optimizer batch 128, sweep {name}" for name in ("before", "after")
  ]
  assert len({ax.get_ylim() for ax in first.draw().axes}) == 1


def test_what_both_have_is_compared_by_seed(both):
  results = summary.analyze(reading.read_two(both).rows)
  (entry,) = changes.between_sweeps(results)
  assert (entry["arm"], entry["data.batch_size"]) == ("GN", 128)
  assert (entry["sweep"], entry["against"]) == ("after", "before")
  means = {}
  for name, out in zip(("before", "after"), both, strict=True):
    own = [
      row
      for row in rows.read(out / "runs.csv")
      if row["model.norm"] == "group" and not row["model.ws"]
      if row["data.batch_size"] == 128 and row["status"] == "done"
    ]
    best = {}
    for row in own:
      best.setdefault(row["optim.learning_rate"], []).append(row)
    values = [
      {row["seed"]: row["eval/accuracy"] for row in runs}
      for runs in best.values()
      if len(runs) == 2
    ]
    means[name] = max(values, key=lambda one: np.mean([*one.values()]))
  expected = np.mean([means["after"][s] - means["before"][s] for s in (0, 1)])
  np.testing.assert_allclose(entry["difference"], expected, rtol=1e-9)
  assert entry["p_holm"] == entry["p"]


def test_headline_is_of_all_that_both_have(tmp_path):
  before = {"BN": [0.80, 0.81, 0.79], "GN": [0.700, 0.712, 0.690]}
  gain = np.array([[0.010, 0.011, 0.009], [0.014, 0.010, 0.012]])
  after = {
    arm: (np.array(own) + gain[i]).tolist()
    for i, (arm, own) in enumerate(before.items())
  }
  outs = pair(tmp_path, before, after)
  results = summary.analyze(reading.read_two(outs).rows)
  mean = gain.mean(0)
  half = test_headline.quantile(0.975) * mean.std(ddof=1) / np.sqrt(3)
  low, high = 100 * (mean.mean() - half), 100 * (mean.mean() + half)
  assert changes.headline_of(results).text == (
    "after is better than before: the test accuracy of after, 76.13 %, is 1.10"
    f" points above that of before (95 % interval {low:+.2f} to {high:+.2f})."
  )


def test_a_sweep_beside_its_copy_has_no_difference(tmp_path):
  values = {"BN": [0.80, 0.81, 0.79]}
  outs = pair(tmp_path, values, values, ("a/same", "b/same"))
  sweep = reading.read_two(outs)
  assert {row["sweep"] for row in sweep.rows} == {"a/same", "b/same"}
  results = summary.analyze(sweep.rows)
  assert changes.headline_of(results).text.startswith(
    "No difference can be told from 3 seeds"
  )
  with pytest.raises(ValueError, match="given twice"):
    reading.read_two([outs[0], outs[0]])


def test_sweeps_that_share_nothing_are_not_compared(tmp_path):
  outs = pair(tmp_path, {"BN": [0.8]}, {"GN": [0.7]})
  results = summary.analyze(reading.read_two(outs).rows)
  assert changes.between_sweeps(results) == []
  assert "are not compared" in changes.headline_of(results).text


def test_program_reports_two_sweeps_beside_the_first(tmp_path):
  values = {"BN": [0.8, 0.7], "GN": [0.7, 0.75]}
  pair(tmp_path, values, values, ("before", "after"))
  program = str(ROOT / "scripts" / "report.py")
  done = subprocess.run(
    [sys.executable, program, "before", "after", "--figures=png"],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)},
  )
  assert done.returncode == 0, done.stderr
  folder = tmp_path / "before_vs_after"
  assert "before_vs_after/report.html" in done.stdout
  assert "No difference can be told from 2 seeds" in done.stdout
  assert not [*folder.glob("*.svg")] and [*folder.glob("*.png")]
  text = (folder / "report.html").read_text(encoding="utf-8")
  assert "Differences between the sweeps" in text
  assert (folder / "changes.md").exists() and (folder / "changes.csv").exists()


def test_unknown_format_is_an_error_before_anything_is_written(both, tmp_path):
  with pytest.raises(ValueError, match="no format 'pgn' .* 'png'"):
    report.write(both[0], tmp_path / "x", formats=["pgn"])
  assert not (tmp_path / "x").exists()
