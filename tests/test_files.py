"""Parameters come back from every kind of file, and errors are clear."""

import gc
import json
import pathlib
import subprocess
import sys

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ws_jax import weights
from ws_jax.train import checkpoint
from ws_jax.weights import __main__ as command
from ws_jax.weights import formats


@flax.struct.dataclass
class State:
  step: jax.Array
  params: dict
  opt_state: tuple
  ema_params: dict | None = None


def write_state(workdir, *steps):
  checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", keep=2)
  for step in steps:
    kernel = jnp.full((3, 3, 4, 2), step, jnp.bfloat16)
    params = {"Conv_0": {"kernel": kernel, "bias": jnp.ones(2)}}
    checkpoints.save(step, State(jnp.int32(step), params, (params, None)))
  checkpoints.close()


def write_safetensors(path, tensors, header=None):
  """Writes a file by the specification, apart from the reader."""
  entries, data = {"__metadata__": {"format": "pt"}}, b""
  for name, (dtype, array) in tensors.items():
    raw = array.tobytes()
    entries[name] = {
      "dtype": dtype,
      "shape": list(array.shape),
      "data_offsets": [len(data), len(data) + len(raw)],
    }
    data += raw
  head = json.dumps(entries).encode() if header is None else header
  head += b" " * (-len(head) % 8)
  path.write_bytes(len(head).to_bytes(8, "little") + head + data)


def test_workdir_gives_the_parameters_of_the_newest_step(tmp_path):
  write_state(tmp_path, 9, 10)
  for where, step in [("", 10), ("checkpoints", 10), ("checkpoints/9", 9)]:
    params = weights.read_params(tmp_path / where)
    assert set(params) == {"Conv_0"}
    kernel = params["Conv_0"]["kernel"]
    assert isinstance(kernel, np.ndarray)
    assert (kernel.dtype, kernel.shape) == (jnp.bfloat16, (3, 3, 4, 2))
    assert (kernel == step).all()


def test_bare_tree_of_orbax(tmp_path):
  from orbax.checkpoint import v1 as ocp

  ocp.save(str(tmp_path / "tree"), {"Conv_0": {"kernel": jnp.ones((3, 3, 2))}})
  params = weights.read_params(tmp_path / "tree")
  assert params["Conv_0"]["kernel"].shape == (3, 3, 2)


def test_safetensors_of_every_dtype(tmp_path):
  rng = np.random.default_rng(0)
  tensors = {
    f"layer.{name}.weight": (name, (8 * rng.random((2, 3, 2))).astype(dtype))
    for name, dtype in formats.DTYPES.items()
  }
  tensors["empty"] = ("F32", np.zeros((0, 3), np.float32))
  tensors["scalar"] = ("I64", np.int64(7).reshape(()))
  write_safetensors(tmp_path / "x.safetensors", tensors)
  params = weights.read_params(tmp_path / "x.safetensors")
  assert len(params) == len(tensors)
  for name, (_, array) in tensors.items():
    got = params[name.replace(".", "/")]
    assert got.dtype == array.dtype
    np.testing.assert_array_equal(got, array)


def test_npz_keeps_paths(tmp_path):
  arrays = {"root/conv.1/kernel": np.ones((3, 3, 2, 4)), "fc.bias": np.ones(4)}
  np.savez(tmp_path / "x.npz", **arrays)
  params = weights.read_params(tmp_path / "x.npz")
  assert set(params) == {"root/conv.1/kernel", "fc/bias"}


@pytest.mark.parametrize(
  ("header", "message"),
  [
    (b"not json", "damaged header"),
    (b"[1]", "damaged header"),
    (b'{"w": 1}', "damaged header"),
    (b'{"w": {"shape": [], "data_offsets": [0, 0]}}', "no 'dtype'"),
    (
      b'{"w": {"dtype": "F4", "shape": [], "data_offsets": [0, 0]}}',
      "'F4', known are BOOL",
    ),
    (
      b'{"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}',
      "bytes 0 to 36 of 8",
    ),
    (
      b'{"w": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}}',
      r"\[-1, -2\]",
    ),
  ],
)
def test_damaged_safetensors(tmp_path, header, message):
  path = tmp_path / "x.safetensors"
  tensors = {"w": ("F32", np.ones(2, np.float32))}
  write_safetensors(path, tensors, header)
  with pytest.raises(ValueError, match=f"x.safetensors: .*{message}"):
    weights.read_params(path)


