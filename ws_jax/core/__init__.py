"""Weight Standardization itself, on jax alone; `ws_jax` exports its names."""
