"""Published weights: their names, both ways, and files that are wrong."""

import argparse
import functools
import importlib.util
import pickle
import subprocess
import sys
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ws_jax
from ws_jax import models, weights
from ws_jax.core import kernels
from ws_jax.layers.norm import NormSpec
from ws_jax.weights import bit, convert, formats, timm
from ws_jax.weights.bit import from_bit, to_bit
from ws_jax.weights.timm import from_timm, to_timm

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
# Networks that are small, of each family: their weights in full.
SMALL: dict[str, dict[str, Any]] = {
  "bit_r50x1": {"width": 0.5},
  "resnet18": {"width": 0.125, "norm": NormSpec("batch")},
  "resnet50_gn": {"width": 0.5},
  "efficientnet_b0": {"width": 0.25, "norm": NormSpec("batch")},
  "nf_resnet50": {"width": 0.125},
  "nfnet_f0": {"width": 0.125},
}


@functools.cache
def shapes(name, num_outputs=10, **settings) -> Any:
  model = models.create(name, num_outputs=num_outputs, **settings)
  init = lambda k: model.init(k, jnp.zeros((1, 64, 64, 3)), train=False)
  return jax.eval_shape(init, jax.random.key(0))


def drawn(tree, seed=0) -> Any:
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), tree
  )


def small(name) -> Any:
  return drawn(shapes(name, **SMALL[name]))


def bit_file(depth, width=1, classes=10) -> dict[str, tuple[int, ...]]:
  """Returns the names and shapes of a file of Big Transfer, as published."""
  sizes: dict[str, tuple[int, ...]] = {}

  def norm(place, channels):
    sizes[f"resnet/{place}group_norm/gamma"] = (channels,)
    sizes[f"resnet/{place}group_norm/beta"] = (channels,)

  def conv(place, *shape):
    sizes[f"resnet/{place}standardized_conv2d/kernel"] = shape

  conv("root_block/", 7, 7, 3, 64 * width)
  inputs = 64 * width
  for i, units in enumerate(BLOCKS[depth], 1):
    inner = 64 * width * 2 ** (i - 1)
    for j in range(1, units + 1):
      unit = f"block{i}/unit{j:02d}/"
      norm(f"{unit}a/", inputs)
      conv(f"{unit}a/", 1, 1, inputs, inner)
      if j == 1:
        conv(f"{unit}a/proj/", 1, 1, inputs, 4 * inner)
      norm(f"{unit}b/", inner)
      conv(f"{unit}b/", 3, 3, inner, inner)
      norm(f"{unit}c/", inner)
      conv(f"{unit}c/", 1, 1, inner, 4 * inner)
      inputs = 4 * inner
  norm("", inputs)
  sizes["resnet/head/conv2d/kernel"] = (1, 1, inputs, classes)
  sizes["resnet/head/conv2d/bias"] = (classes,)
  return sizes


@functools.cache
def bit_names() -> dict[str, np.ndarray]:
  """Returns the arrays of an R50x1 of half the width, by published names."""
  return to_bit(small("bit_r50x1"))


def saved(path, arrays):
  np.savez(path, **arrays)
  return path


@pytest.mark.parametrize(
  ("depth", "width", "classes"), [(50, 1, 21843), (101, 3, 1000), (152, 4, 10)]
)
def test_every_array_of_big_transfer_has_its_place(depth, width, classes):
  like = shapes(f"bit_r{depth}x{width}", classes)
  nothing = jax.tree.map(
    lambda x: np.broadcast_to(np.float32(0), x.shape), like
  )
  sizes = bit_file(depth, width, classes)
  paths = [
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, _ in jax.tree.leaves_with_path(like)
  ]
  from ws_jax.weights.bit import LAYOUT

  names = LAYOUT.theirs(paths)
  assert set(names.values()) == set(sizes)
  leaves = jax.tree.leaves(nothing)
  for path, leaf in zip(paths, leaves, strict=True):
    there = LAYOUT.to_theirs(path, names, leaf)
    assert there.shape == sizes[names[path]]
  if depth == 50:
    assert len(sizes) == 153
    assert sum(np.prod(shape) for shape in sizes.values()) == 68_256_659


