"""The part of a request that only text has."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Options:
  """What a task on text asks of its data; the `options` of a `Request`.

  Attributes:
    labelled: True for short texts with a label each, False for documents.
    tokenizer: name of `ws_jax.data.text.tokenizers.KINDS`, or the tokenizer
      itself as its `save` writes it.
    vocabulary: largest number of tokens, the special ones included; "bytes"
      has 257 whatever is said here.
    length: number of tokens of a sequence. None, for labelled texts alone:
      that of the longest training text, but at most 512.
  """

  labelled: bool = False
  tokenizer: str = "bytes"
  vocabulary: int = 2048
  length: int | None = None
