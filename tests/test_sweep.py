"""Checks the sweep with a trainer that does only what the test says."""

import errno
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap

import pytest

from ws_jax import config
from ws_jax.sweep import arms, grid, rows, runner
from ws_jax.train import loop

ROOT = pathlib.Path(__file__).parents[1]


def quiet(*_):
  pass


class Trainer:
  """A trainer that trains nothing, and remembers which runs it was given.

  Args:
    ends: Seed of a run -> exception that the run ends with.
  """

  def __init__(self, ends=None):
    self.ends = ends or {}
    self.seen = []

  def __call__(self, c, workdir):
    self.seen.append((c.model.norm, c.optim.learning_rate, c.seed))
    if c.seed in self.ends:
      raise self.ends[c.seed]
    status = {
      "status": "done",
      "step": 7,
      "reason": None,
      "seconds": {"compile": 1.0, "train": 2.5, "eval": 0.5},
      "versions": {"jax": "0.10.2"},
      "device": "1 x cpu",
      "commit": "12e4567",
    }
    (pathlib.Path(workdir) / "status.json").write_text(json.dumps(status))
    return {"eval/accuracy": 0.5 + c.seed / 100}


def run(out, overrides, train_fn, **kwargs):
  return runner.run_sweep(
    config.default(), overrides, out, train_fn=train_fn, notify=quiet, **kwargs
  )


def seeds(*values):
  return list(grid.product(seed=values))


def test_row_has_the_facts_of_its_run(tmp_path):
  point = {"model.norm": "batch", "optim.learning_rate": 0.4, "seed": 2}
  point["data.batch_size"] = 64
  run(tmp_path, [point], Trainer())
  (row,) = rows.read(tmp_path / "runs.csv")
  expected = {
    "key": json.dumps(point, sort_keys=True, separators=(",", ":")),
    "run": "norm=batch,learning_rate=0.4,seed=2,batch_size=64",
    "status": "done",
    "step": 7,
    "reason": None,
    "model.norm": "batch",
    "model.ws": True,
    "optim.learning_rate": 0.4,
    "data.batch_size": 64,
    "optimizer_batch": 64,
    "normalization_batch": 64,
    "micro_batch": 64,
    "eval/accuracy": 0.52,
    "seconds.compile": 1.0,
    "versions.jax": "0.10.2",
    "device": "1 x cpu",
    "commit": "12e4567",  # Not the number 12 with 4567 zeros.
  }
  assert {name: row[name] for name in expected} == expected


def test_normalization_batch_is_that_of_the_statistics():
  facts = {"data.batch_size": 128, "optim.micro_batch_size": 32}
  make = lambda **more: rows.make(
    "{}", "base", {}, facts | more, {"status": ""}
  )
  batch = make(**{"model.norm": "batch", "model.norm_batch_size": 8})
  assert batch["normalization_batch"] == 8 and batch["micro_batch"] == 32
  batch = make(**{"model.norm": "batch", "model.norm_batch_size": None})
  assert batch["normalization_batch"] == 32
  # GroupNorm normalizes one example at a time, whatever the key says.
  group = make(**{"model.norm": "group", "model.norm_batch_size": 32})
  assert group["normalization_batch"] == 1 and group["optimizer_batch"] == 128


def test_arms_are_named_by_what_is_done_to_the_weights(tmp_path):
  names = {
    "BN": ("batch", False, "bit", False),
    "BN+WS": ("batch", True, "bit", False),
    "GN": ("group", False, "center", False),  # a convention that is not used
    "GN+WS": ("group", True, "qiao", None),
    "GN+mean": ("group", True, "center", False),
    "GN+std": ("group", True, "scale", False),
    "GN+GC": ("group", False, "bit", True),
    "GN+WS+GC": ("group", True, "bit", True),
    "GC": ("none", False, "bit", True),
  }
  facts = ("model.norm", "model.ws", "model.ws_convention", "optim.centralize")
  path = tmp_path / "runs.csv"
  for name, values in names.items():
    config = dict(zip(facts, values, strict=True))
    rows.append(path, rows.make(name, name, {}, config, {"status": "done"}))
  assert [arms.arm_of(row) for row in rows.read(path)] == list(names)


