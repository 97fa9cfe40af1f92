import jax
import numpy as np
import pytest

from ws_jax import tasks


@pytest.fixture
def arrays():
  rng = np.random.default_rng(0)
  return {
    "image": rng.integers(0, 256, (8, 4, 4, 2), dtype=np.uint8),
    "label": rng.integers(0, 3, 8, dtype=np.int32),
  }


def test_a_batch_without_a_key_is_the_examples_normalized(arrays):
  task = tasks.ImageClassification(
    mean=(0.1, 0.2), std=(0.3, 0.4), crop_padding=2, flip=True
  )
  batch = task.batch(arrays, np.array([3, 1, 1]), None)
  expected = (arrays["image"][[3, 1, 1]] / 255.0 - [0.1, 0.2]) / [0.3, 0.4]
  np.testing.assert_allclose(batch["inputs"], expected, atol=1e-5)
  np.testing.assert_array_equal(batch["labels"], arrays["label"][[3, 1, 1]])


def test_a_key_augments(arrays):
  task = tasks.ImageClassification((0.0, 0.0), (1.0, 1.0), flip=True)
  indices = np.arange(8)
  plain = np.asarray(task.batch(arrays, indices, None)["inputs"])
  batch = task.batch(arrays, indices, jax.random.key(0))
  got = np.asarray(batch["inputs"])
  mirrored = plain[:, :, ::-1]
  flipped = [np.array_equal(a, b) for a, b in zip(got, mirrored, strict=True)]
  kept = [np.array_equal(a, b) for a, b in zip(got, plain, strict=True)]
  assert any(flipped)
  assert any(kept)
  assert all(np.logical_or(flipped, kept))


@pytest.mark.parametrize("training", [False, True])
def test_sums_against_float64(training):
  rng = np.random.default_rng(1)
  logits = rng.normal(0, 3, (6, 5)).astype(np.float32)
  labels = rng.integers(0, 5, 6)
  mask = np.array([1, 1, 0, 1, 0, 1], np.float32)
  task = tasks.ImageClassification((0.0,), (1.0,), label_smoothing=0.2)
  sums = task.sums(logits, {"labels": labels}, mask, training)

  smoothing = 0.2 if training else 0.0  # The evaluation loss is never smoothed.
  targets = np.eye(5)[labels] * (1 - smoothing) + smoothing / 5
  wide = logits.astype(np.float64)
  scores = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
  losses = -(targets * scores).sum(-1)
  assert float(sums["loss"]) == pytest.approx((mask * losses).sum(), rel=1e-5)
  right = (wide.argmax(-1) == labels) * mask
  assert float(sums["accuracy"]) == right.sum()
  assert float(sums["count"]) == 4