@pytest.mark.parametrize("name", SMALL)
def test_to_timm_and_back_changes_no_bit(name):
  variables = small(name)
  arrays = to_timm(variables)
  like = jax.tree.map(np.zeros_like, variables)
  found = from_timm(arrays, like)
  assert jax.tree.structure(found.variables) == jax.tree.structure(variables)
  for ours, true in zip(
    jax.tree.leaves(found.variables), jax.tree.leaves(variables), strict=True
  ):
    np.testing.assert_array_equal(ours, true)
  assert len(found.report.used) == len(arrays)
  assert not found.report.unused + found.report.missing


@pytest.mark.parametrize("name", SMALL)
def test_the_same_kernels_are_selected_under_published_names(name):
  """The head of 1x1 and squeeze-and-excitation were taken too."""
  nothing = lambda x: np.broadcast_to(np.float32(0), x.shape)
  variables = jax.tree.map(nothing, shapes(name, **SMALL[name]))
  ours = kernels.select(variables, ws_jax.conv_kernels)
  layouts = [(timm.LAYOUT, to_timm)]
  if name.startswith("bit"):
    layouts.append((bit.LAYOUT, to_bit))
  for layout, give in layouts:
    names = layout.theirs(tuple(kernels.by_path(variables)))
    theirs = {k.replace(".", "/"): x for k, x in give(variables).items()}
    found = kernels.select_axes(theirs, ws_jax.conv_kernels, ws_jax.fan_in_axes)
    assert set(found) == {names[path].replace(".", "/") for path in ours}
    axes = (0, 1, 2) if give is to_bit else (1, 2, 3)
    assert {one for _, one in found.values()} == {axes}


def test_to_big_transfer_and_back_changes_no_bit():
  variables = small("bit_r50x1")
  found = from_bit(bit_names(), jax.tree.map(np.zeros_like, variables))
  for ours, true in zip(
    jax.tree.leaves(found.variables), jax.tree.leaves(variables), strict=True
  ):
    np.testing.assert_array_equal(ours, true)


def test_the_two_layouts_of_big_transfer_mean_the_same():
  like = shapes("bit_r50x1", **SMALL["bit_r50x1"])
  theirs = bit_names()
  timm = to_timm(from_bit(theirs, like).variables)
  kernel = theirs["resnet/block2/unit03/b/standardized_conv2d/kernel"]
  np.testing.assert_array_equal(
    timm["stages.1.blocks.2.conv2.weight"], kernel.transpose(3, 2, 0, 1)
  )
  np.testing.assert_array_equal(
    timm["head.fc.weight"][:, :, 0, 0],
    theirs["resnet/head/conv2d/kernel"][0, 0].T,
  )
  np.testing.assert_array_equal(
    timm["stages.3.blocks.0.norm3.bias"],
    theirs["resnet/block4/unit01/c/group_norm/beta"],
  )


def test_names_of_timm_that_no_rule_gives():
  names = {
    name: set(to_timm(small(name))) for name in ("efficientnet_b0", "nfnet_f0")
  }
  # A block that does not widen its input counts its norms from another place.
  assert "blocks.0.0.bn2.running_var" in names["efficientnet_b0"]
  assert "blocks.0.0.conv_pw.weight" in names["efficientnet_b0"]
  assert "blocks.0.0.bn3.weight" not in names["efficientnet_b0"]
  assert "blocks.6.0.se.conv_expand.bias" in names["efficientnet_b0"]
  assert "stages.2.5.conv2b.gain" in names["nfnet_f0"]
  assert "stages.0.0.skipinit_gain" in names["nfnet_f0"]
  assert to_timm(small("nfnet_f0"))["stem.conv1.gain"].shape == (2, 1, 1, 1)


