"""Text for language models, and short texts with a label each.

Start reading at `open_source`. A task on text puts `Options` into the request
for its data; they say which of the two is wanted:

- `documents.py`: a text file, a folder of them, the embedded novels, or a set
  of TFDS, cut into sequences by `packing.py`;
- `labelled.py`: texts and labels in a .json, .jsonl or .csv file, a folder of
  such files, or a set of TFDS.

`tokenizers.py` turns both into numbers, and `places.py` finds their files.
"""

from ws_jax.data.request import Request, Source
from ws_jax.data.text import documents, labelled
from ws_jax.data.text.options import Options

__all__ = ["Options", "open_source"]


def open_source(request: Request) -> Source:
  """Returns the source that a task on text asks for.

  Args:
    request: which data, with `Options` as its `options`.

  Raises:
    DataError: there are no such data, or they hold no text.

  Example:
    >>> options = Options(length=64)
    >>> source = open_source(Request("austen", options=options))
    >>> source.splits, source.input_shape, source.sizes["test"]
    (('train', 'test'), (65,), 7295)
  """
  opened = labelled if request.options.labelled else documents
  return opened.open_source(request)
