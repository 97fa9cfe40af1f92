"""The same strict JAX for every test, on several virtual CPU devices."""

import os
import pathlib

# JAX reads both variables when it first looks for devices, so they are set
# before anything imports it. What the caller has set stands.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_DEVICES = "--xla_force_host_platform_device_count"
_flags = os.environ.get("XLA_FLAGS", "")
if _DEVICES not in _flags:
  os.environ["XLA_FLAGS"] = f"{_flags} {_DEVICES}=4".strip()

import jax  # noqa: E402

# A missing axis that broadcasting fills in is how statistics go wrong unseen.
jax.config.update("jax_numpy_rank_promotion", "raise")

# Compiling is most of the time of a test here, and most of a program is the
# same in the next run. Set in this process, not in the environment, so that
# what a test starts as a command finds the cache that a user would find.
_CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
