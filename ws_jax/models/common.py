"""Keys that several families of models share."""

from ws_jax.base import keys

NORM_KEYS = {
  "norm": keys.text(
    "group",
    "batch, group, layer, instance, none, batch_channel (batch, then group) or"
    " batch_channel_estimated (by running statistics)",
  ),
  "num_groups": keys.integer(8, "groups of norm=group", low=1, optional=True),
  "channels_per_group": keys.integer(
    None, "channels in a group of norm=group; wins over num_groups", low=1
  ),
  "norm_batch_size": keys.integer(
    None,
    "examples that share statistics of norm=batch; none: the micro-batch",
    low=1,
  ),
  "norm_momentum": keys.number(
    0.9, "share of the old running statistics in the new", below=1
  ),
}
DTYPE_KEYS = {
  "dtype": keys.text(
    "float32", "float32 or bfloat16, of activations; parameters stay float32"
  )
}
# Of the families with depthwise kernels, whose fan-in is their size alone.
DEPTHWISE_KEYS = {
  "ws_depthwise": keys.choice(
    "standardize",
    ("standardize", "scale", "leave"),
    "what WS does to depthwise kernels; scale: divide by the deviation, and"
    " keep the mean",
  )
}
