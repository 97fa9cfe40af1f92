"""The answers that a run keeps, and what a report makes of them."""

import dataclasses
import html

import jax.numpy as jnp
import numpy as np
import pytest

from tests import synthetic
from ws_jax import data, report
from ws_jax.report import mistakes, page
from ws_jax.train import predictions

CLASSES = ("yes", "no", synthetic.NASTY)
INFO = data.Info(
  *("words", "audio", "label", 1, 1, (9,), "int16", 3, CLASSES),
  group_key="speaker",
  groups=("ann", "ben", "cy"),
)


def answers(label, answer, group=None, info=INFO):
  group = [-1] * len(label) if group is None else group
  found = np.stack([label, answer, group]).astype(np.int32)
  return predictions.gather([jnp.asarray(found)], info)


def test_padding_is_left_out_and_batches_are_put_together():
  one = jnp.asarray([[2, 0, -1], [2, 1, -1], [0, 2, -1]])
  other = jnp.asarray([[1, -1], [1, -1], [2, -1]])
  found = predictions.gather([one, other], INFO)
  assert found.label.tolist() == [2, 0, 1]
  assert found.answer.tolist() == [2, 1, 1]
  assert found.group.tolist() == [0, 2, 2]
  assert found.confusion.tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 1]]
  # Nobody is called ben among these examples.
  assert found.by_group == {"ann": (1, 1), "cy": (1, 2)}


def test_data_without_groups_or_names_have_numbers_for_classes():
  info = dataclasses.replace(INFO, classes=(), groups=(), group_key="")
  found = answers([0, 1], [0, 0], info=info)
  assert found.classes == ("0", "1", "2")
  assert found.by_group == {}
  assert found.group_key == ""


def test_what_is_written_is_read(tmp_path):
  assert predictions.read(tmp_path) is None
  found = answers([0, 1, 2], [0, 2, 2], [0, 1, 1])
  found.write(tmp_path)
  again = predictions.read(tmp_path)
  for name, value in vars(found).items():
    np.testing.assert_array_equal(getattr(again, name), value)
  assert again.by_group == found.by_group


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
  """Returns a sweep whose runs kept answers, and its report as text."""
  out = tmp_path_factory.mktemp("sweep")
  runs = synthetic.fill(out, ["BN", "GN"], (0.05, 0.2), [128], (0, 1))
  for run in runs:
    # The second seed takes one "yes" more for "no".
    wrong = 1 + run.overrides["seed"]
    answer = [1] * wrong + [0] * (10 - wrong) + [1] * 10
    answers([0] * 10 + [1] * 10, answer, [0] * 10 + [1] * 10).write(
      out / run.name
    )
  report.write(out, formats=[])
  return out, (out / "report.html").read_text(encoding="utf-8")


def test_a_report_adds_up_the_confusions_of_the_best_cell(sweep):
  out, text = sweep
  rows = (out / "confusions.md").read_text(encoding="utf-8").splitlines()
  assert [word.strip() for word in rows[2].split("|")[1:-1]] == [
    *("yes", "no", "3", "15.0")
  ]
  assert len(rows) == 3
  for title in ("Most frequent confusions", "Confusion matrix"):
    assert f"<h2>{title}</h2>" in text
  assert "2 runs added up: 37 of 40 examples are right" in text
  # Names of classes are text, in the heading of the row and of the column.
  assert text.count(html.escape(synthetic.NASTY)) == 2
  assert synthetic.NASTY not in text


def test_a_report_has_the_accuracy_of_each_group_for_each_arm(sweep):
  rows = (sweep[0] / "groups.md").read_text(encoding="utf-8").splitlines()
  cells = [[w.strip() for w in row.split("|")[1:-1]] for row in rows]
  assert cells[0] == ["speaker", "BN %", "GN %"]
  assert cells[2] == ["ann", "85.0 ± 7.1", "85.0 ± 7.1"]
  assert cells[3] == ["ben", "100.0 ± 0.0", "100.0 ± 0.0"]
  assert "<h2>Accuracy of each speaker</h2>" in sweep[1]


def test_runs_without_answers_have_no_sections_of_them(tmp_path):
  synthetic.fill(tmp_path, ["BN"], (0.05, 0.2), [128], (0,))
  report.write(tmp_path, formats=[])
  text = (tmp_path / "report.html").read_text(encoding="utf-8")
  assert "onfusion" not in text
  assert not (tmp_path / "groups.md").exists()


def test_a_matrix_of_many_classes_is_left_out():
  many = tuple(map(str, range(100)))
  found = mistakes.Mistakes("GN", 1, many, np.eye(100, dtype=int), "", {})
  assert mistakes.sections(found, mistakes.tables_of(found)) == []


def test_a_dark_cell_has_light_figures():
  section = page.Section(
    "Matrix", lines=[("", "a", "b"), ("a", "9", "")], shades=[[1.0, 0.0]]
  )
  text = page.render("t", [], [], [section], {"arms": {}, "runs": []})
  assert '<td class="shade-20">9</td>' in text
  dark = "rgb(var(--shade) / 1.00); color: var(--on-shade)"
  assert f".shade-20 {{ background: {dark} }}" in text
  assert "<td></td>" in text
