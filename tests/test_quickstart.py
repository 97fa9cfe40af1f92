"""The shell around the quickstart, with stand-ins for all that takes time."""

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
  shutil.copy(ROOT / "scripts" / "quickstart.sh", folder / "scripts")
  (folder / "scripts" / "setup.sh").write_text("echo setup in $PWD\n")
  python = folder / ".venv" / "bin" / "python"
  python.write_text(
    '#!/bin/sh\necho "python $@"\n'
    'case "$1" in *sweep.py) exit "${CODE:-0}" ;; esac\n'
  )
  python.chmod(0o755)
  return folder


def run(checkout, *args, cwd, code=0):
  script = checkout / "scripts" / "quickstart.sh"
  done = subprocess.run(
    ["bash", str(script), *args],
    cwd=cwd,
    env={"PATH": "/usr/bin:/bin", "CODE": str(code)},
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
