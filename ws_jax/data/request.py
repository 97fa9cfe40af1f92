"""What a data set is asked for by, and how each kind of source answers.

Start here to add a kind of source: it is a function that takes a `Request` and
returns a `Source`, and `datasets.py` cuts its splits and checks its labels.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ws_jax.base import names

Arrays = dict[str, np.ndarray]

_OTHER_FIELDS = (
  *("dir", "train_split", "eval_split", "input_key", "label_key"),
  *("may_overlap", "options", "stream"),
)


class DataError(ValueError):
  """A data set is not available; the message says what to do about it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
  """The keys of `config.data` that say which data; hashable.

  Attributes:
    name: the name of the embedded set; the name of a set that TFDS prepared
      (`set`, `set/config`, `set:version`); the path of an .npz file; the path
      of a folder of images; `package.module:callable`; or, not from a config,
      an object with `train` and `test`.
    dir: the folder of prepared sets; None for the one that TFDS uses.
    train_split: the split to train on, or a slice of it such as
      `train[:90%]`; None for `train`.
    eval_split: the split to evaluate on, or a slice of it; None for `test`,
      and `validation` or `val` where there is no `test`.
    input_key: the key of the inputs; None for the source's own.
    label_key: the key of the labels; None for the source's own.
    options: what the task asks of the source, as a hashable value such as
      `ws_jax.data.text.Options`; None for a task that asks nothing.
    may_overlap: whether the two splits may share examples, because nothing is
      trained on them.
    stream: how images are decoded as they are needed, as
      `ws_jax.data.stream.Options`; None for a set that is decoded beforehand.

  Example:
    >>> Request("cifar10", train_split="train[:90%]") == Request("cifar10")
    False
  """

  name: Any
  dir: str | None = None
  train_split: str | None = None
  eval_split: str | None = None
  input_key: str | None = None
  label_key: str | None = None
  options: Any = None
  may_overlap: bool = False
  stream: Any = None

  # An object in `name` may hold arrays: it is compared by identity, because
  # `==` of arrays is no truth value and they have no hash.
  def _identity(self) -> tuple[Any, ...]:
    plain = isinstance(self.name, (str, os.PathLike))
    name = os.fspath(self.name) if plain else id(self.name)
    return (name, *(getattr(self, field) for field in _OTHER_FIELDS))

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Request) and self._identity() == other._identity()

  def __hash__(self) -> int:
    return hash(self._identity())


@dataclasses.dataclass(frozen=True)
class Source:
  """A data set before its splits are cut: all but the arrays themselves.

  Attributes:
    name: the name or path it was asked for by.
    splits: the whole splits that the training and the evaluation split are
      cut from; they may be the same one.
    sizes: the number of examples of each of them.
    input_key: the key of the inputs.
    label_key: the key of the labels.
    input_shape: the shape of one example.
    input_dtype: the dtype of the inputs.
    num_classes: labels are in `[0, num_classes)`; None where they are not
      class numbers.
    classes: the names of the classes, or ().
    read: a function that returns the arrays of each whole split.
    statistics: mean and standard deviation of each channel where the source
      brings its own; None to compute them.
    tokenizer: the tokenizer of text as one text, which
      `ws_jax.data.text.tokenizers.load` reads; "" for other data.
    group_key: the key of the group of each example, such as the speaker of a
      clip, which has an accuracy of its own; "" where there is none.
    groups: the names of the groups, or ().
  """

  name: str
  splits: tuple[str, str]
  sizes: Mapping[str, int]
  input_key: str
  label_key: str
  input_shape: tuple[int, ...]
  input_dtype: str
  num_classes: int | None
  classes: tuple[str, ...]
  read: Callable[[], dict[str, Arrays]]
  statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
  tokenizer: str = ""
  group_key: str = ""
  groups: tuple[str, ...] = ()


def check_memory(where: str | pathlib.Path, num_bytes: int) -> None:
  """Raises DataError if that many bytes are over half of the memory here."""
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  if num_bytes > memory // 2:
    raise DataError(
      f"{where} takes {num_bytes / 2**30:.1f} GiB decoded, more than half of "
      f"the {memory / 2**30:.1f} GiB here: it does not suit training in memory"
    )


def check_classes(where: str, classes: tuple[str, ...]) -> None:
  """Raises DataError if two classes have one name."""
  twice = sorted({name for name in classes if classes.count(name) > 1})
  if twice:
    raise DataError(f"{where}: two classes are called {twice[0]!r}")


def unknown_key(where: str, what: str, key: str, known: Any) -> DataError:
  """Returns the error about a key that the examples do not have."""
  return DataError(f"{where}: no {what}={key!r}: {names.suggest(key, known)}")
