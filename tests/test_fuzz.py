"""The short form of `scripts/fuzz.py`, and what its long form has found."""

import base64
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import textwrap
import time
import zlib

import fuzz
import numpy as np
import pytest

from tests.test_torture import script
from ws_jax import config, report
from ws_jax.base import disk, keys, names, numerics
from ws_jax.data import audio_files, audio_folder, images
from ws_jax.data.request import DataError, Request
from ws_jax.data.stream import crops
from ws_jax.data.text import labelled, options, tokenizers
from ws_jax.sweep import rows
from ws_jax.train import build, predictions, record, trained
from ws_jax.weights import __main__ as command
from ws_jax.weights import predict
from ws_jax.weights.export import network

DEEP = "[" * 100_000


# Together they take a few seconds.
CASES = {
  "overrides": 6,
  "configs": 10,
  "weights": 15,
  "exported": 3,
  "arrays": 40,
  "orbax": 3,
  "images": 40,
  "audio": 20,
  "records": 10,
  "texts": 40,
  "rows": 8,
  "json": 12,
  "page": 40,
}


@pytest.mark.parametrize("kind", CASES)
def test_no_input_ends_in_a_traceback(tmp_path, monkeypatch, kind):
  assert CASES.keys() == fuzz.kinds().keys()
  monkeypatch.chdir(tmp_path)
  end = time.monotonic() + 60
  (watch,) = fuzz.fuzz(kind, CASES[kind], 0, tmp_path, end)
  assert watch.failures == {}
  assert watch.cases >= CASES[kind] - 1


def run(*flags, folder):
  """Runs the script; returns number of cases and of failures, by kind."""
  done = script("fuzz", *flags, folder=folder)
  table = re.findall(
    r"^\| (\w+) \| (\d+) \|.*\| (\d+) \|.*\|$", done.stdout, re.M
  )
  assert table, done.stdout + done.stderr
  found = {name: (int(cases), int(failed)) for name, cases, failed in table}
  assert done.returncode == (found["all"][1] > 0), done.stderr
  return found, done.stdout


def test_a_case_may_import_a_module_for_the_first_time(tmp_path, monkeypatch):
  """Regression: its bytecode, in a fresh environment, was a failure."""
  library = tmp_path / "library"
  library.mkdir()
  (library / "never_imported_before.py").write_text("answer = 42")
  monkeypatch.syspath_prepend(library)
  monkeypatch.setattr(sys, "dont_write_bytecode", False)
  (tmp_path / "own").mkdir()
  with fuzz.Watch(tmp_path / "own") as watch:
    watch.run(importlib.import_module, "never_imported_before")
  assert watch.failures == {}


def test_what_ends_a_process_that_hangs_ends_with_the_watch(tmp_path):
  """Regression: two minutes after its last case it ended a test process."""
  code = """
    import pathlib, signal, time, fuzz

    fuzz._IS_DEAD_AFTER = 0.2
    with fuzz.Watch(pathlib.Path.cwd()) as watch:
      watch.run(str, 0)
    time.sleep(0.5)
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    print("alive")
  """
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(code)],
    env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


@pytest.mark.slow
def test_no_input_ends_in_a_traceback_in_many_tries(tmp_path):
  found, said = run("--minutes=12", "--cases=100000", folder=tmp_path)
  assert found["all"][1] == 0, said
  assert all(cases > 50 for cases, _ in found.values()), said


@pytest.mark.parametrize("text", ["1e400", "1e999999999", "9" * 400 + "/1"])
def test_a_number_that_no_float_holds_is_told_and_takes_no_time(text):
  """It was a traceback; as a fraction, 1e999999999 took all memory."""
  given = [("optim.learning_rate", text)]
  with pytest.raises(config.ConfigError, match="learning_rate"):
    config.check(config.apply_texts(config.default(), given))
  with pytest.raises(config.ConfigError, match="takes a number"):
    config.apply(config.default(), {"optim.learning_rate": 10**400})


@pytest.mark.parametrize("text", ["{[]: 1}", "(" * 9000, "-" * 9000 + "1"])
def test_an_argument_that_python_cannot_read_is_a_text(text):
  """Python's parser has errors of four kinds for it."""
  assert keys.literal(text) == text


def test_a_name_that_is_no_text_has_no_nearest():
  assert "None" in names.suggest("a", [None, "b"])  # pyrefly: ignore


