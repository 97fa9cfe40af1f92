"""Text as data, and the two tasks on it."""

import dataclasses
import importlib.util
import json
import math
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ws_jax import data, tasks
from ws_jax.base import extras
from ws_jax.data.text import Options, austen, documents, packing, tokenizers
from ws_jax.train import step as steps

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data"
TEXT = "Ünïcode, naïve: “quoted” — and plain ASCII; the end.\n" * 30


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def load(name, **options):
  split = {k: options.pop(k) for k in list(options) if k.endswith("_split")}
  keys = {k: options.pop(k) for k in list(options) if k.endswith("_key")}
  request = data.Request(name, options=Options(**options), **split, **keys)
  return data.load(request)


def predicted(rows, special):
  """The tokens that the rows predict, in order, without the special one."""
  targets = rows[:, 1:].reshape(-1)
  return targets[targets != special]


# The embedded novels


def test_the_novels_are_whole_and_split_by_novel():
  sizes = {
    split: [len(text) for text in austen.read(split)] for split in austen.SPLITS
  }
  assert sizes == {
    "train": [673_688, 684_768, 883_280, 883_028],
    "validation": [433_411],
    "test": [466_854],
  }
  assert austen.read("test")[0].startswith(b"Persuasion\n\n\nby\n\nJane Austen")
  assert austen.PATH.stat().st_size < 1_600_000
  assert austen.PATH.with_name("LICENSE-austen.txt").exists()


def test_a_damaged_file_of_novels_is_an_error(tmp_path, monkeypatch):
  copy = tmp_path / "austen.zip"
  copy.write_bytes(austen.PATH.read_bytes()[:-1] + b"?")
  monkeypatch.setattr(austen, "PATH", copy)
  with pytest.raises(data.DataError, match="checksum differs.*git checkout"):
    austen.read("train")


def test_novels_for_a_task_on_images_name_the_task_for_them():
  with pytest.raises(data.DataError, match="task.name=language_model"):
    data.load(data.Request("austen"))
  assert "austen" in data.DATASETS


def test_the_novels_are_rows_of_bytes():
  dataset = load("austen", length=100, eval_split="validation")
  assert dataset.info.input_shape == (101,)
  assert dataset.info.tokenizer == "bytes"
  assert dataset.num_classes is None
  assert dataset.train["tokens"].dtype == np.uint16
  text = b"".join(austen.read("validation"))
  rows = dataset.test["tokens"]
  assert bytes(predicted(rows, 256).astype(np.uint8)) == text
  assert dataset.test["bytes"].sum() == len(text)
  assert rows[0, 0] == 256
  assert (dataset.train["tokens"] == 256).sum() >= 4


# Packing


@settings(max_examples=60, deadline=None)
@given(
  st.lists(st.lists(st.integers(0, 8), max_size=20), min_size=1, max_size=6),
  st.integers(1, 12),
)
def test_every_token_is_predicted_exactly_once(texts, length):
  texts = [np.asarray(text, np.uint16) for text in texts]
  rows = packing.pack(texts, length, special=9)
  assert rows.shape[1] == length + 1
  assert predicted(rows, 9).tolist() == np.concatenate(texts).tolist()
  # A row begins with the token that the row before ends with.
  np.testing.assert_array_equal(rows[1:, 0], rows[:-1, -1])
  lengths = np.asarray([*range(1, 10), 0], np.int32)
  total = sum(int(lengths[text].sum()) for text in texts)
  assert packing.count_bytes(rows, lengths).sum() == total


# Files and folders


def test_a_file_is_cut_as_tfds_cuts_tiny_shakespeare(tmp_path):
  """`int(0.9 n)` characters, then half of the rest."""
  text = bytes(range(32, 127)) * 21 + b"x"
  parts = documents.cut([text])
  first = int(len(text) * 0.9)
  second = first + int((len(text) - first) * 0.5)
  expected = [text[:first], text[first:second], text[second:]]
  assert [parts[name] for name in documents.PARTS] == [[t] for t in expected]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=4))
def test_a_cut_loses_nothing_and_leaves_characters_whole(texts):
  texts = [text.encode() for text in texts]
  parts = documents.cut(texts)
  whole = b"".join(text for name in documents.PARTS for text in parts[name])
  assert whole == b"".join(texts)
  for name in documents.PARTS:
    for text in parts[name]:
      text.decode()