def test_overrides_of_an_arm_make_runs_of_that_name():
  for name, overrides in arms.ARMS.items():
    base = config.default()
    if name == "plain":  # a model that brings its own norm
      config.apply(base, {"model.name": "tests.my_lab:Net"})
    flat = config.flatten(config.apply(base, overrides))
    assert arms.arm_of(flat) == name
  assert arms.in_order(reversed(arms.ARMS)) == [*arms.ARMS]


def test_rows_of_older_files_have_arms_too():
  files = [rows.read(p) for p in (ROOT / "experiments").glob("*/runs.csv")]
  older = [
    r
    for file in files
    for r in file
    if "optim.centralize" not in r and "model.ws" in r
  ]
  assert older
  for row in older:
    assert arms.arm_of(row) == arms.arm(row["model.norm"], row["model.ws"])


def test_row_tells_the_best_evaluation_and_how_far_it_was_to_go():
  config = {"train.steps": 300, "train.epochs": 2.5, "data.batch_size": 8}
  history = [
    {"step": 100, "eval/accuracy": 0.7, "eval/loss": 2.0},
    {"step": 150, "train/accuracy": 0.9},
    {"step": 200, "eval/accuracy": 0.8, "eval/loss": math.nan},
    {"step": 300, "eval/accuracy": 0.8, "eval/loss": 1.0},
  ]
  make = lambda lines: rows.make("", "", {}, config, {"status": ""}, lines)
  row = make(history)
  assert (row["steps"], row["epochs"]) == (300, 2.5)
  assert (row["best_step"], row["best/eval/accuracy"]) == (200, 0.8)
  # Without an accuracy the lowest loss counts.
  losses = [{k: v for k, v in x.items() if "acc" not in k} for x in history]
  row = make(losses)
  assert (row["best_step"], row["best/eval/loss"]) == (300, 1.0)
  assert "best_step" not in make(history[1:2])


def test_every_end_is_a_row_and_the_sweep_goes_on(tmp_path):
  trainer = Trainer(
    {0: loop.Diverged(12, "loss is inf"), 1: RuntimeError("out of\nmemory")}
  )
  got = run(tmp_path, seeds(0, 1, 2), trainer)
  assert [row["status"] for row in got] == ["diverged", "failed", "done"]
  assert got[0]["step"] == 12 and got[0]["reason"] == "loss is inf"
  assert got[1]["reason"] == "RuntimeError: out of"
  error = (tmp_path / "seed=1" / "error.txt").read_text()
  assert "Traceback" in error and "memory" in error


def test_sweep_goes_on_where_a_reason_cannot_be_printed(tmp_path):
  code = """
    import pathlib, sys
    from ws_jax import config
    from ws_jax.sweep import runner

    def train_fn(c, workdir):
      raise ValueError("\\u2264 3 \\xb5s")  # ASCII, as it is an argument

    points, out = [{"seed": 0}, {"seed": 1}], pathlib.Path(sys.argv[1])
    runner.run_sweep(config.default(), points, out, train_fn=train_fn)
  """
  env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
  process = python(code, tmp_path, stdout=subprocess.PIPE, env=os.environ | env)
  said, _ = process.communicate(timeout=300)
  assert process.returncode == 0
  assert said.count(r"failed, 0 s: ValueError: \u2264 3 \xb5s") == 2
  reasons = {row["reason"] for row in rows.read(tmp_path / "runs.csv")}
  assert reasons == {"ValueError: ≤ 3 µs"}
  text = (tmp_path / "seed=0" / "error.txt").read_text(encoding="utf-8")
  assert "ValueError: ≤ 3 µs" in text


