"""Text from trained language models; runs on text, from config to files."""

import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ws_jax import config, models, train
from ws_jax.data.text import tokenizers
from ws_jax.train import generate

WINDOW = 16
TEXT = "to be, or not to be: that is the question.\n" * 40
FEW = [["a b c d", "one"], ["a c d e", "one"], ["x y z", "two"]] * 8
TRAINING = {
  "data.batch_size": 4,
  "data.eval_batch_size": 4,
  "train.steps": 2,
  "train.log_every_steps": 1,
  "optim.learning_rate": 0.01,
  "optim.warmup_steps": 0,
}
SMALL = {"model.layers": 2, "model.dim": 16, "model.heads": 2}


def untrained(**settings):
  """A run of random parameters, as far as generation looks at it."""
  model = models.create(
    "transformer_lm", num_outputs=257, layers=2, dim=32, heads=2, **settings
  )
  tokens = jnp.zeros((1, WINDOW), jnp.int32)
  variables = jax.jit(model.init)(jax.random.key(0), tokens)
  # Sharper than at the start, so that greedy text does not hang on rounding.
  variables = jax.tree.map(lambda x: 3 * x, variables)
  task = types.SimpleNamespace(tokenizer="bytes", num_outputs=257)
  return types.SimpleNamespace(
    program=types.SimpleNamespace(model=model, task=task),
    variables=variables,
    input_shape=(WINDOW + 1,),
    config=types.SimpleNamespace(model=types.SimpleNamespace(name="it")),
  )


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, tokens, cache=None):
  return model.apply({"params": params}, tokens, cache=cache)


def uncached(run, seen):
  """Logits behind each token of a text, by one pass without a cache."""
  tokens = np.full((1, WINDOW), 7, np.int32)  # what is behind does not matter
  tokens[0, : len(seen)] = seen
  logits = apply(run.program.model, run.variables["params"], tokens)
  return np.asarray(logits)[0, : len(seen)]


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_the_cache_gives_the_logits_of_the_whole_text(positions):
  run = untrained(positions=positions)
  model, params = run.program.model, run.variables["params"]
  seen = [256, *b"to be, or not t"]
  expected = uncached(run, seen)
  read = jax.jit(generate.read, static_argnums=0)
  for size in (1, 5, len(seen)):
    tokens = np.full((1, WINDOW), 9, np.int32)
    tokens[0, :size] = seen[:size]
    logits, cache = read(model, params, tokens, size)
    got = [logits[0]]
    for token in seen[size:]:
      logits, cache = apply(model, params, jnp.asarray([[token]]), cache)
      got.append(logits[0, -1])
    np.testing.assert_allclose(got, expected[size - 1 :], rtol=1e-4, atol=1e-4)


