"""What runs and sweeps leave: tables, JSON files, the texts of a report."""

import collections
import html.parser
import json
import pathlib
from typing import Any
from unittest import mock

from hypothesis import strategies as st

from fuzzing import inputs
from fuzzing import weights as weights_kinds
from fuzzing.inputs import JSON, TEXTS, Made, changed, damaged, one_line
from ws_jax import config, report, weights
from ws_jax.base import disk
from ws_jax.report import headline, reading
from ws_jax.report import page as page_lib
from ws_jax.sweep import grid, runner
from ws_jax.sweep import rows as rows_lib
from ws_jax.train import history, record, trained

_DATA = {
  "name": "x",
  "num_classes": 4,
  "input_shape": [6, 6, 1],
  "train_size": 12,
  "eval_size": 8,
  "input_key": "image",
  "label_key": "label",
  "input_dtype": "uint8",
  "classes": list("abcd"),
  "tokenizer": "",
  "groups": [],
  "group_key": "",
  "mean": [0.5],
  "std": [0.2],
}


def _sweep(out: pathlib.Path) -> None:
  """Writes a tiny sweep as its command leaves it."""
  out.mkdir()
  base = config.flatten(config.default())
  disk.write_json(out / "base.json", base)
  axes = {"optim.learning_rate": [0.1, 0.2], "seed": [0, 1]}
  arms = [{"model.norm": "group"}, {"model.norm": "batch", "model.ws": False}]
  plan = grid.plan(grid.product(arms, **axes))
  table = []
  for run in plan:
    rate, seed = run.overrides["optim.learning_rate"], run.overrides["seed"]
    score = {"eval/accuracy": 0.5 + rate + 0.01 * seed, "eval/loss": 1 - rate}
    status = {
      "status": "done",
      "step": 8,
      "metrics": score,
      "seconds": {"train": 1.0, "compile": 2.0},
      "versions": {"jax": "0.10.2"},
      "device": "1 x cpu",
      "metric": {"name": "accuracy", "goal": "max", "unit": "%"},
      "data": _DATA,
      "mixed": ["devices"],
    }
    lines = [{"step": i, "train/loss": 2.0 / i} | score for i in (1, 4, 8)]
    workdir = out / run.name
    workdir.mkdir()
    text = "".join(disk.to_json(line) + "\n" for line in lines)
    (workdir / "metrics.jsonl").write_text(text)
    disk.write_json(workdir / "status.json", status)
    disk.write_json(workdir / "config.json", config.default().to_dict())
    values = base | run.overrides
    table.append(
      rows_lib.make(run.key, run.name, run.overrides, values, status, lines)
    )
  disk.write_json(out / "plan.json", [run.key for run in plan])
  rows_lib.write(out / "runs.csv", table)


def _report(out: pathlib.Path) -> None:
  """Writes a report without drawing, which takes seconds."""
  drawn = page_lib.Picture("", "<svg/>", "<svg/>")
  with (
    one_line(ValueError, OSError),
    mock.patch.object(report, "_save", return_value=drawn),
  ):
    report.write(out, out / "report", formats=[])


def rows(folder: pathlib.Path) -> Made:
  """Makes tables of a sweep, `runs.csv`: read, added to, reported on."""
  out = folder / "sweep"
  _sweep(out)
  path = out / "runs.csv"
  whole, entries = path.read_bytes(), rows_lib.read(path)
  columns = [*entries[0]]
  cells = TEXTS | JSON.map(json.dumps)

  @st.composite
  def edited(draw):
    table = [dict(entry) for entry in entries]
    for _ in range(draw(st.integers(1, 4))):
      name = draw(st.sampled_from(columns) | TEXTS)
      if draw(st.integers(0, 9)):
        entry = table[draw(st.integers(0, len(table) - 1))]
        entry[name] = draw(cells)
      else:
        for entry in table:
          entry.pop(name, None)
    names = list(dict.fromkeys(name for entry in table for name in entry))
    head = dict(zip(names, names, strict=True))
    return rows_lib._csv(names, [head, *table]).encode("utf-8", "replace")

  def case(data):
    path.write_bytes(data)
    _report(out)
    with one_line(ValueError, OSError):
      rows_lib.incomplete(path)
      rows_lib.append(path, entries[0])
      read = rows_lib.read_runs(path)
      assert entries[0]["key"] in [row["key"] for row in read]

  return damaged(whole) | edited(), case


