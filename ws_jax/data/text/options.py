"""The part of a request that only text has."""

import dataclasses
from collections.abc import Mapping
from typing import Any


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

  @classmethod
  def of(cls, settings: Mapping[str, Any], *, labelled: bool) -> "Options":
    """Returns the options in the settings of a task.

    Args:
      settings: Values of the task's keys, by name.
      labelled: Whether texts have a label each.
    """
    names = ("tokenizer", "vocabulary", "length")
    return cls(labelled=labelled, **{name: settings[name] for name in names})