def test_cut_off_safetensors(tmp_path):
  path = tmp_path / "x.safetensors"
  for content in [b"", b"abc", (10**12).to_bytes(8, "little") + b"{}"]:
    path.write_bytes(content)
    with pytest.raises(ValueError, match="header does not fit"):
      weights.read_params(path)


class Trap:
  def __reduce__(self):
    return (pytest.fail, ("a file was unpickled",))


def test_nothing_is_unpickled(tmp_path):
  array = np.empty(1, object)
  array[0] = Trap()
  np.savez(tmp_path / "x.npz", w=array)
  with pytest.raises(ValueError, match=r"x\.npz: .*allow_pickle=False"):
    weights.read_params(tmp_path / "x.npz")
  np.save(tmp_path / "x.npy", np.ones(3))
  (tmp_path / "x.npy").rename(tmp_path / "x.npz")
  with pytest.raises(ValueError, match=r"x\.npz: .*one array, not an archive"):
    weights.read_params(tmp_path / "x.npz")
  (tmp_path / "x.npz").write_bytes(b"no archive")
  with pytest.raises(ValueError, match=r"x\.npz: cannot be read as"):
    weights.read_params(tmp_path / "x.npz")


def describe(*arguments):
  return command.main(["describe", *map(str, arguments)])


def test_command_prints_the_table(tmp_path, capsys):
  write_state(tmp_path, 3)
  assert describe(tmp_path, "--convention", "timm") == 0
  out, err = capsys.readouterr()
  lines = out.splitlines()
  assert not err
  assert lines[0].split()[:3] == ["path", "shape", "fan-in"]
  assert lines[2].split()[:4] == ["Conv_0/kernel", "3x3x4x2", "36", "0,1,2"]
  assert lines[3].startswith("1 of 2 leaves standardized, (w - mean) / sqrt(va")
  assert lines[3].endswith("1e-06)")


def test_command_runs_as_a_module(tmp_path):
  """Python warns if what it runs was imported before: a package is exempt."""
  write_state(tmp_path, 3)
  done = subprocess.run(
    [sys.executable, "-W", "error::RuntimeWarning", "-m", "ws_jax.weights"]
    + ["describe", str(tmp_path)],
    cwd=pathlib.Path(__file__).parents[1],
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stderr) == (0, "")
  assert "1 of 2 leaves standardized" in done.stdout


def test_command_knows_the_layout_of_pytorch(tmp_path, capsys):
  kernel = np.random.default_rng(0).normal(size=(8, 4, 3, 3))
  tensors = {
    "layer1.0.conv1.weight": ("BF16", kernel.astype(jnp.bfloat16)),
    "layer1.0.bn1.weight": ("F32", np.ones(8, np.float32)),
  }
  write_safetensors(tmp_path / "x.safetensors", tensors)
  assert describe(tmp_path / "x.safetensors") == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[2].split()[:4] == [
    *("layer1/0/conv1/weight", "8x4x3x3", "36", "1,2,3")
  ]


def test_command_says_in_one_line_what_is_wrong(tmp_path, capsys):
  (tmp_path / "x.pkl").write_bytes(b"")
  (tmp_path / "7").mkdir()
  np.savez(tmp_path / "x.npz", w=np.ones((3, 3, 2, 2)))
  for arguments, message in [
    ([tmp_path / "gone"], "gone: no such file or folder"),
    ([tmp_path / "x.pkl"], "must be an orbax folder, a .npz or a .safetensors"),
    ([tmp_path], "7: no orbax checkpoint that can be read"),
    ([tmp_path / "x.npz", "--convention", "tim"], "did you mean 'timm'"),
  ]:
    assert describe(*arguments) == 2
    out, err = capsys.readouterr()
    assert not out
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("python -m ws_jax.weights: ")


def test_a_broken_archive_is_closed(tmp_path):
  """NumPy left it open, which is a ResourceWarning whenever it is collected."""
  np.savez(tmp_path / "x.npz", w=np.ones(30))
  (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:100])
  with pytest.raises(ValueError, match=r"x\.npz: cannot be read as"):
    weights.read_params(tmp_path / "x.npz")
  gc.collect()