def test_finished_runs_are_not_repeated(tmp_path):
  ends = {0: loop.Diverged(1, "inf"), 1: RuntimeError("broken")}
  run(tmp_path, seeds(0, 1, 2), Trainer(ends))
  again = Trainer()
  run(tmp_path, seeds(0, 1, 2, 3), again)
  assert [seed for _, _, seed in again.seen] == [3]
  # A failed run is repeated only on request, and its row is replaced.
  got = run(tmp_path, seeds(0, 1, 2, 3), again, retry_failed=True)
  assert [seed for _, _, seed in again.seen] == [3, 1]
  assert [row["status"] for row in got] == ["diverged", "done", "done", "done"]
  assert len(rows.read(tmp_path / "runs.csv")) == 4


def test_interrupted_run_is_recorded_ends_the_sweep_and_is_run_again(tmp_path):
  stop = loop.Interrupted(5, signal.SIGTERM)
  with pytest.raises(loop.Interrupted):
    run(tmp_path, seeds(0, 1, 2), Trainer({1: stop}))
  got = {row["seed"]: row["status"] for row in rows.read(tmp_path / "runs.csv")}
  assert got == {0: "done", 1: "interrupted"}
  trainer = Trainer()
  got = run(tmp_path, seeds(0, 1, 2), trainer)
  assert [seed for _, _, seed in trainer.seen] == [1, 2]
  assert [row["status"] for row in got] == ["done"] * 3


def test_limit_counts_the_runs_of_this_call(tmp_path):
  trainer = Trainer()
  assert len(run(tmp_path, seeds(0, 1, 2), trainer, limit=2)) == 2
  assert len(run(tmp_path, seeds(0, 1, 2), trainer, limit=2)) == 3
  assert len(trainer.seen) == 3


def test_base_config_is_not_changed_from_run_to_run(tmp_path):
  trainer = Trainer()
  points = [{"optim.learning_rate": 0.5}, {"seed": 1}]
  run(tmp_path, points, trainer)
  assert trainer.seen == [("group", 0.5, 0), ("group", None, 1)]


def test_misspelt_override_ends_it_before_the_first_run(tmp_path):
  trainer = Trainer()
  points = [{"seed": 1}, {"optim.learning_rat": 0.1}]
  with pytest.raises(ValueError, match="did you mean 'optim.learning_rate'"):
    run(tmp_path, points, trainer)
  assert not trainer.seen


def test_value_of_a_wrong_type_ends_it_before_the_first_run(tmp_path):
  trainer = Trainer()
  with pytest.raises(ValueError, match="train.epochs"):
    run(tmp_path, [{"seed": 1}, {"train.epochs": "ten"}], trainer)
  assert not trainer.seen and not list(tmp_path.iterdir())


def test_missing_data_end_it_before_the_first_run(tmp_path):
  trainer = Trainer()
  points = [{"data.name": "cifar10", "data.dir": str(tmp_path / "none")}]
  with pytest.raises(ValueError, match="cifar10"):
    run(tmp_path / "out", points, trainer)
  assert not trainer.seen


def test_folder_of_another_base_config_is_refused(tmp_path):
  run(tmp_path, seeds(0), Trainer())
  other = config.apply(config.default(), {"train.epochs": 9.0})
  with pytest.raises(ValueError, match=r"train\.epochs: 5\.0 -> 9\.0"):
    runner.run_sweep(
      other, seeds(0), tmp_path, train_fn=Trainer(), notify=quiet
    )


def test_a_full_disk_ends_the_sweep_and_fails_no_run(tmp_path):
  def train(config, workdir):
    raise OSError(errno.ENOSPC, "No space left on device", workdir)

  with pytest.raises(OSError, match="No space left"):
    runner.run_sweep(
      config.default(), seeds(0, 1), tmp_path, train_fn=train, notify=quiet
    )
  (row,) = rows.read(tmp_path / "runs.csv")
  assert (row["run"], row["status"]) == ("seed=0", "interrupted")
  assert len(run(tmp_path, seeds(0, 1), Trainer())) == 2


