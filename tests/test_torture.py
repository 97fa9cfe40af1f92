"""Short and long forms of the script that kills, fills and flips."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def script(name, *flags, folder):
  """Runs a script that works in a folder; returns how it ended."""
  env = os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
  # A run on several virtual devices would need several cores to be quick.
  env.pop("XLA_FLAGS", None)
  return subprocess.run(
    [sys.executable, f"scripts/{name}.py", *flags],
    cwd=ROOT,
    env=env,
    capture_output=True,
    text=True,
  )


def torture(*flags, folder):
  """Runs the script; returns number of cases and of failures, by test."""
  done = script("torture", *flags, folder=folder)
  table = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \|$", done.stdout, re.M)
  assert table, done.stdout + done.stderr
  found = {name: (int(cases), int(failed)) for name, cases, failed in table}
  failed = any(failures for _, failures in found.values())
  assert done.returncode == int(failed), done.stderr
  return found, done.stdout


def test_a_run_that_is_killed_ends_as_if_it_had_not_been(tmp_path):
  found, said = torture(
    *("--only=train", "--kills=1", "--seed=16"), folder=tmp_path
  )
  assert found == {"train": (1, 0)}, said


@pytest.mark.slow
@pytest.mark.parametrize(
  "name",
  [
    *("train", "rows", "stream", "processes", "sigterm"),
    *("sweep", "report", "disk", "bytes", "fuzz"),
  ],
)
def test_what_is_killed_leaves_nothing_wrong(tmp_path, name):
  found, said = torture(f"--only={name}", "--minutes=4", folder=tmp_path)
  cases, failures = found[name]
  assert failures == 0, said
  assert cases or name == "disk"  # where no tmpfs can be mounted
