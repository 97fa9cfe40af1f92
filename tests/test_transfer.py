"""Fine-tuning: a new head, frozen layers, and the rule of Big Transfer."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ws_jax import config, data, weights
from ws_jax.core.kernels import by_path
from ws_jax.data import augment
from ws_jax.layers.norm import BatchNorm
from ws_jax.tasks import ImageClassification
from ws_jax.train import build, optim, train_and_evaluate, transfer

RULE = "configs/bit_hyperrule.py"


class Pictures:
  """Two classes of noise, 8 x 8 pixels."""

  rng = np.random.default_rng(0)
  train = {
    "image": rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8),
    "label": np.arange(12, dtype=np.int32) % 2,
  }
  test = {name: array[:4] for name, array in train.items()}


class Net(nn.Module):
  """A small net; the second norm is told by an attribute what to do."""

  outputs: int = 2

  @nn.compact
  def __call__(self, x, *, train):
    x = nn.Conv(4, (3, 3), strides=2, name="conv1")(x)
    x = nn.relu(BatchNorm(name="norm1")(x, train=train))
    x = nn.Conv(4, (3, 3), name="conv2")(x)
    x = nn.BatchNorm(use_running_average=not train, name="norm2")(x)
    x = nn.relu(x)
    x = BatchNorm(name="norm3")(x, train=train)
    return nn.Dense(self.outputs, name="head")(x.mean((1, 2)))


def tiny(**changes):
  c = config.apply(
    config.default(),
    {
      "data.batch_size": 4,
      "data.eval_batch_size": 4,
      "train.steps": 2,
      "optim.learning_rate": 0.1,
    },
  )
  return config.apply(c, {k.replace("__", "."): v for k, v in changes.items()})


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
  """Returns the workdir of a run with four classes."""
  folder = tmp_path_factory.mktemp("pretrained")
  four = {"train": dict(Pictures.train), "test": dict(Pictures.test)}
  four["train"]["label"] = np.arange(12, dtype=np.int32) % 4
  four["test"]["label"] = four["train"]["label"][:4]
  train_and_evaluate(tiny(), folder, model=Net(4), data=four)
  return folder


def start(pretrained, **changes):
  changed = tiny(init_from=str(pretrained), **changes)
  return build.start(changed, model=Net(), dataset=Pictures)


def read(workdir):
  """Returns params and statistics by path, with the collection in front."""
  return by_path(weights.read_raw_variables(workdir))


def of(state):
  return by_path({"params": state.params, **state.model_state})


def test_a_head_of_another_shape_starts_anew_and_one_line_says_so(pretrained):
  setup = start(pretrained, seed=1)
  (line,) = setup.notes
  assert "the head starts anew: head/bias is [2], and [4] there" in line
  state, before = of(setup.state()), read(pretrained)
  for path, leaf in state.items():
    if "head" not in path:
      np.testing.assert_array_equal(leaf, before[path], err_msg=path)
  assert np.any(state["params/head/kernel"])


def test_a_stream_has_a_start_before_its_first_image(pretrained):
  """It has no arrays whose shapes could be looked at."""
  setup = start(pretrained)
  stream = dataclasses.replace(setup.dataset, train={})
  notes = transfer.check(setup.program, stream, setup.init_from)
  assert notes == setup.notes


def test_a_head_may_start_at_zero(pretrained):
  setup = start(pretrained, init_zero=("head/*",))
  assert setup.notes == ()
  head = setup.state().params["head"]
  assert not any(np.any(leaf) for leaf in head.values())


def test_a_file_of_import_is_a_start(pretrained, tmp_path):
  """Its names begin with the collection: params/stem/kernel."""
  file = tmp_path / "flat.safetensors"
  weights.write_params(file, weights.read_raw_variables(pretrained))
  given, wanted = (of(start(one).state()) for one in (file, pretrained))
  for path, leaf in wanted.items():
    np.testing.assert_array_equal(leaf, given[path], err_msg=path)


def test_frozen_arrays_and_their_statistics_stay(pretrained, tmp_path, capsys):
  changes = {"init_from": str(pretrained), "optim__clip_norm": 1.0}
  changes |= {"optim__freeze": ("*1/*", "*2/*"), "train__log_every_steps": 1}
  train_and_evaluate(tiny(**changes), tmp_path, model=Net(), data=Pictures)
  said = capsys.readouterr().err
  assert "optim.freeze: 8 of 12 arrays stay as they are, 276 of 294" in said
  assert "and so do 4 of 6 statistics" in said
  assert "\nstandardizing 2 kernels (2 3x3), left out: 1 dense\n" in said
  before, after = read(pretrained), read(tmp_path)
  for path in before:
    if "head" not in path:
      same = np.array_equal(before[path], after[path])
      assert same == ("norm3" not in path), path


def test_statistics_of_frozen_layers_move_by_choice(pretrained, tmp_path):
  changes = {"optim__freeze": ("norm*",), "optim__freeze_statistics": False}
  changes |= {"init_from": str(pretrained)}
  train_and_evaluate(tiny(**changes), tmp_path, model=Net(), data=Pictures)
  before, after = read(pretrained), read(tmp_path)
  for path in before:
    if "norm" in path:
      same = np.array_equal(before[path], after[path])
      assert same == path.startswith("params/"), path


@pytest.mark.parametrize(
  ("globs", "message"),
  [
    (
      ("convv/*",),
      r"'convv/\*' matches no parameter: did you mean 'conv[12]/\*'",
    ),
    (("*",), "leaves nothing to train"),
  ],
)
def test_a_freeze_that_cannot_be_is_one_line(globs, message):
  with pytest.raises(config.ConfigError, match=message) as caught:
    build.start(tiny(optim__freeze=globs), model=Net(), dataset=Pictures)
  assert "\n" not in str(caught.value)


def test_norms_in_a_loop_over_blocks_are_refused_and_not_left_moving():
  """Its loop calls every block by the name of one of them."""
  looped = {"model__name": "resnet20", "model__width": 0.25}
  looped |= {"model__norm": "batch", "model__scan": True}
  changed = tiny(optim__freeze=("stage1*",), **looped)
  with pytest.raises(config.ConfigError, match=r"stage1_block2/.* cannot be"):
    build.start(changed, dataset=Pictures)
  changed.optim.freeze_statistics = False
  build.start(changed, dataset=Pictures)


def test_norms_of_nnx_are_frozen_too(tmp_path):
  class Block(nnx.Module):
    def __init__(self, rngs):
      self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
      self.norm = nnx.BatchNorm(4, rngs=rngs)
      self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
      return self.head(self.norm(self.conv(x)).mean((1, 2)))

  changed = tiny(optim__freeze=("norm/*",), train__steps=1)
  train_and_evaluate(changed, tmp_path, model=Block, data=Pictures)
  (path,) = [path for path in read(tmp_path) if path.endswith("norm/mean")]
  assert not np.any(read(tmp_path)[path])


def test_a_frozen_array_takes_no_part_and_no_memory():
  params = {
    "a": {"kernel": jnp.ones((2, 3))},
    "b": {"kernel": jnp.ones((3, 1))},
  }
  grads = jax.tree.map(lambda x: 3 * jnp.ones_like(x), params)
  numbers = {"learning_rate": 1.0, "weight_decay": 0.5, "momentum": 0.0}
  schedule = optim.Schedule("constant", 5)
  make = lambda **more: optim.Optimizer(schedule, nesterov=False, **more)
  optimizer = make(freeze=("a/*",), decay="all", clip_norm=np.sqrt(27.0))
  state = optimizer.init(params, **numbers)
  new, state = optimizer.update(grads, state, params)
  np.testing.assert_array_equal(new["a"]["kernel"], params["a"]["kernel"])
  # Its own norm is that of the limit: a norm with the frozen ones is larger.
  np.testing.assert_allclose(new["b"]["kernel"], 1 - (3 + 0.5), rtol=1e-6)
  shapes = {leaf.shape for leaf in jax.tree.leaves(state)}
  assert (2, 3) not in shapes and (3, 1) in shapes


def test_the_hyperrule_follows_the_number_of_examples_and_the_size():
  rule = lambda arg: config.load(f"{RULE}:{arg}")
  few = rule("examples=3680,side=300")
  assert (few.train.steps, few.task.mixup, few.task.size) == (500, 0.0, 384)
  assert (few.model.version, few.model.num_groups) == (2, 32)
  many = rule("examples=50000,side=32,model=bit_r101x1,train.steps=100")
  assert (many.train.steps, many.task.mixup) == (100, 0.1)
  assert (many.task.resize, many.task.size) == (160, 128)
  assert rule("examples=500000,side=32").train.steps == 20_000
  assert rule("").train.steps == 500  # the embedded set: 10,000 of 28 pixels
  config.check(few)


def test_images_are_resized_alike_and_cut_at_random_in_training():
  pictures = data.load(data.Request(Pictures))
  settings = {"size": 12, "resize": 16}
  task = ImageClassification.create(pictures, **settings)
  indices = jnp.arange(4)
  plain = task.batch(pictures.train, indices, None)["inputs"]
  assert plain.shape == (4, 12, 12, 3)
  train = task.batch(pictures.train, indices, jax.random.key(0))["inputs"]
  assert train.shape == (4, 12, 12, 3) and not np.allclose(train, plain)
  flat = jnp.full((1, 8, 8, 3), 7, jnp.uint8)
  assert np.all(augment.resize(flat, 5) == 7)
  with pytest.raises(ValueError, match="task.resize=10 needs a task.size"):
    ImageClassification.create(pictures, size=12, resize=10)


def test_classes_are_chosen_and_numbered_anew():
  pictures = data.load(
    data.Request(
      {
        "train": {
          "x": np.arange(6.0)[:, None],
          "y": np.array([2, 0, 1, 2, 0, 1]),
        },
        "test": {"x": np.arange(2.0)[:, None], "y": np.array([2, 1])},
        "classes": ("a", "b", "c"),
      }
    )
  )
  chosen = data.only_classes(pictures, ("c", "a"))
  assert chosen.train["x"].ravel().tolist() == [0.0, 1.0, 3.0, 4.0]
  assert chosen.train["y"].tolist() == [0, 1, 0, 1]
  assert chosen.test["y"].tolist() == [0]
  info = chosen.info
  assert (info.classes, info.num_classes) == (("c", "a"), 2)
  assert (info.train_size, info.eval_size) == (4, 1)
  with pytest.raises(data.DataError, match="unknown class 'd'"):
    data.only_classes(pictures, ("d",))
