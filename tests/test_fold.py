"""Folded parameters in files: written whole, marked, and refused as raw."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ws_jax
from ws_jax import config, weights
from ws_jax.core import standardize
from ws_jax.train import checkpoint
from ws_jax.weights import __main__ as command

FORMATS = [".npz", ".safetensors"]
MINE = dataclasses.replace(ws_jax.CONVENTIONS["qiao"], eps=1e-6)


@flax.struct.dataclass
class State:
  step: jax.Array
  params: dict
  model_state: dict
  opt_state: tuple
  ema_params: dict | None = None


def tree(seed=0):
  rng = np.random.default_rng(seed)
  kernel = rng.normal(0.2, 0.05, (3, 3, 4, 2)).astype(np.float32)
  return {"Conv_0": {"kernel": kernel, "bias": np.float32([1, 2])}}


def workdir(path, *, ema=None, **model):
  """Writes what folding reads of a run that `train_and_evaluate` left."""
  stats = {"BatchNorm_0": {"mean": jnp.ones(2), "var": jnp.full(2, 3.0)}}
  state = State(
    jnp.int32(7), tree(), {"batch_stats": stats}, (tree(2), None), ema
  )
  checkpoints = checkpoint.Checkpoints(path / "checkpoints", keep=1)
  checkpoints.save(7, jax.tree.map(jnp.asarray, state))
  checkpoints.close()
  settings = config.default().to_dict()
  settings["model"] |= model
  (path / "config.json").write_text(json.dumps(settings))


def fold(*arguments):
  return command.main(["fold", *map(str, arguments)])


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("convention", [None, "nfnet", MINE])
def test_what_was_written_is_read_with_what_it_is(tmp_path, suffix, convention):
  path = tmp_path / f"x{suffix}"
  arrays = tree() | {"file": np.int32(3), "empty": np.zeros((0, 2))}
  weights.write_params(path, arrays, folded=convention)
  got = weights.read_params(path)
  names = ["Conv_0/bias", "Conv_0/kernel", "empty", "file"]
  assert sorted(got) == names
  for name, expected in zip(
    ["Conv_0/bias", "Conv_0/kernel", "empty", "file"],
    jax.tree.leaves(arrays),
    strict=True,
  ):
    assert got[name].dtype == expected.dtype
    np.testing.assert_array_equal(got[name], expected)
  info = weights.read_info(path)
  assert info.folded == (convention is not None)
  if convention is None:
    assert str(info) == "raw"
    assert weights.read_raw_params(path).keys() == got.keys()
    return
  assert info.convention == ws_jax.get_convention(convention)
  assert info.convention.formula in str(info)
  with pytest.raises(ValueError, match="folded with .*train on from"):
    weights.read_raw_params(path)


def test_other_peoples_files_do_not_say(tmp_path):
  np.savez(tmp_path / "x.npz", w=np.ones((8, 4)))
  info = weights.read_info(tmp_path / "x.npz")
  assert (info.folded, str(info)) == (None, "not said")
  assert weights.read_raw_params(tmp_path / "x.npz")["w"].shape == (8, 4)


def test_half_precision_goes_where_it_can(tmp_path):
  arrays = {"w": jnp.ones((3, 4), jnp.bfloat16)}
  weights.write_params(tmp_path / "x.safetensors", arrays)
  assert (
    weights.read_params(tmp_path / "x.safetensors")["w"].dtype == "bfloat16"
  )
  with pytest.raises(ValueError, match=r"w: .*bfloat16; write \.safetensors"):
    weights.write_params(tmp_path / "x.npz", arrays)


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_cannot_be_written_leaves_the_old_file(tmp_path, suffix):
  path = tmp_path / f"x{suffix}"
  weights.write_params(path, tree())
  before = path.read_bytes()
  for arrays, message in [
    ({"a": np.ones(3), "b": np.array([None])}, "b: "),
    ({"a/b": np.ones(3), "a": {"b": np.ones(3)}}, "two arrays of the name"),
  ]:
    with pytest.raises(ValueError, match=message):
      weights.write_params(path, arrays)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before
  with pytest.raises(ValueError, match="must be a .npz or a .safetensors"):
    weights.write_params(tmp_path / "x.pkl", tree())
  with pytest.raises(ValueError, match="did you mean 'timm'"):
    weights.write_params(path, tree(), folded="tim")


def test_damaged_mark_is_an_error(tmp_path):
  np.savez(tmp_path / "x.npz", ws_jax=np.array('{"folded": 1}'))
  with pytest.raises(ValueError, match="note on folding is damaged"):
    weights.read_info(tmp_path / "x.npz")


@pytest.mark.parametrize("ema", [None, tree(1)])
def test_a_run_is_folded_as_it_was_trained(tmp_path, capsys, ema):
  workdir(tmp_path, ema=ema, ws=True, ws_convention="timm")
  out = tmp_path / "plain.safetensors"
  assert fold(tmp_path, out) == 0
  said = capsys.readouterr().out
  assert said.strip().endswith(
    "folded with timm: (w - mean) / sqrt(var + 1e-06)"
  )
  got = weights.read_params(out)
  assert sorted(got) == [
    "batch_stats/BatchNorm_0/mean",
    "batch_stats/BatchNorm_0/var",
    "params/Conv_0/bias",
    "params/Conv_0/kernel",
  ]
  raw = tree() if ema is None else ema
  expected = ws_jax.fold(raw, convention="timm")["Conv_0"]["kernel"]
  np.testing.assert_array_equal(got["params/Conv_0/kernel"], expected)
  # It can be described, but not folded again.
  assert command.main(["describe", str(out)]) == 0
  assert "is folded with timm: (w" in capsys.readouterr().out
  assert fold(out, tmp_path / "twice.npz", "--convention=timm") == 2
  assert "is folded with timm" in capsys.readouterr().err
  assert not (tmp_path / "twice.npz").exists()


def with_gains():
  """Returns parameters of a norm-free net: a gain beside a kernel."""
  params = tree()
  params["Conv_0"]["gain"] = np.float32([2, -1])
  params["Conv_1"] = tree(1)["Conv_0"]
  return params


@pytest.mark.parametrize("kind", ["run", "ours", "timm"])
def test_the_gain_beside_a_kernel_goes_into_it(tmp_path, kind):
  """It was left out, so that the plain model computed something else."""
  params, source = with_gains(), tmp_path / "raw.npz"
  where = lambda name: f"{name}/kernel"
  kernel = params["Conv_0"]["kernel"]
  if kind == "run":
    source = tmp_path / "run"
    workdir(source, ema=params, ws=True, ws_convention="nfnet")
    where = lambda name: f"params/{name}/kernel"
  elif kind == "ours":
    weights.write_params(source, params)
  else:
    where = lambda name: f"{name}/weight"
    turned = {
      f"{name}.weight": conv["kernel"].transpose(3, 2, 0, 1)
      for name, conv in params.items()
    }
    gain = params["Conv_0"]["gain"].reshape(2, 1, 1, 1)
    np.savez(source, **turned, **{"Conv_0.gain": gain})
  assert fold(source, tmp_path / "out.npz", "--convention=nfnet") == 0
  folded = weights.read_params(tmp_path / "out.npz")
  for name, gain in (("Conv_0", params["Conv_0"]["gain"]), ("Conv_1", None)):
    kernel = params[name]["kernel"]
    expected = ws_jax.standardize(kernel, convention="nfnet", gain=gain)
    found = folded[where(name)]
    if kind == "timm":
      found = found.transpose(2, 3, 1, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_a_gain_of_another_size_is_refused():
  params = with_gains()
  params["Conv_0"]["gain"] = np.ones(3)
  with pytest.raises(ValueError, match="gain of shape .3. beside a kernel"):
    standardize.gains_beside(params)


def test_a_run_is_folded_where_it_was_standardized(tmp_path):
  """All convolutions were, whatever `ws_where` of the run said."""
  params = with_gains() | {"head": {"kernel": np.eye(4, dtype=np.float32)}}
  globs = ("head/kernel", "Conv_1/kernel")
  workdir(tmp_path, ema=params, ws=True, ws_convention="bit", ws_where=globs)
  assert fold(tmp_path, tmp_path / "out.npz") == 0
  folded = weights.read_params(tmp_path / "out.npz")
  expected = ws_jax.fold(params, where=ws_jax.matching(*globs))
  for name in ("Conv_0", "Conv_1", "head"):
    np.testing.assert_array_equal(
      folded[f"params/{name}/kernel"], expected[name]["kernel"]
    )
  raw = params["Conv_0"]["kernel"]
  np.testing.assert_array_equal(folded["params/Conv_0/kernel"], raw)


def test_a_raw_file_is_folded_by_the_convention_that_is_given(tmp_path):
  """It runs as a program: Python would warn if it was imported before."""
  weights.write_params(tmp_path / "raw.npz", tree())
  done = subprocess.run(
    [sys.executable, "-W", "error::RuntimeWarning", "-m", "ws_jax.weights"]
    + ["fold", tmp_path / "raw.npz", tmp_path / "x.npz", "--convention=bcn"],
    cwd=pathlib.Path(__file__).parents[1],
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stderr) == (0, "")
  assert "x.npz: folded with bcn: (w - mean)" in done.stdout
  got = weights.read_params(tmp_path / "x.npz")["Conv_0/kernel"]
  expected = ws_jax.standardize(tree()["Conv_0"]["kernel"], convention="bcn")
  # Another process may have compiled other code for it.
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_command_says_in_one_line_what_is_wrong(tmp_path, capsys):
  (tmp_path / "plain").mkdir()
  workdir(tmp_path / "plain", ws=False)
  (tmp_path / "ws").mkdir()
  workdir(tmp_path / "ws", ws=True, ws_convention="bit")
  weights.write_params(tmp_path / "raw.npz", tree())
  out = tmp_path / "x.npz"
  for arguments, message in [
    (["plain", out], "without Weight Standardization"),
    (["ws", out, "--convention=qiao"], "was trained with bit, not qiao"),
    (["raw.npz", out], "give its --convention"),
    (["raw.npz", out, "--convention=tim"], "did you mean 'timm'"),
    (["gone.npz", out, "--convention=timm"], "no such file"),
    (["ws", tmp_path / "x.pkl"], "must be a .npz or a .safetensors"),
  ]:
    assert fold(tmp_path / arguments[0], *arguments[1:]) == 2
    said, error = capsys.readouterr()
    assert not said
    assert message in error
    assert error.count("\n") == 1
  assert not out.exists()
