"""A user's own model, data, task and optimizer, from a file outside."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ws_jax
from tests import my_lab
from ws_jax import config, report
from ws_jax.sweep import product, rows, runner
from ws_jax.tasks import Metric
from ws_jax.train import build, load_run, train_and_evaluate
from ws_jax.train import step as steps

ROOT = pathlib.Path(__file__).parents[1]
LAB = "tests.my_lab"
CONFIG = "configs/fashion_mnist_10k.py"
SMALL = {
  "data.batch_size": 16,
  "data.eval_batch_size": 16,
  "train.steps": 40,
  "train.log_every_steps": 20,
  "train.eval_every_steps": 40,
  "task.crop_padding": 0,
  "task.flip": False,
  "optim.learning_rate": 0.1,
}


AUGMENT = ("task.crop_padding", "task.flip")


def own(**overrides):
  changed = SMALL | {
    "data.name": f"{LAB}:make_data",
    "model.name": f"{LAB}:Net",
  }
  changed |= {k.replace("__", "."): x for k, x in overrides.items()}
  if "task.name" in changed:  # a task of another name has other keys
    changed = {k: x for k, x in changed.items() if k not in AUGMENT}
  return config.apply(config.default(), changed)


@pytest.mark.parametrize("ws", [False, True])
@pytest.mark.parametrize("name", ["Net", "Noisy", "NNXNet"])
def test_a_model_by_import_name_learns_with_and_without_ws(name, ws, tmp_path):
  c = own(model__name=f"{LAB}:{name}", model__ws=ws)
  metrics = train_and_evaluate(c, tmp_path)
  assert metrics["eval/accuracy"] > 0.6  # of three classes
  saved = json.loads((tmp_path / "config.json").read_text())
  assert saved["model"]["name"] == f"{LAB}:{name}"


@pytest.mark.parametrize(
  "model",
  [
    my_lab.Net(3),
    my_lab.NNXNet(3, rngs=nnx.Rngs(5)),
  ],
  ids=["linen", "nnx"],
)
def test_objects_take_the_place_of_names(model, tmp_path):
  metrics = train_and_evaluate(
    config.apply(config.default(), SMALL),
    tmp_path,
    model=model,
    data=my_lab.Data,
    optimizer=optax.adamw,
  )
  assert metrics["eval/loss"] < 1.2
  saved = json.loads((tmp_path / "config.json").read_text())
  assert saved["model"]["name"].startswith("given:")
  assert saved["data"]["name"].startswith("given:")
  assert saved["optim"]["name"].startswith("given:optax")


def test_an_nnx_step_is_sgd_on_the_standardized_model():
  """Against `ws_jax.nnx.standardized` and NNX's own gradient."""
  c = own(
    model__name=f"{LAB}:NNXNet",
    model__kwargs={"width": 4},
    optim__momentum=0.0,
    optim__nesterov=False,
    optim__weight_decay=0.0,
    optim__schedule="constant",
  )
  setup = build.start(c)
  program, state = setup.program, setup.state()
  arrays, indices = setup.source.block(0, 1)
  module = program.model.module(nnx.Rngs(jax.random.key(0)))
  module.dropout.rate = 0.0
  program = dataclasses.replace(
    program,
    model=dataclasses.replace(
      program.model, make=_NoDropout(program.model.make)
    ),
  )
  after = steps.train_block(program, setup.state(), arrays, indices)
  batch = program.task.batch(arrays, indices[0, 0], None)

  def loss(module):
    logits = ws_jax.nnx.standardized(module)(batch["inputs"])
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits, batch["labels"]
    )
    return losses.mean()

  module.train()
  grads = nnx.to_pure_dict(nnx.grad(loss)(module))
  before = state.params
  for path in (("conv", "kernel"), ("blocks", "1", "kernel"), ("head", "bias")):
    want, got, grad = before, after.params, grads
    for key in path:
      want, got = want[key], got[key]
      grad = grad[int(key) if key.isdigit() else key]
    np.testing.assert_allclose(got, want - 0.1 * grad, rtol=1e-4, atol=1e-6)
  assert float(jnp.abs(after.model_state["norm"]["mean"]).max()) > 0


@dataclasses.dataclass(frozen=True)
class _NoDropout:
  make: object

  def __call__(self, **kwargs):
    module = self.make(**kwargs)
    module.dropout.rate = 0.0
    return module


def test_collections_of_other_names_are_carried(tmp_path):
  train_and_evaluate(own(model__name=f"{LAB}:Noisy"), tmp_path)
  run = load_run(tmp_path)
  assert int(run.model_state["counters"]["seen"]) == 40 * 16


def test_where_chooses_other_kernels(tmp_path):
  c = own(model__ws_where=("head/kernel",))
  program = build.start(c).program
  params = {
    "conv": {"kernel": jnp.ones((3, 3, 1, 4))},
    "head": {"kernel": jnp.arange(12.0).reshape(4, 3)},
  }
  effective = steps.effective_params(program, params)
  assert effective["conv"]["kernel"] is params["conv"]["kernel"]
  assert float(effective["head"]["kernel"].std(0).max()) == pytest.approx(1.0)
  with pytest.raises(config.ConfigError, match="no kernel was selected"):
    build.start(own(model__ws_where=("haed/*",)))


