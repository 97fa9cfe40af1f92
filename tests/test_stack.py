"""Several runs in one program leave what each alone would."""

import json
import os
import signal

import jax
import numpy as np
import pytest

from ws_jax import config
from ws_jax.base import disk
from ws_jax.sweep import rows, runner
from ws_jax.train import build, checkpoint, loop, record, stack

SMALL = {
  "data.name": "tests.my_lab:make_data",
  "data.batch_size": 16,
  "data.eval_batch_size": 16,
  "optim.micro_batch_size": 8,
  "optim.ema_decay": 0.9,
  "train.steps": 12,
  "train.log_every_steps": 4,
  "train.eval_every_steps": 6,
  "train.checkpoint_every_steps": 6,
  "train.keep_checkpoints": 2,
}
POINTS = (
  {"optim.learning_rate": 0.1},
  {"optim.learning_rate": 0.02, "optim.weight_decay": 0.01, "seed": 7},
  {"optim.learning_rate": 0.05, "optim.momentum": 0.5, "seed": 1},
)
DIVERGES = {"optim.learning_rate": 1e30}


def configs(points=POINTS, **overrides):
  """Configurations of a model with BN, dropout, a convolution and WS."""
  changed = SMALL | {"model.name": "tests.my_lab:NNXNet"} | overrides
  base = config.apply(config.default(), changed)
  return [runner.config_of(base, run) for run in runner.plan(points)]


def folders(path, points=POINTS):
  return [path / str(number) for number in range(len(points))]


def state_of(c, workdir):
  checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", keep=1)
  state, _ = checkpoints.newest(build.start(c).state())
  checkpoints.close()
  return jax.device_get(state)


def close(got, expected):
  """Compares trees up to the round-off of sums in another order."""
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    got,
    expected,
  )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """The runs one after the other."""
  path = tmp_path_factory.mktemp("alone")
  for c, workdir in zip(configs(), folders(path), strict=True):
    loop.train_and_evaluate(c, workdir)
  return path


@pytest.fixture(scope="module")
def together(tmp_path_factory):
  """The runs in one program."""
  path = tmp_path_factory.mktemp("together")
  loop.train_stack(configs(), folders(path))
  return path


def test_runs_in_one_program_are_those_runs(alone, together):
  """Parameters, running statistics, averages, momentum and counters."""
  for c, one, other in zip(
    configs(), folders(alone), folders(together), strict=True
  ):
    close(state_of(c, other), state_of(c, one))
    expected = record.read_metrics(one)
    got = record.read_metrics(other)
    assert [sorted(row) for row in got] == [sorted(row) for row in expected]
    close(got, expected)
    assert (other / "predictions.npz").exists()
  rates = [
    record.read_metrics(workdir)[0]["train/learning_rate"]
    for workdir in folders(together)
  ]
  assert len(set(rates)) == 3


def test_each_folder_is_that_of_a_run(together):
  for c, workdir in zip(configs(), folders(together), strict=True):
    status = disk.read_json(workdir / "status.json")
    assert (status["status"], status["step"]) == ("done", 12)
    assert status["stack"] == 3
    # One that is finished may be made longer, by itself.
    longer = c.copy_and_resolve_references()
    longer.train.steps = 14
    metrics = loop.train_and_evaluate(longer, workdir)
    assert np.isfinite(metrics["eval/loss"])


def test_one_that_diverges_ends_and_the_others_go_on(alone, tmp_path):
  points = (POINTS[0], DIVERGES, POINTS[2])
  outcomes = loop.train_stack(configs(points), folders(tmp_path))
  assert isinstance(outcomes[1], loop.Diverged)
  assert outcomes[1].step < 4
  ends = [disk.read_json(x / "status.json") for x in folders(tmp_path)]
  assert [end["status"] for end in ends] == ["done", "diverged", "done"]
  assert not list((tmp_path / "1" / "checkpoints").glob("[0-9]*"))
  for number in (0, 2):
    close(
      record.read_metrics(tmp_path / str(number)),
      record.read_metrics(alone / str(number)),
    )


def test_a_stack_ends_where_all_have_diverged(tmp_path):
  points = [DIVERGES | {"seed": seed} for seed in range(3)]
  outcomes = loop.train_stack(configs(points), folders(tmp_path))
  assert [type(outcome) for outcome in outcomes] == [loop.Diverged] * 3
  assert len(record.read_metrics(tmp_path / "0")) == 1


def test_a_stack_that_is_stopped_goes_on(together, tmp_path, monkeypatch):
  monkeypatch.setattr(record.Run, "advance", _signal_at(8, record.Run.advance))
  with pytest.raises(loop.Interrupted):
    loop.train_stack(configs(), folders(tmp_path))
  steps = [checkpoint.newest_step(x) for x in folders(tmp_path)]
  assert steps == [8, 8, 8]
  monkeypatch.undo()
  loop.train_stack(configs(), folders(tmp_path))
  for c, one, other in zip(
    configs(), folders(together), folders(tmp_path), strict=True
  ):
    del c
    before = [r for r in record.read_metrics(one) if r["step"] <= 12]
    assert record.read_metrics(other) == before


