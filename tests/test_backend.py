import os
import subprocess
import sys

import jax
import pytest

from ws_jax import native
from ws_jax.train import backend

SAID = """
from ws_jax.train import backend
print(repr(backend.keep_freed_memory()))
"""
# Fewest pages that a step of several maps again, with 200 MB for its results.
# Not those of one step: where in the heap a result goes is left to chance.
FAULTS = """
import ctypes, resource
# Pages of 4 kB, also where Linux would make large ones of them.
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE
import jax, jax.numpy as jnp
from ws_jax.train import backend
backend.keep_freed_memory()
step = jax.jit(lambda x: (x[:, 1:] + x[:, :-1], x[1:] - x[:-1]))
x = jnp.ones((100, 250_000))
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
each = []
for _ in range(10):
  before = faults()
  jax.block_until_ready(step(x))
  each.append(faults() - before)
print(min(each))
"""


def said(code=SAID, **env):
  """In a process of its own: what it sets cannot be taken back."""
  done = subprocess.run(
    [sys.executable, "-c", code],
    env={**os.environ, **env},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="an allocator of Linux")
def test_the_allocator_takes_its_settings():
  assert said() == "'freed memory is kept for the next step'"


@pytest.mark.skipif(
  sys.platform != "linux" or jax.default_backend() != "cpu",
  reason="an allocator of Linux, for XLA's CPU backend",
)
def test_a_step_maps_no_memory_again():
  # Once it was set when the backend's threads had chosen where to allocate.
  assert int(said(FAULTS)) < 1000 < int(said(FAULTS, MALLOC_ARENA_MAX="2"))


def test_the_users_own_allocator_settings_stand():
  assert said(MALLOC_ARENA_MAX="2") == "''"


def test_the_option_to_run_fast_is_one_that_this_jax_takes():
  options = backend.options_to_run_fast()
  assert options is None or list(options) == [
    "xla_cpu_experimental_ynn_fusion_type"
  ]
  double = jax.jit(lambda x: 2 * x, compiler_options=options)
  assert double(3.0) == 6.0


def test_what_xla_flags_choose_stands(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")
  backend.options_to_run_fast.cache_clear()
  assert backend.options_to_run_fast() is None
  backend.options_to_run_fast.cache_clear()


def test_an_older_xla_is_left_at_its_defaults(monkeypatch):
  def refuse(*args, **kwargs):
    raise jax.errors.JaxRuntimeError("no such option")

  monkeypatch.setattr(jax, "jit", refuse)
  backend.options_to_run_fast.cache_clear()
  assert backend.options_to_run_fast() is None
  backend.options_to_run_fast.cache_clear()


def test_a_loop_is_for_convolutions_that_keep_their_threads(monkeypatch):
  monkeypatch.setattr(native, "_enabled", set())
  assert backend.steps_of_a_loop(50) is None
  monkeypatch.setattr(native, "_enabled", {"convolution"})
  assert backend.steps_of_a_loop(50) == 10
  assert backend.steps_of_a_loop(3) == 3
  assert backend.steps_of_a_loop(50, "bfloat16") == 10
  assert backend.steps_of_a_loop(50, "float16") is None  # these are XLA's
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert backend.steps_of_a_loop(50, "bfloat16") == 50
