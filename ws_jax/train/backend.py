"""Settings of JAX itself, by backend, and what the machine is."""

import ctypes
import functools
import importlib.metadata
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax

from ws_jax import native
from ws_jax.base import cores

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# What glibc is told: its name in the environment, its number in <malloc.h>, and
# the value.
ALLOCATOR = (
  ("MALLOC_MMAP_MAX_", -4, 0),
  ("MALLOC_TRIM_THRESHOLD_", -1, 2**31 - 1),
  ("MALLOC_TOP_PAD_", -2, 2**28),
)
_STEPS_ON_CPU = 10


def configure() -> str:
  """Sets up JAX for training; call once, before anything else.

  Returns:
    Lines that say what was set, for the program to announce.
  """
  said = [keep_freed_memory()]  # before all that starts the backend
  said += [f"compiled programs are kept in {enable_compilation_cache()}"]
  said += [native.enable()]
  if options := options_to_run_fast():
    said += [f"XLA's newer kernels for products and sums: {', '.join(options)}"]
  return "\n".join(filter(None, said))


def enable_compilation_cache() -> pathlib.Path:
  """Keeps compiled programs on disk between processes.

  The folder is `$JAX_COMPILATION_CACHE_DIR` if set, else `ws_jax/compiled` in
  the user's cache folder.

  Returns:
    The folder, for the caller to announce.
  """
  chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
  folder = pathlib.Path(chosen or native.cache_folder() / "compiled")
  jax.config.update("jax_compilation_cache_dir", str(folder))
  # The default keeps only what took a second: a ResNet is many small programs.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
  return folder


def steps_of_a_loop(
  most: int, dtype: str = "float32", native_convolutions: bool = True
) -> int | None:
  """Returns the number of training steps that one compiled loop should run.

  XLA's CPU backend runs its own convolutions inside a loop on one thread: 8
  times slower for a small ResNet, and their filter gradients 38 to 64 times.
  There Python dispatches each step instead. Those by oneDNN keep their threads,
  and small steps are up to a third shorter without their dispatch; a few of
  them save all of that, and leave the process answering to signals.

  Args:
    most: Number of steps until something else is due.
    dtype: Dtype of the convolutions.
    native_convolutions: Whether all convolutions of the model are those of
      `ws_jax.layers`, which oneDNN computes where it can.

  Returns:
    At most `most`; None where each step is to be dispatched.
  """
  if jax.default_backend() != "cpu":
    return most
  ours = native_convolutions and native.enabled("convolution", dtype)
  return min(most, _STEPS_ON_CPU) if ours else None


def keep_freed_memory() -> str:
  """Asks the C allocator to keep freed memory for the next step, on a CPU.

  XLA's CPU backend takes fresh memory for every result, and the allocator gives
  large pieces back to the system as soon as they are free: each step then pays
  for mapping and clearing them again, a quarter of its time. What is kept is
  the memory of the main thread alone: glibc cannot keep more than 64 MB of any
  other's, and one arena for all would have them wait for each other. So
  programs run in the thread that calls them, and are not queued for another.
  To be called before JAX starts its backend. What the user has set with
  `MALLOC_*` or `GLIBC_TUNABLES` stands.

  Returns:
    What was done, in words for the caller to announce; empty if nothing was.
  """
  chosen = [k for k in os.environ if k.startswith(("MALLOC_", "GLIBC_TUN"))]
  if chosen or sys.platform != "linux":
    return ""
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc alone has it
  if mallopt is None:
    return ""
  # Read as the CPU backend starts; no other has it.
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  if jax.default_backend() != "cpu":
    return ""
  done = all(mallopt(number, value) for _, number, value in ALLOCATOR)
  return "freed memory is kept for the next step" if done else ""


@functools.cache
def options_to_run_fast() -> dict[str, str] | None:
  """Returns compiler options for training and evaluation steps.

  On a CPU, XLA's newer kernel library takes products and sums. At convolutions
  it is two to three times slower than the older one, although XLA's default;
  what is elementwise XLA fuses better itself. `XLA_FLAGS` that choose for
  themselves stand, and a version of XLA without that option keeps its defaults.
  """
  name = "xla_cpu_experimental_ynn_fusion_type"
  if jax.default_backend() != "cpu" or name in os.environ.get("XLA_FLAGS", ""):
    return None
  taken = ("DOT", "REDUCE")
  options = {name: ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in taken)}
  try:
    jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
  except jax.errors.JaxRuntimeError:
    return None
  return options


def debug_flag() -> str | None:
  """Returns the flag of JAX by which a NaN or infinity stops, if one is set."""
  flags = ("jax_debug_nans", "jax_debug_infs")
  return next((name for name in flags if getattr(jax.config, name)), None)


def options_to_compile_quickly() -> dict[str, int] | None:
  """Returns compiler options for a program that runs once.

  On a CPU the initialization of a ResNet compiles six times sooner when it is
  hardly optimized; other backends have other options.
  """
  if jax.default_backend() == "cpu":
    return {"xla_backend_optimization_level": 0}
  return None


def describe() -> dict[str, Any]:
  """Returns versions, device and commit, for the record of a run."""
  device = jax.devices()[0]
  versions = {"python": sys.version.split()[0]}
  versions |= {name: importlib.metadata.version(name) for name in _PACKAGES}
  return {
    "versions": versions,
    "device": f"{jax.device_count()} x {device.device_kind}",
    "backend": device.platform,
    "cpu_count": cores.count(),
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
    "native": native.in_use(),
    "commit": _commit(),
  }


@functools.cache
def _commit() -> str:
  """Returns the commit of this checkout, with `+` if changed, or ""."""
  git = ["git", "-C", str(pathlib.Path(__file__).parent)]
  try:
    run = functools.partial(
      subprocess.run, capture_output=True, text=True, timeout=10
    )
    commit = run([*git, "rev-parse", "--short=12", "HEAD"]).stdout.strip()
    changed = run([*git, "status", "--porcelain", "-uno"]).stdout.strip()
  except (OSError, subprocess.TimeoutExpired):
    return ""
  return commit + ("+" if commit and changed else "")
