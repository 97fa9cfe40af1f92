"""Shows where classifiers are wrong: in which classes, and in which groups.

A group is what the data know beside the class, such as the speaker of a clip.
Everything comes from `predictions.npz` of the runs at the best rates; tasks
that do not classify have none.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ws_jax.report import page, tables
from ws_jax.report.summary import Results
from ws_jax.sweep.rows import Row
from ws_jax.train import predictions
from ws_jax.train.predictions import Predictions

_MOST_FREQUENT = 15
# A matrix of more classes cannot be read on a screen.
_MOST_CLASSES = 60


class Mistakes(NamedTuple):
  """The answers of the runs at the best rates.

  Attributes:
    of: Arm, setting and rate of the best cell, in words.
    seeds: Number of its runs, whose confusions are added up.
    classes: Names of the classes.
    confusion: Number of examples by class and answer, `[classes, classes]`.
    group_key: Word for a group, such as "speaker".
    groups: For each arm in the setting of the best cell, the accuracies of its
      runs in each group: arm -> group -> one for each seed.
  """

  of: str
  seeds: int
  classes: Sequence[str]
  confusion: np.ndarray
  group_key: str
  groups: Mapping[str, Mapping[str, Sequence[float]]]


def read(
  results: Results, folders: Mapping[str, pathlib.Path]
) -> Mistakes | None:
  """Returns what the best runs of a sweep answered; None if nothing was kept.

  Args:
    results: Results of the sweep.
    folders: Folder of each run that has one, by the name of the run.
  """
  metric = results.metric
  entries = [entry for entry in results.best if entry[metric.name] is not None]
  if not entries:
    return None
  best = max(entries, key=lambda entry: metric.sign * entry[metric.name])
  setting = results.setting(best)
  kept = {
    entry["arm"]: _kept(results.at_best(entry), folders)
    for entry in results.at(entries, setting)
  }
  own = kept[best["arm"]]
  if not own:
    return None
  groups = {
    arm: _by_group(some) for arm, some in kept.items() if _by_group(some)
  }
  rate = tables.text(best["learning_rate"])
  words = tables.setting_of(setting, results.kept)
  return Mistakes(
    ", ".join(filter(None, [best["arm"], words, f"learning rate {rate}"])),
    len(own),
    own[0].classes,
    np.sum([one.confusion for one in own], axis=0),
    own[0].group_key,
    groups,
  )


def _kept(
  rows: Sequence[Row], folders: Mapping[str, pathlib.Path]
) -> list[Predictions]:
  found = (
    predictions.read(folders[row["run"]])
    for row in rows
    if row["run"] in folders
  )
  return [one for one in found if one is not None]


def _by_group(runs: Sequence[Predictions]) -> dict[str, list[float]]:
  """Returns the accuracies of each group, one for each run."""
  accuracies: dict[str, list[float]] = {}
  for run in runs:
    for name, (right, count) in run.by_group.items():
      accuracies.setdefault(name, []).append(right / count)
  return accuracies


def tables_of(found: Mistakes) -> dict[str, tables.Lines]:
  """Returns the tables of mistakes, by the name of their file."""
  result = {}
  if found.groups:
    result["groups"] = _groups(found)
  frequent = _frequent(found)
  if len(frequent) > 1:
    result["confusions"] = frequent
  return result


def _groups(found: Mistakes) -> tables.Lines:
  """Returns the table of the accuracy of each group, with a column an arm."""
  arms = list(found.groups)
  names = dict.fromkeys(name for arm in arms for name in found.groups[arm])
  lines: tables.Lines = [(found.group_key, *(f"{arm} %" for arm in arms))]
  for name in names:
    words = [_percent(found.groups[arm].get(name, ())) for arm in arms]
    lines.append((name, *words))
  return lines


def _percent(values: Sequence[float]) -> str:
  if not values:
    return "-"
  mean = f"{100 * float(np.mean(values)):.1f}"
  if len(values) < 2:
    return mean
  return f"{mean} ± {100 * float(np.std(values, ddof=1)):.1f}"


def _frequent(found: Mistakes) -> tables.Lines:
  """Returns the table of the most frequent confusions, the worst first."""
  wrong = found.confusion * (1 - np.eye(len(found.classes), dtype=int))
  lines: tables.Lines = [("class", "taken for", "times", "% of its examples")]
  order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_FREQUENT]
  for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True):
    count, of = wrong[row, column], found.confusion[row].sum()
    if count:
      names = found.classes[row], found.classes[column]
      lines.append((*names, str(count), f"{100 * count / of:.1f}"))
  return lines


def sections(
  found: Mistakes, texts: Mapping[str, tables.Lines]
) -> list[page.Section]:
  """Returns the sections of the page.

  Args:
    found: Answers of the runs at the best rates.
    texts: Tables, as `tables_of` returns them.
  """
  seeds = "one run" if found.seeds == 1 else f"{found.seeds} runs added up"
  result = []
  if "groups" in texts:
    result.append(
      page.Section(
        f"Accuracy of each {found.group_key}",
        [
          f"Accuracy of the examples of each {found.group_key}, each arm at its"
          " best learning rate: mean and standard deviation over seeds."
        ],
        lines=texts["groups"],
      )
    )
  if "confusions" in texts:
    result.append(
      page.Section(
        "Most frequent confusions",
        [f"Of {found.of}, {seeds}."],
        lines=texts["confusions"],
      )
    )
  if len(found.classes) <= _MOST_CLASSES:
    result.append(_matrix(found, seeds))
  return result


def _matrix(found: Mistakes, seeds: str) -> page.Section:
  """Returns the section of the confusion matrix."""
  share = found.confusion / np.maximum(found.confusion.sum(1, keepdims=True), 1)
  right = int(np.trace(found.confusion))
  lines = [("class", *found.classes)]
  for name, counts in zip(found.classes, found.confusion, strict=True):
    lines.append((name, *(str(count) if count else "" for count in counts)))
  return page.Section(
    "Confusion matrix",
    [
      f"Of {found.of}, {seeds}: {right:,} of {found.confusion.sum():,} examples"
      " are right. A row is a class, a column an answer; a cell says how many"
      " examples of the class got that answer. Empty: none did. The darker a"
      " cell, the larger its part of the row."
    ],
    lines=lines,
    shades=share.tolist(),
  )
