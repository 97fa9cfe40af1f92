import dataclasses
import json
import os
import shutil
import signal
import threading

import jax
import numpy as np
import pytest

from ws_jax import config, data
from ws_jax.base import disk
from ws_jax.data import memory
from ws_jax.train import backend, build, checkpoint, clock, loop, record
from ws_jax.train import step as steps

TINY = {
  "model.name": "resnet8",
  "model.width": 0.25,
  "model.num_groups": 2,
  "data.batch_size": 32,
  "train.steps": 30,
  "train.log_every_steps": 5,
  "train.eval_every_steps": 15,
  "train.checkpoint_every_steps": 10,
  "optim.learning_rate": 0.2,
}


def tiny(**overrides):
  changed = TINY | {k.replace("__", "."): v for k, v in overrides.items()}
  return config.apply(config.load("configs/fashion_mnist_10k.py"), changed)


@pytest.fixture(autouse=True, scope="module")
def small_data():
  """The embedded images, fewer of them, so that evaluation is quick."""
  whole = data.load(data.Request("fashion_mnist_10k"))
  few = dataclasses.replace(
    whole,
    info=dataclasses.replace(whole.info, train_size=500, eval_size=200),
    train={k: v[::20] for k, v in whole.train.items()},
    test={k: v[::10] for k, v in whole.test.items()},
  )
  known, read_info = data.Request("fashion_mnist_10k"), data.read_info
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(data, "load", lambda request: few)
    patch.setattr(
      data, "read_info", lambda r: few.info if r == known else read_info(r)
    )
    yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """One whole run, for the tests that look at what it leaves."""
  workdir = tmp_path_factory.mktemp("runs") / "whole"
  loop.train_and_evaluate(tiny(), workdir)
  return workdir


def final_state(workdir, c):
  checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", keep=1)
  state, _ = checkpoints.newest(build.start(c).state())
  checkpoints.close()
  return jax.device_get(state)


def test_a_run_learns_and_leaves_its_record(finished):
  metrics = disk.read_json(finished / "status.json")["metrics"]
  assert metrics["eval/accuracy"] > 0.2  # of ten classes, in thirty steps
  names = {path.name.split(".")[0] for path in finished.iterdir()}
  made = {"config", "metrics", "status", "checkpoints", "events"}
  assert names == made | {"predictions"}

  status = json.loads((finished / "status.json").read_text())
  assert status["status"] == "done"
  assert status["step"] == 30
  assert status["metrics"] == metrics
  assert set(status["seconds"]) == {"compile", "train", "eval"}
  assert min(status["seconds"].values()) > 0
  assert status["versions"]["jax"] == jax.__version__

  resolved = json.loads((finished / "config.json").read_text())
  assert resolved["train"]["steps"] == 30
  assert resolved["model"]["norm_batch_size"] == 32

  rows = record.read_metrics(finished)
  logged = [row["step"] for row in rows if "train/loss" in row]
  evaluated = [row["step"] for row in rows if "eval/loss" in row]
  assert logged == [5, 10, 15, 20, 25, 30]
  assert evaluated == [15, 30]
  assert rows[-1]["eval/accuracy"] == metrics["eval/accuracy"]


def test_a_finished_run_is_not_repeated(finished):
  before = (finished / "metrics.jsonl").read_text()
  metrics = loop.train_and_evaluate(tiny(), finished)
  assert (finished / "metrics.jsonl").read_text() == before
  assert (
    metrics == json.loads((finished / "status.json").read_text())["metrics"]
  )


def test_a_finished_run_without_checkpoints_is_not_begun_anew(
  finished, tmp_path
):
  """Regression: it was trained again, over the rows of a million steps."""
  folder = tmp_path / "run"
  shutil.copytree(finished, folder)
  shutil.rmtree(folder / "checkpoints")
  files = {path: path.read_bytes() for path in folder.glob("*.jsonl")}
  status = disk.read_json(folder / "status.json")
  for keep in (0, 2):
    metrics = loop.train_and_evaluate(
      tiny(train__keep_checkpoints=keep), folder
    )
    assert metrics == status["metrics"]
  with pytest.raises(config.ConfigError, match="train.steps was 30, is 31"):
    loop.train_and_evaluate(tiny(train__steps=status["step"] + 1), folder)
  assert disk.read_json(folder / "status.json")["status"] == "done"
  assert {path: path.read_bytes() for path in files} == files
  (folder / "status.json").unlink()  # of a run that was cut off
  loop.train_and_evaluate(tiny(train__keep_checkpoints=0), folder)
  assert record.read_metrics(folder) == record.read_metrics(finished)