def test_a_text_file_is_data(tmp_path):
  path = tmp_path / "own.txt"
  path.write_text(TEXT, encoding="utf-8")
  dataset = load(str(path), length=16)
  held_out = documents.cut([TEXT.encode()])["test"]
  got = predicted(dataset.test["tokens"], 256).astype(np.uint8)
  assert bytes(got) == held_out[0]


def test_slices_of_rows_can_be_taken(tmp_path):
  path = tmp_path / "own.txt"
  path.write_text(TEXT, encoding="utf-8")
  names = {"train_split": "train[:50%]", "eval_split": "train[50%:]"}
  dataset = load(str(path), length=16, **names)
  rows = np.concatenate([dataset.train["tokens"], dataset.test["tokens"]])
  whole = documents.cut([TEXT.encode()])["train"][0]
  assert bytes(predicted(rows, 256).astype(np.uint8)) == whole


@pytest.mark.parametrize("layout", ["files", "folders"])
def test_a_folder_is_split_by_file(tmp_path, layout):
  for split, text in (("train", "abc"), ("validation", "d"), ("test", "ef")):
    if layout == "files":
      (tmp_path / f"{split}.txt").write_text(text)
    else:
      (tmp_path / split).mkdir()
      for i, letter in enumerate(text):
        (tmp_path / split / f"{i}.txt").write_text(letter)
  dataset = load(str(tmp_path), length=8)
  assert predicted(dataset.train["tokens"], 256).tolist() == [97, 98, 99]
  assert predicted(dataset.test["tokens"], 256).tolist() == [101, 102]
  expected = {
    "files": [256, 97, 98, 99, 256, 256],
    "folders": [256, 97, 256, 98, 256, 99],
  }
  assert dataset.train["tokens"][0, :6].tolist() == expected[layout]


def test_a_folder_of_documents_is_cut_as_one_text(tmp_path):
  for i in range(5):
    (tmp_path / f"{i}.txt").write_text(f"{i}" * 20)
  dataset = load(str(tmp_path), length=10)
  text = "".join(map(chr, predicted(dataset.train["tokens"], 256)))
  assert text == "".join(f"{i}" * 20 for i in range(5))[:90]


def test_a_changed_file_is_read_again(tmp_path):
  path = tmp_path / "own.txt"
  path.write_text("a" * 100)
  load(str(path), length=10)
  path.write_text("b" * 120)
  rows = load(str(path), length=10).train["tokens"]
  assert set(predicted(rows, 256).tolist()) == {98}


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("austin", "did you mean 'austen'"),
    ("./own.tex", "no file or folder .*own.tex: did you mean 'own.txt'"),
    ("./picture.png", "is no text: needed is a folder, or one of .txt"),
    ("./empty", "holds no text: needed are files in .txt"),
    ("./blank", "'train' holds no text"),
    ({"train": 1}, "text is read from a file, a folder or a prepared set"),
  ],
)
def test_what_is_no_text_is_refused(tmp_path, monkeypatch, name, message):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
  (tmp_path / "own.txt").write_text("text")
  (tmp_path / "picture.png").write_bytes(b"\x89PNG")
  (tmp_path / "empty").mkdir()
  (tmp_path / "blank").mkdir()
  (tmp_path / "blank" / "a.txt").write_text("")
  with pytest.raises(data.DataError, match=message):
    load(name, length=8)


def test_the_official_tiny_shakespeare_has_its_published_sizes():
  path = SHARED / "tiny_shakespeare.txt"
  if not path.exists():
    pytest.skip(f"needs {path.name} beside the checkout")
  parts = documents.cut([path.read_bytes()])
  sizes = [len(parts[name][0]) for name in documents.PARTS]
  assert sizes == [1_003_854, 55_770, 55_770]


# Tokenizers


@pytest.fixture
def pieces(own_cache):
  pytest.importorskip("sentencepiece", reason="needs the extra `text`")
  return tokenizers.make("pieces", austen.read("test"), 512, "test")


@pytest.mark.parametrize(
  "text",
  [
    "Anne Elliot  was\n\n not \t there.\r\n",
    "naïve 😀 \u2581 \u2028 \x85 \x00 \u2581\u2581",
    "",
    " ",
  ],
)
def test_pieces_lose_no_byte(pieces, text):
  tokens = pieces.encode(text.encode())
  assert pieces.decode(tokens) == text
  assert pieces.lengths[tokens].sum() == len(text.encode())
  assert pieces.size == 512
  assert tokens.max(initial=0) < pieces.size - 1


