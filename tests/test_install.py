"""What works with how much installed, in processes that see only a part.

A process is shown the packages that an install brings, and what these need, and
finds no others: as in an environment with nothing else.
"""

import functools
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from packaging.requirements import Requirement

import ws_jax

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Python runs a module of this name when it starts.
HIDE = """
import sys
from importlib.machinery import PathFinder

HIDDEN = {hidden!r}


class Partial(PathFinder):
  @classmethod
  def find_spec(cls, name, path=None, target=None):
    if name.partition(".")[0] not in HIDDEN:
      return super().find_spec(name, path, target)


sys.meta_path = [Partial if x is PathFinder else x for x in sys.meta_path]
"""

FUNCTIONS = """
import jax.numpy as jnp
import flax.nnx
import optax
import ws_jax
import ws_jax.gradients
import ws_jax.linen
import ws_jax.nnx
import ws_jax.weights

params = {"conv": {"kernel": jnp.arange(36.0).reshape(3, 3, 2, 2)}}
ws_jax.weights.write_params("raw.npz", params)
ws_jax.weights.write_params("raw.safetensors", params)
transform = optax.chain(ws_jax.centralize_gradients(), optax.sgd(0.1))
transform.update(params, transform.init(params))
ws_jax.linen.WSConv(2, (3, 3))
ws_jax.nnx.WSConv(2, 2, (3, 3), rngs=flax.nnx.Rngs(0))
"""


def closure(*requirements):
  """Returns the distributions that requirements bring, by normal name."""
  found, todo = set(), [(text, "") for text in requirements]
  while todo:
    text, extra = todo.pop()
    wanted = Requirement(text)
    if wanted.marker and not wanted.marker.evaluate({"extra": extra}):
      continue
    name = normal(wanted.name)
    if (name, *wanted.extras) in found:
      continue
    found.add((name, *wanted.extras))
    try:
      needed = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
      continue  # of another platform
    todo += [(line, each) for line in needed for each in ("", *wanted.extras)]
  return {name for name, *_ in found}


def normal(name):
  return re.sub(r"[-_.]+", "-", name).lower()


@functools.cache
def hidden(*extras):
  """Returns the top-level modules that an install does not bring."""
  wanted = list(PROJECT["dependencies"])
  for extra in extras:
    wanted += PROJECT["optional-dependencies"][extra]
  there = closure(*wanted) | {"ws-jax"}
  return {
    module
    for module, names in importlib.metadata.packages_distributions().items()
    if not there & {normal(name) for name in names}
  }


@pytest.fixture
def python(tmp_path):
  """Runs Python in an empty folder, as installed with these extras."""

  def run(*arguments, extras=(), code=0):
    folder = tmp_path / "startup"
    folder.mkdir(exist_ok=True)
    text = HIDE.format(hidden=hidden(*extras))
    (folder / "sitecustomize.py").write_text(text)
    done = subprocess.run(
      [sys.executable, *map(str, arguments)],
      cwd=tmp_path,
      capture_output=True,
      text=True,
      timeout=300,
      env=os.environ
      | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "XLA_FLAGS": ""},
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done

  return run


def test_a_part_is_hidden_and_a_part_is_not():
  assert {"ml_collections", "tensorboard", "matplotlib"} <= hidden()
  assert not {"jax", "flax", "optax", "numpy"} & hidden()
  assert not {"ml_collections", "tensorboard"} & hidden("train")


def test_functions_need_no_extra(python, tmp_path):
  python("-c", FUNCTIONS)
  weights = ("-m", "ws_jax.weights")
  for name in ("raw.npz", "raw.safetensors"):
    assert "conv/kernel" in python(*weights, "describe", name).stdout
    python(*weights, "fold", name, f"folded-{name}", "--convention=bit")
  with np.load(tmp_path / "folded-raw.npz", allow_pickle=False) as file:
    assert abs(file["conv/kernel"].mean()) < 1e-6


@pytest.mark.parametrize(
  ("arguments", "extras", "extra"),
  [
    (["-m", "ws_jax.main", "--workdir=x"], [], "train"),
    ([ROOT / "scripts" / "sweep.py", "--experiment=x"], [], "train"),
    ([ROOT / "scripts" / "benchmark.py", "step"], [], "train"),
    ([ROOT / "scripts" / "report.py", "."], [], "report"),
    ([ROOT / "scripts" / "diagnose.py", "."], ["train"], "report"),
    (["-m", "ws_jax.weights", "describe", "."], [], "train"),
    (
      [
        *("-m", "ws_jax.main", f"--config={ROOT}/configs/cifar10.py"),
        *("--config.data.dir=.", "--workdir=x"),
      ],
      ["train"],
      "data",
    ),
    (
      [
        *("-m", "ws_jax.main", f"--config={ROOT}/configs/cifar10.py"),
        *("--config.data.name=cifar_10", "--workdir=x"),
      ],
      ["train"],
      "data",
    ),
  ],
)
def test_a_missing_extra_is_one_line_and_exit_2(
  python, tmp_path, arguments, extras, extra
):
  prepared = tmp_path / "cifar10" / "3.0.2"
  prepared.mkdir(parents=True)
  (prepared / "dataset_info.json").touch()
  done = python(*arguments, extras=extras, code=2)
  assert "Traceback" not in done.stderr
  last = done.stderr.splitlines()[-1]
  assert f"needs the extra {extra!r}: pip install 'ws_jax[{extra}]'" in last
  assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
  ("arguments", "extra"),
  [
    (["cost", "--to=x"], "report"),
    (["step", "--against=torch"], "bench"),
  ],
)
def test_a_benchmark_without_what_it_compares_with_is_one_line(
  python, arguments, extra
):
  path = ROOT / "scripts" / "benchmark.py"
  done = python(path, *arguments, extras=["train"], code=1)
  (line,) = done.stderr.splitlines()
  assert f"needs the extra {extra!r}: pip install 'ws_jax[{extra}]'" in line


