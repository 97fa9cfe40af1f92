"""The published networks against timm's, with the same weights.

`scripts/make_golden_logits.py` has made `golden/logits.json`: logits of timm's
models in float64, of weights and images that it draws and that are drawn again
here. The slow tests run it, and compare the gradients of a step as well.
"""

import importlib.util
import json
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ws_jax
from ws_jax import models
from ws_jax.layers.norm import NormSpec
from ws_jax.weights.timm import from_timm, to_timm

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "make_golden_logits.py"
SETTINGS: dict[str, dict[str, Any]] = {
  "bit_r50x1": {},
  "bit_r101x1": {},
  "resnet18": {"norm": NormSpec("batch")},
  "resnet50_gn": {},
  "efficientnet_b0": {
    "norm": NormSpec("batch"),
    "dropout": 0.0,
    "stochastic_depth": 0.0,
  },
  "nf_resnet50": {},
  "nfnet_f0": {"dropout": 0.0, "stochastic_depth": 0.0},
}
# timm's models with Weight Standardization, and how it is written there.
CONVENTIONS = {
  "bit_r50x1": "timm_bit",
  "bit_r101x1": "timm_bit",
  "nf_resnet50": "timm_scaled",
  "nfnet_f0": "timm_scaled",
}
# A residual network of 101 layers is that of 50 with more of the same.
FAST = [name for name in SETTINGS if name != "bit_r101x1"]


def _load_script() -> Any:
  spec = importlib.util.spec_from_file_location("make_golden_logits", SCRIPT)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


golden = _load_script()


def build(name, dtype=np.float32):
  """Returns a model and variables with the numbers that timm's gets."""
  model = models.create(
    name,
    num_outputs=golden.CLASSES,
    dtype=jnp.dtype(dtype),
    **SETTINGS[name],
  )
  images = jnp.zeros((2, golden.SIZE, golden.SIZE, 3))
  init = lambda key: model.init(key, images, train=False)
  like = jax.tree.map(
    lambda x: np.broadcast_to(np.zeros((), dtype), x.shape),
    jax.eval_shape(init, jax.random.key(0)),
  )
  drawn = {
    their_name: golden.draw(their_name, array.shape)
    for their_name, array in to_timm(like).items()
  }
  return model, from_timm(drawn, like).variables


def gains(params, above="") -> dict[str, jax.Array]:
  """Returns the gain beside each kernel, by the path of the kernel."""
  found = {}
  for name, value in params.items():
    if isinstance(value, dict):
      found |= gains(value, f"{above}{name}/")
    elif name == "gain":
      found[f"{above}kernel"] = value
  return found


def effective(name, params):
  if name not in CONVENTIONS:
    return params
  return ws_jax.weight_standardize(
    params, convention=CONVENTIONS[name], gains=gains(params) or None
  )


def distance(ours, theirs) -> float:
  """Returns the largest difference, as a part of the largest number."""
  off = np.asarray(ours) - theirs
  return float(np.abs(off).max() / np.abs(theirs).max())


@pytest.mark.parametrize("name", FAST)
def test_logits_are_those_that_timm_computes(name):
  model, variables = build(name)
  images = golden.images().astype(np.float32)

  @jax.jit
  def logits(variables):
    params = effective(name, variables["params"])
    return model.apply({**variables, "params": params}, images, train=False)

  stored = json.loads((ROOT / "tests/golden/logits.json").read_text())
  theirs = np.array(stored[f"{name}/logits"])
  found = distance(logits(variables), theirs)
  assert found < 1e-4, (
    f"{name} differs by {found:.1e} from timm's network of the same weights:"
    " published weights would no longer mean the same. If timm has changed, run"
    f" {SCRIPT.name} again"
  )


def _run_script(out, name):
  for package in ("torch", "timm"):
    if importlib.util.find_spec(package) is None:
      pytest.skip(f"{package} is not installed")
  command = [sys.executable, str(SCRIPT), str(out), "--gradients"]
  subprocess.run([*command, f"--model={name}"], check=True)
  with np.load(out) as file:
    return {key.removeprefix(f"{name}/"): file[key] for key in file.files}


def _step(name, dtype):
  """Returns logits of evaluation and training, and gradients of training."""
  model, variables = build(name, dtype)
  images, slopes = golden.images().astype(dtype), golden.slopes().astype(dtype)

  def apply(params, train):
    return model.apply(
      {**variables, "params": effective(name, params)},
      images,
      train=train,
      mutable=["batch_stats"],
    )[0]

  def loss(params):
    logits = apply(params, True)
    return (logits * slopes).sum(), logits

  params = variables["params"]
  grads, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
  still = jax.jit(lambda params: apply(params, False))(params)
  found = to_timm({"params": jax.device_get(grads)})
  return still, logits, {f"gradients/{k}": array for k, array in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_logits_and_gradients_are_those_of_timm(name, tmp_path):
  theirs = _run_script(tmp_path / "timm.npz", name)
  stored = json.loads((ROOT / "tests/golden/logits.json").read_text())
  np.testing.assert_allclose(
    theirs["logits"], stored[f"{name}/logits"], rtol=1e-6
  )
  wanted = {key for key in theirs if key.startswith("gradients/")}
  with jax.enable_x64(True):
    still, logits, grads = _step(name, np.float64)
  assert distance(still, theirs["logits"]) < 1e-10
  assert distance(logits, theirs["training_logits"]) < 1e-10
  assert set(grads) == wanted
  largest = max(np.abs(theirs[key]).max() for key in wanted)
  for key in wanted:
    # Before another norm a bias has a gradient of zero, but for rounding.
    allowed = 1e-9 * np.abs(theirs[key]).max() + 1e-12 * largest
    assert np.abs(grads[key] - theirs[key]).max() < allowed, key
  # In float32 the logits are as near as asked; of the gradients a ReLU that
  # rounding has flipped takes its part, here as there, so they are measured
  # together.
  still, logits, grads = _step(name, np.float32)
  assert distance(still, theirs["logits"]) < 1e-4
  assert distance(logits, theirs["training_logits"]) < 1e-4
  square = lambda arrays: sum(np.square(arrays[key]).sum() for key in wanted)
  off = square({key: grads[key] - theirs[key] for key in wanted})
  assert (off / square(theirs)) ** 0.5 < 0.05