def test_a_key_that_is_newer_than_the_folder_is_no_other_config(tmp_path):
  """Each upgrade that added a key ended the sweeps that were under way."""
  run(tmp_path, seeds(0), Trainer())
  path = tmp_path / "base_config.json"
  saved = json.loads(path.read_text())
  saved["data.flip"] = saved.pop("task.flip")  # its old name
  del saved["optim.b2"], saved["data.crop_area"]
  path.write_text(json.dumps(saved))
  trainer = Trainer()
  run(tmp_path, seeds(0, 1), trainer)
  assert len(trainer.seen) == 1
  assert runner.base_config(tmp_path)["optim.b2"] == 0.999
  other = config.apply(config.default(), {"optim.b2": 0.9})
  with pytest.raises(ValueError, match=r"optim\.b2: 0\.999 -> 0\.9\b"):
    runner.run_sweep(
      other, seeds(0), tmp_path, train_fn=Trainer(), notify=quiet
    )


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"seed": "x"}'])
def test_a_damaged_base_config_is_named_with_the_remedy(tmp_path, text):
  run(tmp_path, seeds(0), Trainer())
  (tmp_path / "base_config.json").write_text(text)
  with pytest.raises(ValueError, match=r"base_config\.json.*delete"):
    run(tmp_path, seeds(0), Trainer())


def test_a_row_may_bring_new_columns(tmp_path):
  path = tmp_path / "runs.csv"
  rows.append(path, {"key": "a", "x": 1.5, "reason": 'a "b", c\nd'})
  rows.append(path, {"key": "b", "y": False})
  assert rows.read(path) == [
    {"key": "a", "x": 1.5, "reason": 'a "b", c\nd', "y": None},
    {"key": "b", "x": None, "reason": None, "y": False},
  ]
  left = {p.name for p in tmp_path.iterdir()}
  assert left <= {"runs.csv", ".runs.csv.lock"}


def test_a_row_costs_the_same_however_many_there_are(tmp_path, monkeypatch):
  """Regression: each run parsed all rows of the sweep four times."""
  parse, parsed = rows._parse, []
  monkeypatch.setattr(
    rows, "_parse", lambda *cell: parsed.append(cell) or parse(*cell)
  )
  got = run(tmp_path, seeds(*range(24)), Trainer())
  # Twice to see that no run is left, and once to return the rows.
  assert len(parsed) == 3 * 24 * len(got[0])
  path = tmp_path / "runs.csv"
  added = path.read_bytes()
  rows.write(path, rows.read(path))
  assert path.read_bytes() == added


@pytest.mark.slow
def test_two_thousand_runs_need_no_more_than_two_hundred(tmp_path):
  seen = []

  def notify(_, row):
    if row and row["seed"] in (200, 1999):
      pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
      files = len(os.listdir("/proc/self/fd"))
      seen.append((int(pages) * os.sysconf("SC_PAGE_SIZE"), files))

  trainer = Trainer()
  runner.run_sweep(
    config.default(),
    seeds(*range(2000)),
    tmp_path,
    train_fn=trainer,
    notify=notify,
  )
  assert len(rows.read(tmp_path / "runs.csv")) == len(trainer.seen) == 2000
  (memory, files), (later, files_later) = seen
  assert files_later == files
  # The file of rows has 1 MB, and is in memory twice while it is written.
  assert later - memory < 2**24


@pytest.mark.parametrize(
  ("kept", "named"),
  [
    *((b'"{""se', "row 3"), (b'"{""seed"":2}",se', "row 3")),
    *((b'"{""seed"":2}",seed=2,d', "seed=2"), (0.6, "seed=2"), (1, "seed=2")),
  ],
)
def test_row_that_is_cut_short_is_named_and_its_run_is_not_finished(
  tmp_path, kept, named
):
  """Regression: such a row counted as finished, with blank metrics."""
  run(tmp_path, seeds(0, 1, 2), Trainer())
  path = tmp_path / "runs.csv"
  head, last = path.read_bytes().rstrip().rsplit(b"\n", 1)
  if isinstance(kept, bytes):
    assert last.startswith(kept)
    last = kept
  else:
    last = last[: round(kept * len(last))]
  path.write_bytes(head + b"\n" + last)
  assert rows.incomplete(path) == [named]
  assert [row["seed"] for row in rows.read(path)] == [0, 1]
  again = Trainer()
  got = run(tmp_path, seeds(0, 1, 2), again)
  # Its folder says that it is done: it gets a row and is not trained again.
  assert [row["status"] for row in got] == ["done"] * 3
  assert not again.seen and rows.incomplete(path) == []