def _run(overrides):
  (run,) = runner.plan([overrides])
  return run


def _signal_at(step, advance):
  def stopping(self, now):
    advance(self, now)
    if now == step and self.workdir.name == "0":
      os.kill(os.getpid(), signal.SIGTERM)

  return stopping


@pytest.mark.slow
def test_dropout_and_own_collections_are_those_of_each_run(tmp_path):
  cs = configs(**{"model.name": "tests.my_lab:Noisy"})
  outcomes = loop.train_stack(cs, folders(tmp_path))
  for c, outcome, number in zip(cs, outcomes, range(3), strict=True):
    expected = loop.train_and_evaluate(c, tmp_path / f"alone{number}")
    close(outcome, expected)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"model.ws": False}, "may differ in .*, seed; these have model.ws=True"),
    ({"train.steps": 13}, "these have train"),
  ],
)
def test_runs_of_another_program_are_refused(change, message, tmp_path):
  one, other = configs(POINTS[:2])
  other = config.apply(other, change)
  with pytest.raises(config.ConfigError, match=message):
    loop.train_stack([one, other], folders(tmp_path, POINTS[:2]))
  assert not list(tmp_path.iterdir())


def test_what_a_stack_cannot_do_is_refused(monkeypatch):
  two = [build.start(c).config for c in configs(POINTS[:2])]
  with pytest.raises(ValueError, match="at least one run"):
    stack.check([])
  sharded = [runner.config_of(c, _run({"mesh.params": "sharded"})) for c in two]
  with pytest.raises(ValueError, match="a stack needs mesh.params=replicated"):
    stack.check(sharded)
  monkeypatch.setattr(jax, "process_count", lambda: 8)
  with pytest.raises(ValueError, match="there are 8: give"):
    stack.check(two)
  monkeypatch.undo()
  monkeypatch.setattr(type(jax.config), "jax_debug_nans", True)
  with pytest.raises(ValueError, match="JAX_DEBUG_NANS stops a whole stack"):
    stack.check(two)


def test_parts_are_what_was_joined():
  mesh = build.start(configs()[0]).program.mesh
  trees = [{"a": np.full(2, i), "b": np.int32(i)} for i in range(3)]
  joined = stack.join(trees, mesh)
  assert joined["a"].shape == (3, 2)
  parted = stack.parts(joined, 3)
  assert json.dumps([x["b"].item() for x in parted]) == "[0, 1, 2]"
  assert stack.join(trees[:1], mesh) is trees[0]
  assert stack.parts((None, []), 2) == [(None, [])] * 2


def sweep(path, trained, **how):
  """Runs a sweep of two programs; returns what was told of its runs."""
  changed = SMALL | {"model.name": "tests.my_lab:Net"}
  points = [
    {"model.ws": ws, "optim.learning_rate": rate}
    for ws in (False, True)
    for rate in (0.02, 0.05, 1e30)
  ]
  base, told = config.apply(config.default(), changed), []
  notify = lambda run, row: told.append("begins" if row is None else "ends")
  got = runner.run_sweep(base, points, path, stack=2, notify=notify, **how)
  assert [row["status"] for row in got] == trained
  return told


def test_a_sweep_trains_the_runs_of_one_program_together(tmp_path, monkeypatch):
  sizes = []

  def train_stack(configs, workdirs):
    sizes.append((len(configs), len(workdirs)))
    return [{"eval/accuracy": 0.5}, loop.Diverged(3, "loss is nan")]

  monkeypatch.setattr(loop, "train_stack", train_stack)
  told = sweep(
    tmp_path,
    ["done", "diverged", "done"] * 2,
    train_fn=lambda c, workdir: {"eval/accuracy": 0.5},
  )
  assert sizes == [(2, 2)] * 2
  assert told == [*["begins"] * 2, *["ends"] * 2, "begins", "ends"] * 2


def test_a_stack_that_fails_says_so_in_each_row(tmp_path, monkeypatch):
  def train_stack(configs, workdirs):
    raise RuntimeError("out of memory")

  monkeypatch.setattr(loop, "train_stack", train_stack)
  sweep(
    tmp_path,
    ["failed", "failed", "done"] * 2,
    train_fn=lambda c, workdir: {"eval/accuracy": 0.5},
  )
  assert len(list(tmp_path.glob("*/error.txt"))) == 4


@pytest.mark.slow
def test_a_sweep_trains_its_runs_in_stacks(tmp_path):
  sweep(tmp_path, ["done", "done", "diverged"] * 2)
  stacks = [
    disk.read_json(tmp_path / row["run"] / "status.json")["stack"]
    for row in rows.read(tmp_path / "runs.csv")
  ]
  assert stacks == [2, 2, 1] * 2


def test_runs_at_other_steps_are_in_other_stacks(tmp_path):
  runs = runner.plan(POINTS)
  (tmp_path / runs[1].name / "checkpoints" / "6").mkdir(parents=True)
  stacks = list(runner._stacks(runs, tmp_path, 4))
  assert [[run.name for run in one] for one in stacks] == [
    [runs[0].name, runs[2].name],
    [runs[1].name],
  ]
