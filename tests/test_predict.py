"""`python -m ws_jax.weights predict` on real image files."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from tests import my_lab
from ws_jax import config
from ws_jax.train import train_and_evaluate
from ws_jax.weights import __main__ as command
from ws_jax.weights import predict
from ws_jax.weights.export import verb

SETTINGS = {
  "model.name": "tests.my_lab:Net",
  "data.batch_size": 16,
  "train.steps": 40,
  "task.flip": False,
  "task.crop_padding": 0,
  "optim.learning_rate": 0.1,
}


class Named(my_lab.Data):
  """The data with names of their classes."""

  classes = ("top", "middle", "bottom")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("run")
  c = config.apply(config.default(), SETTINGS)
  train_and_evaluate(c, folder, data=Named)
  return folder


def run(*words):
  return command.main(["predict", *map(str, words)])


def test_the_classes_of_files_are_named_most_likely_first(
  workdir, tmp_path, capsys
):
  paths = [tmp_path / f"{i}.png" for i in range(3)]
  for path, image in zip(paths, my_lab.Data.test["x"], strict=False):
    Image.fromarray(image[..., 0]).save(path)
  assert run(workdir, *paths, "--top=2") == 0
  lines = capsys.readouterr().out.splitlines()
  for line, path, name in zip(lines, paths, Named.classes, strict=True):
    assert line.startswith(f"{path}: {name} ")
    shares = [float(w[:-1]) for w in line.replace(",", "").split() if "%" in w]
    assert len(shares) == 2 and shares[0] >= shares[1] and sum(shares) <= 100.1


def test_a_file_of_another_size_and_mode_is_converted(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (18, 18, 3), np.uint8)
  Image.fromarray(pixels).save(tmp_path / "x.jpg")
  assert predict.read_image(tmp_path / "x.jpg", (9, 9, 1)).shape == (9, 9, 1)
  Image.fromarray(pixels).save(tmp_path / "x.png")
  same = predict.read_image(tmp_path / "x.png", (18, 18, 3))
  np.testing.assert_array_equal(same, pixels)


def test_what_is_wrong_is_one_line(workdir, tmp_path, capsys):
  (tmp_path / "x.png").write_bytes(b"no image")
  (tmp_path / "empty").mkdir()
  for words, message in [
    ((workdir, tmp_path / "x.png"), "x.png: cannot be read as an image"),
    ((workdir, tmp_path / "gone.png"), "gone.png: cannot be read"),
    ((tmp_path / "empty", tmp_path / "x.png"), "holds no run"),
  ]:
    assert run(*words) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_what_is_no_number_is_no_probability(
  workdir, tmp_path, capsys, monkeypatch
):
  """Regression: it printed `top nan%`, and exit code 0."""
  image = tmp_path / "x.png"
  Image.fromarray(my_lab.Data.test["x"][0][..., 0]).save(image)
  whole = verb.read(workdir)
  lost = dataclasses.replace(whole, call=lambda x: whole.call(x) * np.nan)
  monkeypatch.setattr(verb, "read", lambda path: lost)
  assert run(workdir, image) == 2
  message = f"x.png: {workdir} gives NaN or infinite values"
  assert message in capsys.readouterr().err


def test_a_model_of_the_users_own_is_exported(workdir, tmp_path, capsys):
  pytest.importorskip("flatbuffers", reason="jax.export writes by it")
  image = tmp_path / "x.png"
  Image.fromarray(my_lab.Data.test["x"][0, ..., 0]).save(image)
  for name in ("stablehlo", "safetensors"):
    out = str(tmp_path / f"x.{name}")
    words = ["export", str(workdir), out, f"--format={name}"]
    assert command.main(words) == 0
    assert "differs by" in capsys.readouterr().out
  assert run(workdir, image) == 0
  said = capsys.readouterr().out
  assert run(tmp_path / "x.stablehlo", image) == 0
  assert capsys.readouterr().out == said
  # The weights need the model, and a file may not say what is imported.
  assert run(tmp_path / "x.safetensors", image) == 2
  assert "is code of its own" in capsys.readouterr().err