@pytest.mark.parametrize("when", [7, 20])
def test_a_stopped_run_resumes_to_the_same_bits(
  finished, tmp_path, monkeypatch, when
):
  """Off and on a logging step; by SIGTERM, as a cluster sends it."""
  block = steps.train_block

  def stop_at(program, state, *args, **kwargs):
    state = block(program, state, *args, **kwargs)
    if int(state.step) == when:
      os.kill(os.getpid(), signal.SIGTERM)
    return state

  with monkeypatch.context() as patch:
    patch.setattr(steps, "train_block", stop_at)
    with pytest.raises(loop.Interrupted, match=f"after step {when}: .*SIGT"):
      loop.train_and_evaluate(tiny(), tmp_path)
  status = json.loads((tmp_path / "status.json").read_text())
  assert (status["status"], status["step"]) == ("interrupted", when)

  loop.train_and_evaluate(tiny(), tmp_path)
  assert (tmp_path / "metrics.jsonl").read_text() == (
    finished / "metrics.jsonl"
  ).read_text()
  jax.tree.map(
    np.testing.assert_array_equal,
    final_state(tmp_path, tiny()),
    final_state(finished, tiny()),
  )


@pytest.mark.parametrize("when", [15, 30])
def test_a_signal_ends_an_evaluation_which_then_comes_first(
  finished, tmp_path, monkeypatch, when
):
  """A scheduler waits for seconds, and an evaluation may take minutes."""
  batches, evaluations = memory.MemorySource.batches, iter((15, 30))

  def signalled(source, size):
    if next(evaluations) == when:
      os.kill(os.getpid(), signal.SIGTERM)
    yield from batches(source, size)

  with monkeypatch.context() as patch:
    patch.setattr(memory.MemorySource, "batches", signalled)
    with pytest.raises(loop.Interrupted, match=f"after step {when}: .*SIGT"):
      loop.train_and_evaluate(tiny(), tmp_path)
  assert record.read_metrics(tmp_path)[-1].keys() >= {"train/loss"}
  loop.train_and_evaluate(tiny(), tmp_path)
  assert (tmp_path / "metrics.jsonl").read_text() == (
    finished / "metrics.jsonl"
  ).read_text()
  assert json.loads((tmp_path / "status.json").read_text())["status"] == "done"
  jax.tree.map(
    np.testing.assert_array_equal,
    final_state(tmp_path, tiny()),
    final_state(finished, tiny()),
  )


def test_rows_after_the_checkpoint_are_written_once(tmp_path, monkeypatch):
  """A crash between two checkpoints leaves rows that will come again."""
  write = loop._write

  def crash(run, program, state, step):
    write(run, program, state, step)
    if step == 25:
      raise OSError("disk full")

  with monkeypatch.context() as patch:
    patch.setattr(loop, "_write", crash)
    with pytest.raises(OSError, match="disk full"):
      loop.train_and_evaluate(tiny(), tmp_path)
  status = json.loads((tmp_path / "status.json").read_text())
  assert status["status"] == "failed"
  assert "disk full" in status["reason"]
  loop.train_and_evaluate(tiny(), tmp_path)
  found = [r["step"] for r in record.read_metrics(tmp_path)]
  assert found == [5, 10, 15, 15, 20, 25, 30, 30]


def test_a_folder_holds_one_configuration(finished):
  with pytest.raises(
    config.ConfigError, match=r"optim.learning_rate was 0.2, is 0.3"
  ):
    loop.train_and_evaluate(tiny(optim__learning_rate=0.3), finished)


