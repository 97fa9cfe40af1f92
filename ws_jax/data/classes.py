"""Some classes of a data set, as a data set of their own."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ws_jax.base import names
from ws_jax.data import arrays
from ws_jax.data.datasets import Dataset
from ws_jax.data.request import Arrays, DataError


def only_classes(dataset: Dataset, classes: Sequence[str]) -> Dataset:
  """Returns the examples of some classes, which are numbered anew.

  In a run it is used by a function of the user's own, whose name is given to
  `data.name` as `package.module:function`.

  Args:
    dataset: Data set that knows the names of its classes.
    classes: Names of the classes to keep, in the order of their new numbers.

  Raises:
    DataError: the data set has no such class, or is a stream.

  Example:
    >>> from ws_jax import data
    >>> every = data.load(data.Request("fashion_mnist_10k"))
    >>> feet = data.only_classes(every, ("Sandal", "Sneaker", "Ankle boot"))
    >>> feet.num_train, feet.num_classes
    (3000, 3)
  """
  info = dataset.info
  if not dataset.train:
    raise DataError(f"{info.name}: classes can be chosen in memory alone")
  for name in classes:
    if name not in info.classes:
      raise DataError(
        f"{info.name}: unknown class {name!r}:"
        f" {names.suggest(name, info.classes)}"
      )
  numbers = np.full(len(info.classes), -1, np.int32)
  numbers[[info.classes.index(name) for name in classes]] = range(len(classes))

  def chosen(split: Arrays) -> Arrays:
    labels = numbers[split[info.label_key]]
    kept = {key: array[labels >= 0] for key, array in split.items()}
    return kept | {info.label_key: labels[labels >= 0]}

  train, test = chosen(dataset.train), chosen(dataset.test)
  mean, std = dataset.mean, dataset.std
  if mean:
    mean, std = arrays.channel_statistics(train[info.input_key])
  return dataclasses.replace(
    dataset,
    info=dataclasses.replace(
      info,
      train_size=len(train[info.label_key]),
      eval_size=len(test[info.label_key]),
      num_classes=len(classes),
      classes=tuple(classes),
    ),
    train=train,
    test=test,
    mean=mean,
    std=std,
  )
