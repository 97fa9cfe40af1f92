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
  "pip install PATH_OR_GIT_URL": "test_install.py",
  "pip install 'ws_jax[train,report] @": "test_install.py",
  "pip install -e '.[tf]'": "by hand: 600 MB, and only to prepare data",
  "pip install -e '.[onnx]'": "by hand: a converter and its runtime",
  "pip install -e '.[ray]'": "by hand: Ray, only for clusters",
  "ray start": "test_sweep_ray.py, in the slow tier",
  "python -m ws_jax.weights export": "test_export.py",
  "pip install -e '.[bench]'": "by hand: PyTorch, only for comparisons",
  "python -m ws_jax.main --coordinator": "test_processes.py",
  "python -m ws_jax.main --config.init_from": "test_transfer.py",
  "python -m ws_jax.main --evaluate": "test_own.py",
  "python -m ws_jax.main --config=configs/austen.py": "test_generate.py",
  "python -m ws_jax.weights generate": "test_generate.py",
  "python -m ws_jax.weights predict": "test_predict.py",
  "python -m ws_jax.weights describe": "test_files.py",
  "python -m ws_jax.weights fold": "test_fold.py",
  "python scripts/benchmark.py": "test_bench.py",
  "python scripts/prepare_data.py": "test_prepare_data.py",
  "python scripts/report.py": "test_report.py",
  "python scripts/fuzz.py": "test_fuzz.py",
  "python scripts/torture.py": "test_torture.py",
  "srun": "by hand: it needs Slurm",
}
# Files that the README shows whole, by the name in their first line.
FILES = {
  code.partition("\n")[0].removeprefix("# "): code
  for code in blocks("python")
  if code.startswith("# ")
}


def rule(command):
  starts = [s for s in (*ELSEWHERE, *RULES) if command.startswith(s)]
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
  folder = ROOT
  if "mine" in command:  # the user's own files, in the user's own folder
    folder = tmp_path
    for name, code in FILES.items():
      (folder / name).write_text(code, encoding="utf-8")
    words[1] = words[1].replace("scripts/", f"{ROOT}/scripts/")
  done = subprocess.run(
    [sys.executable, *words[1:], *RULES[start]],
    cwd=folder,
    capture_output=True,
    text=True,
    timeout=300,
    env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)},
  )
  assert done.returncode == 0, done.stderr


def test_the_users_own_files_are_trained_swept_and_reported(tmp_path):
  """The section on one's own model, data and loss, from start to figure."""
  for name, code in FILES.items():
    code = code.replace("epochs=3", "steps=20")
    (tmp_path / name).write_text(code, encoding="utf-8")
  run = lambda *words: subprocess.run(
    [sys.executable, *words],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=300,
    env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)},
  )
  sweep, report = (ROOT / "scripts" / f"{x}.py" for x in ("sweep", "report"))
  done = run(sweep, "--experiment=mine_sweep.py", "--out=out", "--limit=4")
  assert done.returncode == 0, done.stdout + done.stderr
  assert "eval/error" in done.stdout
  done = run(report, "out")
  assert done.returncode == 0, done.stderr
  page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
  assert "test error (pixels)" in page and "accuracy" not in page


def test_the_ci_runs_the_test_command():
  assert "scripts/test.sh" in (ROOT / ".ci" / "run").read_text()


CODE = [code for code in blocks("python") if not code.startswith("# ")]


@pytest.mark.parametrize("code", CODE)
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
