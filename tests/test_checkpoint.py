import jax
import jax.numpy as jnp
import numpy as np

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
