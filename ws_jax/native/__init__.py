"""C++ that XLA's CPU backend calls instead of its own code, where it is faster.

It standardizes kernels (`standardization.cc`) and normalizes
(`normalization.cc`) on all processors; both have derivatives in reverse mode
alone. On processors with AVX-512 it convolves (`convolution.cc`) and attends
(`attention.cc`) with products of oneDNN, if that is installed
(`pip install 'ws_jax[onednn]'`). All are behind XLA's foreign function
interface, compiled when a program first asks for them (`enable`), and kept in
the user's cache folder. XLA's own code runs without `enable()`, on other
backends, on several devices, and for dtypes other than float32 and, for
products, bfloat16.

Start reading at `enable`. Layers ask `enabled` while they are traced.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

# The environment variable; 0 leaves everything to XLA.
SWITCH = "WS_JAX_NATIVE"

# The names that may be enabled, and the handlers that XLA knows each by.
_HANDLERS = {
  "attention": ("WsJaxAttend", "WsJaxAttendBackward"),
  "convolution": ("WsJaxConvolve",),
  "normalization": ("WsJaxNormalize", "WsJaxNormalizeBackward"),
  "standardization": ("WsJaxStandardize", "WsJaxStandardizeBackward"),
}
_DTYPES = {
  "attention": (jnp.float32, jnp.bfloat16),
  "convolution": (jnp.float32, jnp.bfloat16),
  "normalization": (jnp.float32,),
  "standardization": (jnp.float32,),
}
# Those that call oneDNN, and are for processors with AVX-512.
_ON_ONEDNN = ("convolution", "attention")
_ONEDNN = ("onednn-cpu-gomp", "onednn-devel-cpu-gomp")
_COMPILERS = ("c++", "g++", "clang++")

# JAX sets the attribute of this name as the flag is, and declares none.
_DISABLE_JIT = "jax_disable_jit"

_enabled: set[str] = set()
_portable = False


def enable() -> str:
  """Makes this process use the native code that is faster than XLA here.

  It is for one CPU device: XLA cannot split foreign code over several. With
  AVX2 alone XLA's convolutions are as fast as oneDNN's.

  Returns:
    The decision, in words for the caller to announce; empty if there was
    nothing to decide.

  Raises:
    ValueError: The environment's `WS_JAX_NATIVE` is neither 0 nor 1.
  """
  _enabled.clear()
  wanted = os.environ.get(SWITCH, "1")
  if wanted not in ("0", "1"):
    raise ValueError(f"{SWITCH}={wanted}: must be 0 or 1")
  if jax.default_backend() != "cpu" or jax.device_count() > 1 or wanted == "0":
    return ""
  if not (flags := processor_flags()):
    return ""
  said = []
  for name in ("standardization", "normalization", *_ON_ONEDNN):
    by = "oneDNN" if name in _ON_ONEDNN else "C++"
    if name in _ON_ONEDNN and "avx512" not in flags:
      continue
    try:
      load(name)
      _enabled.add(name)
    except (OSError, RuntimeError) as error:
      by = f"XLA ({error})"
    said.append(f"{name} by {by}")
  return f"{', '.join(said)} ({SWITCH}=0: by XLA)"


def enabled(name: str, dtype: DTypeLike) -> bool:
  """Returns whether the native kernel is used for this dtype.

  Args:
    name: Name of the computation: `attention`, `convolution`, `normalization`
      or `standardization`.
    dtype: Dtype of its arguments.
  """
  # Only the compiler knows foreign code.
  if _portable or getattr(jax.config, _DISABLE_JIT):
    return False
  return name in _enabled and jnp.dtype(dtype) in _DTYPES[name]


@contextlib.contextmanager
def portable() -> Iterator[None]:
  """Traces layers within the `with` block for other machines than this one.

  They then leave everything to XLA, and take no measure that helps a CPU alone.

  Example:
    >>> with portable():
    ...   is_portable(), enabled("convolution", "float32")
    (True, False)
  """
  global _portable
  before, _portable = _portable, True
  try:
    yield
  finally:
    _portable = before


def is_portable() -> bool:
  """Returns whether layers are traced within `portable`."""
  return _portable


def multiplies(dtype: DTypeLike) -> bool:
  """Returns whether the processor multiplies and adds numbers of a dtype."""
  return jnp.dtype(dtype) != jnp.bfloat16 or _has_bfloat16()


def in_use() -> list[str]:
  """Returns the names of the native code in use, for the record of a run."""
  return sorted(_enabled)


def cache_folder() -> pathlib.Path:
  """Returns the folder in which compiled code is kept for this user."""
  cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(cache, "ws_jax")


def processor_flags() -> str:
  """Returns the processor's flags as Linux names them; empty elsewhere."""
  info = pathlib.Path("/proc/cpuinfo")
  lines = info.read_text().splitlines() if info.exists() else []
  flags = ("flags", "Features")  # on x86, on Arm
  return next((line for line in lines if line.startswith(flags)), "")


@functools.cache
def _has_bfloat16() -> bool:
  return "avx512_bf16" in processor_flags()


@functools.cache
def load(name: str) -> None:
  """Compiles code, unless that was done before, and registers it with XLA.

  Args:
    name: Name of the code, as in `enabled`.

  Raises:
    RuntimeError: oneDNN is not installed, or there is no C++ compiler, or it
      failed.
    OSError: The compiled code cannot be written or loaded.
  """
  library = ctypes.CDLL(str(_build(name)))
  for handler in _HANDLERS[name]:
    pointer = jax.ffi.pycapsule(getattr(library, handler))
    jax.ffi.register_ffi_target(handler, pointer, platform="cpu")


def _build(name: str) -> pathlib.Path:
  """Returns the path of the compiled code; compiles it if it is not there."""
  here = pathlib.Path(__file__).parent
  source = here / f"{name}.cc"
  command = ["-std=c++17", "-O3", "-march=native", "-w", "-fPIC", "-shared"]
  command += ["-isystem", jax.ffi.include_dir(), str(source)]
  if name in _ON_ONEDNN:
    library = _onednn("libdnnl.so.3")
    command += ["-isystem", str(_onednn("oneapi/dnnl/dnnl.hpp").parents[2])]
    command += [str(library), f"-Wl,-rpath,{library.parent}"]
  headers = sorted(here.glob("*.h"))
  sources = [path.read_text() for path in (source, *headers)]
  jaxlib = importlib.metadata.version("jaxlib")
  digest = hashlib.sha256(
    "\0".join([*command, *sources, jaxlib, processor_flags()]).encode()
  )
  made = cache_folder() / f"{name}-{digest.hexdigest()[:16]}.so"
  if made.exists():
    return made
  compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
  if compiler is None:
    raise RuntimeError(f"no C++ compiler: {', '.join(_COMPILERS)}")
  made.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=made.parent) as folder:
    output = pathlib.Path(folder, made.name)
    run = subprocess.run(
      [compiler, *command, "-o", str(output)], capture_output=True, text=True
    )
    if run.returncode:
      said = run.stderr.strip().splitlines() or [f"exit code {run.returncode}"]
      raise RuntimeError(f"{compiler} failed on {source.name}: {said[0]}")
    output.replace(made)
  return made


def _onednn(name: str) -> pathlib.Path:
  """Returns the path at which pip installed a file of oneDNN."""
  for package in _ONEDNN:
    try:
      files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
      continue
    for file in files:
      if str(file).endswith(name):
        return pathlib.Path(str(file.locate())).resolve()
  raise RuntimeError("for oneDNN: pip install 'ws_jax[onednn]'")
