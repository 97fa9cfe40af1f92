"""Computes with timm what the models here must compute with the same weights.

  python scripts/make_golden_logits.py tests/golden/logits.json
  python scripts/make_golden_logits.py out.npz --gradients --model=nf_resnet50

Needs PyTorch and timm: `pip install '.[bench]'`. Weights and images are drawn
from the names and shapes of the arrays, by `draw`, so that nothing but the
results needs to be stored: real weights could not be had where this was
written. Results are those of float64, in which nothing hangs on the order of
sums.
"""

import argparse
import importlib
import json
import pathlib
import sys
import zlib

import numpy as np

# The names of timm's models by ours.
MODELS = {
  "bit_r50x1": "resnetv2_50x1_bit",
  "bit_r101x1": "resnetv2_101x1_bit",
  "resnet18": "resnet18",
  "resnet50_gn": "resnet50_gn",
  "efficientnet_b0": "efficientnet_b0",
  "nf_resnet50": "nf_resnet50",
  "nfnet_f0": "dm_nfnet_f0",
}
CLASSES = 10
SIZE = 64  # of the images, in pixels


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Returns the same numbers for the same name and shape, float64.

  Args:
    name: Name of an array in a state dict, which decides its distribution.
    shape: Shape of it there.
  """
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  values = rng.normal(size=shape)
  kind = name.rpartition(".")[2]
  if kind == "weight" and len(shape) > 1:
    # He et al.'s scale, with a mean that Weight Standardization has to remove.
    return (2 / np.prod(shape[1:])) ** 0.5 * (values + 0.02)
  if kind in ("weight", "gain"):
    return 1 + 0.1 * values
  if kind == "running_var":
    return 0.9 * np.exp(0.2 * values)
  if kind == "skipinit_gain":
    return 0.5 + 0.1 * values
  return 0.1 * values  # biases and running means


def images() -> np.ndarray:
  """Returns the images, `[2, SIZE, SIZE, 3]`."""
  return np.random.default_rng(0).normal(size=(2, SIZE, SIZE, 3))


def slopes() -> np.ndarray:
  """Returns by what the logits are multiplied for the loss of `gradients`."""
  return np.random.default_rng(1).normal(size=(2, CLASSES))


def main() -> None:
  """Writes the results of all models, or of those named."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("out", type=pathlib.Path, help="a .json or .npz file")
  parser.add_argument("--model", action="append", choices=MODELS)
  parser.add_argument("--gradients", action="store_true", help=".npz only")
  parser.add_argument("--dtype", default="float64")
  given = parser.parse_args()
  timm = _import_timm()
  results = {}
  for model in given.model or MODELS:
    found = _compute(timm, MODELS[model], given.dtype, given.gradients)
    results |= {f"{model}/{name}": array for name, array in found.items()}
    print(f"{model}: {len(found)} arrays", file=sys.stderr)
  if given.out.suffix == ".npz":
    np.savez(given.out, **results)  # type: ignore[bad-argument-type]
    return
  rounded = {
    name: [[float(f"{x:.8g}") for x in row] for row in array]
    for name, array in results.items()
  }
  given.out.write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")


def _compute(timm, name, dtype, gradients) -> dict[str, np.ndarray]:
  import torch

  kind = getattr(torch, dtype)
  network = timm.create_model(name, num_classes=CLASSES).to(kind)
  state = network.state_dict()
  for key, value in state.items():
    if value.is_floating_point():
      drawn = np.asarray(draw(key, tuple(value.shape)))
      state[key] = torch.from_numpy(drawn).to(kind)
  network.load_state_dict(state)
  inputs = torch.from_numpy(images().transpose(0, 3, 1, 2)).to(kind)
  with torch.no_grad():
    found = {"logits": network.eval()(inputs).numpy()}
  if gradients:
    # Of a training step: batch normalization with statistics of the batch.
    logits = network.train()(inputs)
    (logits * torch.from_numpy(slopes()).to(kind)).sum().backward()
    found["training_logits"] = logits.detach().numpy()
    for key, parameter in network.named_parameters():
      found[f"gradients/{key}"] = parameter.grad.numpy()
  return found


def _import_timm():
  """Imports timm, beside a torchvision that was built for another torch, too.

  Nothing of torchvision is used; but it does not import where the operators of
  its compiled half are missing.
  """
  import torch

  try:
    importlib.import_module("torchvision")
  except RuntimeError:
    for module in [m for m in sys.modules if m.startswith("torchvision")]:
      del sys.modules[module]
    library = torch.library.Library("torchvision", "DEF")
    arguments = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    for operator in ("nms", "qnms"):
      library.define(operator + arguments)
    _kept.append(library)
  import timm

  return timm


_kept = []  # an operator is gone with the library that defined it


if __name__ == "__main__":
  main()
