"""Weight Standardization itself, on jax alone; `ws_jax` exports its names.

Start reading at `standardize`; `kernels` says which leaves it works on, and
`numerics` how it computes.
"""
