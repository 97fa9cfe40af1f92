"""What a data set is, which examples make a batch, and augmentation."""

from ws_jax.data.augment import normalize, random_crop, random_flip
from ws_jax.data.datasets import (
  DATASETS,
  EMBEDDED_PATH,
  DataError,
  Dataset,
  check_dataset,
  default_data_dir,
  load_dataset,
  unknown_name,
)
from ws_jax.data.indices import batch_indices, eval_indices

__all__ = [
  "DATASETS",
  "EMBEDDED_PATH",
  "DataError",
  "Dataset",
  "batch_indices",
  "check_dataset",
  "default_data_dir",
  "eval_indices",
  "load_dataset",
  "normalize",
  "random_crop",
  "random_flip",
  "unknown_name",
]
