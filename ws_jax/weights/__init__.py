"""Parameters in files, and `python -m ws_jax.weights` for the command line."""

from ws_jax.weights.params import (
  Info,
  newest_step,
  read_checkpoint,
  read_info,
  read_params,
  read_params_of,
  read_raw_params,
  read_raw_variables,
  write_params,
)

__all__ = [
  "Info",
  "newest_step",
  "read_checkpoint",
  "read_info",
  "read_params",
  "read_params_of",
  "read_raw_params",
  "read_raw_variables",
  "write_params",
]
