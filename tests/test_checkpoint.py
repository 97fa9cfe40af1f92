import resource
import shutil
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ws_jax import weights
from ws_jax.base import disk
from ws_jax.train import checkpoint


def state(value):
  return {"step": jnp.int32(value), "w": jnp.full((3, 2), float(value))}


def test_the_newest_few_are_kept_and_come_back(tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path / "here", keep=2)
  assert checkpoints.latest() is None
  for step in (10, 20, 30):
    checkpoints.save(step, state(step))
  checkpoints.close()
  assert {path.name for path in (tmp_path / "here").iterdir()} == {"20", "30"}

  again = checkpoint.Checkpoints(tmp_path / "here", keep=2)
  assert again.latest() == 30
  loaded = again.load(20, state(0))
  jax.tree.map(np.testing.assert_array_equal, loaded, state(20))
  again.close()


def test_what_is_saved_may_be_donated_at_once(tmp_path):
  """On a CPU the writer would share the buffers that the next step reuses."""
  bump = jax.jit(
    lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0
  )
  checkpoints = checkpoint.Checkpoints(tmp_path, keep=1)
  live = {"w": jnp.zeros((500, 500))}
  checkpoints.save(1, live)
  for _ in range(50):
    live = bump(live)
  checkpoints.close()
  again = checkpoint.Checkpoints(tmp_path, keep=1)
  loaded = again.load(1, {"w": jnp.ones((500, 500))})
  again.close()
  np.testing.assert_array_equal(loaded["w"], 0)