def test_a_task_with_its_own_metric_from_progress_to_figure(tmp_path, capsys):
  c = own(task__name=f"{LAB}:Brightness", train__log_every_steps=10)
  overrides = product(
    [{"model.ws": False}, {"model.ws": True}],
    **{"optim.learning_rate": [0.003, 0.03]},
    seed=[0, 1],
  )
  found = runner.run_sweep(c, overrides, tmp_path / "sweep")
  assert {row["metric"] for row in found} == {"error"}
  assert {row["metric_goal"] for row in found} == {"min"}
  assert all(row["eval/error"] < 80 for row in found)
  said = capsys.readouterr()
  assert "eval/error" in said.out + said.err
  best = {row["key"]: row["best/eval/error"] for row in found}
  assert all(row["eval/error"] >= best[row["key"]] for row in found)
  report.write(tmp_path / "sweep")
  page = (tmp_path / "sweep" / "report.html").read_text(encoding="utf-8")
  assert "grey levels" in page and "accuracy" not in page
  table = (tmp_path / "sweep" / "best.md").read_text(encoding="utf-8")
  assert "error" in table and "accuracy" not in table
  assert rows.read(tmp_path / "sweep" / "runs.csv")[0]["metric_unit"]


def test_an_own_optimizer_compiles_once_for_all_rates(tmp_path):
  c = lambda rate, seed: own(
    optim__name=f"{LAB}:slow_lion", optim__learning_rate=rate, seed=seed
  )
  first = train_and_evaluate(c(0.003, 0), tmp_path / "a")
  assert first["eval/accuracy"] > 0.6
  step = steps._jitted(steps.train_step, donate=1)
  compiled = step._cache_size()
  train_and_evaluate(c(0.001, 1), tmp_path / "b")
  assert compiled and step._cache_size() == compiled


def test_an_own_optimizer_is_the_library_s(tmp_path):
  """Three steps of optax.adamw through the seam and by hand."""
  c = own(
    optim__name="optax:adamw",
    optim__kwargs={"b2": 0.99},
    optim__schedule="cosine",
    optim__momentum=0.8,
    optim__weight_decay=0.01,
    model__ws=False,
  )
  setup = build.start(c)
  arrays, indices = setup.source.block(0, 3)
  state = steps.train_block(setup.program, setup.state(), arrays, indices)
  schedule = optax.cosine_decay_schedule(0.1, 40)
  by_hand = optax.adamw(
    schedule, b1=0.8, b2=0.99, weight_decay=0.01, mask=ws_jax.kernel_decay_mask
  )
  net, params = my_lab.Net(3), setup.state().params
  opt_state = by_hand.init(params)
  for chosen in indices:
    batch = setup.program.task.batch(arrays, chosen[0], None)

    def loss(params, batch=batch):
      logits = net.apply({"params": params}, batch["inputs"])
      return optax.softmax_cross_entropy_with_integer_labels(
        logits, batch["labels"]
      ).mean()

    updates, opt_state = by_hand.update(
      jax.grad(loss)(params), opt_state, params
    )
    params = optax.apply_updates(params, updates)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5),
    state.params,
    params,
  )


def test_a_run_starts_from_another_and_a_head_may_be_fresh(tmp_path):
  train_and_evaluate(own(), tmp_path / "first")
  params = load_run(tmp_path / "first").params
  setup = build.start(own(init_from=str(tmp_path / "first"), seed=3))
  jax.tree.map(
    np.testing.assert_array_equal, jax.device_get(setup.state().params), params
  )
  ws_jax_file = tmp_path / "raw.safetensors"
  from ws_jax import weights

  weights.write_params(ws_jax_file, params)
  wider = own(
    init_from=str(ws_jax_file), model__kwargs={"num_classes": 7}, seed=3
  )
  setup = build.start(wider)
  assert "head/bias is [7], and [3] there" in setup.notes[0]
  wider = config.apply(wider, {"init_skip": ("head/*",)})
  assert build.start(wider).notes == ()
  state = setup.state()
  assert state.params["head"]["bias"].shape == (7,)
  np.testing.assert_array_equal(
    state.params["conv"]["kernel"], params["conv"]["kernel"]
  )


def test_a_finished_run_is_made_longer(tmp_path):
  train_and_evaluate(own(train__steps=20), tmp_path)
  before = load_run(tmp_path).params
  train_and_evaluate(own(train__steps=40), tmp_path)
  run = load_run(tmp_path)
  assert run.step == 40
  kernels = (p["conv"]["kernel"] for p in (before, run.params))
  assert np.abs(np.subtract(*kernels)).max() > 0
  steps_seen = [
    json.loads(line)["step"]
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
  ]
  assert sorted(set(steps_seen)) == [20, 40]


