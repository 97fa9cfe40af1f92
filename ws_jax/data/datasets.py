"""Data sets from any source, in memory or to be streamed.

Start reading at `load`. `sources.py` decides what a name stands for:

- `find.py` and `prepared.py`: a set that TFDS prepared;
- `npz.py`: arrays in a file; the embedded set is one;
- `folder.py` and `images.py`: a folder of images;
- `objects.py`: a Python object, or a function of the user's that makes it;
- `text/`: documents, and texts with a label each, for the tasks on text;
- `stream/`: images that are decoded as they are needed.

Each returns a `Source` (request.py). Slices, labels and statistics are the same
for all of them and are seen to here.
"""

import dataclasses

import numpy as np

from ws_jax.data import arrays, labels, sources, splits, values
from ws_jax.data.request import Arrays, Request, Source
from ws_jax.data.stream import Stream, open_stream

# Mean and deviation of the training images of ImageNet. What is streamed is
# normalized by them: its own would take a pass over all images.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Info:
  """What is known of a data set before an example is decoded.

  Attributes:
    name: the name or path it was asked for by.
    input_key: the key of the inputs.
    label_key: the key of the labels.
    train_size: the number of training examples.
    eval_size: the number of evaluation examples.
    input_shape: the shape of one example.
    input_dtype: the dtype of the inputs.
    num_classes: labels are in `[0, num_classes)`; None where they are not
      class numbers.
    classes: the names of the classes, or () where the source knows none.
    tokenizer: the tokenizer of text, as `Source.tokenizer`; "" for other data.
    group_key: the key of the group of each example, such as the speaker of a
      clip, which has an accuracy of its own; "" where there is none.
    groups: the names of the groups, or ().
  """

  name: str
  input_key: str
  label_key: str
  train_size: int
  eval_size: int
  input_shape: tuple[int, ...]
  input_dtype: str
  num_classes: int | None
  classes: tuple[str, ...] = ()
  tokenizer: str = ""
  group_key: str = ""
  groups: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """A training and an evaluation set.

  Attributes:
    info: what `read_info` returns.
    train: an array `[N, ...]` for each key: inputs, labels, and whatever else
      the source has for each example. Of a stream, one black image.
    test: the same keys for the examples that training never sees.
    mean: the mean of each channel over the training images, scaled to [0, 1];
      () where the inputs are not uint8 images.
    std: the standard deviation of each channel; () as for `mean`.
    stream: where the images of a stream are; None for a set in memory.
  """

  info: Info
  train: Arrays
  test: Arrays
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  stream: Stream | None = None

  @property
  def name(self) -> str:
    """Returns the name or path it was asked for by."""
    return self.info.name

  @property
  def num_classes(self) -> int | None:
    """Returns the number of classes, None where labels are no classes."""
    return self.info.num_classes

  @property
  def num_train(self) -> int:
    """Returns the number of training examples."""
    if self.stream is not None:
      return self.info.train_size
    return len(self.train[self.info.label_key])


def load(request: Request) -> Dataset:
  """Loads a data set, never from the network and never through TensorFlow.

  Images are decoded once and kept beside the files they come from, so that the
  next start takes a fraction of a second. Of a stream none is decoded.

  Args:
    request: which data; see `Request`.

  Returns:
    The arrays, with the statistics that normalization needs.

  Raises:
    DataError: there are no such data (the message has the nearest name, or the
      command that prepares them), or they do not suit training in memory.

  Example:
    >>> dataset = load(Request("fashion_mnist_10k", train_split="train[:90%]"))
    >>> dataset.train["image"].shape, dataset.num_classes
    ((9000, 28, 28, 1), 10)
  """
  if request.stream is not None:
    return _load_stream(request)
  source = sources.open_source(request)
  parts = splits.ranges(request, source.splits, source.sizes)
  whole = {}
  for split, content in source.read().items():
    for key in (source.input_key, source.label_key):
      values.check_range(content[key], source.name, split, key)
    whole[split] = arrays.finish(content, source.input_key, source.label_key)
    targets = whole[split][source.label_key]
    labels.check(targets, source.name, split, source.num_classes)
  train, test = (
    {key: array[part.start : part.stop] for key, array in whole[split].items()}
    for split, part in zip(source.splits, parts, strict=True)
  )
  labels.warn_of_unseen(
    whole[source.splits[0]][source.label_key],
    train[source.label_key],
    source.num_classes,
    f"{source.name}: train_split={request.train_split!r}",
  )
  labels.warn_of_one(train[source.label_key], source.num_classes, source.name)
  mean, std = _statistics(source, train[source.input_key])
  return Dataset(_info(request, source), train, test, mean, std)


def read_info(request: Request) -> Info:
  """Returns what is known of a data set without decoding an example.

  Args:
    request: which data; see `Request`.

  Raises:
    DataError: as for `load`, except for what only the examples show.

  Example:
    >>> info = read_info(Request("fashion_mnist_10k"))
    >>> info.train_size, info.input_shape, info.classes[0]
    (10000, (28, 28, 1), 'T-shirt/top')
    >>> read_info(Request("cifar10", dir="/nowhere"))
    Traceback (most recent call last):
    ws_jax.data.request.DataError: data set 'cifar10' is not prepared ...
  """
  if request.stream is not None:
    return _load_stream(request).info
  return _info(request, sources.open_source(request))


def _load_stream(request: Request) -> Dataset:
  """Returns a data set whose images stay where they are."""
  opened = open_stream(request)
  shape = (opened.options.image_size, opened.options.image_size, 3)
  info = Info(
    name=str(request.name),
    input_key=opened.input_key,
    label_key=opened.label_key,
    train_size=len(opened.parts[0]),
    eval_size=len(opened.parts[1]),
    input_shape=shape,
    input_dtype="uint8",
    num_classes=opened.num_classes,
    classes=opened.classes,
  )
  black = {
    opened.input_key: np.zeros((1, *shape), np.uint8),
    opened.label_key: np.zeros(1, np.int32),
  }
  return Dataset(info, black, black, IMAGENET_MEAN, IMAGENET_STD, opened)


def _info(request: Request, source: Source) -> Info:
  train, test = splits.ranges(request, source.splits, source.sizes)
  return Info(
    name=source.name,
    input_key=source.input_key,
    label_key=source.label_key,
    train_size=len(train),
    eval_size=len(test),
    input_shape=source.input_shape,
    input_dtype=source.input_dtype,
    num_classes=source.num_classes,
    classes=source.classes,
    tokenizer=source.tokenizer,
    group_key=source.group_key,
    groups=source.groups,
  )


def _statistics(
  source: Source, inputs: np.ndarray
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Returns mean and deviation of the training images; () for other inputs."""
  if inputs.dtype != np.uint8 or inputs.ndim != 4:
    return (), ()
  return source.statistics or arrays.channel_statistics(inputs)
