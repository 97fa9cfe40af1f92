"""Data sets, the examples of each batch, and augmentation."""

from ws_jax.data.augment import normalize, random_crop, random_flip
from ws_jax.data.classes import only_classes
from ws_jax.data.datasets import (
  Dataset,
  Info,
  load,
  read_info,
)
from ws_jax.data.find import (
  DATASETS,
  default_data_dir,
  tfds_names,
  unknown_name,
)
from ws_jax.data.indices import batch_indices, eval_indices
from ws_jax.data.memory import MemorySource
from ws_jax.data.request import DataError, Request
from ws_jax.data.sources import EMBEDDED_PATH

__all__ = [
  "DATASETS",
  "EMBEDDED_PATH",
  "DataError",
  "Dataset",
  "Info",
  "MemorySource",
  "Request",
  "batch_indices",
  "default_data_dir",
  "eval_indices",
  "load",
  "normalize",
  "only_classes",
  "random_crop",
  "random_flip",
  "read_info",
  "tfds_names",
  "unknown_name",
]
