import os
import subprocess
import sys

import jax
import pytest

from ws_jax import backend

# In a process of its own: what it sets cannot be taken back.
FAULTS = """
import resource, sys
import jax, jax.numpy as jnp
from ws_jax import backend
print(repr(backend.keep_freed_memory()))
step = jax.jit(lambda x: [jnp.sin(x) + i for i in range(8)])
x = jnp.ones((1024, 1024))  # 4 MiB
for _ in range(8):
  jax.block_until_ready(step(x))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
  jax.block_until_ready(step(x))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(**env):
  done = subprocess.run(
    [sys.executable, "-c", FAULTS],
    env={**os.environ, **env},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  said, faults = done.stdout.splitlines()
  return said, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="an allocator of Linux")
def test_memory_is_not_mapped_anew_for_each_step():
  said, faults = run()
  assert "kept" in said
  # As the allocator comes, it is a thousand and more in each step.
  assert faults < 1_000


@pytest.mark.skipif(sys.platform != "linux", reason="an allocator of Linux")
def test_the_users_own_allocator_settings_stand():
  said, faults = run(MALLOC_ARENA_MAX="2")
  assert said == "''"
  assert faults > 4_000, "nothing is gained any more: the setting can go"


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