def test_row_that_is_cut_within_a_letter_can_be_read(tmp_path):
  path = tmp_path / "runs.csv"
  rows.append(path, {"key": "{}", "run": "base", "reason": "≤ 3"})
  content = path.read_bytes()
  path.write_bytes(content[: content.index("≤".encode()) + 1])
  assert rows.read(path) == [] and rows.incomplete(path) == ["base"]
  path.write_bytes("key,reason\n1,Größe\n".encode("latin-1"))
  with pytest.raises(ValueError, match=r"runs\.csv is not UTF-8"):
    rows.read(path)


def python(code, *args, **kwargs):
  return subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
    cwd=ROOT,
    text=True,
    **kwargs,
  )


def test_rows_of_writers_at_the_same_time_are_all_kept(tmp_path):
  code = """
    import pathlib, sys
    from ws_jax.sweep import rows
    for i in range(40):
      rows.append(pathlib.Path(sys.argv[1]), {"key": f"{sys.argv[2]}-{i}"})
  """
  path = tmp_path / "runs.csv"
  writers = [python(code, path, name) for name in "ab"]
  # Meanwhile every read sees whole rows.
  while any(writer.poll() is None for writer in writers):
    assert all(row["key"][1] == "-" for row in rows.read(path))
  assert [writer.wait() for writer in writers] == [0, 0]
  keys = {row["key"] for row in rows.read(path)}
  assert keys == {f"{name}-{i}" for name in "ab" for i in range(40)}


# Runs a sweep in a process of its own. Argument 2 says what run 2 does to it.
_SWEEP = """
  import json, os, pathlib, signal, sys
  from ws_jax import config
  from ws_jax.sweep import grid, runner

  out, how = pathlib.Path(sys.argv[1]), sys.argv[2]

  def train_fn(c, workdir):
    with (out / "began").open("a") as file:
      file.write(f"{c.seed}\\n")
    if c.seed == 2 and how == "in the run":
      os.kill(os.getpid(), signal.SIGKILL)
    if c.seed == 2 and how == "term":
      os.kill(os.getpid(), signal.SIGTERM)
    status = {"status": "done", "metrics": {"eval/accuracy": 0.5}}
    (pathlib.Path(workdir) / "status.json").write_text(json.dumps(status))
    if c.seed == 2 and how == "before its row":
      os.kill(os.getpid(), signal.SIGKILL)
    return status["metrics"]

  points = grid.product(seed=range(4))
  runner.run_sweep(config.default(), points, out, train_fn=train_fn)
"""


@pytest.mark.parametrize(
  ("how", "code", "began"),
  [
    ("in the run", -signal.SIGKILL, [0, 1, 2, 2, 3]),
    ("before its row", -signal.SIGKILL, [0, 1, 2, 3]),
    # Python ends like this on a KeyboardInterrupt that nobody catches.
    ("term", -signal.SIGINT, [0, 1, 2, 2, 3]),
  ],
)
def test_killed_sweep_goes_on_without_repeating(tmp_path, how, code, began):
  first = python(_SWEEP, tmp_path, how, stderr=subprocess.PIPE)
  _, err = first.communicate(timeout=300)
  assert first.returncode == code, err
  kept = {r["seed"]: r["status"] for r in rows.read(tmp_path / "runs.csv")}
  assert kept == {0: "done", 1: "done"} | (
    {2: "interrupted"} if how == "term" else {}
  )
  assert python(_SWEEP, tmp_path, "nothing").wait(timeout=300) == 0
  got = rows.read(tmp_path / "runs.csv")
  assert sorted(row["seed"] for row in got) == [0, 1, 2, 3]
  assert {row["status"] for row in got} == {"done"}
  assert {row["eval/accuracy"] for row in got} == {0.5}
  lines = (tmp_path / "began").read_text().split()
  assert [int(line) for line in lines] == began


