"""Adds the configs to the package; all else is in pyproject.toml.

They lie at the top of the checkout, where people edit them, and in an installed
package as `ws_jax/configs`, where `ws_jax.config` finds them.
"""

import setuptools

setuptools.setup(
  packages=[
    *setuptools.find_packages(include=["ws_jax", "ws_jax.*"]),
    "ws_jax.configs",
  ],
  package_dir={"ws_jax.configs": "configs"},
)
