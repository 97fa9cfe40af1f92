"""The verbs `import` and `publish`: published weights to ours, and back."""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ws_jax import models
from ws_jax.layers.norm import NormSpec
from ws_jax.weights import bit, formats, layout, params, timm

LAYOUTS = {"bit": bit.to_bit, "timm": timm.to_timm}
_PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth", ".tar")
# Endings of the names of a head's bias, whose size is the number of classes.
_HEADS = ("head/conv2d/bias", "head.fc.bias", "fc.bias", "classifier.bias")


@dataclasses.dataclass(frozen=True)
class Published:
  """Published weights, and the model that they fit.

  Attributes:
    model: Flax Linen module.
    variables: Its collections, of NumPy arrays; kernels are raw.
    report: The arrays of the file by what became of them.
  """

  model: Any
  variables: layout.PyTree
  report: layout.Report


def read_published(
  path: str | pathlib.Path, model: str, *, skip: Sequence[str] = ()
) -> Published:
  """Reads weights that were published for a model.

  The file is one of Big Transfer if its names begin with `resnet/`, and one of
  timm if not. The number of classes is that of its head, and a file with
  running statistics is one of a model with batch normalization.

  Args:
    path: `.npz` or `.safetensors` file.
    model: Name of the model here, as `bit_r50x1`.
    skip: Shell patterns of our paths that are left out, as `params/head/*`.

  Raises:
    ValueError: an unknown model, a file that needs pickle or is damaged, or
      arrays that do not fit the model; one line that names the file.
    FileNotFoundError: there is no such file.
  """
  path = pathlib.Path(path)
  takes = models.keys(model)
  _refuse_pickle(path)
  if not path.is_file():
    raise FileNotFoundError(f"{path}: no such file")
  if path.suffix not in formats.SUFFIXES:
    raise ValueError(f"{path}: must be a .npz or a .safetensors file")
  arrays = formats.read(path)
  for name, array in arrays.items():
    if not isinstance(array, np.ndarray):
      raise ValueError(
        f"{path}: {name} is no array: is it a file of PyTorch, a pickle, by"
        " another name?"
      )
  settings: dict[str, Any] = {}
  if "norm" in takes and any(name.endswith("running_mean") for name in arrays):
    settings["norm"] = NormSpec("batch")
  made = models.create(model, num_outputs=_classes(arrays), **settings)
  is_bit = any(name.startswith("resnet/") for name in arrays)
  take = bit.from_bit if is_bit else timm.from_timm
  try:
    found = take(arrays, _shapes(made), skip=skip)
  except ValueError as error:
    raise ValueError(f"{path} as {model}: {error}") from None
  return Published(made, found.variables, found.report)


def add_import(parser: argparse.ArgumentParser) -> None:
  """Declares the arguments of the verb `import`."""
  parser.add_argument(
    "source", help="a .npz file of Big Transfer, or a .safetensors of timm"
  )
  parser.add_argument("out", help="the .npz or .safetensors file to write")
  parser.add_argument(
    "--model", required=True, help="the model here, as bit_r50x1 or nfnet_f0"
  )
  parser.add_argument(
    "--skip",
    action="append",
    default=[],
    metavar="GLOB",
    help="arrays of ours that the file need not have, as 'params/head/*'",
  )


def run_import(given: argparse.Namespace) -> None:
  """Writes published weights as parameters of a model here, with a report.

  Raises:
    ValueError: as `read_published`, or an ending that cannot be written.
    FileNotFoundError: there is no such file.
  """
  _check_out(given.out)
  found = read_published(given.source, given.model, skip=given.skip)
  params.write_params(given.out, found.variables)
  print(found.report)
  print(f"{given.out}: raw parameters of {given.model}")


def add_publish(parser: argparse.ArgumentParser) -> None:
  """Declares the arguments of the verb `publish`."""
  parser.add_argument(
    "source", help="a run's workdir, or a file that `import` has written"
  )
  parser.add_argument("out", help="the .npz or .safetensors file to write")
  parser.add_argument(
    "--layout", required=True, choices=LAYOUTS, help="names and axes to write"
  )


def run_publish(given: argparse.Namespace) -> None:
  """Writes raw parameters in a published layout.

  Raises:
    ValueError: the parameters are folded, or of a model that the layout has no
      names for.
    FileNotFoundError: there is nothing at the source.
  """
  _check_out(given.out)
  variables = _nested(params.read_raw_variables(given.source))
  try:
    arrays = LAYOUTS[given.layout](variables)
  except ValueError as error:
    raise ValueError(f"{given.source}: {error}") from None
  params.write_params(given.out, arrays)
  print(f"{given.out}: {len(arrays)} arrays in the layout of {given.layout}")


def _refuse_pickle(path: pathlib.Path) -> None:
  if path.suffix in _PICKLES:
    out = path.with_suffix(".safetensors")
    code = (
      "import torch; from safetensors.torch import save_file; s ="
      f" torch.load('{path}', weights_only=True); save_file({{k:"
      " v.contiguous() for k, v in s.get('state_dict', s).items()},"
      f" '{out}')"
    )
    raise ValueError(
      f"{path}: is a pickle, which can run code; where PyTorch is, make"
      f' {out.name} of it: python -c "{code}"'
    )


def _check_out(out: str) -> None:
  if pathlib.Path(out).suffix not in formats.SUFFIXES:
    raise ValueError(f"{out}: must be a .npz or a .safetensors file")


def _classes(arrays: layout.Arrays) -> int:
  """Returns the number of classes of a head; 1000 without one."""
  for name, array in arrays.items():
    if name.endswith(_HEADS) and np.ndim(array) == 1:
      return max(1, len(array))
  return 1000


def _shapes(model: Any) -> layout.PyTree:
  images = jnp.zeros((1, 64, 64, 3))
  init = lambda key: model.init(key, images, train=False)
  return jax.eval_shape(init, jax.random.key(0))


def _nested(tree: layout.PyTree) -> layout.PyTree:
  """Returns a tree of collections, of one or of a flat dict by path."""
  if "params" in tree:
    return tree
  nested: dict[str, Any] = {}
  for path, array in tree.items():
    layout.put(nested, path, array)
  return nested if "params" in nested else {"params": nested}