def test_what_was_cut_off_does_not_count(tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
  checkpoints.save(1, state(1))
  checkpoints.close()
  (tmp_path / "2.orbax-checkpoint-tmp-7").mkdir()
  again = checkpoint.Checkpoints(tmp_path, keep=2)
  assert again.latest() == 1
  again.close()


def test_none_are_kept_if_none_are_wanted(tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path / "here", keep=0)
  checkpoints.save(1, state(1))
  assert checkpoints.latest() is None
  checkpoints.close()
  assert not (tmp_path / "here").exists()


def written(workdir, *steps, value=None, **config):
  """A workdir with checkpoints of a state that has `params`."""
  disk_config = {"seed": 0, "train": {"steps": 9}} | config
  workdir.mkdir(exist_ok=True)
  disk.write_json(workdir / "config.json", disk_config)
  checkpoints = checkpoint.Checkpoints(
    workdir / "checkpoints",
    keep=3,
    config=disk_config,
    may_change=("train.steps",),
  )
  for step in steps:
    tree = {"params": state(step if value is None else value)}
    checkpoints.save(step, tree)
  checkpoints.close()
  return workdir


def newest(workdir):
  fresh = {"params": state(0)}
  checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", keep=3)
  return checkpoints.newest(fresh)


def damages(content):
  """Ways in which a file is found after a disk, or somebody, broke it."""
  middle = len(content) // 2
  flipped = bytearray(content)
  if flipped:
    flipped[middle] ^= 1
  return {"deleted": None, "cut": content[:middle], "flipped": bytes(flipped)}


def test_a_broken_checkpoint_is_named_and_the_older_one_read(tmp_path, capsys):
  """A flipped byte went unnoticed, and a missing file was a traceback."""
  whole = written(tmp_path / "whole", 1, 2)
  newer = whole / "checkpoints" / "2"
  files = [p.relative_to(newer) for p in newer.rglob("*") if p.is_file()]
  assert len(files) > 6
  tried = tmp_path / "tried"
  for name in files:
    for kind, content in damages((newer / name).read_bytes()).items():
      if content == (newer / name).read_bytes():
        continue  # an empty file
      shutil.rmtree(tried, ignore_errors=True)
      shutil.copytree(whole, tried)
      path = tried / "checkpoints" / "2" / name
      path.unlink() if content is None else path.write_bytes(content)
      params = weights.read_params(tried)
      assert params["step"] == 1, (name, kind)
      (line,) = capsys.readouterr().err.splitlines()
      assert line.startswith("warning: ") and str(path) in line
      assert line.endswith("checkpoints/1 takes its place")
      with pytest.raises(ValueError, match=name.name):
        weights.read_params(tried / "checkpoints" / "2")


def test_a_run_goes_on_from_the_older_and_writes_the_newer_anew(
  tmp_path, capsys
):
  workdir = written(tmp_path, 1, 2)
  manifest = workdir / "checkpoints" / "2" / "state" / "manifest.ocdbt"
  manifest.write_bytes(manifest.read_bytes()[:-1])
  assert checkpoint.newest_step(workdir) == 1
  loaded, step = newest(workdir)
  assert step == 1 == loaded["params"]["step"]
  assert str(manifest) in capsys.readouterr().err
  assert (workdir / "checkpoints" / "2.damaged").is_dir()
  written(workdir, 2)
  assert newest(workdir)[1] == 2


def test_no_whole_checkpoint_is_one_line_with_the_remedy(tmp_path):
  workdir = written(tmp_path, 1, 2)
  for step in ("1", "2"):
    (workdir / "checkpoints" / step / "state" / "_METADATA").write_text("{")
  with pytest.raises(ValueError, match="no checkpoint in .*_METADATA.*elete"):
    newest(workdir)
  assert (workdir / "checkpoints" / "2").is_dir()  # as it was found
  assert checkpoint.newest_step(workdir) == -1
  with pytest.raises(ValueError, match="2/state/_METADATA.*1/state/_METADATA"):
    weights.read_params(workdir)


def test_a_checkpoint_of_another_run_or_step_is_refused(tmp_path):
  ours = written(tmp_path / "ours", 1)
  theirs = written(tmp_path / "theirs", 1, seed=1)
  longer = written(tmp_path / "longer", 1, train={"steps": 20})
  shutil.rmtree(ours / "checkpoints")
  shutil.copytree(theirs / "checkpoints", ours / "checkpoints")
  with pytest.raises(ValueError, match="another run: seed is 1 there, and 0 h"):
    weights.read_params(ours)
  shutil.rmtree(ours / "checkpoints")
  shutil.copytree(longer / "checkpoints", ours / "checkpoints")
  assert newest(ours)[1] == 1
  (ours / "checkpoints" / "1").rename(ours / "checkpoints" / "7")
  with pytest.raises(ValueError, match="run.json: is of step 1"):
    weights.read_params(ours)


def test_a_checkpoint_of_an_older_version_is_read_with_a_word(tmp_path, capsys):
  workdir = written(tmp_path, 1)
  for name in ("checksums.json", "run.json"):
    (workdir / "checkpoints" / "1" / name).unlink()
  assert newest(workdir)[1] == 1
  assert "1: is of an older version" in capsys.readouterr().err


def test_a_workdir_that_is_gone_is_not_made_anew(tmp_path):
  """A run ended as `done` in a folder without its config and its rows."""
  workdir = tmp_path / "run"
  workdir.mkdir()
  checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", keep=1)
  checkpoints.save(1, state(1))
  checkpoints.close()
  shutil.rmtree(workdir)
  with pytest.raises(OSError, match="No such file.*checkpoints/2'"):
    checkpoints.save(2, state(2))
  assert not workdir.exists()


def test_a_full_disk_keeps_the_older_checkpoint(tmp_path):
  """It was an error of orbax in 260 lines, after the run was `done`."""
  checkpoints = checkpoint.Checkpoints(tmp_path, keep=1)
  noise = jax.random.normal(jax.random.key(0), (300, 300))
  checkpoints.save(1, {"w": noise[:9]})
  checkpoints.save(2, {"w": noise[:9]})  # waits for the first
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
  try:
    checkpoints.save(3, {"w": noise})
    with pytest.raises(OSError, match="checkpoint not written.*/3'") as caught:
      checkpoints.close()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert "\n" not in str(caught.value)
  assert checkpoints.latest() == 2


def test_threads_of_orbax_print_nothing_behind_its_error(tmp_path, capfd):
  """Regression: one error in ten came with a traceback of its event loop."""
  from orbax.checkpoint import v1 as ocp

  folder = tmp_path / "checkpoints" / "1"
  tree = {"params": {"kernel": np.ones((3, 2))}, "step": np.ones(2, np.int32)}
  ocp.save(str(folder), tree)
  for path in folder.rglob("d/*"):
    path.write_bytes(path.read_bytes()[:1])
  for _ in range(60):
    with pytest.raises(ValueError, match="no orbax checkpoint that can be"):
      weights.read_params(tmp_path)
  said = capfd.readouterr().err
  assert "Traceback" not in said and "Event loop" not in said


def test_only_late_threads_are_hushed(monkeypatch):
  """As where a disk is full: what else cannot be raised is printed."""
  told = []
  monkeypatch.setattr(
    sys, "unraisablehook", lambda raised: told.append(str(raised.exc_value))
  )
  checkpoint._silence()
  for text in ("Event loop is closed", "another"):
    thread = threading.Thread(target=_raise_where_nobody_can_catch, args=[text])
    thread.start()
    thread.join()
  _raise_where_nobody_can_catch("Event loop is closed, by us")
  assert told == ["another", "Event loop is closed, by us"]


def _raise_where_nobody_can_catch(text):
  class Loud:
    def __del__(self):
      raise RuntimeError(text)

  Loud()
