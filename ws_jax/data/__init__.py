"""What a data set is, which examples make a batch, and augmentation."""

from ws_jax.data.augment import normalize, random_crop, random_flip
from ws_jax.data.datasets import (
  DATASETS,
  EMBEDDED_PATH,
  DataError,
  Dataset,
  Info,
  Request,
  check_dataset,
  default_data_dir,
  load,
  load_dataset,
  read_info,
  unknown_name,
)
from ws_jax.data.indices import batch_indices, eval_indices

__all__ = [
  "DATASETS",
  "EMBEDDED_PATH",
  "DataError",
  "Dataset",
  "Info",
  "Request",
  "batch_indices",
  "check_dataset",
  "default_data_dir",
  "eval_indices",
  "load",
  "load_dataset",
  "read_info",
  "normalize",
  "random_crop",
  "random_flip",
  "unknown_name",
]
