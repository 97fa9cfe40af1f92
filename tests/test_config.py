"""Keys, overrides and derived numbers; what cannot run is refused by name."""

import json
import math

import pytest

from ws_jax import config, models
from ws_jax.config import table
from ws_jax.layers.norm import NormSpec


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


BAD = {
  float: (math.nan, math.inf, -1.0, "0.1", True),
  int: (-1, 1.5, "ten", True, 2**40),
  bool: (1, "true", None),
  str: (3, True),
  dict: (3, "x"),
}
WHERE = ("stem/*", "head/kernel")
# A size has no upper end.
FREE = {(int, 2**40)}


def bad_values():
  found = []
  for path, key in config.keys(config.default()).items():
    values = [x for x in BAD[key.kind] if (key.kind, x) not in FREE]
    if key.many:
      values = [(x,) for x in values] + ["x", 3]
    if path == "seed":
      values.append(2**31)
    if not key.optional and key.kind is not dict:
      values.append(None)
    for value in values:
      found.append((path, value))
  return found


@pytest.mark.parametrize(("path", "value"), bad_values(), ids=str)
def test_every_key_refuses_what_it_cannot_mean(path, value):
  """Set by an override, or in a config file, which nothing checks before."""
  c = config.default()
  table.put(c, path, value)
  attempts = [lambda: resolve({path: value})]
  if value is not True:  # a ConfigDict takes it for the number 1
    attempts.append(lambda: config.resolve(c, num_examples=1000, num_devices=1))
  for refuse in attempts:
    with pytest.raises(config.ConfigError) as caught:
      refuse()
    message = str(caught.value)
    assert path.rpartition(".")[2] in message and "\n" not in message


def test_every_key_has_a_meaning_and_its_default_is_allowed():
  declared = config.keys(config.default())
  config.check(config.default())
  for path, key in declared.items():
    assert len(key.meaning) > 8, path


def test_a_key_that_a_file_misspells_is_named():
  c = config.default()
  c.optim.learning_rat = 0.1
  with pytest.raises(config.ConfigError, match="did you mean 'optim.lea"):
    config.check(c)
  c = config.default()
  c.data.flip = True
  with pytest.raises(config.ConfigError, match="is 'task.flip' now"):
    config.check(c)


@pytest.mark.parametrize(
  ("text", "path", "value"),
  [
    ("optim.clip_norm=None", "optim.clip_norm", None),
    ("optim.clip_norm=none", "optim.clip_norm", None),
    ("model.norm=none", "model.norm", "none"),
    ("boundaries=(1/3,2/3)", "optim.boundaries", (1 / 3, 2 / 3)),
    ("boundaries=[0.5, 0.75]", "optim.boundaries", (0.5, 0.75)),
    ("boundaries=0.5", "optim.boundaries", (0.5,)),
    ("ws_where=('stem/*','head/kernel')", "model.ws_where", WHERE),
    ("steps=1e3", "train.steps", 1000),
    ("learning_rate=1e-3", "optim.learning_rate", 1e-3),
    ("ws=False", "model.ws", False),
    ("init_from=none", "init_from", None),
    ("data.dir=workdirs/none", "data.dir", "workdirs/none"),
  ],
)
def test_a_text_stands_for_a_value(text, path, value):
  c = config.variant(config.default(), text)
  assert config.flatten(c)[path] == value
  config.check(c)


def test_naming_a_model_exchanges_its_keys():
  c = config.variant(config.default(), "model=tests.my_lab:Net,ws=false")
  assert "stem" not in c.model and "norm" not in c.model and not c.model.ws
  config.apply(c, {"model.kwargs.width": 3})
  assert c.model.kwargs.to_dict() == {"width": 3}
  config.apply(c, {"model.name": "resnet8"})
  assert c.model.stem is None and "kwargs" not in c.model


def test_the_old_name_of_a_key_still_sets_it():
  """Rows of old sweeps, and old runs, have them."""
  c = config.apply(config.default(), {"data.crop_padding": 0})
  assert c.task.crop_padding == 0


def test_a_saved_configuration_comes_back():
  c = resolve({"model.ws_where": ("a/*", "b"), "optim.clip_norm": 1.0})
  saved = json.loads(json.dumps(c.to_dict()))
  assert config.flatten(config.from_saved(saved)) == config.flatten(c)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "has no function get_config"),
    ("def get_config(arg=''):\n  return 1 +", "line 2: invalid syntax"),
  ],
)
def test_a_file_that_is_no_config_is_one_line(tmp_path, text, message):
  file = tmp_path / "mine.py"
  file.write_text(text)
  with pytest.raises(config.ConfigError, match=message) as caught:
    config.load(str(file))
  assert "\n" not in str(caught.value)
  readme = tmp_path / "README.md"
  readme.write_text("# No config")
  with pytest.raises(config.ConfigError, match=r"a config is a \.py file"):
    config.load(str(readme))


def test_a_model_that_is_named_brings_the_defaults_it_was_published_with():
  named = lambda arg: config.variant(config.default(), arg).model
  assert (named("model=bit_r50x1").version, named("").version) == (2, 1)
  assert named("model=bit_r50x1").num_groups == 32
  # What was asked for stays, in either order, and a default does not.
  assert named("model=bit_r50x1,num_groups=4").num_groups == 4
  assert named("num_groups=4,model=bit_r50x1").num_groups == 4
  changed = config.variant(config.default(), "model=nfnet_f1")
  assert changed.model.ws_convention == "nfnet"
  changed = config.variant(changed, "model=resnet20")
  assert (changed.model.ws_convention, changed.model.num_groups) == ("bit", 8)


def test_models_whose_channels_form_no_8_groups_bring_a_number_of_their_own():
  for name, groups in (("res15", 9), ("res8_narrow", 1), ("ds_cnn_l", 12)):
    named = config.variant(config.default(), f"model={name}")
    assert named.model.num_groups == groups
    models.create(name, num_outputs=12)
    models.create(name, num_outputs=12, norm=NormSpec(num_groups=groups))
