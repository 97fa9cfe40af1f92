"""Short texts with a label each, for classification.

- a .json file with a list for each split, of pairs [text, label] or of objects
  (CLINC150 is one);
- a .jsonl file of objects, or a .csv file with a header: one split, `train`,
  of which slices are taken (`data.eval_split=train[90%:]`);
- a folder with such a file for each split: `train.csv`, `test.csv`;
- a set of TFDS with a text and a class label.

The keys `text` and `label`, or other usual names of them, are taken unless
`data.input_key` and `data.label_key` say others.
"""

import dataclasses
import functools
import io
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from absl import logging

from ws_jax.base import disk, names
from ws_jax.data import prepared, splits
from ws_jax.data.labels import names_of
from ws_jax.data.request import (
  Arrays,
  DataError,
  Request,
  Source,
  check_classes,
  check_memory,
  unknown_key,
)
from ws_jax.data.text import places, tokenizers

INPUT_KEY, LABEL_KEY = "tokens", "label"
SUFFIXES = (".json", ".jsonl", ".csv")
TEXT_NAMES = ("text", "sentence", "utterance", "query")
LABEL_NAMES = ("label", "intent", "category", "class")
LONGEST = 512  # Tokens, unless the task says another length.

Pairs = list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class _Found:
  """Labelled texts before they are read.

  Attributes:
    where: name for messages.
    splits: names of the splits.
    read: function that returns the texts of a split with their labels.
    state: text that changes when the files do.
    classes: names of the classes in their order, or () to sort them.
  """

  where: str
  splits: tuple[str, ...]
  read: Callable[[str], Pairs]
  state: str
  classes: tuple[str, ...] = ()


def open_source(request: Request) -> Source:
  """Returns the source of labelled texts, each one row of tokens.

  Args:
    request: which texts, with `Options` as its `options`.

  Returns:
    A source whose arrays are `tokens`, uint16 [N, length], filled with the
    special token behind the text, and `label`, int32 [N]. The tokenizer, the
    classes and the length are those of the training texts.

  Raises:
    DataError: there are no such texts, a split or key is missing, or a label is
      not one of the training split.
  """
  found = _find(request)
  pair = splits.choose(request, found.splits, found.where)
  tokenizer, classes, arrays = _encode(request, pair, found.state)
  tokens = arrays[pair[0]][INPUT_KEY]
  return Source(
    name=str(request.name),
    splits=pair,
    sizes={split: len(part[LABEL_KEY]) for split, part in arrays.items()},
    input_key=INPUT_KEY,
    label_key=LABEL_KEY,
    input_shape=tokens.shape[1:],
    input_dtype="uint16",
    num_classes=len(classes),
    classes=classes,
    read=lambda: {split: dict(part) for split, part in arrays.items()},
    tokenizer=tokenizers.save(tokenizer),
  )


@functools.lru_cache(maxsize=1)
def _encode(
  request: Request, pair: tuple[str, str], state: str
) -> tuple[tokenizers.Tokenizer, tuple[str, ...], dict[str, Arrays]]:
  """Returns the tokenizer, the classes and the arrays of each split.

  Kept for the next call, since `read_info` and `load` follow each other.
  """
  del state  # It is there to be compared.
  found, options = _find(request), request.options
  whole = {split: found.read(split) for split in dict.fromkeys(pair)}
  for split, texts in whole.items():
    if not texts:
      raise DataError(f"{found.where}: {split!r} holds no text")
  sizes = {split: len(texts) for split, texts in whole.items()}
  train, _ = splits.ranges(request, pair, sizes)
  seen = [text.encode() for text, _ in whole[pair[0]][train.start : train.stop]]
  tokenizer = tokenizers.make(
    options.tokenizer, seen, options.vocabulary, found.where
  )
  classes = found.classes or _sorted({label for _, label in whole[pair[0]]})
  check_classes(found.where, classes)
  encoded = {
    split: [tokenizer.encode(text.encode()) for text, _ in texts]
    for split, texts in whole.items()
  }
  longest = max(map(len, encoded[pair[0]][train.start : train.stop]))
  length = options.length or max(1, min(longest, LONGEST))
  check_memory(found.where, 2 * length * sum(sizes.values()))
  if longest > length:
    logging.warning(
      "%s: texts of up to %d tokens are cut to %d", found.where, longest, length
    )
  arrays = {
    split: {
      INPUT_KEY: _fill(encoded[split], length, tokenizer.size - 1),
      LABEL_KEY: _numbers(texts, classes, f"{found.where}: {split!r}"),
    }
    for split, texts in whole.items()
  }
  return tokenizer, classes, arrays


def _fill(encoded: list[np.ndarray], length: int, special: int) -> np.ndarray:
  """Returns rows [N, length] uint16, filled with the special token."""
  rows = np.full((len(encoded), length), special, np.uint16)
  for row, tokens in zip(rows, encoded, strict=True):
    row[: len(tokens)] = tokens[:length]
  return rows


def _sorted(labels: Iterable[str]) -> tuple[str, ...]:
  """Returns classes in the order of their numbers if they all are numbers."""
  try:
    return tuple(sorted(labels, key=int))
  except ValueError:
    return tuple(sorted(labels))