def test_numbered_layers_are_read_and_double_ones_refused():
  like = shapes("bit_r50x1", **SMALL["bit_r50x1"])
  root = "resnet/root_block/standardized_conv2d"
  arrays = dict(bit_names())
  arrays[f"{root}_7/kernel"] = arrays.pop(f"{root}/kernel")
  found = from_bit(arrays, like)
  assert len(found.report.used) == 153
  arrays[f"{root}/kernel"] = arrays[f"{root}_7/kernel"]
  with pytest.raises(ValueError, match=f"another array .* for {root}/kernel"):
    from_bit(arrays, like)


def test_the_report_says_what_was_used_unused_and_missing():
  like = shapes("resnet18", **SMALL["resnet18"])
  arrays = to_timm(small("resnet18"))
  arrays["bn1.num_batches_tracked"] = np.array(7)
  arrays["head_dist.weight"] = np.ones((3, 3), np.float32)
  del arrays["fc.weight"], arrays["fc.bias"]
  with pytest.raises(ValueError, match=r"fc.bias is missing; fc.weight is mis"):
    from_timm(arrays, like)
  found = from_timm(arrays, like, skip=("params/head/*",))
  assert "head" not in found.variables["params"]
  lines = str(found.report).splitlines()
  assert lines[0].startswith("used 100 of 102 arrays, ")
  assert lines[1:] == [
    "unused: head_dist.weight",
    "missing: fc.bias, for params/head/bias",
    "missing: fc.weight, for params/head/kernel",
    "of no use here: bn1.num_batches_tracked",
  ]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      {"fc.weight": np.ones((10, 63))},
      r"fc.weight \[10, 63\] for params/head/kernel \[64, 10\]$",
    ),
    ({"fc.bias": np.ones(10, int)}, "fc.bias holds int64, not floating-point"),
    ({"fc.bias": np.full(10, np.nan)}, "fc.bias holds NaN or infinite"),
    ({"fc.bias": b"cos\nsystem"}, "fc.bias is no array"),
    (
      {"conv1.weight": np.ones(())},
      r"conv1.weight \[\] for params/stem/kernel",
    ),
  ],
)
def test_wrong_arrays_are_named(change, message):
  arrays = to_timm(small("resnet18")) | change
  with pytest.raises(ValueError, match=message):
    from_timm(arrays, shapes("resnet18", **SMALL["resnet18"]))


def test_half_precision_becomes_float32():
  arrays = to_timm(small("resnet18"))
  halves = {name: array.astype(np.float16) for name, array in arrays.items()}
  found = from_timm(halves, shapes("resnet18", **SMALL["resnet18"]))
  kinds = {leaf.dtype for leaf in jax.tree.leaves(found.variables)}
  assert kinds == {np.dtype(np.float32)}


def test_a_model_without_a_published_layout_is_refused():
  with pytest.raises(ValueError, match="mean has no name in the bit layout"):
    to_bit(small("resnet18"))
  with pytest.raises(ValueError, match="odd/kernel has no name in the timm"):
    to_timm({"params": {"odd": {"kernel": np.ones(3)}}})
  with pytest.raises(ValueError, match='with "params"'):
    to_timm({"stem": {"kernel": np.ones(3)}})


def run(verb, *arguments):
  parser = argparse.ArgumentParser()
  getattr(convert, f"add_{verb}")(parser)
  given = parser.parse_args([str(argument) for argument in arguments])
  getattr(convert, f"run_{verb}")(given)


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
  """A state dict of a whole resnet18, with 5 classes, as safetensors."""
  path = tmp_path_factory.mktemp("timm") / "model.safetensors"
  variables = drawn(shapes("resnet18", 5, norm=NormSpec("batch")))
  formats.write(path, to_timm(variables), "")
  return path, variables


