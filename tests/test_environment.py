"""Runs under the settings of JAX that check it, and in double precision."""

import contextlib
import functools
import os
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ws_jax import config, native
from ws_jax.base import disk
from ws_jax.train import build, loop, step

SMALL = {
  "data.name": "tests.my_lab:make_data",
  "model.name": "tests.my_lab:Net",
  "data.batch_size": 16,
  "data.eval_batch_size": 16,
  "optim.micro_batch_size": 8,
  "train.steps": 4,
  "train.log_every_steps": 2,
  "train.eval_every_steps": 4,
  "train.checkpoint_every_steps": 2,
}
# A model of each family and each task, with all that draws random numbers.
RUNS = {
  "image": (
    "configs/fashion_mnist_10k.py:model=resnet8,width=0.25,num_groups=2",
    {
      "task.mixup": 0.2,
      "task.cutmix": 1.0,
      "task.label_smoothing": 0.1,
      "model.stochastic_depth": 0.1,
      "optim.clip_norm": 1.0,
      "optim.schedule": "step",
    },
  ),
  "norm-free": (
    "configs/fashion_mnist_10k.py:model=nf_resnet8",
    {"optim.adaptive_clip": 0.1, "task.size": 24, "task.resize": 28},
  ),
  "efficientnet": (
    "configs/fashion_mnist_10k.py:model=efficientnet_cifar",
    {"optim.name": "adamw", "optim.ema_decay": 0.9},
  ),
  "language model": ("configs/austen_small.py", {"task.z_loss": 1e-4}),
}


@functools.cache
def whole():
  """The metrics of the run without any such setting."""
  return train("whole")


def train(name):
  c = config.apply(config.default(), SMALL)
  with tempfile.TemporaryDirectory(prefix=name) as folder:
    return loop.train_and_evaluate(c, folder)


@contextlib.contextmanager
def flag(name):
  jax.config.update(name, True)
  try:
    yield
  finally:
    jax.config.update(name, False)


@pytest.mark.parametrize(
  "setting",
  [
    lambda: jax.transfer_guard("disallow"),
    lambda: flag("jax_debug_nans"),
    lambda: flag("jax_debug_infs"),
    lambda: jax.enable_x64(True),
  ],
  ids=["transfer guard", "debug nans", "debug infs", "x64"],
)
def test_a_run_goes_on_under_settings_that_check_it(setting):
  with setting():
    got = train("checked")
  assert got == pytest.approx(whole(), rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_where_nothing_is_compiled(tmp_path):
  """On one device: JAX itself mixes no devices without its compiler."""
  path = tmp_path / "plain.py"
  path.write_text(
    "from ws_jax import config\n\n"
    "def get_config(text=''):\n  return config.default()\n"
  )
  command = [sys.executable, "-m", "ws_jax.main", f"--config={path}"]
  command += [f"--workdir={tmp_path / 'run'}"]
  command += [f"--config.{key}={value}" for key, value in SMALL.items()]
  environment = os.environ | {"JAX_DISABLE_JIT": "1", "XLA_FLAGS": ""}
  subprocess.run(command, env=environment, check=True)
  metrics = disk.read_json(tmp_path / "run" / "status.json")["metrics"]
  assert metrics == pytest.approx(whole(), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_no_array_of_a_run_is_double_because_jax_may_be(name):
  path, changes = RUNS[name]
  c = config.apply(config.load(path), {"data.batch_size": 16} | changes)
  setup = build.start(c)
  arrays, indices = setup.source.block(0, 1)

  def dtypes():
    numbers = {
      key: jax.ShapeDtypeStruct((), jnp.float32)
      for key in ("learning_rate", "weight_decay", "momentum")
    }
    program = setup.program
    init = functools.partial(step._init_state, program)
    state = jax.eval_shape(init, arrays, np.int32(0), numbers)
    after = jax.eval_shape(
      functools.partial(step.train_step, program), state, arrays, indices[0]
    )
    mask = np.ones(16, np.float32)
    sums, _ = jax.eval_shape(
      functools.partial(step._eval_step, program),
      *(state.sums, state.params, state.model_state),
      *(arrays, indices[0].ravel(), mask),
    )
    return jax.tree.map(lambda x: x.dtype, (state, after, sums))

  plain = dtypes()
  with jax.enable_x64(True):
    assert dtypes() == plain


def test_foreign_code_steps_aside_where_nothing_is_compiled(monkeypatch):
  """Its primitive is known to the compiler alone: to run it never ended."""
  monkeypatch.setattr(native, "_enabled", {"convolution"})
  assert native.enabled("convolution", "float32")
  with jax.disable_jit():
    assert not native.enabled("convolution", "float32")