def test_pieces_are_longer_than_bytes_and_trained_once(pieces, monkeypatch):
  text = austen.read("test")[0]
  assert len(pieces.encode(text)) < 0.5 * len(text)
  monkeypatch.setattr(
    tokenizers, "_sentencepiece", lambda: pytest.fail("again")
  )
  again = tokenizers.make("pieces", austen.read("test"), 512, "test")
  assert again.model == pieces.model


def test_a_text_that_is_not_utf8_needs_bytes(pieces):
  with pytest.raises(data.DataError, match="not UTF-8 .byte 1.*bytes"):
    pieces.encode(b"a\xff")
  assert tokenizers.Bytes().encode(b"a\xff").tolist() == [97, 255]


def test_a_vocabulary_that_is_too_small_is_refused(pieces):
  with pytest.raises(data.DataError, match="vocabulary=258.*each character"):
    tokenizers.make("pieces", [TEXT.encode()], 258, "mine")


def test_without_the_library_the_extra_is_named(monkeypatch):
  find_spec = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    "find_spec",
    lambda name: None if name == "sentencepiece" else find_spec(name),
  )
  with pytest.raises(
    extras.MissingExtra, match=r"pip install 'ws_jax\[text\]'"
  ):
    tokenizers.make("pieces", [b"text"], 300, "mine")


def test_words_are_the_frequent_ones_of_the_training_texts():
  texts = [b"b a c a", b"A b! c", b"once"]
  words = tokenizers.make("words", texts, 5, "mine")
  assert words.words == ("a", "b", "c")
  assert words.size == 5
  assert words.encode(b"C a once !").tolist() == [2, 0, 3, 3]
  assert words.encode(b"").tolist() == [3]
  assert words.decode([0, 3, 4]) == "a ?"


@pytest.mark.parametrize(
  "tokenizer", [tokenizers.Bytes(), tokenizers.Words(("a", "é"))]
)
def test_a_tokenizer_is_one_text(tokenizer):
  saved = tokenizers.save(tokenizer)
  json.dumps(saved)
  assert tokenizers.load(saved) == tokenizer


@pytest.mark.parametrize("saved", ["", "bites", "pieces:", "words:AAAA"])
def test_a_damaged_tokenizer_is_an_error(saved):
  with pytest.raises(data.DataError, match="no tokenizer"):
    tokenizers.load(saved)


# Labelled texts

CLINC = {
  "train": [["what is my balance", "balance"], ["play a song", "music"]] * 3,
  "val": [["my balance", "balance"]],
  "test": [["a song", "music"], ["what balance", "balance"]],
  "oos_test": [["how are you", "oos"]],
}


@pytest.fixture
def clinc(tmp_path):
  path = tmp_path / "clinc.json"
  path.write_text(json.dumps(CLINC), encoding="utf-8")
  return str(path)


def test_lists_of_pairs_in_json_are_data(clinc):
  dataset = load(clinc, labelled=True, tokenizer="words", vocabulary=100)
  assert dataset.info.classes == ("balance", "music")
  assert dataset.test["label"].tolist() == [1, 0]
  assert dataset.info.input_shape == (4,)
  words = tokenizers.load(dataset.info.tokenizer)
  assert words.decode(dataset.test["tokens"][0]) == "a song"
  assert dataset.test["tokens"][0, 2:].tolist() == [words.size - 1] * 2
  other = load(
    clinc, labelled=True, tokenizer="words", eval_split="val", length=2
  )
  assert other.test["tokens"].shape == (1, 2)


def test_a_label_that_training_has_not_is_refused(clinc):
  with pytest.raises(data.DataError, match="label 'oos' of text 0"):
    load(clinc, labelled=True, tokenizer="words", eval_split="oos_test")


