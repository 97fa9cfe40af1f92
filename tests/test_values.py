"""Bad values: each is classified as what it is, as early as it can be."""

import dataclasses
import functools
import re

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from ws_jax import config, data
from ws_jax.base import disk
from ws_jax.data import values
from ws_jax.tasks import Metric
from ws_jax.train import clock, loop, record

HERE = "tests.test_values"
SMALL = {
  "model.name": f"{HERE}:Net",
  "model.ws": False,
  "data.batch_size": 16,
  "data.eval_batch_size": 16,
  "train.steps": 8,
  "train.log_every_steps": 4,
  "train.eval_every_steps": 8,
  "train.checkpoint_every_steps": 2,
  "optim.learning_rate": 0.05,
}


class Net(nn.Module):
  """The least that learns, with a flaw of choice."""

  num_classes: int = 4
  flaw: str = ""
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x):
    x = x.reshape(len(x), -1).astype(self.dtype)
    if self.flaw == "fresh":
      x *= self.param("gain", lambda key: jnp.full((), jnp.nan))
    if self.flaw == "gradient":  # the derivative of the root at 0 times 0
      x += jnp.sqrt(jnp.abs(0 * nn.Dense(1, name="root")(x)))
    if self.flaw == "outputs":
      x = jnp.exp(1000 + jnp.abs(x))
    outputs = 2 if self.flaw == "few" else self.num_classes
    return nn.Dense(outputs, name="head", dtype=self.dtype)(x)


Fresh, Gradient, Outputs, Few = (
  functools.partial(Net, flaw=flaw)
  for flaw in ("fresh", "gradient", "outputs", "few")
)
Half = functools.partial(Net, flaw="outputs", dtype="bfloat16")


def examples(split="train", x=None, labels=None, dtype=np.float32, **more):
  """Returns data whose example 3 of a split is bad, or all of whose labels."""
  rng, made = np.random.default_rng(0), {}
  for name, size in (("train", 64), ("test", 20)):
    y = np.arange(size, dtype=np.int64) % 4
    made[name] = {"x": (rng.normal(size=(size, 3))).astype(dtype), "y": y}
  if x is not None:
    made[split]["x"][3, 1] = x
  if labels is not None:
    made[split]["y"] = labels(made[split]["y"])
  return made | more


def images(**more):
  """Returns images that are all black."""
  made = examples()
  for split in made.values():
    split["x"] = np.zeros((len(split["y"]), 4, 4, 1), np.uint8)
  return made | more


def clips(x=None, labels=None):
  made = examples(labels=labels)
  for split in made.values():
    noise = np.random.default_rng(0).normal(size=(len(split["y"]), 800))
    split["x"] = noise.astype(np.float32) / 9
  if x is not None:
    made["train"]["x"][3, 1] = x
  return made


def third(label):
  """Returns a function that gives example 3 that label."""
  return lambda y: np.where(np.arange(len(y)) == 3, label, y)


def bad_label_of_a_test_set():
  made = examples(num_classes=4)
  made["test"]["y"] = third(4)(made["test"]["y"])
  return made


@dataclasses.dataclass(frozen=True)
class Fit:
  """Regression of a float, whose loss may be odd."""

  METRIC = Metric("error", "min")
  num_outputs = 1
  offset: float = 0.0
  nothing: float = 0.0
  spike: int = -1

  def batch(self, arrays, indices, key):
    x = arrays["x"][indices].astype(jnp.float32)
    return {"inputs": x, "target": x.sum(-1), "indices": indices}

  def sums(self, outputs, batch, mask, training):
    off = outputs[:, 0].astype(jnp.float32) - batch["target"]
    loss = jnp.sum(mask * (off**2 + self.offset))
    if training:
      hit = jnp.any(batch["indices"] == self.spike)
      loss += jnp.where(hit, 1e5, 0.0)
    error = jnp.sum(mask * jnp.abs(off)) * (1 + self.nothing)
    return {"loss": loss, "error": error, "count": jnp.sum(mask)}


Nothing = functools.partial(Fit, nothing=float("nan"))
Negative = functools.partial(Fit, offset=-50.0)
Spike = functools.partial(Fit, spike=3)


def run(folder, made=None, **overrides):
  changed = {k.replace("__", "."): x for k, x in overrides.items()}
  chosen = config.default()
  for name in ("model.name", "task.name"):  # they decide which keys there are
    if value := (SMALL | changed).get(name):
      chosen = config.apply(chosen, {name: value})
  chosen = config.apply(chosen, SMALL | changed)
  return loop.train_and_evaluate(chosen, folder, data=made)


