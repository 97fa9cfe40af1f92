"""The models of text: a decoder, an encoder, and Kim's convolutions."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ws_jax
from tests.quick import quick
from ws_jax import models
from ws_jax.layers import attention
from ws_jax.layers.gelu import gelu
from ws_jax.models import transformer

VOCABULARY = 11  # 10 begins a document, or fills a text up.
SMALL = {"layers": 2, "dim": 16, "heads": 2}
ARMS = [
  {"norm": norm, "positions": positions, "qk_norm": qk_norm, "tie": tie}
  for norm, positions, qk_norm, tie in (
    ("layer", "rotary", False, True),
    ("rms", "learned", True, False),
    ("layer", "learned", True, True),
    ("rms", "rotary", True, False),
  )
]


def decoder(**settings):
  return models.create(
    "transformer_lm", num_outputs=VOCABULARY, **(SMALL | settings)
  )


@functools.partial(quick, static_argnums=0)
def apply(model, variables, tokens, **more):
  return model.apply(variables, tokens, **more)


def filled(model, tokens):
  """Variables of random numbers, so that every part of the model acts."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    numbers = rng.normal(0, 1, leaf.shape)
    if path[-1].key == "scale":
      numbers = 1 + 0.1 * numbers
    if path[-1].key == "kernel":
      numbers *= 1.5 / math.sqrt(leaf.size / leaf.shape[-1])
    return jnp.asarray(numbers, jnp.float32)

  return jax.tree_util.tree_map_with_path(fill, shapes)


def test_long_rows_are_computed_in_parts_to_the_same_logits(monkeypatch):
  tokens = jax.random.randint(jax.random.key(0), (2, 64), 0, VOCABULARY)
  model = decoder()
  variables = filled(model, tokens)
  got = model.apply(variables, tokens)
  monkeypatch.setattr(attention, "causal_parts", lambda length: 1)
  expected = model.apply(variables, tokens)
  scale = float(jnp.abs(expected).max())
  np.testing.assert_allclose(got / scale, expected / scale, atol=3e-5)


@pytest.fixture
def tokens():
  return jax.random.randint(jax.random.key(0), (3, 12), 0, VOCABULARY - 1)


# The decoder against a reference in float64


def _norm(x, scale, bias=None):
  if bias is not None:
    x = x - x.mean(-1, keepdims=True)
  y = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale
  return y if bias is None else y + bias


def _gelu(x):
  return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _rotate(x, places):
  half = x.shape[-1] // 2
  angles = places[:, None] * 10_000.0 ** (-np.arange(half) / half)
  pairs = x[..., :half] + 1j * x[..., half:]
  turned = np.exp(1j * angles)[None, :, None] * pairs
  return np.concatenate([turned.real, turned.imag], -1)


