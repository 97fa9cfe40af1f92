"""Augmentation against NumPy, one image at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ws_jax import data


def _images(shape=(16, 7, 5, 3), seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(1, 256, shape, dtype=np.uint8)  # No zero inside.


def _crops(image, padding):
  """Returns every crop that padding allows, by offset, in plain NumPy."""
  height, width, _ = image.shape
  padded = np.zeros(
    (height + 2 * padding, width + 2 * padding, image.shape[2]), image.dtype
  )
  padded[padding : padding + height, padding : padding + width] = image
  return {
    (top, left): padded[top : top + height, left : left + width]
    for top in range(2 * padding + 1)
    for left in range(2 * padding + 1)
  }


def _offsets(images, cropped, padding):
  found = []
  for image, crop in zip(images, cropped, strict=True):
    fits = [o for o, c in _crops(image, padding).items() if (c == crop).all()]
    assert len(fits) == 1, "not a crop of the zero-padded image"
    found.append(fits[0])
  return np.array(found)


@pytest.mark.parametrize("padding", [1, 2, 4])
def test_random_crop_is_a_crop_of_the_padded_image(padding):
  images = _images((400, 7, 5, 3))
  crop = jax.jit(data.random_crop, static_argnums=2)
  cropped = np.asarray(crop(jax.random.key(1), images, padding))
  assert cropped.dtype == np.uint8
  offsets = _offsets(images, cropped, padding)
  # Each offset of each axis turns up about equally often (5 sigma).
  choices = 2 * padding + 1
  expected = len(images) / choices
  for axis in (0, 1):
    counts = np.bincount(offsets[:, axis], minlength=choices)
    assert len(counts) == choices
    assert (abs(counts - expected) < 5 * np.sqrt(expected)).all()
  # The two axes move on their own.
  assert len(np.unique(offsets, axis=0)) > choices


def test_random_crop_without_padding_is_the_identity():
  images = _images()
  same = data.random_crop(jax.random.key(0), jnp.asarray(images), 0)
  np.testing.assert_array_equal(same, images)


def test_random_flip_mirrors_about_half_of_the_images():
  images = _images((400, 4, 5, 2))
  flipped = np.asarray(jax.jit(data.random_flip)(jax.random.key(0), images))
  assert flipped.dtype == np.uint8
  same = (flipped == images).all((1, 2, 3))
  mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
  assert (same ^ mirrored).all()
  assert 150 < mirrored.sum() < 250  # 5 sigma


def test_normalize_is_exact_to_float32():
  images = _images((4, 6, 5, 3))
  mean, std = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
  normalized = jax.jit(functools.partial(data.normalize, mean=mean, std=std))(
    images
  )
  assert normalized.dtype == jnp.float32
  expected = (images.astype(np.float64) / 255 - mean) / std
  np.testing.assert_allclose(normalized, expected, atol=2e-6, rtol=0)


def test_the_same_key_gives_the_same_images():
  images = _images()
  for function in (
    functools.partial(data.random_crop, padding=2),
    data.random_flip,
  ):
    jitted = jax.jit(function)
    once, again, other = (
      jitted(jax.random.key(seed), images=images) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)


def _augment(key, images):
  crop_key, flip_key = jax.random.split(key)
  images = data.random_crop(crop_key, images, 2)
  images = data.random_flip(flip_key, images)
  return data.normalize(images, (0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
def test_sharded_batch_stays_where_it_is(axis_type):
  kind = getattr(jax.sharding.AxisType, axis_type)
  mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
  by_batch = jax.NamedSharding(mesh, jax.P("data"))
  images = _images()
  sharded = jax.device_put(images, by_batch)
  key = jax.random.key(0)
  compiled = jax.jit(_augment).lower(key, sharded).compile()
  program = compiled.as_text() or ""
  assert "fusion" in program
  for traffic in ("all-gather", "all-to-all", "collective-permute"):
    assert traffic not in program
  result = compiled(key, sharded)
  assert result.sharding.is_equivalent_to(by_batch, 4)
  np.testing.assert_array_equal(result, jax.jit(_augment)(key, images))


def test_what_cannot_be_augmented_is_an_error():
  key, image = jax.random.key(0), jnp.zeros([8, 8, 3], jnp.uint8)
  with pytest.raises(ValueError, match=r"\[B, H, W, C\]"):
    data.random_crop(key, image, 2)
  with pytest.raises(ValueError, match=r"\[B, H, W, C\]"):
    data.random_flip(key, image)
  with pytest.raises(ValueError, match="padding is -1"):
    data.random_crop(key, image[None], -1)
  with pytest.raises(ValueError, match="float32"):
    data.normalize(image[None].astype(jnp.float32), (0.5,) * 3, (0.5,) * 3)
  with pytest.raises(ValueError, match="3 channels, mean 1, std 1"):
    data.normalize(image[None], (0.5,), (0.5,))