def test_the_command_writes_what_a_run_starts_from(resnet18, tmp_path, capsys):
  path, variables = resnet18
  out = tmp_path / "ours.npz"
  run("import", path, out, "--model=resnet18")
  said = capsys.readouterr().out
  assert said.startswith("used 102 of 102 arrays, 11,")
  assert "raw parameters of resnet18" in said
  written = weights.read_raw_variables(out)
  assert weights.read_info(out).folded is False
  np.testing.assert_array_equal(
    written["params/stage2_block1/conv1/kernel"],
    variables["params"]["stage2_block1"]["conv1"]["kernel"],
  )
  assert "batch_stats/stem_norm/mean" in written
  back = tmp_path / "back.safetensors"
  run("publish", out, back, "--layout=timm")
  theirs, again = formats.read(path), formats.read(back)
  assert theirs.keys() == again.keys()
  for name, array in theirs.items():
    np.testing.assert_array_equal(array, again[name])
  with pytest.raises(ValueError, match="no name in the bit layout"):
    run("publish", out, tmp_path / "b.npz", "--layout=bit")


def test_the_number_of_classes_is_that_of_the_file(resnet18, tmp_path):
  path, _ = resnet18
  found = convert.read_published(path, "resnet18")
  assert found.model.num_classes == 5
  assert found.model.norm == NormSpec("batch")
  found = convert.read_published(path, "resnet18", skip=["params/head/*"])
  assert "head" not in found.variables["params"]


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.npz", b"", "a.npz: cannot be read as .npz"),
    ("a.npz", pickle.dumps({"w": 1}), "a.npz: cannot be read as .npz"),
    ("a.safetensors", b"\xff" * 40, "its header does not fit"),
    ("a.h5", b"", "a.h5: must be a .npz or a .safetensors file"),
    ("a.pth", b"", "is a pickle, which can run code; .*torch.load"),
  ],
)
def test_files_that_are_something_else(tmp_path, name, content, message):
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message) as caught:
    run("import", path, tmp_path / "out.npz", "--model=resnet18")
  assert "\n" not in str(caught.value).strip()
  assert not (tmp_path / "out.npz").exists()


def test_a_pickle_by_another_name_is_not_loaded(tmp_path):
  path = tmp_path / "renamed.npz"
  with zipfile.ZipFile(path, "w") as file:
    file.writestr("archive/data.pkl", b"cos\nsystem\n(S'false'\ntR.")
  with pytest.raises(ValueError, match="data.pkl is no array.*pickle"):
    convert.read_published(path, "resnet18")


def test_a_truncated_file_is_one_line(resnet18, tmp_path):
  path, _ = resnet18
  cut = tmp_path / "cut.safetensors"
  cut.write_bytes(path.read_bytes()[:100_000])
  with pytest.raises(ValueError, match="cut.safetensors: damaged header: byt"):
    convert.read_published(cut, "resnet18")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("a.npz", "b.npz", "--model=resnt18"), "unknown model 'resnt18': did you"),
    (("a.npz", "b.npz", "--model=resnet18"), "a.npz: no such file"),
    (("a.npz", "b.txt", "--model=resnet18"), "b.txt: must be a .npz or"),
  ],
)
def test_what_is_asked_for_is_checked_first(arguments, message):
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    run("import", *arguments)


def test_the_wrong_model_is_named_with_what_it_lacks(resnet18):
  path, _ = resnet18
  with pytest.raises(ValueError, match=r"as resnet50: does not fit the model"):
    convert.read_published(path, "resnet50")


@pytest.mark.slow
def test_the_command_for_a_pickle_makes_what_can_be_imported(
  resnet18, tmp_path
):
  for package in ("torch", "safetensors"):
    if importlib.util.find_spec(package) is None:
      pytest.skip(f"{package} is not installed")
  path, variables = resnet18
  pickled = tmp_path / "model.pth"
  code = (
    "import torch; from safetensors.torch import load_file;"
    f" torch.save({{'state_dict': load_file('{path}')}}, '{pickled}')"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
  with pytest.raises(ValueError, match="is a pickle") as caught:
    convert.read_published(pickled, "resnet18")
  command = str(caught.value).partition('python -c "')[2].removesuffix('"')
  subprocess.run([sys.executable, "-c", command], check=True)
  found = convert.read_published(
    pickled.with_suffix(".safetensors"), "resnet18"
  )
  np.testing.assert_array_equal(
    found.variables["params"]["head"]["kernel"],
    variables["params"]["head"]["kernel"],
  )