def fit(folder, made=None, task="Fit", **overrides):
  """Trains a task of the user's own, which may have a use for a NaN."""
  return run(
    folder, made or examples(), task__name=f"{HERE}:{task}", **overrides
  )


SPEECH = {"task__name": "keyword_spotting", "task__sample_rate": 8000}
# What is refused before a step is compiled: data, keys, and what is said.
REFUSED = {
  "nan": (examples(x=np.nan), {}, "'x' of example 3 of the training set.*nan"),
  "inf": (examples(x=-np.inf), {}, "example 3 of the training set holds -inf"),
  "nan in the eval set": (
    examples("test", x=np.nan),
    {},
    "'x' of example 3 of the eval set holds nan",
  ),
  "too large for float32": (
    examples(x=1e300, dtype=np.float64),
    {},
    r"example 3 .* 1e\+300, which is inf in float32",
  ),
  "too large for int32": (
    examples(x=2**40, dtype=np.int64),
    {},
    "'x' of example 3 of 'train' holds 1099511627776, and integers have 32",
  ),
  "nan in a clip": (clips(x=np.nan), SPEECH, "example 3 of the training.*nan"),
  "one class": (
    {split: x | {"y": 0 * x["y"]} for split, x in examples().items()},
    {},
    "has one class",
  ),
  "one class of clips": (
    {split: x | {"y": 0 * x["y"]} for split, x in clips().items()},
    SPEECH,
    "has one class",
  ),
  "a negative label": (
    examples(labels=third(-1)),
    {},
    "label -1 of example 3 of 'train' must be 0 or more",
  ),
  "a label of no class": (
    bad_label_of_a_test_set(),
    {},
    r"label 4 of example 3 of 'test' must be in \[0, 4\)",
  ),
  "a label that 32 bits would make one of a class": (
    examples(labels=third(2**32 + 1), num_classes=4),
    {},
    r"label 4294967297 of example 3 of 'train' must be in \[0, 4\)",
  ),
  "a label of no class of clips": (
    clips(labels=third(9)) | {"classes": list("abcd")},
    SPEECH,
    r"label 9 of example 3 of 'train' must be in \[0, 4\)",
  ),
  "fewer outputs than classes": (
    examples(),
    {"model__name": f"{HERE}:Few"},
    r"outputs \[16, 2\], and there are 4 classes",
  ),
  "deviation 0": (images(mean=(0.5,), std=(0.0,)), {}, "std above 0"),
  "deviation nan": (images(mean=(0.5,), std=(np.nan,)), {}, "std=.nan"),
  "mean inf": (images(mean=(np.inf,), std=(1.0,)), {}, "mean=.inf"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_learned_is_refused_before_anything_is_made(
  tmp_path, name
):
  made, overrides, message = REFUSED[name]
  compiled = clock._compiled.seconds
  with pytest.raises(config.ConfigError, match=message) as caught:
    run(tmp_path / "run", made, **overrides)
  assert "\n" not in str(caught.value)
  assert not (tmp_path / "run").exists()
  assert clock._compiled.seconds == compiled


def test_a_file_of_arrays_is_looked_at_as_an_object_is(tmp_path):
  made = examples(x=np.nan)
  arrays = {f"{s}_{k}": x for s, part in made.items() for k, x in part.items()}
  np.savez(tmp_path / "mine.npz", **arrays)
  with pytest.raises(config.ConfigError, match="example 3 of the training set"):
    run(tmp_path / "run", data__name=str(tmp_path / "mine.npz"))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(7,), (70_000, 5), (3, 2, 400_000)])
def test_the_last_number_of_an_array_is_found(shape, dtype):
  array = np.ones(shape, dtype)
  assert values.first_not_finite(array) is None
  array.flat[-1] = np.inf
  assert values.first_not_finite(array) == (shape[0] - 1, "inf")


