"""The configuration of a run: its keys, overrides, and derived numbers.

A config file calls `default()`, changes what differs, and hands the rest of
`--config=configs/x.py:norm=batch,ws=false` to `variant`. Where a quantity has
two keys the more explicit one wins when it is given: `*_steps` over
`*_epochs`, `learning_rate` over `base_learning_rate` (per 256 examples), and
`channels_per_group` over `num_groups`.

`table.py` has the keys, `overrides.py` sets them, `files.py` loads config
files, and `resolved.py` checks them and derives numbers.
"""

from ws_jax.base import extras

try:
  import ml_collections  # noqa: F401
except ModuleNotFoundError:
  extras.need("train", by="ws_jax.config")
  raise

from ws_jax.config.files import find, load
from ws_jax.config.overrides import (
  apply,
  apply_texts,
  from_saved,
  on_any_devices,
  use_object,
  variant,
)
from ws_jax.config.resolved import check, resolve
from ws_jax.config.table import (
  TRACED,
  ConfigError,
  default,
  flatten,
  keys,
  nearest,
)

__all__ = [
  "TRACED",
  "ConfigError",
  "apply",
  "apply_texts",
  "check",
  "default",
  "find",
  "flatten",
  "from_saved",
  "keys",
  "load",
  "nearest",
  "on_any_devices",
  "resolve",
  "use_object",
  "variant",
]