def test_divergence_is_recorded_and_ends_the_run(tmp_path):
  with pytest.raises(loop.Diverged) as caught:
    loop.train_and_evaluate(
      tiny(model__norm="none", model__ws=False, optim__learning_rate=1e6),
      tmp_path,
    )
  status = json.loads((tmp_path / "status.json").read_text())
  assert status["status"] == "diverged"
  assert status["step"] == caught.value.step < 5
  assert "training loss" in status["reason"]


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    ({"model.name": "resnet5"}, "did you mean 'resnet56'"),
    ({"model.norm": "grup"}, "did you mean 'group'"),
    ({"model.num_groups": 5}, "5"),
    ({"model.ws_convention": "bitt"}, "did you mean 'bit'"),
    ({"model.dtype": "float31"}, "did you mean 'float32'"),
    ({"model.version": 3}, "3"),
    ({"data.name": "fashion_mnist_10"}, "fashion_mnist_10k"),
    ({"optim.schedule": "cosin"}, "did you mean 'cosine'"),
    ({"optim.name": "adam"}, "did you mean 'adamw'"),
    ({"optim.micro_batch_size": 5}, "not divisible"),
    ({"model.norm_batch_size": 5}, "not divisible"),
  ],
)
def test_what_cannot_run_is_refused_before_anything_is_made(
  overrides, message, tmp_path
):
  compiled = clock._compiled.seconds
  workdir = tmp_path / "run"
  with pytest.raises(config.ConfigError, match=message) as caught:
    loop.train_and_evaluate(config.apply(tiny(), overrides), workdir)
  assert "\n" not in str(caught.value)
  assert not workdir.exists()
  assert clock._compiled.seconds == compiled


def test_a_second_run_of_the_same_structure_compiles_nothing(
  finished, tmp_path
):
  compiled = [
    steps._jitted(steps.train_step, donate=1),
    steps._jitted(steps._eval_block, donate=1),
    steps._jitted(
      steps._init_state, options=backend.options_to_compile_quickly
    ),
  ]
  before = [function._cache_size() for function in compiled]
  assert all(before)
  loop.train_and_evaluate(
    tiny(
      seed=5,
      optim__learning_rate=0.1,
      optim__momentum=0.5,
      optim__weight_decay=0.0,
    ),
    tmp_path,
  )
  assert [function._cache_size() for function in compiled] == before


def test_a_thread_may_train(finished, tmp_path):
  """Signals belong to the main thread; a run elsewhere does without."""
  c = tiny(train__steps=5)
  caught = []
  thread = threading.Thread(
    target=lambda: caught.append(loop.train_and_evaluate(c, tmp_path))
  )
  thread.start()
  thread.join()
  assert "eval/accuracy" in caught[0]


def test_mixed_precision_keeps_parameters_in_float32(tmp_path):
  c = tiny(model__dtype="bfloat16", train__steps=5)
  loop.train_and_evaluate(c, tmp_path)
  state = final_state(tmp_path, c)
  dtypes = {str(x.dtype) for x in jax.tree.leaves(state.params)}
  assert dtypes == {"float32"}


def test_a_loop_on_the_device_is_the_same_run(finished, tmp_path, monkeypatch):
  """As accelerators run it: blocks of steps that end where something is due."""
  monkeypatch.setattr(backend, "steps_of_a_loop", lambda most, *_: most)
  loop.train_and_evaluate(tiny(), tmp_path)
  looped = record.read_metrics(tmp_path)
  dispatched = record.read_metrics(finished)
  assert [row.keys() for row in looped] == [row.keys() for row in dispatched]
  for ours, theirs in zip(looped, dispatched, strict=True):
    assert ours["step"] == theirs["step"]
    for name in {"train/loss", "eval/loss"} & ours.keys():
      # The order of sums differs, and every step amplifies that.
      if ours["step"] <= 5:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-3)


def test_slow_steps_are_a_block_each(tmp_path, monkeypatch):
  """So that a signal does not wait for ten of them; the bits are the same."""
  monkeypatch.setattr(backend, "steps_of_a_loop", lambda most, *_: most)
  real, c = steps.train_block, tiny(train__steps=8)
  sizes, params = [], []

  def watched(program, state, arrays, indices, **how):
    sizes.append(len(indices))
    return real(program, state, arrays, indices, **how)

  monkeypatch.setattr(steps, "train_block", watched)
  for seconds, name in ((1e-9, "short"), (1e9, "long")):
    sizes.clear()
    monkeypatch.setattr(loop, "_SECONDS_OF_A_BLOCK", seconds)
    loop.train_and_evaluate(c, tmp_path / name)
    assert (set(sizes[1:]) == {1}) == (name == "short")
    params.append(final_state(tmp_path / name, c).params)
  jax.tree.map(np.testing.assert_array_equal, *params)
