"""Documents for language models, from wherever they lie.

- `austen`: the embedded novels, split by novel;
- a text file: the first 90 % are for training, 5 % each for validation and
  test, as TFDS cuts Tiny Shakespeare;
- a folder with `train.txt`, `validation.txt` and `test.txt`, or with folders
  of these names, in which each .txt is a document;
- a folder of other .txt files, each a document, cut as one text;
- a set of TFDS, in which each example is a document.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import numpy as np

from ws_jax.data import prepared, splits
from ws_jax.data.request import (
  Arrays,
  DataError,
  Request,
  Source,
  check_memory,
  unknown_key,
)
from ws_jax.data.text import austen, packing, places, tokenizers

INPUT_KEY, LABEL_KEY = "tokens", "bytes"
SUFFIXES = (".txt", ".text", ".md")
PARTS = ("train", "validation", "test")  # Of a text that is cut.
SPLITS = ("train", "validation", "val", "valid", "test")


@dataclasses.dataclass(frozen=True)
class _Found:
  """Documents before they are read.

  Attributes:
    where: name for messages.
    splits: names of the splits.
    read: function that returns the documents of a split.
    state: text that changes when the files do.
  """

  where: str
  splits: tuple[str, ...]
  read: Callable[[str], list[bytes]]
  state: str


def open_source(request: Request) -> Source:
  """Returns the source of documents, packed into sequences.

  Args:
    request: which text, with `Options` as its `options`.

  Returns:
    A source whose arrays are `tokens`, uint16 [N, length + 1], and `bytes`,
    int32 [N]: how many bytes of text a row predicts. A tokenizer other than
    "bytes" is made from the whole split that the training split is cut from.

  Raises:
    DataError: there is no such text, a split is missing or empty, or it cannot
      be encoded.
  """
  found = _find(request)
  pair = splits.choose(request, found.splits, found.where)
  tokenizer, arrays = _encode(request, pair, found.state)
  return Source(
    name=str(request.name),
    splits=pair,
    sizes={split: len(part[LABEL_KEY]) for split, part in arrays.items()},
    input_key=INPUT_KEY,
    label_key=LABEL_KEY,
    input_shape=(request.options.length + 1,),
    input_dtype="uint16",
    num_classes=None,
    classes=(),
    read=lambda: {split: dict(part) for split, part in arrays.items()},
    tokenizer=tokenizers.save(tokenizer),
  )


@functools.lru_cache(maxsize=1)
def _encode(
  request: Request, pair: tuple[str, str], state: str
) -> tuple[tokenizers.Tokenizer, dict[str, Arrays]]:
  """Returns the tokenizer and the arrays of each split.

  Kept for the next call, since `read_info` and `load` follow each other.
  """
  del state  # It is there to be compared.
  found, options = _find(request), request.options
  texts = {split: found.read(split) for split in dict.fromkeys(pair)}
  for split, documents in texts.items():
    if not any(documents):
      raise DataError(f"{found.where}: {split!r} holds no text")
  size = sum(len(text) for documents in texts.values() for text in documents)
  check_memory(found.where, 4 * size)
  tokenizer = tokenizers.make(
    options.tokenizer, texts[pair[0]], options.vocabulary, found.where
  )
  if tokenizer.lengths is None:
    raise DataError(
      f"tokenizer={options.tokenizer} does not tell how many bytes a token is: "
      "a language model needs bytes or pieces"
    )
  arrays = {}
  for split, documents in texts.items():
    encoded = [tokenizer.encode(text) for text in documents]
    rows = packing.pack(encoded, options.length, tokenizer.size - 1)
    counts = packing.count_bytes(rows, tokenizer.lengths)
    arrays[split] = {INPUT_KEY: rows, LABEL_KEY: counts}
  return tokenizer, arrays


def _find(request: Request) -> _Found:
  if request.name == austen.NAME:
    return _Found(austen.NAME, tuple(austen.SPLITS), austen.read, austen.SHA256)
  path = places.locate(request, SUFFIXES)
  if places.is_prepared(path):
    return _prepared(path, request)
  if path.is_file():
    return _cut([path], str(path))
  folders = sorted(p.name for p in path.iterdir() if p.is_dir())
  named = [name for name in SPLITS if name in folders]
  if named:
    return _of_splits(
      path, {name: places.files(path / name, SUFFIXES) for name in named}
    )
  texts = places.files(path, SUFFIXES)
  if not texts:
    raise DataError(
      f"{path} holds no text: needed are files in {', '.join(SUFFIXES)}, or "
      "folders train, validation and test of such files"
    )
  by_split = {text.stem: [text] for text in texts if text.stem in SPLITS}
  if "train" in by_split:
    return _of_splits(path, by_split)
  return _cut(texts, str(path))


def _of_splits(
  path: pathlib.Path, by_split: dict[str, list[pathlib.Path]]
) -> _Found:
  """Returns the documents of files that belong to a split each."""
  return _Found(
    str(path),
    tuple(by_split),
    lambda split: [text.read_bytes() for text in by_split[split]],
    places.state(text for texts in by_split.values() for text in texts),
  )


def _cut(texts: list[pathlib.Path], where: str) -> _Found:
  """Returns the parts of files that are cut as one text."""
  return _Found(
    where,
    PARTS,
    lambda split: cut([text.read_bytes() for text in texts])[split],
    places.state(texts),
  )


def _prepared(path: pathlib.Path, request: Request) -> _Found:
  """Returns the documents of a set that TFDS prepared."""
  builder = places.open_prepared(path)
  known = places.text_features(builder)
  key = request.input_key or (known[0] if len(known) == 1 else "")
  if not key:
    raise DataError(
      f"{path} is not a set of one text an example: say by input_key which of "
      f"{', '.join(known) or 'none'} it is"
    )
  if key not in known:
    raise unknown_key(str(path), "input_key", key, known)

  def read(split: str) -> list[bytes]:
    examples = prepared.examples(path, builder, split)
    return [bytes(example[key]) for example in examples]

  return _Found(str(path), tuple(builder.info.splits), read, str(path))


def cut(documents: list[bytes]) -> dict[str, list[bytes]]:
  """Cuts documents, one behind the other, into `PARTS`.

  A document that lies across a cut becomes two. No character of UTF-8 is cut.

  Args:
    documents: the documents.

  Returns:
    The documents of each part.

  Example:
    >>> {part: texts for part, texts in cut([b"0123456789" * 2]).items()}
    {'train': [b'012345678901234567'], 'validation': [b'8'], 'test': [b'9']}
  """
  size = sum(map(len, documents))
  first = int(size * 0.9)
  edges = [0, first, first + int((size - first) * 0.5), size]
  found = {}
  for name, start, stop in zip(PARTS, edges[:-1], edges[1:], strict=True):
    texts, position = [], 0
    for document in documents:
      begin = _between(document, start - position)
      end = _between(document, stop - position)
      if begin < end:
        texts.append(document[begin:end])
      position += len(document)
    found[name] = texts
  return found


def _between(text: bytes, position: int) -> int:
  """Returns the nearest position from there back that is not in a character."""
  position = np.clip(position, 0, len(text))
  while 0 < position < len(text) and text[position] & 0xC0 == 0x80:
    position -= 1
  return int(position)
