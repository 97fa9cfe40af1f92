"""Shapes and sizes of the models; what is published is what is counted."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.quick import quick
from ws_jax import models
from ws_jax.layers.norm import NORMS, NormSpec
from ws_jax.models import MODELS, create_model
from ws_jax.models.resnet import Block

# torchvision's ResNet-18 to 152; ResNet-20 to 110 are 0.27, 0.85 and 1.7 M in
# He et al., with another shortcut; the second version is that of Big Transfer.
PUBLISHED = {
  ("resnet20", 1): 272_474,
  ("resnet56", 1): 855_770,
  ("resnet110", 1): 1_730_714,
  ("resnet18", 1): 11_689_512,
  ("resnet34", 1): 21_797_672,
  ("resnet50", 1): 25_557_032,
  ("resnet101", 1): 44_549_160,
  ("resnet152", 1): 60_192_808,
  ("resnet50", 2): 25_549_352,
}

# Names with a version, a number of groups or a stem of their own: as timm has
# Big Transfer and resnet50_gn, and as Zagoruyko and Komodakis have wide ones.
PUBLISHED_NAMES = {
  "bit_r50x1": 25_549_352,
  "bit_r50x3": 217_319_080,
  "bit_r101x1": 44_541_480,
  "bit_r152x4": 936_533_224,
  "resnet50_gn": 25_557_032,
  "bit_i1k": 25_557_032,
  "wrn_16_4": 2_748_890,
  "wrn_28_10": 36_479_194,
}


def shapes(model, size=32, train=False) -> Any:
  """Shapes of the variables, from tracing alone."""
  images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
  init = lambda images: model.init(jax.random.key(0), images, train=train)
  return jax.eval_shape(init, images)


def count(params):
  return sum(p.size for p in jax.tree.leaves(params))


def tiny(**settings):
  default: dict[str, Any] = {"width": 0.5, "norm": NormSpec(num_groups=2)}
  return create_model("resnet8", num_classes=3, **default | settings)


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run(model, images, variables=None, train=True) -> Any:
  """Variables and logits; compiled, which is quicker than op by op."""

  def both(variables, images):
    variables = variables or model.init(jax.random.key(0), images, train=train)
    mutable = ["batch_stats"]
    return variables, model.apply(
      variables, images, train=train, mutable=mutable
    )[0]

  return quick(both)(variables, images)


@pytest.mark.parametrize(("name", "version"), PUBLISHED)
def test_parameters_are_as_many_as_published(name, version):
  cifar = MODELS[name]["stem"] == "cifar"
  model = create_model(name, num_classes=10 if cifar else 1000, version=version)
  got = count(shapes(model, 32 if cifar else 64)["params"])
  assert got == PUBLISHED[name, version], (
    f"{name} v{version} has {got} parameters, not the published number: its"
    " checkpoints and results no longer compare with those of others"
  )


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_names_bring_the_settings_they_were_published_with(name):
  model = create_model(name, num_classes=10 if "wrn" in name else 1000)
  assert count(shapes(model, 64)["params"]) == PUBLISHED_NAMES[name]
  defaults = {key: one.default for key, one in models.keys(name).items()}
  assert model.version == defaults["version"]
  assert model.zero_init_last == defaults["zero_init_last"]
  groups = 8 if model.norm.num_groups is None else model.norm.num_groups
  assert groups == defaults["num_groups"]
  assert (name.startswith("bit_r"), groups) != (True, 8)


def test_the_stem_of_a_wide_network_stays_narrow():
  params = shapes(create_model("wrn_16_4", num_classes=10))["params"]
  assert params["stem"]["kernel"].shape == (3, 3, 3, 16)
  assert params["stage1_block1"]["conv1"]["kernel"].shape == (3, 3, 16, 64)
  assert params["stage1_block1"]["projection"]["kernel"].shape[-1] == 64
  with pytest.raises(ValueError, match="8 channels cannot form 16 groups"):
    create_model(
      "wrn_16_4", num_classes=10, width=0.5, norm=NormSpec(num_groups=16)
    )


@pytest.mark.parametrize("version", [1, 2])
def test_dropout_and_stochastic_depth_are_of_training_alone(version):
  images = draw(2, 8, 8, 3)
  plain, model = (
    tiny(version=version, dropout=rate, stochastic_depth=rate)
    for rate in (0.0, 0.5)
  )
  assert shapes(plain) == shapes(model)
  variables, logits = run(plain, images, train=False)
  still = run(model, images, variables, train=False)[1]
  np.testing.assert_allclose(still, logits, atol=1e-5)

  @quick
  def train(seed):
    rngs = {"dropout": jax.random.key(seed)}
    return model.apply(variables, images, train=True, rngs=rngs)

  np.testing.assert_array_equal(train(0), train(0))
  assert np.abs(train(0) - train(1)).max() > 0


def test_padding_of_big_vision_is_on_the_far_side():
  image = np.zeros((1, 16, 16, 1), np.float32)
  image[0, 0, 0] = 1
  model = create_model("bit_i1k", num_classes=2, width=0.5)
  small = {"block_sizes": (1,), "same_padding": True}
  model = dataclasses.replace(model, **small)
  variables = run(model, image)[0]
  stem = inside(model, variables, image)["stem"]
  kernel = variables["params"]["stem"]["kernel"]
  assert stem.shape == (1, 8, 8, 32)
  # Of 7 taps 2 are before an even image, 3 behind.
  np.testing.assert_allclose(stem[0, 0, 0], kernel[2, 2, 0], rtol=1e-6)


@pytest.mark.parametrize("depth", [8, 14, 32])
def test_depth_is_the_number_of_layers_with_weights(depth):
  params = shapes(create_model(f"resnet{depth}", num_classes=10))["params"]
  kernels = [
    path
    for path, _ in jax.tree.leaves_with_path(params)
    if "kernel" in str(path) and "projection" not in str(path)
  ]
  assert len(kernels) == depth


@pytest.mark.parametrize(
  ("kind", "version", "stem"),
  list(itertools.product(NORMS, (1, 2), ("cifar", "half", "imagenet"))),
)
def test_every_variant_runs_on_odd_images(kind, version, stem):
  model = tiny(norm=NormSpec(kind), version=version, stem=stem)
  images = jax.ShapeDtypeStruct((2, 27, 33, 1), jnp.float32)
  variables, logits = jax.eval_shape(lambda x: run(model, x), images)
  assert (logits.shape, logits.dtype) == ((2, 3), jnp.float32)
  assert ("batch_stats" in variables) == kind.startswith("batch")
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(variables))


def test_the_half_stem_is_the_cifar_network_at_half_the_resolution():
  image = jnp.ones((1, 28, 28, 1))
  parts = {}
  for stem in ("cifar", "half"):
    model = tiny(stem=stem)
    variables = model.init(jax.random.key(0), image, train=False)
    parts[stem] = inside(model, variables, image)["stem"], variables["params"]
  assert parts["cifar"][0].shape[1:3] == (28, 28)
  assert parts["half"][0].shape[1:3] == (14, 14)
  sizes = [jax.tree.map(jnp.shape, parts[stem][1]) for stem in parts]
  assert sizes[0] == sizes[1]


def test_norm_kinds_have_the_same_parameters():
  # But for those of two norms in one, which have their groups' besides.
  kinds = [kind for kind in NORMS if not kind.startswith("batch_channel")]
  trees = [shapes(tiny(norm=NormSpec(kind)))["params"] for kind in kinds]
  assert all(tree == trees[0] for tree in trees)


def test_stages_halve_the_image_and_double_the_channels():
  model = create_model("resnet50", num_classes=10)
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  init = lambda x: model.init(jax.random.key(0), x, train=False)
  parts = jax.eval_shape(lambda x: inside(model, init(x), x), images)
  for stage, side, channels in ((1, 56, 256), (2, 28, 512), (4, 7, 2048)):
    out = parts[f"stage{stage}_block1"]
    assert out.shape == (1, side, side, channels)
  assert parts["stem"].shape == (1, 112, 112, 64)


def inside(module, variables, *arguments) -> Any:
  """What each part of a module gives, by its name."""

  @quick
  def parts(variables):
    _, state = module.apply(
      variables,
      *arguments,
      train=False,
      capture_intermediates=True,
      mutable=True,
    )
    return state["intermediates"]

  named = parts(variables).items()
  return {k: v["__call__"][0] for k, v in named if k != "__call__"}


def test_strided_convolutions_pad_both_sides_alike():
  # A point in the corner of an even image shows which tap is centred on it:
  # the middle one; with SAME, the one before.
  image = np.zeros((1, 16, 16, 1), np.float32)
  image[0, 0, 0] = 1
  model = tiny(stem="imagenet")
  variables = run(model, image)[0]
  kernel = variables["params"]["stem"]["kernel"]
  corner = inside(model, variables, image)["stem"][0, 0, 0]
  np.testing.assert_allclose(corner, kernel[3, 3, 0], rtol=1e-6)

  block = Block(
    channels=2,
    stride=2,
    bottleneck=False,
    version=2,
    norm=NormSpec("none"),
    zero_init_last=False,
    dtype=jnp.float32,
  )
  init = lambda: block.init(jax.random.key(0), image, train=False)
  variables: Any = quick(init)()
  corner = inside(block, variables, image)["conv1"][0, 0, 0]
  kernel = variables["params"]["conv1"]["kernel"]
  np.testing.assert_allclose(corner, kernel[1, 1, 0], rtol=1e-6)


def test_pool_of_the_second_version_is_padded_with_zeros():
  # Blocks of the first stage start as the identity, so they show the pool.
  model = create_model(
    "resnet18",
    num_classes=2,
    width=1 / 16,
    version=2,
    norm=NormSpec("none"),
    zero_init_last=True,
  )
  images = np.ones((1, 16, 16, 1), np.float32)
  variables = run(model, images)[0]
  variables["params"]["stem"]["kernel"] = -jnp.ones((7, 7, 1, 4))
  pooled = np.asarray(inside(model, variables, images)["stage1_block2"])[0]
  assert pooled.shape == (4, 4, 4)
  assert (pooled[0] == 0).all() and (pooled[:, 0] == 0).all()
  assert (pooled[1:, 1:] < 0).all()


def test_models_are_values():
  one, two = tiny(), tiny()
  assert one == two and hash(one) == hash(two)
  assert one != tiny(version=2) and one != tiny(norm=NormSpec("batch"))
  assert tiny(dtype="bfloat16") == tiny(dtype=jnp.bfloat16)
  traces = []

  def apply(model, variables, images):
    traces.append(model)
    return model.apply(variables, images, train=False)

  apply = quick(apply, static_argnums=0)
  images = draw(1, 8, 8, 3)
  variables, _ = run(one, images)
  apply(one, variables, images)
  apply(two, variables, images)
  assert len(traces) == 1


@pytest.mark.slow
def test_remat_changes_memory_and_nothing_else():
  images = draw(2, 8, 8, 3)
  kept, again = (tiny(norm=NormSpec("batch"), remat=r) for r in (False, True))
  assert shapes(kept) == shapes(again)
  variables, _ = run(kept, images)

  def grads(model):
    def loss(params):
      logits, state = model.apply(
        {**variables, "params": params},
        images,
        train=True,
        mutable=["batch_stats"],
      )
      return jnp.sum(logits**2), state

    return jax.grad(loss, has_aux=True)

  ours, true = (jax.jit(grads(m))(variables["params"]) for m in (again, kept))
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(true), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
  assert "remat" in str(jax.make_jaxpr(grads(again))(variables["params"]))


@pytest.mark.parametrize("version", [1, 2])
def test_blocks_that_start_as_their_shortcut(version):
  model = tiny(version=version, zero_init_last=True, norm=NormSpec("batch"))
  images = draw(2, 8, 8, 3)
  variables, _ = run(model, images)
  _, logits = run(model, images, variables)  # not the program that initializes

  def loss(params):
    out, _ = model.apply(
      {**variables, "params": params}, images, train=True, mutable=True
    )
    return jnp.sum(out**2)

  # What is inside the blocks does not matter yet ...
  changed = jax.tree_util.tree_map_with_path(
    lambda path, p: p + 1.0 if "conv1" in str(path) else p, variables
  )
  np.testing.assert_array_equal(run(model, images, changed)[1], logits)
  # ... but each block can leave that state.
  grads = quick(jax.grad(loss))(variables["params"])
  for name in ("stage1_block1", "stage2_block1", "stage3_block1"):
    block = grads[name]
    gate = block["gain"] if version == 2 else block["norm2"]["scale"]
    assert np.abs(gate).max() > 0, name


def test_he_initialization_by_fan_out():
  params = quick(
    lambda: create_model("resnet8", num_classes=10, width=4).init(
      jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False
    )
  )()["params"]
  kernel = params["stage2_block1"]["conv1"]["kernel"]  # [3, 3, 64, 128]
  np.testing.assert_allclose(kernel.std(), (2 / (9 * 128)) ** 0.5, rtol=0.02)
  assert set(params["head"]) == {"kernel", "bias"}


def test_bfloat16_inside_and_float32_logits():
  model, images = tiny(dtype=jnp.bfloat16), draw(2, 8, 8, 3)
  variables = shapes(model)
  assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  real, logits = run(model, images)
  assert logits.dtype == jnp.float32
  _, exact = run(tiny(), images, real)
  assert 0 < np.abs(logits - exact).max() < 0.2


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"name": "resnt20"}, "unknown model 'resnt20': did you mean 'resnet20'"),
    ({"stem": "cifra"}, "unknown stem 'cifra': did you mean 'cifar'"),
    ({"version": 3}, "unknown ResNet version '3': Known: 1, 2"),
    ({"width": 0.01}, "width 0.01 leaves none of the 16 channels of resnet20"),
    ({"num_classes": 0}, "num_classes must be at least 1, not 0"),
    (
      {"norm": NormSpec(num_groups=32)},
      "16 channels cannot form 32 groups; possible: 1, 2, 4, 8, 16",
    ),
    ({"width": 0.75}, "12 channels cannot form 8 groups"),
  ],
)
def test_models_that_cannot_be(settings, message):
  default: dict[str, Any] = {"name": "resnet20", "num_classes": 10}
  with pytest.raises(ValueError, match=message):
    create_model(**default | settings)


@pytest.mark.parametrize(
  "norm", [NormSpec(num_groups=32), NormSpec(channels_per_group=32)]
)
def test_groups_that_fit_the_first_channels_fit_all(norm):
  # What `create_model` relies on when it checks one number of channels only.
  model = create_model("resnet50", num_classes=2, norm=norm, width=0.5)
  assert shapes(model, 64)["params"]["stem_norm"]["scale"].shape == (32,)