def test_json_that_is_nested_too_deep_is_damaged(tmp_path):
  """Regression: RecursionError is no ValueError, and reached the user."""
  path = tmp_path / "status.json"
  path.write_text(DEEP)
  with pytest.raises(ValueError, match=r"status.json: damaged.*too deep"):
    disk.read_json(path)
  assert rows.status_of(tmp_path) == {}
  (tmp_path / "metrics.jsonl").write_text(f'{DEEP}\n{{"step": 1}}\n')
  assert record.read_metrics(tmp_path) == [{"step": 1}]


def test_a_config_file_of_a_long_name_is_not_there():
  """Regression: the disk has an error of its own for such a name."""
  with pytest.raises(config.ConfigError, match="no config file"):
    config.load("a" * 300)


def test_data_that_the_disk_refuses_are_an_error_of_the_config():
  given = {"data.name": f"./{'a' * 300}.npz"}
  # From 3.14 on, a path that the disk refuses to look at is not there.
  message = "no file" if sys.version_info >= (3, 14) else "too long"
  with pytest.raises(config.ConfigError, match=message):
    build.start(config.apply(config.default(), given))


def lines(*cells):
  return "\n".join(cells) + "\n"


COLUMNS = "key,run,status,model.ws,seed,eval/accuracy"
KEY = '"{""seed"": 0}"'


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ('"' + "a" * 200_000, "not CSV"),
    (lines("run,status", "a,done"), "no column 'key'"),
    (lines(COLUMNS, f"{KEY},a,done,true,0,high"), "eval/accuracy is 'high'"),
    (lines(COLUMNS, f"{KEY},a,done,true,[0],1"), r"seed is '\[0\]'"),
    (lines(COLUMNS, f"{KEY},a,done,maybe,0,1"), "model.ws is 'maybe'"),
    (lines(COLUMNS, "[1],a,done,true,0,1"), "key is '.1.'"),
    (lines(COLUMNS, ",a,done,true,0,1"), "key is 'None'"),
    (lines(COLUMNS, f"{KEY},,done,true,0,1"), "run is 'None'"),
  ],
)
def test_a_table_of_runs_that_is_none_is_refused(tmp_path, text, message):
  """A report ended in whatever the value did to it, ten functions later."""
  path = tmp_path / "runs.csv"
  path.write_text(text)
  with pytest.raises(ValueError, match=message):
    report.read(tmp_path)


def test_a_table_without_columns_that_came_later_is_read(tmp_path):
  (tmp_path / "runs.csv").write_text(lines("key,run,status", f"{KEY},a,done"))
  (row,) = rows.read_runs(tmp_path / "runs.csv")
  assert row["step"] is None and row["model.ws"] is None
  assert row["optim.learning_rate"] is None


def test_a_number_that_no_array_holds_is_a_text(tmp_path):
  path = tmp_path / "runs.csv"
  path.write_text(lines("key,run,status,x,y", f"{KEY},a,done,{10**400},{{}}"))
  (row,) = rows.read(path)
  assert row["x"] == str(10**400) and row["y"] == "{}"


@pytest.mark.parametrize("plan", ['{"a": 1}', "[1]", '["[1]"]', "3", "[{}]"])
def test_a_plan_that_is_none_is_refused(tmp_path, plan):
  text = lines(COLUMNS, f"{KEY},a,done,true,0,1")
  (tmp_path / "runs.csv").write_text(text)
  (tmp_path / "plan.json").write_text(plan)
  with pytest.raises(ValueError, match=r"plan.json is damaged"):
    report.read(tmp_path)


def test_facts_of_a_machine_that_are_no_texts_can_be_compared():
  assert numerics.of({"native": [1, None]}) == {"native": "1 None"}


@pytest.mark.parametrize(
  "status", [3, [], {"seconds": 1, "mixed": 2}, {"seconds": {"a": "b"}}]
)
def test_a_status_that_is_damaged_does_not_stop_a_run(tmp_path, status):
  """It is only informative; a run that goes on makes a new one."""
  disk.write_json(tmp_path / "status.json", status)
  found = record._status(tmp_path / "status.json")
  assert not {"seconds", "mixed"} & found.keys()
  made = {"status": "done"} | rows.status_of(tmp_path)
  assert rows.make("{}", "a", {}, {}, made)["status"] == "done"


