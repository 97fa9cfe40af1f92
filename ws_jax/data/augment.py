"""Augmentation on the device: pure functions inside the jitted step.

Images stay uint8 until `normalize`, so that a quarter of the bytes move.
"""

import jax
import jax.numpy as jnp


def random_crop(key: jax.Array, images: jax.Array, padding: int) -> jax.Array:
  """Shifts each image by a random offset, with zeros where it moved away.

  This pads each side with `padding` zeros and cuts the old size out at a random
  place: the crop of the CIFAR recipes (He et al. 2015, "Deep Residual Learning
  for Image Recognition", section 4.2).

  Args:
    key: a JAX random key; the same key gives the same crops.
    images: `[B, H, W, C]`, any dtype.
    padding: number of zeros on each side; 0 for no crop.

  Returns:
    An array of the shape and dtype of `images`.

  Raises:
    ValueError: `images` is not of rank 4, or `padding` is negative.

  Example:
    >>> images = jnp.ones([2, 8, 8, 3], jnp.uint8)
    >>> random_crop(jax.random.key(0), images, 2).shape
    (2, 8, 8, 3)
  """
  _check_rank(images)
  if padding < 0:
    raise ValueError(f"padding is {padding}, but must be at least 0")
  if padding == 0:
    return images
  amounts = ((0, 0), (padding, padding), (padding, padding), (0, 0))
  return _cut(key, jnp.pad(images, amounts), 2 * padding)


def resize(images: jax.Array, size: int) -> jax.Array:
  """Scales images to a square, by bilinear interpolation.

  Images of that size are returned as they are.

  Args:
    images: uint8 `[B, H, W, C]`.
    size: height and width of the result.

  Returns:
    uint8 `[B, size, size, C]`.

  Raises:
    ValueError: `images` is not of rank 4.

  Example:
    >>> resize(jnp.ones([2, 8, 6, 3], jnp.uint8), 16).shape
    (2, 16, 16, 3)
  """
  _check_rank(images)
  shape = (images.shape[0], size, size, images.shape[3])
  if images.shape == shape:
    return images
  scaled = jax.image.resize(images.astype(jnp.float32), shape, "bilinear")
  return jnp.round(scaled).astype(images.dtype)


def random_window(key: jax.Array, images: jax.Array, size: int) -> jax.Array:
  """Cuts a square out of each image, at a random place.

  Args:
    key: a JAX random key; the same key gives the same windows.
    images: `[B, H, H, C]`, any dtype.
    size: height and width of the result.

  Raises:
    ValueError: `images` are no squares, or smaller than `size`.

  Example:
    >>> images = jnp.ones([2, 8, 8, 3], jnp.uint8)
    >>> random_window(jax.random.key(0), images, 6).shape
    (2, 6, 6, 3)
  """
  _check_rank(images)
  _, height, width, _ = images.shape
  if height != width or size > height:
    raise ValueError(f"no window of {size} pixels in {height} x {width}")
  return _cut(key, images, height - size)


def _cut(key: jax.Array, images: jax.Array, excess: int) -> jax.Array:
  """Cuts a window out of each image that is `excess` pixels smaller."""
  batch, height, width, channels = images.shape
  offsets = jax.random.randint(key, (batch, 2), 0, excess + 1, jnp.int32)
  offsets = _shard_like(offsets, images)

  def crop(image, offset):
    start = (offset[0], offset[1], jnp.zeros_like(offset[0]))
    shape = (height - excess, width - excess, channels)
    return jax.lax.dynamic_slice(image, start, shape)

  return jax.vmap(crop)(images, offsets)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
  """Mirrors each image left to right with probability one half.

  Args:
    key: a JAX random key; the same key gives the same flips.
    images: `[B, H, W, C]`, any dtype.

  Returns:
    An array of the shape and dtype of `images`.

  Raises:
    ValueError: `images` is not of rank 4.

  Example:
    >>> images = jnp.ones([2, 8, 8, 3], jnp.uint8)
    >>> random_flip(jax.random.key(0), images).dtype
    dtype('uint8')
  """
  _check_rank(images)
  flip = jax.random.bernoulli(key, jnp.float32(0.5), (images.shape[0], 1, 1, 1))
  flip = _shard_like(flip, images)
  return jnp.where(flip, images[:, :, ::-1], images)


