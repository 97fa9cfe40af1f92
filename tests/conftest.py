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

# Compiled programs are kept for the next run, where git does not see them and
# the user's own cache is not touched. Commands that a test starts inherit it;
# a test of the cache itself sets XDG_CACHE_HOME to a folder of its own.
_CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "xdg"
os.environ["XDG_CACHE_HOME"] = str(_CACHE)

import jax  # noqa: E402

# A missing axis that broadcasting fills in is how statistics go wrong unseen.
jax.config.update("jax_numpy_rank_promotion", "raise")

jax.config.update("jax_compilation_cache_dir", str(_CACHE / "ws_jax/compiled"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

import hypothesis  # noqa: E402

# The same examples each time: a failure is of the change, not of the draw.
hypothesis.settings.register_profile("same", derandomize=True, database=None)
hypothesis.settings.load_profile("same")