def test_metrics_that_are_no_numbers_are_left_out(tmp_path):
  text = lines('{"step": 1, "x": "a"}', '{"step": true}', '{"step": 2, "x": 1}')
  text += '{"step": ' + "9" * 400 + "}\n"
  (tmp_path / "metrics.jsonl").write_text(text)
  assert record.read_metrics(tmp_path) == [{"step": 2, "x": 1}]


def test_a_saved_config_without_a_length_is_another_run(tmp_path):
  """Regression: `train.steps` was compared with a number that is not there."""
  disk.write_json(tmp_path / "config.json", config.default().to_dict())
  new = config.resolve(config.default(), num_examples=99, num_devices=1)
  with pytest.raises(ValueError, match="another configuration"):
    record._same_run(tmp_path, new, (), True)


@pytest.mark.parametrize(
  "data", [None, [], {}, {"name": 1}, {"input_shape": [0], "mean": [1]}]
)
def test_a_run_that_does_not_know_its_data_is_refused(tmp_path, data):
  disk.write_json(tmp_path / "config.json", config.default().to_dict())
  with pytest.raises(ValueError, match="damaged"):
    trained.described(data)
  for status in (3, [], {"step": 1}):
    disk.write_json(tmp_path / "status.json", status)
    with pytest.raises(ValueError, match="does not describe the data"):
      trained.load_run(tmp_path)


@pytest.mark.parametrize(
  "text",
  [
    *("[]", "{}", '{"model": 3}', '{"model": {"name": "a", "ws": 1}}', DEEP),
    '{"model": {"name": "a"}}',
  ],
)
def test_weights_of_a_run_whose_config_is_damaged_are_refused(
  tmp_path, capsys, text
):
  (tmp_path / "config.json").write_text(text)
  assert command.main(["describe", str(tmp_path)]) == 2
  said = capsys.readouterr().err
  assert "config.json" in said and said.count("\n") == 1


@pytest.mark.parametrize(
  "changes",
  [
    {"run": 3},
    {"run": {"config": {}, "data": {}}},
    {"classes": 3},
    {"input": {"shape": [None, 6], "dtype": 3}},
    {},
  ],
)
def test_a_network_that_does_not_say_its_task_or_data_is_refused(changes):
  named = {"name": "x"}
  run = {"config": {"model": named, "task": named}, "data": {"name": "x"}}
  about = {"input": {"shape": [None, 6], "dtype": "uint8"}, "run": run}
  about |= {"classes": [], "output": {}, "features": None, "step": 1}
  with pytest.raises(ValueError, match="does not say what it takes"):
    network.loads(json.dumps(about | changes), pathlib.Path("x.safetensors"))


def kept(folder, **changes):
  zero = np.zeros(3, np.int32)
  content = dict.fromkeys(("label", "answer", "group"), zero)
  content |= {"classes": np.array(["a"]), "groups": np.array(["b"])}
  np.savez(folder / "predictions.npz", **content | {"group_key": ""} | changes)


@pytest.mark.parametrize(
  "changes",
  [
    {"label": np.array([0, 1, 0])},
    {"answer": np.array([0, -1, 0])},
    {"group": np.array([0.0, 0.0, 0.0])},
    {"label": np.zeros(2, int)},
    {"classes": np.array([1])},
    {"group_key": np.array(["a"])},
    {"more": 1},
  ],
)
def test_answers_that_do_not_fit_each_other_are_refused(tmp_path, changes):
  kept(tmp_path)
  assert predictions.read(tmp_path).confusion.tolist() == [[3]]
  kept(tmp_path, **changes)
  with pytest.raises(ValueError, match=r"predictions.npz: is damaged"):
    predictions.read(tmp_path)


def test_a_file_of_answers_that_is_no_archive_is_refused(tmp_path):
  """Regression: an error of zipfile is neither of the disk nor a value."""
  for content in (b"", b"PK\3\4", b"\x93NUMPY"):
    (tmp_path / "predictions.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"predictions.npz"):
      predictions.read(tmp_path)


def texts_of(path, text):
  path.write_text(text)
  how = options.Options(tokenizer="words", length=None)
  splits = {"train_split": "train", "eval_split": "train", "may_overlap": True}
  return labelled.open_source(Request(str(path), options=how, **splits))


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("x.csv", "text,label\na,b,c\n", "row 1 has 3 cells, of 2 columns"),
    ("x.csv", '"' + "a" * 200_000, "not CSV"),
    ("x.json", DEEP, "nested too deep"),
    ("x.jsonl", f"{DEEP}\n", "line 1 is not JSON: nested too deep"),
  ],
)
def test_texts_that_are_damaged_are_an_error_of_the_data(
  tmp_path, name, text, message
):
  with pytest.raises(DataError, match=message):
    texts_of(tmp_path / name, text)