def mix(
  key: jax.Array, images: jax.Array, mixup: float, cutmix: float
) -> tuple[jax.Array, jax.Array]:
  """Mixes each image with the one in its place from the end of the batch.

  mixup (Zhang et al. 2017, arXiv:1710.09412) adds the two, CutMix (Yun et al.
  2019, arXiv:1905.04899) puts a rectangle of one into the other. The share is
  drawn from a beta distribution, one for the whole batch.

  Args:
    key: a JAX random key.
    images: float `[B, H, W, C]`.
    mixup: both parameters of the beta distribution of mixup; 0 for none.
    cutmix: those of CutMix; 0 for none. With both, either is drawn.

  Returns:
    The images, and the share of its own in each: a float32 scalar.

  Example:
    >>> images = jnp.stack([jnp.zeros([4, 4, 1]), jnp.ones([4, 4, 1])])
    >>> mixed, share = mix(jax.random.key(0), images, 1.0, 0.0)
    >>> bool(jnp.allclose(mixed[1], share))
    True
  """
  _check_rank(images)
  which, share_key, place_key = jax.random.split(key, 3)
  others = images[::-1]
  weight = jnp.ones(images.shape[1:3], jnp.float32)
  if mixup:
    share = jax.random.beta(share_key, mixup, mixup, dtype=jnp.float32)
    weight = jnp.full(images.shape[1:3], share, jnp.float32)
  if cutmix:
    share = jax.random.beta(share_key, cutmix, cutmix, dtype=jnp.float32)
    outside = _outside(place_key, share, images.shape[1:3])
    either = jax.random.bernoulli(which, jnp.float32(0.5)) if mixup else False
    weight = jnp.where(either, weight, outside)
  own = weight[None, :, :, None]
  mixed = own * images + (1 - own) * others
  return mixed.astype(images.dtype), weight.mean()


def _outside(
  key: jax.Array, share: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
  """Returns 0 in a random rectangle of `1 - share` of the area, 1 outside.

  What of it would be beyond the edge is cut off.
  """
  inside = []
  for one, size in zip(jax.random.split(key), shape, strict=True):
    length = size * jnp.sqrt(1 - share)
    centre = jax.random.uniform(one, dtype=jnp.float32, maxval=size)
    pixels = jnp.arange(size, dtype=jnp.float32) + 0.5
    inside.append(jnp.abs(pixels - centre) < length / 2)
  return 1.0 - (inside[0][:, None] & inside[1][None, :]).astype(jnp.float32)


def normalize(
  images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> jax.Array:
  """Scales bytes to [0, 1], then to mean 0 and deviation 1 per channel.

  Args:
    images: uint8 `[B, H, W, C]`.
    mean: mean of each channel over the training set, in [0, 1].
    std: standard deviation of each channel, of the images scaled to [0, 1].

  Returns:
    float32 `[B, H, W, C]`.

  Raises:
    ValueError: `images` is not of rank 4 or not uint8, or the number of
      channels differs.

  Example:
    >>> images = jnp.full([1, 1, 1, 1], 255, jnp.uint8)
    >>> float(normalize(images, (0.5,), (0.25,))[0, 0, 0, 0])
    2.0
  """
  _check_rank(images)
  if images.dtype != jnp.uint8:
    # Floats may be in [0, 1] already: scaling them again would go unnoticed.
    raise ValueError(f"images are {images.dtype}, but must be uint8")
  channels = images.shape[-1]
  if not len(mean) == len(std) == channels:
    raise ValueError(
      f"images have {channels} channels, mean {len(mean)}, std {len(std)}"
    )
  shape = (1, 1, 1, channels)
  scale = jnp.asarray([1 / (255 * s) for s in std], jnp.float32)
  ratios = [m / s for m, s in zip(mean, std, strict=True)]
  shift = jnp.asarray(ratios, jnp.float32)
  scaled = images.astype(jnp.float32) * scale.reshape(shape)
  return scaled - shift.reshape(shape)


def _shard_like(numbers: jax.Array, images: jax.Array) -> jax.Array:
  """Spreads one row for each image over the devices as the images are.

  With explicit mesh axes, as `jax.make_mesh` makes them, arrays that are spread
  differently do not combine; with automatic axes the compiler does this itself.
  """
  sharding = jax.typeof(images).sharding
  if sharding.spec[0] is None:
    return numbers
  by_row = jax.NamedSharding(sharding.mesh, jax.P(sharding.spec[0]))
  return jax.sharding.reshard(numbers, by_row)


def _check_rank(images: jax.Array) -> None:
  if images.ndim != 4:
    raise ValueError(f"images must be [B, H, W, C], not {images.shape}")
