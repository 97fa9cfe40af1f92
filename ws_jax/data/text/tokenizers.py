"""Tokenizers: bytes, pieces of words, and words.

A tokenizer has `size`, the number of its tokens; `encode` from UTF-8 bytes to
tokens and `decode` back; and `lengths`, the number of bytes of each token. The
last token of each is special: it begins a document, or fills a row, and stands
for no text. `save` makes one text of a tokenizer, which a run keeps.

Words are for classification alone: what they leave out cannot be told from
them, so there are no bits per byte.
"""

import base64
import collections
import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
from absl import logging

from ws_jax.base import disk, extras, names
from ws_jax.data.request import DataError

KINDS = {
  "bytes": "256 bytes",
  "pieces": "frequent parts of words, by sentencepiece (byte-pair encoding)",
  "words": "frequent words and marks in lower case; for classification",
}
_WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s]")
# Bytes of a saved tokenizer: a few of it could unpack to all memory there is.
_LARGEST = 1 << 26
_MOST_WORDS = 2**16 - 2  # Tokens are uint16; two are special.
_SPACE = "\u2581"  # How sentencepiece writes a space.


@dataclasses.dataclass(frozen=True)
class Bytes:
  """The 256 bytes and the special token.

  Example:
    >>> Bytes().encode("né".encode()).tolist()
    [110, 195, 169]
  """

  kind: ClassVar[str] = "bytes"
  size: ClassVar[int] = 257

  @property
  def lengths(self) -> np.ndarray:
    """Number of bytes of each token, int32 [size]."""
    return np.asarray([1] * 256 + [0], np.int32)

  def encode(self, text: bytes) -> np.ndarray:
    """Returns the tokens of a text, uint16."""
    return np.frombuffer(text, np.uint8).astype(np.uint16)

  def decode(self, tokens: Iterable[int]) -> str:
    """Returns the text of tokens; what is no UTF-8 becomes a replacement."""
    return _text(bytes(token for token in tokens if token < 256))


@dataclasses.dataclass(frozen=True)
class Words:
  """The most frequent words, one token for all others, and the special one.

  Attributes:
    words: the words, the most frequent first.

  Example:
    >>> words = Words(("the", "don't"))
    >>> words.encode(b"Don't feed THE bears").tolist()
    [1, 2, 0, 2]
  """

  kind: ClassVar[str] = "words"
  words: tuple[str, ...]

  @property
  def size(self) -> int:
    """Number of tokens."""
    return len(self.words) + 2

  @functools.cached_property
  def _numbers(self) -> dict[str, int]:
    return {word: number for number, word in enumerate(self.words)}

  @property
  def lengths(self) -> None:
    """None: a word does not tell its spaces and capitals."""

  def encode(self, text: bytes) -> np.ndarray:
    """Returns the tokens of a text, uint16; one for an empty text."""
    other = len(self.words)
    words = split_words(_text(text)) or [""]
    tokens = [self._numbers.get(word, other) for word in words]
    return np.asarray(tokens, np.uint16)

  def decode(self, tokens: Iterable[int]) -> str:
    """Returns the words of tokens with spaces between."""
    known = (*self.words, "?")
    return " ".join(known[token] for token in tokens if token < len(known))


@dataclasses.dataclass(frozen=True)
class Pieces:
  """A model of sentencepiece that can spell any bytes.

  Attributes:
    model: the model as sentencepiece stores it.
  """

  kind: ClassVar[str] = "pieces"
  model: bytes = dataclasses.field(repr=False)

  @functools.cached_property
  def _processor(self) -> Any:
    library = _sentencepiece()
    try:
      return library.SentencePieceProcessor(model_proto=self.model)
    except RuntimeError as error:
      raise DataError(f"no model of sentencepiece: {error}") from None

  @property
  def size(self) -> int:
    """Number of tokens."""
    return self._processor.get_piece_size() + 1

  @functools.cached_property
  def _spelt(self) -> list[bytes]:
    """The bytes of each token."""
    processor, found = self._processor, []
    for token in range(processor.get_piece_size()):
      piece = processor.id_to_piece(token)
      if processor.is_byte(token):
        found.append(bytes([int(piece[3:5], 16)]))  # <0x0A>
      elif processor.is_unknown(token) or processor.is_control(token):
        found.append(b"")
      else:
        found.append(piece.replace(_SPACE, " ").encode())
    return [*found, b""]

  @property
  def lengths(self) -> np.ndarray:
    """Number of bytes of each token, int32 [size]."""
    return np.asarray([len(spelt) for spelt in self._spelt], np.int32)

  def encode(self, text: bytes) -> np.ndarray:
    """Returns the tokens of a text, uint16.

    Raises:
      DataError: the text is not UTF-8.
    """
    try:
      lines = text.decode().splitlines(keepends=True)
    except UnicodeDecodeError as error:
      raise DataError(
        f"the text is not UTF-8 (byte {error.start}): convert it, or take "
        "tokenizer=bytes"
      ) from None
    # The library would read the sign that it writes a space with as a space.
    parts = [part for line in lines for part in re.split(f"({_SPACE})", line)]
    encoded = self._processor.encode(parts)
    number = self._processor.piece_to_id
    spelt = [number(f"<0x{byte:02X}>") for byte in _SPACE.encode()]
    tokens = [
      token
      for part, own in zip(parts, encoded, strict=True)
      for token in (spelt if part == _SPACE else own)
    ]
    return np.asarray(tokens, np.uint16)

  def decode(self, tokens: Iterable[int]) -> str:
    """Returns the text of tokens; what is no UTF-8 becomes a replacement."""
    return _text(b"".join(self._spelt[token] for token in tokens))


