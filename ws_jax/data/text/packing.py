"""Documents packed into sequences of one length.

Each document begins with the special token of its tokenizer, and all documents
stand one behind the other in one stream. Row n holds the tokens from `n *
length` to `(n + 1) * length` of the stream, both ends included: its last token
is the first one of the next row. A model is given all but the last token of a
row and predicts all but the first, so that every token of the stream is
predicted exactly once. The special token itself, which begins a document or
fills the last row, is never counted.

A row is a text of its own: the first token of a row is all that its second
token is predicted from, and on average a token sees half a row.
"""

from collections.abc import Iterable

import numpy as np


def pack(
  documents: Iterable[np.ndarray], length: int, special: int
) -> np.ndarray:
  """Returns the rows of a split.

  Args:
    documents: tokens of each document, a vector of integers each.
    length: number of tokens of a row that are predicted.
    special: token that begins each document and fills the last row.

  Returns:
    Array [N, length + 1], uint16.

  Example:
    >>> pack([np.array([1, 2, 3]), np.array([4])], length=2, special=9).tolist()
    [[9, 1, 2], [2, 3, 9], [9, 4, 9]]
  """
  begin = np.asarray([special], np.uint16)
  parts = [begin]
  for tokens in documents:
    parts += [tokens.astype(np.uint16), begin]
  stream = np.concatenate(parts)[:-1]
  rows = max(1, -(-(len(stream) - 1) // length))
  padded = np.full(rows * length + 1, special, np.uint16)
  padded[: len(stream)] = stream
  windows = np.lib.stride_tricks.sliding_window_view(padded, length + 1)
  return windows[::length].copy()


def count_bytes(rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
  """Returns how many bytes each row predicts, int32 [N].

  Args:
    rows: tokens, as `pack` returns them.
    lengths: number of bytes of each token of the vocabulary, 0 for the special
      one.

  Example:
    >>> count_bytes(np.array([[2, 0, 1], [1, 1, 2]]), np.array([1, 3, 0]))
    array([4, 3], dtype=int32)
  """
  counts = np.empty(len(rows), np.int32)
  for start in range(0, len(rows), 1024):  # Pieces that fit in a cache.
    chunk = slice(start, start + 1024)
    counts[chunk] = lengths[rows[chunk, 1:]].sum(1)
  return counts