def test_words_of_a_slice_are_those_of_the_slice(clinc):
  """What is held out must not shape the vocabulary."""
  names = {"train_split": "train[:50%]", "eval_split": "train[50%:]"}
  dataset = load(clinc, labelled=True, tokenizer="words", **names)
  counts = [text.split() for text, _ in CLINC["train"][:3]]
  expected = {
    w for t in counts for w in t if sum(t.count(w) for t in counts) > 1
  }
  assert set(tokenizers.load(dataset.info.tokenizer).words) == expected


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("layout", ["file", "folder"])
def test_tables_are_data(tmp_path, suffix, layout):
  rows = [{"q": "née, “x”", "n": 10}, {"q": "two\nlines", "n": 9}]
  text = "".join(json.dumps(row) + "\n" for row in rows)
  if suffix == "csv":
    text = 'q,n\n"née, “x”",10\n"two\nlines",9\n'
  splits = {"train_split": "train[:50%]", "eval_split": "train[50%:]"}
  if layout == "folder":
    splits = {}
    (tmp_path / f"test.{suffix}").write_text(text, encoding="utf-8")
  (tmp_path / f"train.{suffix}").write_text(text, encoding="utf-8")
  name = tmp_path if layout == "folder" else tmp_path / f"train.{suffix}"
  keys = {"input_key": "q", "label_key": "n"}
  dataset = load(str(name), labelled=True, **splits, **keys)
  assert dataset.info.classes == ("9", "10")  # as numbers, not as words
  assert dataset.train["label"][0] == 1
  text = tokenizers.Bytes().decode(dataset.test["tokens"][-1].tolist())
  assert text == "two\nlines"


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (
      '{"train": [["a", "b", "c"]], "test": [["a", "b"]]}',
      "number 0, is no te",
    ),
    ('{"train": [], "test": []}', "'train' holds no text"),
    ('{"train": [["a", "b"]]}', "has the splits train; needed are train, and"),
    ("[]", "must be an object with a list for each split"),
    ("{", "is not JSON"),
    ('{"train": [{"texts": "a", "label": 1}], "test": []}', "input_key='text'"),
  ],
)
def test_json_that_is_no_labelled_text_is_refused(tmp_path, content, message):
  path = tmp_path / "mine.json"
  path.write_text(content)
  with pytest.raises(data.DataError, match=message):
    load(str(path), labelled=True)


def test_clinc150_has_its_published_sizes():
  path = SHARED / "clinc150_data_full.json"
  if not path.exists():
    pytest.skip(f"needs {path.name} beside the checkout")
  request = data.Request(str(path), options=Options(True, "words", 8192))
  info = data.read_info(request)
  assert (info.train_size, info.eval_size) == (15_000, 4_500)
  assert info.num_classes == 150


# Sets of TFDS


def write_set(folder, features, splits):
  """Writes a set with array_record files, as scripts/prepare_data.py does."""
  import tensorflow_datasets as tfds

  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name = "small_text"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      features_dict = tfds.features.FeaturesDict(features)
      return self.dataset_info_from_configs(features=features_dict)

    def _split_generators(self, dl_manager):
      return {split: iter(enumerate(rows)) for split, rows in splits.items()}

    def _generate_examples(self):
      raise AssertionError

  builder = Builder(data_dir=str(folder), file_format="array_record")
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(
      try_download_gcs=False, compute_stats="skip"
    )
  )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_sets_that_tfds_prepared_are_data(tmp_path):
  import tensorflow_datasets as tfds

  features = {
    "text": tfds.features.Text(),
    "label": tfds.features.ClassLabel(names=["no", "yes"]),
  }
  rows = [{"text": "Ja – gut", "label": "yes"}, {"text": "x", "label": "no"}]
  write_set(tmp_path, features, {"train": rows, "test": rows[:1]})
  options = Options(labelled=True, tokenizer="bytes")
  request = data.Request("small_text", dir=str(tmp_path), options=options)
  dataset = data.load(request)
  assert dataset.info.classes == ("no", "yes")
  row, label = dataset.test["tokens"][0], dataset.test["label"][0]
  assert tokenizers.Bytes().decode(row.tolist()) == "Ja – gut"
  assert label == 1
  request = dataclasses.replace(request, options=Options(length=4))
  assert data.load(request).test["bytes"].sum() == len("Ja – gut".encode())


# The tasks


