"""The benchmarks: what they compute from times, and each as a real command."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from ws_jax import models
from ws_jax.bench import (
  ARMS,
  BENCHMARKS,
  Options,
  Table,
  arms_of,
  cost,
  micro,
  norm,
  others,
  scaling,
  timing,
  worker,
)
from ws_jax.sweep import arms, rows

ROOT = pathlib.Path(__file__).parents[1]


def have_torch():
  return all(importlib.util.find_spec(name) for name in ("torch", "timm"))


needs_torch = pytest.mark.skipif(
  not have_torch(), reason="PyTorch and timm: pip install -e '.[bench]'"
)


def command(*arguments):
  done = subprocess.run(
    [sys.executable, "scripts/benchmark.py", *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    env=os.environ | {"XLA_FLAGS": ""},
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_contenders_take_turns_and_the_order_rotates():
  called = []
  contenders = {
    name: lambda name=name: called.append(name) or 1.0 for name in "abc"
  }
  timing.interleave(contenders, rounds=3, warmup=1)
  assert "".join(called) == "abc" + "abc" + "bca" + "cab"


def test_ratios_are_within_rounds():
  # The machine slows down tenfold half way: no ratio may notice.
  times = {"a": [1.0, 1.0, 10.0, 10.0], "b": [2.0, 2.0, 20.0, 20.0]}
  row = timing.rows(times, against="a", examples=8)[1]
  assert row["time / a"] == 2.0
  assert row["ratio quartiles"] == "2 - 2"
  assert row["median ms"] == 11_000.0
  assert row["examples/s"] == pytest.approx(8 / 11)


def test_markdown_leaves_out_the_single_times():
  text = timing.markdown(
    Table("t", [{"a": "x", "seconds": [1.0] * 3}, {"a": "y", "b": 0.12345}])
  )
  assert text == (
    "t (3 rounds)\n\n| a | b     |\n|---|-------|\n| x |       |\n"
    "| y | 0.123 |\n"
  )


def test_worker_keeps_what_it_makes_and_says_what_went_wrong():
  with worker.Worker() as process:
    first = process.make("__init__", "Table", title="one", rows=[])
    second = process.make("__init__", "Table", title="two", rows=[])
    assert process.get(first, "title") == "one"
    assert process.get(second, "title") == "two"
    with pytest.raises(worker.WorkerError, match="no attribute 'colour'"):
      process.get(first, "colour")
    assert process.peak(reset=True) > 1e6
  with pytest.raises((worker.WorkerError, ValueError)):
    process.peak()


def test_worker_that_dies_is_an_error():
  with worker.Worker({"PYTHONHOME": "/nowhere"}) as process:
    with pytest.raises(worker.WorkerError, match="exit code"):
      process.peak()


def test_steps_that_differ_are_not_compared():
  # What two libraries round differently grows from step to step.
  others.check_losses("x", [2.3, 2.2], [2.30001, 2.201])
  for losses in ([2.3001, 2.2], [2.3, 2.205]):
    with pytest.raises(ValueError, match="not the same step"):
      others.check_losses("x", [2.3, 2.2], losses)


def test_exact_norm_agrees_with_finite_differences():
  rng = np.random.default_rng(0)
  x, dy, direction = rng.standard_normal((3, 2, 2, 2, 8))
  for kind in ("group", "batch"):
    _, dx = norm.exact(kind, x, dy)
    up, down = (
      np.sum(dy * norm.exact(kind, x + h * direction, dy)[0])
      for h in (1e-6, -1e-6)
    )
    slope = np.sum(dx * direction)
    np.testing.assert_allclose((up - down) / 2e-6, slope, rtol=1e-5)


RESNET = ["--model=resnet8", "--batch_size=2", "--arms=GN+WS"]
TINY = {
  "step": [*RESNET, "--against=flax"],
  "cost": RESNET,
  "ws": ["--model=resnet8"],
  "norm": ["--batch_size=1"],
  "input": [*RESNET, "--steps=2"],
  "compile": RESNET,
  "sweep": ["--batch_size=2", "--steps=1", "--arms=GN"],
  "fold": RESNET,
  "export": ["--model=resnet8", "--batch_size=2"],
  "micro": ["--model=resnet8", "--batch_size=64,128"],
  "profile": RESNET,
  "memory": RESNET,
  "scaling": ["--model=resnet8", "--batch_size=2"],
}
FAST = {"ws", "fold"}  # the others compile for half a minute each


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
    for name in BENCHMARKS
  ],
)
def test_benchmark(name, tmp_path):
  files = [f"--json={tmp_path}/x.json", f"--markdown={tmp_path}/x.md"]
  printed = command(name, "--rounds=1", *TINY[name], *files)
  record = json.loads((tmp_path / "x.json").read_text())
  assert record["command"][0] == name
  assert record["about"]["versions"]["jax"]
  for table in record["tables"]:
    assert table["title"] in printed
    assert table["title"] in (tmp_path / "x.md").read_text()
    for row in table["rows"]:
      assert all(second > 0 for second in row.get("seconds", ()))


def test_cost_is_written_and_drawn(tmp_path):
  table = Table("cost", [])
  for size in (1, 2):
    times = {"GN+WS": [2.0 * size] * 3, "BN": [1.0 * size] * 3}
    for row in timing.rows(times, against="BN", examples=size):
      table.rows.append({"batch size": size} | row | {"peak MB": 3.0})
  cost.write([table], tmp_path, {"machine": "m"})
  written = rows.read(tmp_path / "runs.csv")
  assert [row["time / BN"] for row in written] == [2.0, 1.0] * 2
  assert [arms.arm_of(row) for row in written] == ["GN+WS", "BN"] * 2
  assert "GN+WS" in (tmp_path / "summary.md").read_text()
  assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize(
  "model",
  ["transformer_lm", "transformer_classifier"],  # the text CNN has all
)
def test_the_arms_of_a_model_are_some_that_it_has(model):
  for arm in arms_of(model):
    models.create(model, num_outputs=2, norm=ARMS[arm]["model.norm"])


@pytest.mark.slow
def test_gradients_of_micro_batches_add_up():
  whole, parts = (micro.gradient("resnet8", "GN+WS", n) for n in (128, 64))
  assert np.linalg.norm(parts - whole) < 1e-5 * np.linalg.norm(whole)


@pytest.mark.slow
def test_other_libraries_and_settings_take_the_same_step():
  printed = command(
    "step",
    "--model=resnet8",
    "--batch_size=2",
    "--rounds=1",
    "--against=flax",
    "--setting=plain:XLA_FLAGS=",
  )
  for arm in Options().arms:
    assert f"| {arm} flax" in printed and f"| {arm} plain" in printed


@pytest.mark.slow
@needs_torch
def test_torch_takes_the_same_step():
  printed = command(
    "step", "--model=resnet8", "--batch_size=2", "--rounds=1", "--against=torch"
  )
  for arm in Options().arms:
    assert f"| {arm} torch" in printed


@pytest.mark.slow
@needs_torch
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
  ("model", "arms"),
  [
    ("transformer_lm", "LN+scaled WS,RMS"),
    ("transformer_classifier", "LN+scaled WS,LN"),
    ("text_cnn", "BN+WS,no norm"),
  ],
)
def test_torch_takes_the_same_step_on_text(model, arms, dtype):
  printed = command(
    *("step", f"--model={model}", f"--arms={arms}", f"--dtype={dtype}"),
    *("--batch_size=2", "--rounds=1", "--against=torch"),
  )
  assert "tokens/s" in printed
  for arm in arms.split(","):
    assert f"| {arm} torch" in printed


@pytest.mark.slow
@needs_torch
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", ["tc_resnet8", "res8", "ds_cnn_s"])
def test_torch_takes_the_same_step_on_clips(model, dtype):
  printed = command(
    *("step", f"--model={model}", f"--dtype={dtype}", "--arms=BN+WS,GN"),
    *("--batch_size=2", "--rounds=1", "--against=torch"),
  )
  for arm in ("BN+WS", "GN"):
    assert f"| {arm} torch" in printed
    assert f"| {arm} from clips, in a loop" in printed


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["stepp"], "did you mean 'step'"),
    (["step", "--setting=XLA_FLAGS=x"], "expected NAME:VARIABLE=VALUE"),
  ],
)
def test_wrong_arguments_are_one_line(arguments, message):
  with pytest.raises(AssertionError, match=message):
    command(*arguments)


def test_traffic_counts_what_is_in_a_loop_as_often_as_it_runs():
  text = """
%body (p: f32[8]) -> f32[8] {
  %a = f32[8]{0} all-reduce(%p), replica_groups={{0,1}}, to_apply=%add
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %w = f32[8] while(%x), body=%body, x={"known_trip_count":{"n":"5"}}
  %b = (f32[8], bf16[4]) all-gather(%w, %w), replica_groups=[2,2]<=[4]
}
"""
  sent = scaling.traffic(text)
  assert sent == {"all-reduce": 5 * 32.0, "all-gather": (32 + 8) / 2}
