"""Configs and experiments as records: each says what it is, and can be run."""

import ast
import functools
import pathlib
import re
import runpy
import shlex
import subprocess
import sys

import pytest
from absl import flags

from ws_jax import config
from ws_jax.sweep import grid, rows, runner

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.py"))
READMES = sorted((ROOT / "experiments").rglob("README.md"))


@functools.cache
def load(path):
  """Returns the names of a file, and takes its flags away for the next."""
  before = set(flags.FLAGS)
  scope = runpy.run_path(str(path))
  for name in set(flags.FLAGS) - before:
    delattr(flags.FLAGS, name)
  return scope


SWEEPS = [path for path in EXPERIMENTS if "sweep" in load(path)]


def name_of(path):
  return path.relative_to(ROOT).as_posix()


@functools.cache
def flags_of(path):
  """Returns the names of the flags that a program defines."""
  calls = [
    node
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
  ]
  return {
    call.args[0].value
    for call in calls
    if call.func.attr.startswith("DEFINE_")
    and isinstance(call.args[0], ast.Constant)
  }


def commands(text):
  """Returns the commands in a docstring or a README, each as one line."""
  text = text.replace("\\\n", " ")
  return re.findall(r'\b(?:python|bash) (?:-m )?\S+[./]\w[^`"\n]*', text)


def check(command):
  """Checks that files, flags, config and experiment of a command exist."""
  program, *words = shlex.split(command)[1:]
  if program == "-m":
    program, *words = words
    program = program.replace(".", "/") + ".py"
  assert (ROOT / program).is_file(), command
  for word in words:
    if not word.startswith("--"):
      continue
    name, _, value = word.removeprefix("--").partition("=")
    # A key of the configuration is a flag of the program that loads one.
    if not name.startswith("config."):
      assert name in flags_of(ROOT / program), command
    if name == "config":
      config.load(value)
    if name == "experiment":
      assert (ROOT / value).is_file(), command


def resolve(c):
  return config.resolve(c, num_examples=10_000, num_devices=1)


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_config_says_its_command_what_to_expect_and_how_long(path):
  text = load(path)["__doc__"]
  lines = commands(text)
  mine = f"--config={name_of(path)}"
  assert any(mine in line for line in lines), lines
  for line in lines:
    check(line)
  for part in ("Command", "Expect: ", "Time: "):
    assert f"\n{part}" in text, f"{name_of(path)} has no {part!r}"


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_config_resolves(path):
  resolve(config.load(name_of(path)))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_experiment_says_what_it_asks_varies_tunes_and_fixes(path):
  text = load(path)["__doc__"]
  parts = ["Question:", "Scientific parameters:", "Nuisance parameters:"]
  for part in [*parts, "Fixed parameters:"]:
    assert f"\n{part} " in text, f"{name_of(path)} has no {part!r}"
  assert commands(text)
  for line in commands(text):
    check(line)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_experiment_is_a_sweep_or_a_program(path):
  names = {"CONFIG", "sweep", "main"} & set(load(path))
  assert names in ({"CONFIG", "sweep"}, {"main"})


@pytest.mark.parametrize("path", SWEEPS, ids=name_of)
def test_experiments_only_override_what_their_config_has(path):
  scope = load(path)
  base, runs = config.load(scope["CONFIG"]), grid.plan(scope["sweep"]())
  assert runs
  for run in runs:
    resolve(runner.config_of(base, run))


@pytest.mark.parametrize("path", READMES, ids=name_of)
def test_readme_of_experiments_has_working_commands_and_links(path):
  text = path.read_text(encoding="utf-8")
  lines = commands(text.replace("NAME", "quickstart"))
  assert lines
  for line in lines:
    check(line)
  headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
  anchors = {
    re.sub(r"[^\w -]", "", x).lower().replace(" ", "-") for x in headings
  }
  for link in re.findall(r"\]\(((?!http)[^)]+)\)", text):
    if link.startswith("#"):
      assert link[1:] in anchors, link
    else:
      assert (path.parent / link).exists(), link


@pytest.mark.parametrize(
  "path",
  [x for x in EXPERIMENTS if f'"experiments.{x.stem}:' in x.read_text()],
  ids=name_of,
)
def test_a_file_that_its_runs_import_for_data_can_be_a_program(path):
  """It is imported beside itself; flags cannot be defined a second time."""
  code = f"""
import runpy
from absl import app
def main(_):
  import experiments.{path.stem}
app.run = main
runpy.run_path('experiments/{path.name}', run_name='__main__')
"""
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_experiment_is_in_the_readme():
  text = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
  for path in EXPERIMENTS:
    assert f"({path.name})" in text, path.name


def test_cost_runs_a_benchmark_with_flags_that_it_has():
  scope = load(ROOT / "experiments" / "cost.py")
  check(shlex.join(["python", str(scope["BENCHMARK"]), *scope["SETTINGS"]]))


@pytest.mark.parametrize("arm", ["no norm", "GN+WS"])
def test_committed_signal_is_what_the_code_gives(arm):
  scope = load(ROOT / "experiments" / "signal_propagation.py")
  table = rows.read(ROOT / "experiments" / "signal_propagation" / "signal.csv")
  said = [row for row in table if row["arm"] == arm and row["depth"] == 8]
  found = scope["measure"](8, arm)
  assert len(found) == len(said) == 3
  for new, old in zip(found, said, strict=True):
    for name in ("squared_mean", "variance"):
      assert new[name] == pytest.approx(old[name], rel=0.01)