def test_a_report_needs_its_own_extra_alone(python, tmp_path):
  sweep = ROOT / "experiments" / "quickstart"
  script = ROOT / "scripts" / "report.py"
  python(script, sweep, f"--to={tmp_path}/report", extras=["report"])
  assert (tmp_path / "report" / "figure.png").stat().st_size > 10_000


def test_a_name_that_needs_an_extra_says_so(python):
  code = "from ws_jax.train import train_and_evaluate"
  last = python("-c", code, code=1).stderr.splitlines()[-1]
  assert "ws_jax.train.train_and_evaluate needs the extra 'train'" in last


def test_training_leaves_tensorflow_alone_where_it_is_installed(tmp_path):
  # TensorBoard imports it to open a file: ten seconds, and lines of its log.
  package = tmp_path / "tensorflow"
  package.mkdir()
  (package / "__init__.py").write_text("raise SystemExit('was imported')")
  done = subprocess.run(
    [
      *(sys.executable, "-m", "ws_jax.main", f"--workdir={tmp_path}/run"),
      "--config=configs/fashion_mnist_10k.py:model=resnet8,width=0.25",
      *("--config.train.steps=2", "--config.data.batch_size=8"),
      "--config.model.num_groups=2",
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    env=os.environ
    | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "XLA_FLAGS": ""},
  )
  assert done.returncode == 0, done.stderr
  assert list((tmp_path / "run").glob("events.out.tfevents.*"))


def have_setuptools():
  try:
    version = importlib.metadata.version("setuptools")
  except importlib.metadata.PackageNotFoundError:
    return False
  return int(version.partition(".")[0]) >= 77


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
  """Builds a wheel of this checkout; returns the folder of an install of it."""
  if not have_setuptools():
    pytest.skip("builds a wheel: pip install 'setuptools>=77'")
  source, wheels, target = (
    tmp_path_factory.mktemp(name) for name in ("source", "wheels", "target")
  )
  # A copy, because a build leaves files behind, and takes in what it finds.
  for name in ("LICENSE", "README.md", "pyproject.toml"):
    shutil.copy(ROOT / name, source)
  for name in ("configs", "ws_jax"):
    shutil.copytree(ROOT / name, source / name)
  pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
  run = functools.partial(subprocess.run, check=True, capture_output=True)
  build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
  run([*build, f"--wheel-dir={wheels}", source])
  (wheel,) = wheels.iterdir()
  run([*pip, "install", "--no-deps", "--no-index", f"--target={target}", wheel])
  return target


def test_a_wheel_holds_every_file_of_the_package(installed):
  wanted = {
    path.relative_to(ROOT)
    for path in (ROOT / "ws_jax").rglob("*")
    if path.is_file() and path.suffix != ".pyc"
  }
  names = {path.relative_to(ROOT) for path in (ROOT / "configs").glob("*.py")}
  wanted |= {pathlib.Path("ws_jax") / name for name in names}
  assert {path for path in wanted if not (installed / path).is_file()} == set()
  assert (installed / "ws_jax" / "py.typed").is_file()
  # Nothing lands beside the package, where it would be in the way of others.
  top = {path.name for path in installed.iterdir()}
  assert {name for name in top if not name.endswith(".dist-info")} == {"ws_jax"}


def test_configs_are_found_from_any_folder_when_installed(installed, tmp_path):
  done = subprocess.run(
    [
      *(sys.executable, "-m", "ws_jax.main"),
      "--config=configs/fashion_mnist_10k.py:model=resnet8,width=0.25",
      *("--config.train.steps=2", "--config.data.batch_size=8"),
      *("--config.model.num_groups=2", f"--workdir={tmp_path}/run"),
    ],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=900,  # a busy machine has taken more than 300
    env=os.environ | {"PYTHONPATH": str(installed), "XLA_FLAGS": ""},
  )
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "run" / "status.json").is_file()


def test_a_config_that_is_not_installed_is_named_with_those_that_are(
  installed, tmp_path
):
  code = "from ws_jax import config; config.load('configs/cifar1.py')"
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    env=os.environ | {"PYTHONPATH": str(installed)},
  )
  assert "did you mean 'configs/cifar10.py'?" in done.stderr


def test_the_citation_is_of_this_version():
  text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
  (version,) = re.findall(r"^version: (.*)$", text, re.MULTILINE)
  assert version == ws_jax.__version__