Tokenizer = Bytes | Pieces | Words


def make(
  kind: str, texts: Iterable[bytes], vocabulary: int, where: str
) -> Tokenizer:
  """Returns a tokenizer, made from the texts of the training split.

  Args:
    kind: name of `KINDS`, or a tokenizer that `save` made a text of.
    texts: the texts.
    vocabulary: largest number of tokens, the special ones included.
    where: the source, for messages.

  Raises:
    DataError: an unknown kind, or a vocabulary that is too small.
    MissingExtra: the library is not installed.
  """
  if ":" in kind:
    return load(kind)
  if kind not in KINDS:
    raise DataError(f"unknown tokenizer {kind!r}: {names.suggest(kind, KINDS)}")
  if kind == "bytes":
    return Bytes()
  if kind == "words":
    return _count_words(texts, vocabulary)
  return _train_pieces(list(texts), vocabulary, where)


def save(tokenizer: Tokenizer) -> str:
  """Returns a tokenizer as one text, for `load`."""
  if isinstance(tokenizer, Bytes):
    return tokenizer.kind
  content = (
    tokenizer.model
    if isinstance(tokenizer, Pieces)
    else json.dumps(tokenizer.words).encode()
  )
  packed = base64.b64encode(zlib.compress(content, 9)).decode()
  return f"{tokenizer.kind}:{packed}"


@functools.lru_cache(maxsize=8)
def load(saved: str) -> Tokenizer:
  """Returns the tokenizer that `save` made a text of.

  Raises:
    DataError: the text is not one of `save`.

  Example:
    >>> load(save(Words(("yes", "no")))).words
    ('yes', 'no')
  """
  kind, _, packed = saved.partition(":")
  try:
    unpack = zlib.decompressobj()
    content = unpack.decompress(base64.b64decode(packed), _LARGEST)
    if packed and not unpack.eof:
      raise ValueError
    if kind == "bytes":
      return Bytes()
    if kind == "words":
      words = disk.parse_json(content)
      listed = isinstance(words, list) and len(words) <= _MOST_WORDS
      if listed and all(isinstance(word, str) for word in words):
        return Words(tuple(words))
    if kind == "pieces" and content:
      return Pieces(content)
  except (ValueError, zlib.error):
    pass
  raise DataError(f"no tokenizer: {saved[:20]!r}")


def split_words(text: str) -> list[str]:
  """Returns words and marks in lower case.

  Example:
    >>> split_words("What's 5 + 5?")
    ["what's", '5', '+', '5', '?']
  """
  return _WORD.findall(text.lower())


def _count_words(texts: Iterable[bytes], vocabulary: int) -> Words:
  counts = collections.Counter(
    word for text in texts for word in split_words(_text(text))
  )
  # A word that stands once is left to the token for all others, which would
  # otherwise never be trained. Equal counts are ordered by the word.
  known = [word for word, count in counts.items() if count > 1]
  known.sort(key=lambda word: (-counts[word], word))
  return Words(tuple(known[: max(0, vocabulary - 2)]))


def _train_pieces(texts: list[bytes], vocabulary: int, where: str) -> Pieces:
  """Trains sentencepiece, once for a text: the model is kept in the cache."""
  digest = hashlib.sha256(b"\0".join([str(vocabulary).encode(), *texts]))
  cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  path = pathlib.Path(cache, "ws_jax", "text", f"{digest.hexdigest()}.model")
  if path.exists():
    return Pieces(path.read_bytes())
  library, output = _sentencepiece(), io.BytesIO()
  try:
    library.SentencePieceTrainer.train(
      sentence_iterator=_lines(texts),
      model_writer=output,
      model_type="bpe",
      vocab_size=vocabulary - 1,
      hard_vocab_limit=False,
      byte_fallback=True,
      character_coverage=1.0,
      # Lossless: each byte of the text is one of the tokens'.
      normalization_rule_name="identity",
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      bos_id=-1,
      eos_id=-1,
      max_sentence_length=1 << 20,
      num_threads=1,
      minloglevel=2,
    )
  except (OSError, RuntimeError) as error:
    # The library's message has a place in its source in front.
    reason = str(error).rpartition("] ")[2] or "the text is empty"
    raise DataError(
      f"{where}: no tokenizer of vocabulary={vocabulary}, which must hold 256 "
      f"bytes and each character of the text: {reason}"
    ) from error
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk.whole(path) as file:
      file.write(output.getvalue())
  except OSError as error:
    logging.warning("cannot keep the tokenizer of %s: %s", where, error)
  return Pieces(output.getvalue())


def _lines(texts: list[bytes]) -> Iterator[str]:
  for text in texts:
    yield from _text(text).splitlines()


def _text(content: bytes) -> str:
  return content.decode(errors="replace")


def _sentencepiece() -> Any:
  extras.need("text", by="tokenizer=pieces")
  import sentencepiece

  return sentencepiece
