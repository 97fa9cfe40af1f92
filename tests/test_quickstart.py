"""The two commands of the README, with stand-ins for all that takes time."""

import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path):
  """A folder with the script, a setup and a Python that only say their name."""
  folder = tmp_path / "a checkout"
  (folder / "scripts").mkdir(parents=True)
  (folder / ".venv" / "bin").mkdir(parents=True)
  for name in ("quickstart.sh", "test.sh"):
    shutil.copy(ROOT / "scripts" / name, folder / "scripts")
  (folder / "scripts" / "setup.sh").write_text("echo setup in $PWD\n")
  python = folder / ".venv" / "bin" / "python"
  python.write_text(
    '#!/bin/sh\necho "python $@"\n'
    'case "$1" in *sweep.py) exit "${CODE:-0}" ;; esac\n'
    'case "$2" in ruff) exit "${RUFF:-0}" ;; pytest) exit "${CODE:-0}" ;; '
    "esac\n"
  )
  python.chmod(0o755)
  return folder


def run(checkout, *args, cwd, code=0, script="quickstart", ruff=0):
  script = checkout / "scripts" / f"{script}.sh"
  done = subprocess.run(
    ["bash", str(script), *args],
    cwd=cwd,
    env={"PATH": "/usr/bin:/bin", "CODE": str(code), "RUFF": str(ruff)},
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
  )
  return done.returncode, done.stdout


def test_sets_up_sweeps_reports_and_says_what_is_next(checkout, tmp_path):
  code, out = run(checkout, cwd=tmp_path)
  assert code == 0
  order = ["setup in", "scripts/sweep.py", "scripts/report.py", "Next:"]
  places = [out.index(word) for word in order]
  assert places == sorted(places)
  assert f"setup in {checkout}\n" in out
  assert "--out=workdirs/quickstart" in out


def test_relative_folder_is_seen_from_where_it_was_typed(checkout, tmp_path):
  code, out = run(checkout, "mine", cwd=tmp_path)
  assert code == 0
  assert f"--out={tmp_path}/mine " in out
  assert f"scripts/report.py {tmp_path}/mine\n" in out


def test_failed_run_is_shown_in_the_table_and_in_the_exit_code(checkout):
  code, out = run(checkout, cwd=checkout, code=4)
  assert code == 4 and "scripts/report.py" in out


@pytest.mark.parametrize("code", [1, 2, 130])
def test_sweep_that_could_not_go_on_ends_it(checkout, code):
  got, out = run(checkout, cwd=checkout, code=code)
  assert got == code and "scripts/report.py" not in out


@pytest.mark.parametrize(
  ("ruff", "tests", "code"), [(0, 0, 0), (1, 0, 16), (0, 1, 1), (1, 1, 17)]
)
def test_tests_run_whatever_the_linter_says_and_the_code_tells_both(
  checkout, ruff, tests, code
):
  got, out = run(checkout, cwd=checkout, code=tests, script="test", ruff=ruff)
  assert "-m pytest" in out
  assert got == code
  assert ("ruff check, ruff format" in out) == bool(ruff)


def test_an_experiment_that_git_does_not_know_is_not_linted(checkout):
  (checkout / "experiments").mkdir()
  for name in ("ours", "mine"):
    (checkout / "experiments" / f"{name}.py").touch()
  git = ["git", "-C", str(checkout)]
  subprocess.run([*git, "init", "-q"], check=True)
  subprocess.run([*git, "add", "experiments/ours.py"], check=True)
  _, out = run(checkout, cwd=checkout, script="test")
  assert out.count("experiments/ours.py") == 3
  assert "mine.py" not in out