def test_the_language_model_counts_each_token_but_the_special_one(tmp_path):
  path = tmp_path / "own.txt"
  path.write_text(TEXT, encoding="utf-8")
  dataset = load(str(path), length=16)
  task = tasks.create("language_model", dataset, z_loss=0.0)
  assert task.num_outputs == 257
  indices = jnp.arange(len(dataset.test["bytes"]))
  batch = task.batch(dataset.test, indices, None)
  logits = jnp.zeros((*batch["targets"].shape, 257))
  sums = task.sums(logits, batch, jnp.ones(len(indices)), False)
  assert float(sums["count"]) == dataset.test["bytes"].sum()
  bits = steps.means(sums)["bits_per_byte"]
  assert bits == pytest.approx(math.log2(257), rel=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_sums_of_the_language_model_against_float64(training):
  rng = np.random.default_rng(0)
  logits = rng.normal(0, 3, (4, 6, 5)).astype(np.float32)
  targets = rng.integers(0, 5, (4, 6))
  mask = np.array([1, 0, 1, 1], np.float32)
  task = tasks.LanguageModel("", 5, z_loss=0.1)
  size = np.array([10, 20, 30, 40])
  batch = {"targets": jnp.asarray(targets), "bytes": jnp.asarray(size)}
  sums = task.sums(jnp.asarray(logits), batch, jnp.asarray(mask), training)

  wide = logits.astype(np.float64)
  log_z = np.log(np.exp(wide).sum(-1))
  nats = log_z - np.take_along_axis(wide, targets[..., None], -1)[..., 0]
  kept = mask[:, None] * (targets != 4)
  total = (kept * nats).sum()
  loss = total + (0.1 * (kept * log_z**2).sum() if training else 0.0)
  bits = total / math.log(2)
  assert float(sums["loss"]) == pytest.approx(loss, rel=1e-5)
  assert float(sums["bits_per_byte"]) == pytest.approx(bits, rel=1e-5)
  assert float(sums["bits_per_byte_count"]) == 80
  assert float(sums["count"]) == kept.sum()
  assert steps.means(sums)["bits_per_byte"] == pytest.approx(bits / 80)


def test_bits_per_byte_are_exact_whatever_the_tokenizer(pieces):
  """All bits of the text over its bytes, not a mean over tokens or batches."""
  dataset = load("austen", tokenizer="pieces", vocabulary=512, length=50)
  task = tasks.create("language_model", dataset)
  # Logits, the same everywhere, by which tokens cost different numbers of bits.
  rng = np.random.default_rng(0)
  logits = rng.normal(0, 1, task.num_outputs).astype(np.float32)
  total: dict[str, float] = {}
  for start in range(0, len(dataset.test["bytes"]), 700):
    rows = {k: x[start : start + 700] for k, x in dataset.test.items()}
    batch = task.batch(rows, jnp.arange(len(rows["bytes"])), None)
    outputs = np.broadcast_to(logits, (*batch["targets"].shape, len(logits)))
    mask = jnp.ones(len(rows["bytes"]))
    sums = task.sums(jnp.asarray(outputs), batch, mask, False)
    total = {k: total.get(k, 0.0) + float(x) for k, x in sums.items()}
  tokens = predicted(dataset.test["tokens"], task.num_outputs - 1)
  wide = logits.astype(np.float64)
  nats = np.log(np.exp(wide).sum()) - wide[tokens]
  expected = nats.sum() / math.log(2) / 466_854
  assert steps.means(total)["bits_per_byte"] == pytest.approx(
    expected, rel=1e-5
  )
  assert steps.means(total)["loss"] == pytest.approx(nats.mean(), rel=1e-5)


def test_text_classification_gives_tokens_and_labels(clinc):
  dataset = load(clinc, labelled=True, tokenizer="words", vocabulary=100)
  task = tasks.create("text_classification", dataset, label_smoothing=0.1)
  batch = task.batch(dataset.test, jnp.array([1, 0]), None)
  assert batch["labels"].tolist() == [0, 1]
  assert batch["inputs"].dtype == jnp.int32
  assert task.num_inputs == tokenizers.load(dataset.info.tokenizer).size
  logits = jnp.array([[3.0, 0.0], [3.0, 0.0]])
  mask = jnp.array([1.0, 0.0])
  plain = task.sums(logits, batch, mask, False)
  smooth = task.sums(logits, batch, mask, True)
  assert float(plain["accuracy"]) == float(plain["count"]) == 1.0
  nats = np.log1p(np.exp(-3.0))  # of class 0; 3 more of class 1
  assert float(plain["loss"]) == pytest.approx(nats, rel=1e-5)
  assert float(smooth["loss"]) == pytest.approx(nats + 0.05 * 3, rel=1e-5)


@pytest.mark.parametrize("name", ["language_model", "text_classification"])
def test_tasks_on_text_refuse_images(name):
  dataset = data.load(data.Request("fashion_mnist_10k"))
  with pytest.raises(ValueError, match="'fashion_mnist_10k' is no text"):
    tasks.create(name, dataset)


def test_words_are_no_language(tmp_path):
  path = tmp_path / "own.txt"
  path.write_text(TEXT, encoding="utf-8")
  with pytest.raises(data.DataError, match="needs bytes or pieces"):
    load(str(path), length=16, tokenizer="words")
  with pytest.raises(data.DataError, match="unknown tokenizer 'byte'.*'bytes'"):
    load(str(path), length=16, tokenizer="byte")