# What shows in training: how the run is made, how it ends, what is said.
FOUND = {
  "nan in data of a task of the user's own": (
    lambda folder: fit(folder, examples(x=np.nan)),
    "failed",
    r"loss is nan at step \d, as 'x' of example 3 of the training set holds",
  ),
  "nan in the eval set of such a task": (
    lambda folder: fit(folder, examples("test", x=np.nan)),
    "failed",
    "evaluation loss is nan at step 8, as 'x' of example 3 of the eval set",
  ),
  "fresh parameters": (
    lambda folder: run(folder, examples(), model__name=f"{HERE}:Fresh"),
    "failed",
    "as parameter gain is nan before the first step",
  ),
  "gradient": (
    lambda folder: run(folder, examples(), model__name=f"{HERE}:Gradient"),
    "diverged",
    r"loss is nan; first the gradient of \S+ is nan at step 0, whose loss is 1",
  ),
  "outputs": (
    lambda folder: run(folder, examples(), model__name=f"{HERE}:Outputs"),
    "diverged",
    "first output of the model is (nan|inf), of inputs up to",
  ),
  "overflow in bfloat16": (
    lambda folder: run(folder, examples(), model__name=f"{HERE}:Half"),
    "diverged",
    "first output of the model is (nan|inf|-inf), of inputs up to",
  ),
  "spike": (
    lambda folder: fit(folder, task="Spike"),
    "diverged",
    "over 20 times the first",
  ),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_not_finite_first_is_said(tmp_path, name):
  train, ends, message = FOUND[name]
  with pytest.raises((config.ConfigError, loop.Diverged), match=message):
    train(tmp_path)
  status = disk.read_json(tmp_path / "status.json")
  assert status["status"] == ends
  assert re.search(message, status["reason"])
  if "; first" in message:  # no checkpoint is of a state that is lost
    kept = (tmp_path / "checkpoints").glob("[0-9]*")
    assert all(int(state.name) <= status["step"] for state in kept)


def test_a_stack_says_so_too(tmp_path):
  chosen = config.apply(config.default(), {"task.name": f"{HERE}:Fit"})
  chosen = config.apply(
    chosen,
    SMALL | {"data.name": f"{HERE}:examples", "train.log_every_steps": 8},
  )
  rates = (0.05, 1e30)
  copy = chosen.copy_and_resolve_references
  both = [config.apply(copy(), {"optim.learning_rate": x}) for x in rates]
  fine, bad = loop.train_stack(both, [tmp_path / "0", tmp_path / "1"])
  assert isinstance(fine, dict), fine
  assert isinstance(bad, loop.Diverged)
  assert "over 20 times" in bad.reason or "; first " in bad.reason


def test_a_spike_from_which_a_run_recovers_is_told_and_not_divergence(tmp_path):
  metrics = fit(
    tmp_path,
    task="Spike",
    train__divergence_patience=1,
    train__log_every_steps=1,
  )
  assert np.isfinite(metrics["eval/loss"])
  rows = [r for r in record.read_metrics(tmp_path) if "train/spike_loss" in r]
  assert rows
  for row in rows:
    # It is told in the row behind it, where the loss is what it should be.
    assert row["train/spike_step"] == row["step"] - 2
    assert row["train/spike_loss"] > 1000 > row["train/loss"]


def test_a_loss_below_zero_is_none_that_diverges(tmp_path):
  """A loss of -50 was "over 20 times the first", -50, in the first step."""
  assert fit(tmp_path, task="Negative")["eval/loss"] < 0


def test_a_metric_that_is_not_finite_is_told(tmp_path):
  fit(tmp_path, task="Nothing")
  status = disk.read_json(tmp_path / "status.json")
  assert (status["status"], status["reason"]) == ("done", "eval/error is nan")


def test_black_images_and_a_batch_larger_than_the_data_are_no_fault(tmp_path):
  metrics = run(
    tmp_path, images(), data__batch_size=100, data__eval_batch_size=100
  )
  assert metrics["eval/loss"] == pytest.approx(np.log(4), abs=0.05)


def test_training_examples_of_one_class_of_several_are_told(caplog):
  data.load(data.Request(examples(labels=lambda y: 0 * y + 3)))
  assert "every training example is of class 3" in caplog.text


def test_parameters_to_start_from_are_finite(tmp_path):
  path = tmp_path / "start.npz"
  kernel = np.ones((3, 4), np.float32)
  kernel[2, 1] = np.nan
  np.savez(path, **{"head/kernel": kernel, "head/bias": np.zeros(4, "f4")})
  with pytest.raises(config.ConfigError, match="head/kernel holds nan"):
    run(tmp_path / "run", examples(), init_from=str(path))


def test_a_label_in_a_record_that_is_no_class_is_an_error_of_its_image():
  from tensorflow_datasets.proto import tf_example_pb2

  from ws_jax.data.stream import records

  example = tf_example_pb2.Example()
  example.features.feature["image"].bytes_list.value.append(b"jpeg")
  example.features.feature["label"].int64_list.value.append(7)
  parse = functools.partial(
    records.parse_example, example.SerializeToString(), ("image", "label")
  )
  assert parse(8) == (b"jpeg", 7)
  with pytest.raises(data.DataError, match=r"has label 7, .* in \[0, 7\)"):
    parse(7)