def reference(params, tokens, arm):
  """Logits in float64 NumPy, a text at a time and a head at a time."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  norm = lambda x, one: _norm(x, one["scale"], one.get("bias"))
  places = np.arange(tokens.shape[1])
  x = p["embed"]["embedding"][tokens]
  if arm["positions"] == "learned":
    x = x + p["positions"][places]
  document = np.cumsum(tokens == VOCABULARY - 1, axis=1)
  for i in range(SMALL["layers"]):
    block = p[f"block{i + 1}"]
    attention, mlp = block["attention"], block["mlp"]
    y = norm(x, block["attention_norm"])
    q, k, v = (
      np.einsum("btd,dhc->bthc", y, attention[name]["kernel"])
      for name in ("query", "key", "value")
    )
    if arm["qk_norm"]:
      q, k = norm(q, attention["query_norm"]), norm(k, attention["key_norm"])
    if arm["positions"] == "rotary":
      q, k = _rotate(q, places), _rotate(k, places)
    out = np.zeros_like(x)
    for b in range(len(tokens)):
      seen = document[b][:, None] == document[b][None, :]
      seen &= places[None, :] <= places[:, None]
      for h in range(SMALL["heads"]):
        logits = q[b, :, h] @ k[b, :, h].T / math.sqrt(q.shape[-1])
        odds = np.where(seen, np.exp(logits), 0)
        shares = odds / odds.sum(-1, keepdims=True)
        out[b] += shares @ v[b, :, h] @ attention["out"]["kernel"][h]
    x = x + out
    y = norm(x, block["mlp_norm"])
    x = x + _gelu(y @ mlp["up"]["kernel"]) @ mlp["down"]["kernel"]
  x = norm(x, p["norm"])
  head = p["embed"]["embedding"].T if arm["tie"] else p["head"]["kernel"]
  return x @ head


@pytest.mark.parametrize("arm", ARMS)
def test_the_decoder_against_float64(arm, tokens):
  tokens = tokens.at[1, 5].set(VOCABULARY - 1).at[2, 0].set(VOCABULARY - 1)
  model = decoder(**arm)
  variables = filled(model, tokens)
  logits = apply(model, variables, tokens)
  expected = reference(variables["params"], np.asarray(tokens), arm)
  scale = np.abs(expected).max()
  np.testing.assert_allclose(logits / scale, expected / scale, atol=3e-5)


# What a token sees


def test_a_token_sees_neither_what_comes_later_nor_other_documents(tokens):
  tokens = tokens.at[:, 6].set(VOCABULARY - 1)
  model = decoder()
  variables = filled(model, tokens)

  before = apply(model, variables, tokens)

  def changed_by(place):
    other = tokens.at[:, place].set((tokens[:, place] + 1) % (VOCABULARY - 1))
    difference = np.abs(apply(model, variables, other) - before)
    return np.flatnonzero(difference.max((0, 2)) > 1e-6).tolist()

  assert changed_by(3) == [3, 4, 5]
  assert changed_by(8) == [8, 9, 10, 11]


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_attention_in_parts_is_that_of_jax(parts):
  keys = jax.random.split(jax.random.key(0), 3)
  arrays = [jax.random.normal(key, (2, 8, 3, 4)) for key in keys]
  mask = np.tril(np.ones((2, 1, 8, 8), bool))
  mask[1, 0, 5:, :5] = False  # the second text is two documents
  mask = jnp.asarray(mask)
  ours = lambda q, k, v: attention.attend(q, k, v, mask, parts)
  theirs = lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=mask)

  def slopes(attend):
    loss = lambda *arrays: (attend(*arrays) ** 2).sum()
    return quick(jax.grad(loss, argnums=(0, 1, 2)))(*arrays)

  np.testing.assert_allclose(ours(*arrays), theirs(*arrays), atol=1e-5)
  for got, expected in zip(slopes(ours), slopes(theirs), strict=True):
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gelu_and_its_slope_are_those_of_the_formula(dtype):
  x = jnp.linspace(-12, 12, 4001).astype(dtype)
  slope = jax.vmap(jax.grad(lambda x: gelu(x).astype(jnp.float32)))(x)
  wide = np.asarray(x, np.float64)
  tanh = np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3))
  bend = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * wide**2) * (1 - tanh**2)
  wanted = 0.5 * wide * (1 + tanh), 0.5 * (1 + tanh) + 0.5 * wide * bend
  ulp = float(jnp.finfo(dtype).eps)
  for got, want in zip((gelu(x), slope), wanted, strict=True):
    assert got.dtype == dtype
    error = np.abs(np.asarray(got, np.float64) - want)
    assert np.all(error <= 0.5 * ulp * np.abs(want) + 1e-5)


def test_rotary_products_depend_on_distance_alone():
  query = jax.random.normal(jax.random.key(0), (1, 1, 2, 8))
  key = jax.random.normal(jax.random.key(1), (1, 1, 2, 8))

  def product(a, b):
    turned = [
      attention.rotate(x, jnp.array([place]))
      for x, place in ((query, a), (key, b))
    ]
    return np.asarray((turned[0] * turned[1]).sum(-1))

  np.testing.assert_allclose(product(7, 3), product(104, 100), atol=1e-5)
  np.testing.assert_allclose(product(5, 5), product(0, 0), atol=1e-5)
  assert np.abs(product(7, 3) - product(7, 4)).max() > 1e-2


@pytest.mark.parametrize("arm", ARMS)
def test_tokens_in_parts_give_what_they_give_at_once(arm, tokens):
  model = decoder(**arm)
  variables = filled(model, tokens)
  expected = apply(model, variables, tokens)
  cache, got = model.empty_cache(len(tokens), 12), []
  for start, stop in ((0, 5), (5, 6), (6, 11), (11, 12)):
    part = tokens[:, start:stop]
    logits, cache = apply(model, variables, part, cache=cache)
    got.append(logits)
  assert int(cache.length) == 12
  scale = float(jnp.abs(expected).max())
  got = jnp.concatenate(got, axis=1)
  np.testing.assert_allclose(got / scale, expected / scale, atol=3e-5)


# Parameters, WS and settings


def test_parameters_are_those_of_the_formula():
  def count(**settings):
    model = models.create("transformer_lm", num_outputs=257, **settings)
    shapes = jax.eval_shape(
      model.init, jax.random.key(0), jnp.zeros((1, 256), jnp.int32)
    )
    return sum(x.size for x in jax.tree.leaves(shapes["params"]))

  d, layers = 128, 4
  plain = 257 * d + layers * 12 * d * d
  assert count(norm="rms") == plain + (2 * layers + 1) * d
  assert count(norm="layer") == plain + (2 * layers + 1) * 2 * d
  assert count(norm="rms", tie=False) == count(norm="rms") + 257 * d
  assert count(positions="learned") == count() + 256 * d
  assert count(norm="rms", qk_norm=True) == count(norm="rms") + 2 * layers * 32


def test_first_logits_are_near_uniform():
  tokens = jax.random.randint(jax.random.key(0), (2, 64), 0, 256)
  model = models.create("transformer_lm", num_outputs=257)
  variables = quick(model.init)(jax.random.key(1), tokens)
  log_p = jax.nn.log_softmax(apply(model, variables, tokens))
  assert float(-log_p.mean()) == pytest.approx(math.log(257), abs=0.1)


def test_ws_reaches_attention_by_the_axes_that_are_named(tokens):
  model = decoder()
  params = filled(model, tokens)["params"]
  where = ws_jax.matching("*/attention/*/kernel", "*/mlp/*/kernel")
  joint = ws_jax.weight_standardize(params, where=where)
  per_head = ws_jax.weight_standardize(
    params,
    where=where,
    axes=ws_jax.axes_by_path({"*/out/kernel": ws_jax.all_but(0, -1)}),
  )
  both, heads = joint["block1"], per_head["block1"]["attention"]
  for name in ("query", "key", "value"):
    kernel = both["attention"][name]["kernel"]
    np.testing.assert_allclose(kernel.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(kernel.std(0), 1, atol=1e-4)
    np.testing.assert_array_equal(kernel, heads[name]["kernel"])
  out = both["attention"]["out"]["kernel"]
  assert out.shape == (2, 8, 16)
  np.testing.assert_allclose(out.std((0, 1)), 1, atol=1e-4)
  np.testing.assert_allclose(heads["out"]["kernel"].std(1), 1, atol=1e-4)
  assert float(jnp.abs(out.std(1) - 1).max()) > 1e-2
  np.testing.assert_allclose(both["mlp"]["up"]["kernel"].std(0), 1, atol=1e-4)
  chosen = ["attention", "mlp"]
  rest = {k: v for k, v in params["block1"].items() if k not in chosen}
  same = {k: v for k, v in joint["block1"].items() if k not in chosen}
  jax.tree.map(np.testing.assert_array_equal, rest, same)


@pytest.mark.parametrize("name", ["transformer_lm", "transformer_classifier"])
def test_equal_settings_are_equal_models(name):
  make = lambda: models.create(name, num_outputs=5, **SMALL)
  assert make() == make()
  assert hash(make()) == hash(make())


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"heads": 3}, "3 heads do not divide dim=16"),
    ({"dim": 6}, "odd number of channels"),
    ({"norm": "group"}, "unknown norm of a transformer 'group'"),
    ({"positions": "rotory"}, "did you mean 'rotary'"),
  ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    decoder(**settings)


def test_half_precision_stays_near(tokens):
  variables = filled(decoder(), tokens)
  logits = apply(decoder(), variables, tokens)
  half = apply(decoder(dtype=jnp.bfloat16), variables, tokens)
  assert half.dtype == jnp.float32
  scale = float(jnp.abs(logits).max())
  np.testing.assert_allclose(half / scale, logits / scale, atol=0.1)


def test_dropout_acts_in_training_alone(tokens):
  model = decoder(dropout=0.5)
  variables = filled(model, tokens)
  rngs = lambda i: {"dropout": jax.random.key(i)}
  one, two = (
    model.apply(variables, tokens, train=True, rngs=rngs(i)) for i in (0, 1)
  )
  assert float(jnp.abs(one - two).max()) > 1e-3
  plain = apply(decoder(dropout=0.0), variables, tokens)
  np.testing.assert_array_equal(apply(model, variables, tokens), plain)


# Classifiers


def classifier(name, **settings):
  small = SMALL if name != "text_cnn" else {"dim": 16, "filters": 8}
  return models.create(
    name, num_outputs=4, num_inputs=VOCABULARY, **(small | settings)
  )


CLASSIFIERS = ("transformer_classifier", "text_cnn")


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_what_fills_a_text_up_is_left_out(name, tokens):
  model = classifier(name)
  variables = filled(model, tokens)
  logits = apply(model, variables, tokens)
  assert logits.shape == (3, 4)
  padding = jnp.full((3, 7), VOCABULARY - 1)
  longer = apply(model, variables, jnp.concatenate([tokens, padding], 1))
  np.testing.assert_allclose(longer, logits, rtol=1e-4, atol=1e-5)
  # A text of nothing else is finite, too, and so is its gradient.
  gradient = quick(jax.grad(lambda v: model.apply(v, padding).sum()))
  for leaf in jax.tree.leaves(gradient(variables)):
    assert np.isfinite(leaf).all()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_text_is_not_mixed_with_others(name, tokens):
  model = classifier(name)
  variables = filled(model, tokens)
  alone = [apply(model, variables, row[None]) for row in tokens]
  got = apply(model, variables, tokens)
  np.testing.assert_allclose(got, np.concatenate(alone), rtol=1e-4, atol=1e-5)


def test_the_encoder_sees_both_sides(tokens):
  model = classifier("transformer_classifier", layers=1)
  variables = filled(model, tokens)
  gradient = jax.grad(
    lambda table: model.apply(
      {"params": variables["params"] | {"embed": {"embedding": table}}}, tokens
    ).sum()
  )(variables["params"]["embed"]["embedding"])
  used = jnp.unique(tokens)
  assert float(jnp.abs(gradient[used]).min(0).max()) > 0
  swapped = np.array(tokens)
  swapped[:, [0, 11]] = swapped[:, [11, 0]]
  before, after = (apply(model, variables, x) for x in (tokens, swapped))
  assert float(np.abs(after - before).max()) > 1e-4


def test_the_convolutions_are_those_of_kim(tokens):
  """With norm="none": filters, their maximum, bias, ReLU, head."""
  model = classifier("text_cnn", widths=(2, 3), dropout=0.0)
  variables = filled(model, tokens)
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
  bias = np.linspace(-1, 1, 16)
  p["norm"]["bias"] = bias
  variables["params"]["norm"]["bias"] = jnp.asarray(bias, jnp.float32)
  x = p["embed"]["embedding"][np.asarray(tokens)]
  features = []
  for width in (2, 3):
    kernel = p[f"conv{width}"]["kernel"]
    before = (width - 1) // 2
    wide = np.pad(x, ((0, 0), (before, width - 1 - before), (0, 0)))
    y = np.stack(
      [
        np.einsum("bwd,wdf->bf", wide[:, t : t + width], kernel)
        for t in range(x.shape[1])
      ],
      axis=1,
    )
    features.append(y.max(1))
  features = np.concatenate(features, -1) * p["norm"]["scale"] + bias
  expected = np.maximum(features, 0) @ p["head"]["kernel"] + p["head"]["bias"]
  got = apply(model, variables, tokens)
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_ws_takes_the_convolutions_of_text_without_being_told(tokens):
  params = filled(classifier("text_cnn"), tokens)["params"]
  effective = ws_jax.weight_standardize(params)
  for width in (3, 4, 5):
    kernel = effective[f"conv{width}"]["kernel"]
    assert kernel.shape == (width, 16, 8)
    np.testing.assert_allclose(kernel.std((0, 1)), 1, atol=1e-4)
  jax.tree.map(
    np.testing.assert_array_equal, params["embed"], effective["embed"]
  )


def test_groups_that_do_not_divide_the_filters_are_refused():
  from ws_jax.layers.norm import NormSpec

  with pytest.raises(ValueError, match="24 channels cannot form 7 groups"):
    classifier("text_cnn", norm=NormSpec("group", num_groups=7))


def test_shapes_are_plain_values():
  shape = transformer.Shape(dim=32)
  assert dataclasses.replace(shape, dim=64) == transformer.Shape(dim=64)