def jsons(folder: pathlib.Path) -> Made:
  """Makes the JSON files of runs and sweeps that are read again."""
  out = folder / "sweep"
  _sweep(out)
  run = next(path for path in sorted(out.iterdir()) if path.is_dir())
  (run / "checkpoints" / "8").mkdir(parents=True)
  chosen = config.resolve(config.default(), num_examples=100, num_devices=1)
  readers = {
    run / "status.json": ["load", "resume", "row"],
    run / "config.json": ["load", "resume", "weights"],
    run / "metrics.jsonl": ["row", "report"],
    out / "plan.json": ["report"],
    out / "base.json": ["base", "report"],
  }
  made = []
  for path, names in readers.items():
    content = path.read_text()
    lines = path.suffix == ".jsonl"
    value = [*map(json.loads, content.splitlines())] if lines else content
    value = value if lines else json.loads(content)
    texts = changed(value).map(inputs.as_lines if lines else inputs.as_json)
    contents = texts | texts | damaged(content.encode()) | inputs.DEEP
    reader = st.sampled_from(names)
    made.append(st.tuples(st.just(path), contents, reader))

  def case(value):
    path, content, reader = value
    before = path.read_bytes()
    path.write_bytes(content)
    try:
      if reader == "report":
        _report(out)
      elif reader == "weights":
        weights_kinds.run("describe", run, lines=2)
      else:
        with one_line(ValueError, OSError):
          _READERS[reader](run, chosen)
    finally:
      path.write_bytes(before)
      disk.write_json(run / "status.json", json.loads(status))

  status = (run / "status.json").read_text()
  for path, names in readers.items():
    for name in names:  # what is whole is read, to the end of each reader
      case((path, path.read_bytes(), name))
  return st.one_of(made), case


def _load(run: pathlib.Path, chosen: Any) -> None:
  """Makes a trained run of what is said of it."""
  del chosen
  read = ({"params": {}}, run / "checkpoints" / "8")
  with mock.patch.object(weights, "read_checkpoint", return_value=read):
    trained.load_run(run)


def _resume(run: pathlib.Path, chosen: Any) -> None:
  """Goes on with a run, without its writers."""
  again = record.Run(
    run,
    chosen,
    may_change=[*config.flatten(chosen)],
    about={},
    clock=mock.Mock(seconds=collections.Counter()),
  )
  try:
    with (
      mock.patch.object(record, "Progress"),
      mock.patch.object(history, "Events"),
    ):
      again.start(4)
    again.status("interrupted")
  finally:
    again.close()


def _row(run: pathlib.Path, chosen: Any) -> None:
  """Makes the row of a run that has ended."""
  del chosen
  status = rows_lib.status_of(run) | {"status": "done"}
  lines = record.read_metrics(run)
  rows_lib.make("{}", run.name, {}, {}, status, lines)


_READERS = {
  "load": _load,
  "resume": _resume,
  "row": _row,
  "base": lambda run, chosen: runner.base_config(run.parent),
}


def page(folder: pathlib.Path) -> Made:
  """Makes texts at every place of a page: none becomes HTML or an address."""
  plain = _elements(everywhere("plain"))
  shape = lambda page: [(tag, {*own} - {"class"}) for tag, own in page]

  def case(text):
    text = reading.legible(text) or "x"
    found = _elements(everywhere(text))
    assert shape(found) == shape(plain), text
    for (_, own), (_, before) in zip(found, plain, strict=True):
      for name in own.keys() - {"class"}:  # a number stands on the right
        wanted = before[name]
        if name in ("alt", "href"):
          wanted = wanted.replace("plain", text)
        assert own[name] == wanted, (name, own[name])
    run = folder / text.replace("/", "_").replace("\0", "")
    (link,) = report._links({"run": run}, folder).values()
    assert link.isascii() and not {*link} & {*"<>\"'&: \n"}, link

  return st.lists(TEXTS, min_size=1, max_size=4).map("".join), case


def _elements(content: str) -> list[tuple[str, dict[str, str]]]:
  """Returns the elements of a page with their attributes."""
  found = []

  class Parser(html.parser.HTMLParser):
    def handle_starttag(self, tag, attrs):
      found.append((tag, {name: value or "" for name, value in attrs}))

  parser = Parser()
  parser.feed(content)
  parser.close()
  return found


def everywhere(text: str) -> str:
  """Returns a page that has the text at every place of one."""
  picture = page_lib.Picture(text, "<svg/>", "<svg/>")
  lines = [("a", text), (text, text)]
  sections = [
    page_lib.Section("Table", [text], [picture], lines, [text]),
    page_lib.Section("Folded", lines=[(text, "b"), (text, text)], folded=True),
    page_lib.Section(
      "Matrix", lines=[("", text), (text, text)], shades=[[0.5]]
    ),
  ]
  run = {"run": text, "arm": text, "values": [text], "href": text}
  curves = {"arms": {text: {}}, "fields": [text], "metrics": [text]}
  return page_lib.render(
    text,
    [text],
    [text],
    sections,
    curves | {"runs": [run]},
    headline.Headline(text, text),
  )