def script(*args, cwd=ROOT):
  return subprocess.run(
    [sys.executable, str(ROOT / "scripts" / "sweep.py"), *args],
    cwd=cwd,
    capture_output=True,
    text=True,
    # Otherwise Python would write bytecode beside an experiment.
    env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
  )


def test_plan_is_printed_from_any_folder(tmp_path):
  experiment = ROOT / "experiments" / "quickstart.py"
  done = script(f"--experiment={experiment}", "--plan", cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert "6 runs, 3 compiles" in done.stdout
  assert list(tmp_path.iterdir()) == []


def test_dry_run_says_how_long_it_takes(tmp_path):
  experiment = tmp_path / "tiny.py"
  experiment.write_text(
    "CONFIG = 'configs/fashion_mnist_10k.py:model.name=resnet8,width=0.25,'"
    " 'num_groups=2,batch_size=16,train.steps=50,eval_every_steps=20'\n"
    "sweep = lambda: [{'seed': seed} for seed in range(3)]\n"
  )
  done = script(f"--experiment={experiment}", "--dry_run", cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  found = re.search(
    r"50 steps of (\S+) s, 3 evaluations of (\S+) s, compiling (\S+) s:"
    r" 0:(\d\d):(\d\d)\n3 runs, 1 compiles\nabout 0:\4:\5 with 1 worker\n",
    done.stdout,
  )
  assert found, done.stdout
  step, evaluation, compiling, minutes, seconds = map(float, found.groups())
  total = compiling + 3 * (50 * step + 3 * evaluation)
  assert 60 * minutes + seconds == pytest.approx(total, rel=0.02, abs=1)
  assert [path.name for path in tmp_path.iterdir()] == ["tiny.py"]


def test_sweep_stops_when_its_time_is_up(tmp_path):
  experiment = ROOT / "experiments" / "quickstart.py"
  out = tmp_path / "out"
  done = script(
    f"--experiment={experiment}",
    f"--out={out}",
    "--max_hours=0",
    "--filter=norm=batch",
  )
  assert done.returncode == 130, done.stderr
  # A report must know of the runs that the filter left out, too.
  planned = json.loads((out / "plan.json").read_text())
  assert len(planned) == 6 and any("group" in key for key in planned)
  assert "stopped (SIGTERM)" in done.stdout
  assert "the same command goes on" in done.stdout


def test_mistakes_on_the_command_line_are_one_clear_line():
  done = script("--experiment=experiments/quikstart.py")
  assert done.returncode == 2
  assert "did you mean 'quickstart'?" in done.stdout
  assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
  ("base", "sweep", "message"),
  [
    ("'configs/cifar10.py'", "lambda: None", "not None"),
    ("3", "lambda: []", "CONFIG is an int, and must be the path"),
    ("'configs/cifar10.py'", "[]", "sweep is a list, and must be a function"),
    (
      "'configs/cifar10.py'",
      "lambda: [{'train.epochs': 'ten'}]",
      "train.epochs",
    ),
    (
      "'configs/cifar10.py'",
      "lambda: [{'optim.learning_rate': '0.1'}]",
      "takes a number",
    ),
    (
      "'configs/cifar10.py'",
      "lambda: [{'seed': 1}, {'seed': -1}]",
      "seed=-1 must be",
    ),
    (
      "'configs/cifar10.py'",
      "lambda: [{'trin.epochs': 1.0}]",
      "did you mean 'train.epochs'?",
    ),
  ],
)
def test_plan_refuses_an_experiment_that_is_wrong(
  tmp_path, base, sweep, message
):
  (tmp_path / "wrong.py").write_text(f"CONFIG = {base}\nsweep = {sweep}\n")
  done = script(f"--experiment={tmp_path / 'wrong.py'}", "--plan")
  assert done.returncode == 2, done.stderr
  assert done.stdout.startswith("error: ") and message in done.stdout
  assert done.stdout.count("\n") == 1 and "Traceback" not in done.stderr
