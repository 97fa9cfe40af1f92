"""Every command of the README, cut short where it would take minutes."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
  return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]

# A command that starts like this is run with these flags more, or is run by
# something else: "elsewhere" says by what, for the reader of this file.
TRAIN = ["--config.train.steps=2", "--config.data.batch_size=8"]
RULES = {
  "python -m ws_jax.main": TRAIN,
  "python scripts/sweep.py": ["--plan"],
}
ELSEWHERE = {
  "bash scripts/quickstart.sh": "test_quickstart.py; whole in the slow tier",
  "bash scripts/test.sh": "this very run: .ci/run calls it",
  "source .venv/bin/activate": "scripts/setup.sh makes it",
  "pip install -e '.[tf]'": "by hand: 600 MB, and only to prepare data",
  "pip install -e '.[bench]'": "by hand: PyTorch, only for comparisons",
  "python scripts/benchmark.py": "test_bench.py",
  "python scripts/prepare_data.py": "test_prepare_data.py",
  "python scripts/report.py": "test_report.py",
}


def rule(command):
  starts = [s for s in (*RULES, *ELSEWHERE) if command.startswith(s)]
  assert starts, f"no test runs this command of the README: {command}"
  return starts[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, tmp_path):
  start = rule(command)
  if start in ELSEWHERE:
    return
  command = command.replace("workdirs/", f"{tmp_path}/")
  words = command.split()
  assert words[0] == "python"
  done = subprocess.run(
    [sys.executable, *words[1:], *RULES[start]],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    env=os.environ | {"XLA_FLAGS": ""},
  )
  assert done.returncode == 0, done.stderr


def test_the_ci_runs_the_test_command():
  assert "scripts/test.sh" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("code", blocks("python"))
def test_code(code, capsys):
  exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
  assert "Conv_0/kernel" in capsys.readouterr().out


def test_every_linked_file_is_there():
  for path in re.findall(r"\]\(((?!http)[^)]+)\)", README):
    assert (ROOT / path).exists(), path


@pytest.mark.slow
def test_quickstart_from_nothing(tmp_path):
  """A clone with nothing set up, then the README's first command."""
  clone = tmp_path / "clone"
  subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
  subprocess.run(["bash", "scripts/quickstart.sh"], cwd=clone, check=True)
  assert (clone / "workdirs" / "quickstart" / "figure.png").stat().st_size