def test_a_text_that_is_not_utf8_names_its_file(tmp_path):
  (tmp_path / "x.csv").write_bytes(b"text,label\n\xff,a\n")
  (tmp_path / "train.csv").write_bytes(b"file,label\n\xff,a\n")
  with pytest.raises(DataError, match=r"x.csv is not UTF-8"):
    labelled._rows(tmp_path / "x.csv")
  with pytest.raises(DataError, match=r"train.csv: .*utf-8"):
    audio_folder.list_folder(tmp_path)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("class,file\na\n", "names no file"),
    (f"file\n{'a' * 300}.wav\n", "there is no file"),
    ('"' + "a" * 200_000, "not CSV"),
  ],
)
def test_a_list_of_clips_that_is_damaged_is_refused(tmp_path, text, message):
  (tmp_path / "train.csv").write_text(text)
  with pytest.raises(DataError, match=message):
    audio_folder.list_folder(tmp_path)


def packed(kind, content):
  return f"{kind}:{base64.b64encode(zlib.compress(content, 9)).decode()}"


@pytest.mark.parametrize(
  "saved",
  [
    packed("words", b"3"),
    packed("words", b"[[]]"),
    packed("words", DEEP.encode()),
    packed("words", json.dumps(["a"] * 70_000).encode()),
    packed(
      "words", b'["' + bytes([65]) * (1 << 27) + b'"]'
    ),  # 134 MB of 130 kB
    packed("words", b'["a"]')[:-8],
  ],
  ids=range(6),
)
def test_a_tokenizer_that_is_none_is_refused(saved):
  with pytest.raises(DataError, match="no tokenizer"):
    tokenizers.load(saved)


def test_a_model_of_pieces_that_is_none_is_refused():
  pytest.importorskip("sentencepiece")
  with pytest.raises(DataError, match="no model of sentencepiece"):
    _ = tokenizers.load(packed("pieces", b"\0\1")).size


def test_an_image_is_never_given_to_another_program(tmp_path):
  """Pillow calls Ghostscript for EPS; and some errors are of its own kinds."""
  eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
  bomb = b"GIF89a" + b"\xff" * 4 + bytes(50)
  for content in (eps, bomb, b"\x89PNG\r\n\x1a\n" + bytes(30)):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as an image"):
      predict.read_image(tmp_path / "x.png", (9, 9, 3))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_of_very_many_pixels_takes_no_memory(tmp_path):
  """Pillow alone reads twice as many, and takes a gigabyte for them."""
  pictures, path = pytest.importorskip("PIL.Image"), tmp_path / "x.png"
  pictures.new("L", (2, 2)).save(path)
  data = bytearray(path.read_bytes())
  data[16:24] = (10_000).to_bytes(4) * 2
  data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
  path.write_bytes(data)
  said = "10000x10000 pixels are more than the 89,478,485"
  for read, error in (
    (lambda: predict.read_image(path, (8, 8, 1)), ValueError),
    (lambda: crops.decode(bytes(data)), DataError),
    (lambda: images.read_shape(path), DataError),
  ):
    with pytest.raises(error, match=said):
      read()


def test_a_clip_of_a_rate_that_none_has_takes_no_memory(tmp_path):
  """The filter that resamples is 20 times as long: a header cost gigabytes."""
  soundfile = pytest.importorskip("soundfile")
  path = tmp_path / "x.wav"
  soundfile.write(path, np.ones(80, np.float32) / 2, 8000)
  data = bytearray(path.read_bytes())
  assert len(audio_files.read_clip(path, 16000)) == 160
  data[24:28] = (2**31 - 1).to_bytes(4, "little")
  path.write_bytes(data)
  for read in (
    lambda: audio_files.read_clip(path, 16000),
    lambda: audio_files.read_header(path),
    lambda: audio_files.decode([path]),
  ):
    with pytest.raises(DataError, match="sample rate of 2147483647 Hz"):
      read()