def _numbers(texts: Pairs, classes: tuple[str, ...], where: str) -> np.ndarray:
  known = {name: number for number, name in enumerate(classes)}
  for index, (_, label) in enumerate(texts):
    if label not in known:
      raise DataError(
        f"{where}: label {label!r} of text {index} is none of the training "
        f"split: {names.suggest(label, known)[:200]}"
      )
  return np.asarray([known[label] for _, label in texts], np.int32)


def _find(request: Request) -> _Found:
  path = places.locate(request, SUFFIXES)
  if places.is_prepared(path):
    return _prepared(path, request)
  if path.suffix == ".json" and path.is_file():
    by_split = _read_json(path)
    return _Found(
      str(path),
      tuple(by_split),
      lambda split: _pairs(by_split[split], request, f"{path}: {split!r}"),
      places.state([path]),
    )
  files = {"train": path}
  if path.is_dir():
    files = {file.stem: file for file in places.files(path, SUFFIXES[1:])}
  if not files:
    raise DataError(
      f"{path} holds no labelled text: needed are train.csv and test.csv, or "
      ".jsonl"
    )
  return _Found(
    str(path),
    tuple(files),
    lambda split: _pairs(_rows(files[split]), request, str(files[split])),
    places.state(files.values()),
  )


def _read_json(path: pathlib.Path) -> dict[str, list[Any]]:
  """Returns the list of each split of a .json file."""
  content = _parse(_read(path), str(path))
  lists = {
    key: value
    for key, value in (content.items() if isinstance(content, dict) else ())
    if isinstance(value, list)
  }
  if not lists:
    raise DataError(
      f"{path} must be an object with a list for each split, as "
      '{"train": [["a text", "its label"], ...], "test": [...]}'
    )
  return lists


def _rows(path: pathlib.Path) -> list[Any]:
  """Returns the rows of a .csv file, or the objects of a .jsonl file."""
  text = _read(path)
  if path.suffix != ".csv":
    return [
      _parse(line, f"{path}, line {number}")
      for number, line in enumerate(io.StringIO(text, newline=""), 1)
      if line.strip()
    ]
  try:
    columns, *lines = [line for line in disk.parse_csv(text) if line] or [[]]
  except ValueError as error:
    raise DataError(f"{path}: {error}") from None
  for number, line in enumerate(lines, 1):
    if len(line) > len(columns):
      raise DataError(
        f"{path}: row {number} has {len(line)} cells, of {len(columns)} columns"
      )
  none = dict.fromkeys(columns)
  return [none | dict(zip(columns, line, strict=False)) for line in lines]


def _read(path: pathlib.Path) -> str:
  try:
    return path.read_bytes().decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise DataError(f"{path} is not UTF-8: {error}") from None


def _parse(text: str, where: str) -> Any:
  try:
    return disk.parse_json(text)
  except ValueError as error:
    raise DataError(f"{where} is not JSON: {error}") from None


def _pairs(rows: list[Any], request: Request, where: str) -> Pairs:
  """Returns text and label of rows, which are pairs or tables of keys."""
  if not rows:
    return []
  keys = None
  if isinstance(rows[0], dict):
    keys = (
      _key(request.input_key, TEXT_NAMES, "input_key", rows[0], where),
      _key(request.label_key, LABEL_NAMES, "label_key", rows[0], where),
    )
  found = []
  for index, row in enumerate(rows):
    try:
      text, label = row if keys is None else (row[key] for key in keys)
    except (KeyError, TypeError, ValueError):
      text = label = None
    if not isinstance(text, str) or not isinstance(label, (str, int)):
      raise DataError(
        f"{where}: {repr(row)[:80]}, number {index}, is no text with a label"
      )
    found.append((text, str(label)))
  return found


def _key(
  asked: str | None,
  usual: tuple[str, ...],
  what: str,
  row: dict[str, Any],
  where: str,
) -> str:
  if asked is None:
    asked = next((key for key in usual if key in row), usual[0])
  if asked not in row:
    raise unknown_key(where, what, asked, row)
  return asked


def _prepared(path: pathlib.Path, request: Request) -> _Found:
  """Returns the texts of a set that TFDS prepared."""
  builder = places.open_prepared(path)
  features = builder.info.features
  classes = [k for k in features if hasattr(features[k], "int2str")]
  keys = []
  for what, asked, known in (
    ("input_key", request.input_key, places.text_features(builder)),
    ("label_key", request.label_key, classes),
  ):
    if asked is not None and asked not in known:
      raise unknown_key(str(path), what, asked, known)
    if asked is None and len(known) != 1:
      raise DataError(
        f"{path} is not a set of one text with one class each: say by {what} "
        f"which of {', '.join(known) or 'none'} it is"
      )
    keys.append(asked or known[0])
  text, label = keys
  class_names = names_of(features[label], str(path))

  def read(split: str) -> Pairs:
    return [
      (example[text].decode(errors="replace"), class_names[int(example[label])])
      for example in prepared.examples(path, builder, split)
    ]

  return _Found(
    str(path), tuple(builder.info.splits), read, str(path), class_names
  )