def test_greedy_text_is_that_of_whole_forward_passes():
  """Over more than one window: the second half of a full one stays."""
  run = untrained()
  text = generate.generate(run, "to b", length=30, temperature=0.0)
  seen, made = [256, *b"to b"], []
  window = list(seen)
  while len(made) < 30:
    if len(window) == WINDOW:
      window = window[WINDOW // 2 :]
    token = int(np.argmax(uncached(run, window)[-1, :-1]))
    window.append(token)
    made.append(token)
  assert text == tokenizers.Bytes().decode(made)


def test_a_prompt_may_be_empty_or_longer_than_the_window():
  run = untrained()
  for prompt in ("", "x" * WINDOW, "y" * 100, "é" * 9):
    made = generate.generate(run, prompt, length=20, top_k=1)
    assert made == generate.generate(run, prompt, length=20, temperature=0.0)


def test_the_seed_decides_and_temperature_and_top_k_narrow():
  run = untrained()
  write = lambda **how: generate.generate(run, "a", length=40, **how)
  assert write(seed=1) == write(seed=1)
  assert write(seed=1) != write(seed=2)
  assert write(temperature=1e-6) == write(temperature=0.0)
  assert write(seed=1).startswith(
    generate.generate(run, "a", length=5, seed=1)[:4]
  )


def test_draws_follow_the_logits():
  logits = jnp.log(jnp.array([[0.5, 0.2, 0.2, 0.1, 1e9]]))  # the last: special
  keys = jax.random.split(jax.random.key(0), 4000)
  draw = lambda top_k: jax.vmap(
    lambda key: generate._draw(logits, jnp.float32(1.0), top_k, key)[0]
  )(keys)
  shares = np.bincount(draw(None), minlength=5) / 4000
  np.testing.assert_allclose(shares, [0.5, 0.2, 0.2, 0.1, 0], atol=0.04)
  assert set(np.asarray(draw(1)).tolist()) == {0}
  assert set(np.asarray(draw(3)).tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
  ("how", "message"),
  [
    ({"length": 0}, "length=0 must be greater than 0"),
    ({"temperature": -1.0}, "temperature=-1.0 must be finite and 0 or more"),
    ({"temperature": float("nan")}, "temperature=nan must be"),
    ({"top_k": 0}, "top_k=0 must be from 1 to 256"),
    ({"top_k": 257}, "top_k=257 must be from 1 to 256"),
  ],
)
def test_numbers_out_of_range_are_refused(how, message):
  with pytest.raises(ValueError, match=message):
    generate.generate(untrained(), "a", **how)


def test_a_window_of_one_token_is_refused():
  run = untrained()
  run.input_shape = (2,)
  with pytest.raises(ValueError, match="task.length=1 has no room"):
    generate.generate(run, "a")


def test_models_that_write_no_text_are_refused():
  run = untrained()
  run.program.model = models.create("resnet8", num_outputs=10)
  with pytest.raises(ValueError, match="it writes no text: needed is a run of"):
    generate.generate(run, "a")


# From config to a trained run


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  (tmp_path / "own.txt").write_text(TEXT)
  content = {"train": FEW, "val": FEW[:5], "test": FEW[:7]}
  (tmp_path / "own.json").write_text(json.dumps(content))
  return tmp_path


def language_model(folder, **more):
  c = config.load("configs/austen.py")
  changed = {"data.name": str(folder / "own.txt"), "task.length": WINDOW}
  return config.apply(c, {**TRAINING, **SMALL, **changed, **more})


@pytest.mark.parametrize("ws", [False, True])
def test_a_language_model_is_trained_evaluated_and_writes(folder, ws):
  c = language_model(folder, **{"model.ws": ws, "model.qk_norm": True})
  metrics = train.train_and_evaluate(c, folder / "run")
  assert 0 < metrics["eval/bits_per_byte"] < 9
  assert metrics["eval/loss"] == pytest.approx(
    metrics["eval/bits_per_byte"] * np.log(2), rel=1e-5
  )
  assert "eval/bits_per_byte_count" not in metrics
  status = json.loads((folder / "run" / "status.json").read_text())
  assert status["metric"]["goal"] == "min"
  run = train.load_run(folder / "run")
  if ws:
    kernel = run.variables["params"]["block1"]["mlp"]["up"]["kernel"]
    scaled = kernel * np.sqrt(kernel.shape[0])
    np.testing.assert_allclose(scaled.std(0), 1, atol=1e-2)
  (folder / "own.txt").unlink()  # generation needs no data
  text = generate.generate(run, "to be", length=WINDOW * 2, seed=3)
  assert text == generate.generate(run, "to be", length=WINDOW * 2, seed=3)


def test_an_evaluation_is_that_of_the_run(folder):
  metrics = train.train_and_evaluate(language_model(folder), folder / "run")
  again = train.load_run(folder / "run").evaluate()
  assert again["bits_per_byte"] == pytest.approx(
    metrics["eval/bits_per_byte"], rel=1e-5
  )


def test_a_language_model_of_pieces_is_trained_and_writes(folder):
  pytest.importorskip("sentencepiece", reason="needs the extra `text`")
  changes = {"task.tokenizer": "pieces", "task.vocabulary": 290}
  c = language_model(folder, **changes)
  metrics = train.train_and_evaluate(c, folder / "run")
  assert metrics["eval/bits_per_byte"] < metrics["eval/loss"] / np.log(2)
  run = train.load_run(folder / "run")
  assert generate.generate(run, "to be", length=20)
  assert run.evaluate()["bits_per_byte"] == pytest.approx(
    metrics["eval/bits_per_byte"], rel=1e-5
  )


@pytest.mark.parametrize(
  ("model", "ws"),
  [("text_cnn", True), ("text_cnn", False), ("transformer_classifier", True)],
)
def test_a_text_classifier_is_trained_and_evaluated(folder, model, ws):
  changes = {"data.name": str(folder / "own.json"), "model.ws": ws}
  if model == "transformer_classifier":
    changes |= SMALL
  c = config.load(f"configs/clinc150.py:model={model}")
  c = config.apply(c, {**TRAINING, **changes})
  metrics = train.train_and_evaluate(c, folder / "run")
  assert 0 <= metrics["eval/accuracy"] <= 1
  run = train.load_run(folder / "run")
  assert run.classes == ("one", "two")
  # Words are numbered as in training, whatever the training split is now.
  again = run.evaluate([("data.train_split", "train[:2]")])
  assert again["loss"] == pytest.approx(metrics["eval/loss"], rel=1e-4)
  tokenizer = tokenizers.load(run.program.task.tokenizer)
  row = np.full((1, *run.input_shape), tokenizer.size - 1, np.uint16)
  row[0, :3] = tokenizer.encode(b"x y z")
  assert run.predict(row).shape == (1, 2)


@pytest.mark.parametrize(
  ("file", "message"),
  [
    ("clinc150", "model 'resnet8' takes no text: .*Known: text_cnn"),
    ("austen", "must have the same number of dimensions"),
  ],
)
def test_models_of_images_are_refused_before_a_run_begins(
  folder, file, message
):
  name = "own.json" if file == "clinc150" else "own.txt"
  c = config.load(f"configs/{file}.py:model=resnet8")
  c = config.apply(c, {**TRAINING, "data.name": str(folder / name)})
  with pytest.raises(config.ConfigError, match=message):
    train.train_and_evaluate(c, folder / "run")
  assert not (folder / "run").exists()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"data.name": "austin"}, "did you mean 'austen'"),
    ({"task.length": 0}, "task.length=0 must be greater than 0"),
    ({"model.norm": "group"}, "model.norm=group must be layer or rms"),
    ({"model.heads": 3}, "3 heads do not divide dim=16"),
    ({"task.tokenizer": "bites"}, "unknown tokenizer 'bites'"),
    ({"model.ws": True, "model.ws_where": ("x/*",)}, "no kernel was selected"),
  ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(
  folder, changes, message
):
  c = language_model(folder, **changes)
  with pytest.raises(config.ConfigError, match=message):
    train.train_and_evaluate(c, folder / "run")
  assert not (folder / "run").exists()
