import pytest

from ws_jax import config


def resolve(overrides=None, num_examples=1000, num_devices=1):
  changed = config.apply(config.default(), overrides or {})
  return config.resolve(
    changed, num_examples=num_examples, num_devices=num_devices
  )


def test_every_config_file_loads_with_a_variant():
  for name in ("fashion_mnist_10k", "fashion_mnist", "cifar10", "cifar100"):
    c = config.load(f"configs/{name}.py:norm=batch,ws=false,seed=3")
    assert (c.model.norm, c.model.ws, c.seed) == ("batch", False, 3)
  assert config.load("configs/imagenet.py").model.name == "resnet50"


@pytest.mark.parametrize(
  ("variant", "message"),
  [
    ("norm", "expected key=value"),
    ("nrm=batch", "unknown config key 'nrm': did you mean 'model.norm'"),
    ("optim.learning_rat=1", "did you mean 'optim.learning_rate'"),
    ("learning_rate=high", "config key 'optim.learning_rate'"),
    ("batch_size=1.5", "config key 'data.batch_size'"),
  ],
)
def test_a_wrong_variant_is_one_line(variant, message):
  with pytest.raises(config.ConfigError, match=message) as caught:
    config.variant(config.default(), variant)
  assert "\n" not in str(caught.value)


def test_a_section_stands_for_its_name():
  c = config.variant(config.default(), "model=resnet8,data=mnist")
  assert (c.model.name, c.data.name) == ("resnet8", "mnist")


def test_a_missing_file_names_the_nearest():
  with pytest.raises(config.ConfigError, match=r"did you mean .*/cifar10\.py"):
    config.load("configs/cifar1.py")


def test_durations_and_rates_follow_the_overrides():
  c = resolve({"data.batch_size": 64, "train.epochs": 3.0})
  assert c.train.steps == round(3 * 1000 / 64)
  assert c.train.eval_every_steps == round(1000 / 64)
  assert c.optim.learning_rate == pytest.approx(0.1 * 64 / 256)
  assert c.optim.micro_batch_size == 64
  assert c.model.norm_batch_size == 64


def test_the_more_explicit_key_wins():
  c = resolve(
    {
      "train.steps": 7,
      "optim.learning_rate": 0.4,
      "optim.warmup_steps": 2,
      "train.eval_every_steps": 5,
    }
  )
  assert (c.train.steps, c.optim.learning_rate) == (7, 0.4)
  assert c.train.epochs == pytest.approx(7 * 128 / 1000)
  assert (c.optim.warmup_steps, c.train.eval_every_steps) == (2, 5)


def test_resolving_changes_nothing_but_its_copy():
  c = config.default()
  config.resolve(c, num_examples=1000, num_devices=1)
  assert c.to_dict() == config.default().to_dict()


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    ({"data.batch_size": 0}, "data.batch_size=0 must be greater than 0"),
    ({"optim.micro_batch_size": 48}, "128 is not divisible by optim.micro"),
    ({"model.norm_batch_size": 48}, "128 is not divisible by\n* *model.norm"),
    ({"optim.learning_rate": -0.1}, "must be finite and 0 or more"),
    ({"optim.learning_rate": float("nan")}, "must be finite"),
    ({"optim.momentum": 1.0}, "optim.momentum=1.0 must be at least 0 and"),
    ({"train.steps": 5, "optim.warmup_steps": 6}, "longer than the whole run"),
    ({"train.epochs": 0.0}, "train.steps=0 must be greater than 0"),
    ({"optim.base_learning_rate": None}, "neither optim.learning_rate nor"),
    ({"train.log_every_steps": 0}, "train.log_every_steps=0"),
  ],
)
def test_numbers_that_cannot_run(overrides, message):
  with pytest.raises(config.ConfigError, match=message):
    resolve(overrides)


def test_devices_must_share_the_micro_batch_evenly():
  with pytest.raises(config.ConfigError, match="by the 3 devices"):
    resolve(num_devices=3)