def test_a_run_in_python_predicts_and_evaluates(tmp_path):
  metrics = train_and_evaluate(own(optim__ema_decay=0.9), tmp_path)
  run = load_run(tmp_path)
  again = run.evaluate()
  assert again["accuracy"] == pytest.approx(metrics["eval/accuracy"])
  assert again["loss"] == pytest.approx(metrics["eval/loss"], rel=1e-5)
  on_train = run.evaluate([("data.eval_split", "train")])
  assert on_train["loss"] != again["loss"]
  test = my_lab.Data.test
  logits = run.predict(test["x"])
  right = (logits.argmax(-1) == test["y"]).mean()
  assert right == pytest.approx(metrics["eval/accuracy"])
  plain = run.program.model.apply(
    run.variables,
    run.program.task.batch(test, jnp.arange(33), None)["inputs"],
  )
  np.testing.assert_allclose(plain, logits, rtol=1e-4, atol=1e-5)
  with pytest.raises(ValueError, match=r"must be \[N, 9, 9, 1\]"):
    run.predict(test["x"][..., 0])


class NoMetric:
  def batch(self, arrays, indices, key): ...
  def sums(self, outputs, batch, mask, training): ...


class WrongSums(my_lab.Brightness):
  def sums(self, outputs, batch, mask, training):
    return {"loss": jnp.sum(outputs)}


class Growing(nn.Module):
  @nn.compact
  def __call__(self, x):
    self.sow("seen", "x", x.mean())
    return nn.Dense(3)(nn.Conv(4, (3, 3))(x).mean((1, 2)))


@pytest.mark.parametrize(
  ("overrides", "objects", "message"),
  [
    ({"model.name": f"{LAB}:Nett"}, {}, "did you mean 'Net'"),
    ({"model.name": "my_lbas:Net"}, {}, "my_lbas"),
    ({"model.kwargs": {"widht": 3}}, {}, "did you mean 'width'"),
    ({"model.norm": "batch"}, {}, "unknown config key 'model.norm'"),
    ({"task.name": f"{LAB}:make_data"}, {}, "has no method batch"),
    ({"optim.name": "optax:lionn"}, {}, "did you mean 'lion'"),
    ({"optim.name": "optax:adam"}, {}, "takes no weight_decay"),
    ({"optim.kwargs": {"b3": 1}, "optim.name": "optax:lion"}, {}, "'b3'"),
    ({}, {"model": my_lab.Net}, "no model"),
    ({}, {"model": Growing()}, "collections change"),
    ({}, {"task": NoMetric()}, "has no METRIC"),
    ({}, {"task": WrongSums()}, "must have"),
    ({}, {"optimizer": optax.adam(0.1)}, "not optax.lion\\(1e-3\\)"),
    ({"data.label_key": "z"}, {}, "label_key='z'"),
  ],
)
def test_what_does_not_fit_is_one_line_before_anything_is_made(
  overrides, objects, message, tmp_path
):
  run = lambda: train_and_evaluate(
    config.apply(own(), overrides), tmp_path / "run", **objects
  )
  with pytest.raises(config.ConfigError, match=message) as caught:
    run()
  assert "\n" not in str(caught.value)
  assert not (tmp_path / "run").exists()


def test_metric_has_a_direction():
  with pytest.raises(ValueError, match="must be max or min"):
    Metric("loss", "down")


def test_flags_name_what_is_the_user_s(tmp_path):
  """As typed, from the folder of the user's file."""
  (tmp_path / "mine.py").write_text(
    (ROOT / "tests" / "my_lab.py").read_text(encoding="utf-8"), encoding="utf-8"
  )
  command = [
    *(sys.executable, "-m", "ws_jax.main", "--workdir=run"),
    *("--config", CONFIG, "--config.model.name=mine:Net"),
    *("--config.model.kwargs.width", "4", "--config.data.name=mine:make_data"),
    *("--config.data.batch_size=16", "--config.train.steps=4"),
    *("--config.optim.name=optax:lion", "--config.optim.clip_norm=None"),
    *("--noconfig.model.ws", "--config.train.eval_every_epochs=none"),
  ]
  run = lambda words: subprocess.run(
    words,
    cwd=tmp_path,
    capture_output=True,
    text=True,
    env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)},
  )
  done = run(command)
  assert done.returncode == 0, done.stderr
  saved = json.loads((tmp_path / "run" / "config.json").read_text())
  assert saved["model"]["kwargs"] == {"width": 4}
  assert saved["model"]["ws"] is False
  assert saved["optim"]["clip_norm"] is None
  done = run([sys.executable, "-m", "ws_jax.main", "--evaluate=run"])
  assert done.returncode == 0, done.stderr
  assert "eval/accuracy" in done.stderr
  done = run([*command, "--help"])
  assert "model.kwargs=" in done.stdout and "optim.clip_norm=" in done.stdout
