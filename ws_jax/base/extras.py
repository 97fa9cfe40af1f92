"""One line that names the extra, where a package of an extra is missing.

`pip install ws_jax` brings what the functions need; pyproject.toml lists the
rest as extras. A function that needs one calls `need` before any long work, and
a program imports within `program`.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator

# The modules of each extra, by which to see whether it is installed.
MODULES = {
  "audio": ("scipy", "soundfile"),
  "bench": ("timm", "torch"),
  "data": ("importlib_resources", "tensorflow_datasets"),
  "onnx": ("jax2onnx", "onnxruntime"),
  "ray": ("ray",),
  "report": ("absl", "matplotlib", "ml_collections", "rich", "scipy"),
  "savedmodel": ("tensorflow",),
  "slurm": ("submitit",),
  "stablehlo": ("flatbuffers",),
  "stream": ("array_record", "grain"),
  "text": ("sentencepiece",),
  "tf": ("requests", "tensorflow"),
  "train": ("PIL", "absl", "ml_collections", "orbax", "rich", "tensorboard"),
}


class MissingExtra(ModuleNotFoundError, ValueError):
  """An extra that is not installed; the message is one line.

  Also a ValueError, because a program reports those in one line: they are what
  its user can mend.
  """


def need(extra: str, by: str) -> None:
  """Checks that the packages of an extra are installed; imports none.

  Args:
    extra: Name of the extra, a key of `MODULES`.
    by: Name of what needs it, for the message.

  Raises:
    MissingExtra: A package is not installed.

  Example:
    >>> need("train", by="ws_jax.train")
    >>> MODULES["sound"] = ("hear_nothing",)
    >>> need("sound", by="a data set of speech")
    Traceback (most recent call last):
    ws_jax.base.extras.MissingExtra: a data set of speech needs the extra \
'sound': pip install 'ws_jax[sound]' (missing: hear_nothing)
    >>> del MODULES["sound"]
  """
  if text := lacking(extra):
    raise MissingExtra(f"{by} {text}")


def lacking(extra: str) -> str:
  """Returns what to install for a missing extra, "" if it is installed.

  Args:
    extra: Name of the extra, a key of `MODULES`.

  Example:
    >>> lacking("train")
    ''
  """
  missing = [x for x in MODULES[extra] if importlib.util.find_spec(x) is None]
  if not missing:
    return ""
  return (
    f"needs the extra {extra!r}: pip install 'ws_jax[{extra}]'"
    f" (missing: {', '.join(missing)})"
  )


@contextlib.contextmanager
def program(*extras: str, by: str) -> Iterator[None]:
  """Guards the imports of a program: without an extra, one line and exit 2.

  Args:
    *extras: Names of the extras that the program needs.
    by: Name of the program, for the message.

  Example:
    >>> with program("train", by="ws_jax.main"):
    ...   from absl import app
  """
  try:
    for extra in extras:
      need(extra, by)
    yield
  except MissingExtra as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
