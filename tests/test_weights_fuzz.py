"""Damaged and hostile files of weights: one line each, and little memory."""

import contextlib
import functools
import io
import json
import pathlib
import tempfile
import tracemalloc
import zipfile
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ws_jax import weights
from ws_jax.weights import __main__ as command
from ws_jax.weights import convert, formats

ARRAYS = {
  "stem/kernel": np.full((3, 3, 2, 4), 0.5, np.float32),
  "stem/bias": np.zeros(4, np.float32),
  "head/kernel": np.ones((4, 2), np.float16),
}
# Of a ResNet-18 of timm, so that `import` comes as far as its arrays.
PUBLISHED = {
  "conv1.weight": np.ones((64, 3, 7, 7), np.float16),
  "fc.weight": np.ones((2, 512), np.float32),
  "fc.bias": np.ones(2, np.float32),
}
SKIP = ("params/stage*", "params/stem_norm/*", "batch_stats/*")
FAST = settings(
  max_examples=8,
  deadline=None,
  derandomize=True,
  database=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SLOW = settings(FAST, max_examples=4000, derandomize=False)


def whole(suffix, arrays):
  """Returns the bytes of a file as this package writes it."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, f"x{suffix}")
    weights.write_params(path, arrays)
    return path.read_bytes()


WHOLE = [
  (suffix, whole(suffix, arrays))
  for suffix in (".npz", ".safetensors")
  for arrays in (ARRAYS, ARRAYS, PUBLISHED)
]


def commands(data, suffix, folder):
  """Runs the commands on a file; any end but 0 or one line is an error."""
  path, out = pathlib.Path(folder, f"x{suffix}"), pathlib.Path(folder, "o.npz")
  path.write_bytes(data)
  for arguments in (
    ["describe", path],
    ["fold", path, out, "--convention=bit"],
    ["fold", path, out, "--preset=bit"],
    ["import", path, out, "--model=resnet18", *(f"--skip={x}" for x in SKIP)],
    ["publish", path, out, "--layout=timm"],
  ):
    out.unlink(missing_ok=True)
    said, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(error):
      rc = command.main([str(a) for a in arguments])
    lines = error.getvalue().count("\n")
    assert (rc, lines) in [(0, 0), (2, 1)], error.getvalue()
    assert out.exists() == (rc == 0 and "describe" not in arguments)


@st.composite
def damaged(draw):
  """Returns a file that was cut, flipped, mixed or lengthened."""
  suffix, data = draw(st.sampled_from(WHOLE))
  data = bytearray(data)
  for _ in range(draw(st.integers(1, 3))):
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    kind = draw(st.sampled_from(["flip", "cut", "insert", "copy", "number"]))
    if kind == "flip" and data:
      data[at] ^= 1 << draw(st.integers(0, 7))
    elif kind == "cut":
      del data[at : at + draw(st.integers(1, 400))]
    elif kind == "insert":
      data[at:at] = draw(st.binary(max_size=20))
    elif kind == "copy":
      data[at:at] = data[: draw(st.integers(0, len(data)))]
    else:
      size = draw(st.sampled_from([2, 4, 8]))
      number = draw(st.sampled_from([0, 1, 2**31, 2**63, 2**64 - 1]))
      data[at : at + size] = (number % 2 ** (8 * size)).to_bytes(size, "little")
  return suffix, bytes(data)


_NAMES = st.one_of(
  st.sampled_from(
    [*ARRAYS, "../../x/kernel", "/etc/passwd", "a.b", "a/b", "ws_jax", ""]
  ),
  st.text(max_size=6),
)
_JSON = st.recursive(
  st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 10),
    st.sampled_from([2**31, 2**63, 10**30, -1, float("nan"), 1e300]),
    st.sampled_from(["F32", "BF16", "F8_E4M3", "I64", "x", ""]),
  ),
  lambda inner: st.one_of(
    st.lists(inner, max_size=4),
    st.dictionaries(
      st.sampled_from(["dtype", "shape", "data_offsets", "ws_jax"]), inner
    ),
  ),
  max_leaves=8,
)


@st.composite
def tensors(draw):
  """Returns a safetensors file of any header, with a few bytes of data."""
  entry = st.one_of(
    _JSON,
    st.fixed_dictionaries(
      {
        "dtype": st.sampled_from(["F32", "F16", "U8", "F8_E5M2"]),
        "shape": st.lists(st.integers(0, 4), max_size=5),
        "data_offsets": st.lists(st.integers(0, 64), min_size=2, max_size=2),
      }
    ),
  )
  header = draw(st.dictionaries(_NAMES, entry, max_size=4))
  if draw(st.booleans()):
    note = draw(
      st.one_of(
        _JSON,
        st.builds(
          json.dumps,
          st.fixed_dictionaries(
            {
              "folded": _JSON,
              "convention": st.dictionaries(
                st.sampled_from(
                  ["ddof", "eps", "eps_place", "min_fan_in", "no"]
                ),
                _JSON,
              ),
            }
          ),
        ),
      )
    )
    header["__metadata__"] = {"ws_jax": note}
  text = json.dumps(header).encode()
  return len(text).to_bytes(8, "little") + text + bytes(64)


@st.composite
def archives(draw):
  """Returns an npz file of any members, some with headers that lie."""
  made = io.BytesIO()
  method = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
  with zipfile.ZipFile(made, "w", method) as archive:
    for name in draw(st.lists(_NAMES, max_size=4, unique=True)):
      dtype = draw(
        st.sampled_from(
          [
            "<f4",
            ">f4",
            "<f2",
            "<f8",
            "|O",
            "<c8",
            "|S3",
            "<U2",
            "|V2",
            "<M8[s]",
            "|b1",
            "<i8",
            "<f16",
            "|S0",
            "<q9",
            "[('a','<f4')]",
          ]
        )
      )
      shape = draw(
        st.lists(st.sampled_from([0, 1, 2, 3, -1, 2**31, 10**30]), max_size=4)
      )
      shape = tuple(shape)
      head = repr({"descr": dtype, "fortran_order": False, "shape": shape})
      if draw(st.integers(0, 5)) == 0:
        head = draw(st.text(max_size=30))
      text = head.encode("utf-8", "replace") + b"\n"
      body = b"\x93NUMPY" + bytes(
        [draw(st.sampled_from([1, 1, 1, 2, 3, 9])), 0]
      )
      body += len(text).to_bytes(2, "little") + text
      size = draw(st.sampled_from([0, 1, 16, 64]))
      if 0 < np.prod(shape, dtype=float) < 99 and draw(st.booleans()):
        with contextlib.suppress(TypeError):
          size = int(np.prod(shape)) * np.dtype(dtype).itemsize
      archive.writestr(f"{name}.npy", body + bytes(size))
  return made.getvalue()


def _fuzz(examples):
  @examples
  @given(damaged())
  def bytes_(one):
    with tempfile.TemporaryDirectory() as folder:
      commands(one[1], one[0], folder)

  @examples
  @given(tensors())
  def headers(data):
    with tempfile.TemporaryDirectory() as folder:
      commands(data, ".safetensors", folder)

  @examples
  @given(archives())
  def members(data):
    with tempfile.TemporaryDirectory() as folder:
      commands(data, ".npz", folder)

  # The shapes of a model take a second.
  shapes = functools.cache(convert._shapes)
  with mock.patch.object(convert, "_shapes", shapes):
    bytes_()
    headers()
    members()


def test_no_damaged_file_ends_in_a_traceback():
  _fuzz(FAST)


@pytest.mark.slow
def test_no_damaged_file_ends_in_a_traceback_in_many_tries():
  _fuzz(SLOW)


def npy(dtype, shape, size):
  """Returns the bytes of an .npy file that holds `size` bytes of zeros."""
  head = repr({"descr": dtype, "fortran_order": False, "shape": shape})
  text = head.encode() + b"\n"
  return (
    b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(size)
  )


def npz(path, members, method=zipfile.ZIP_STORED):
  with zipfile.ZipFile(path, "w", method) as archive:
    for name, data in members:
      archive.writestr(name, data)
  return path


def safetensors(path, header, size=64):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
  return path


def tensor(begin, end, shape, dtype="U8"):
  return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda p: npz(p, [("a.npy", npy("<f4", (10**9,), 8))]), "8 bytes for"),
    (lambda p: npz(p, [("a.npy", npy("<f4", (-2,), 8))]), "8 bytes for"),
    (lambda p: npz(p, [("a.npy", npy("|O", (1,), 8))]), "need pickle"),
    (lambda p: npz(p, [("a.npy", npy("<f16", (1,), 16))]), "floats to 64 bits"),
    (
      lambda p: npz(p, [("\x1b[2J.npy", npy("<f4", (1,), 4))]),
      "name '.x1b",
    ),
    (
      lambda p: npz(
        p, [("a.npy", npy("<f4", (1,), 4)), ("a", npy("<f4", (1,), 4))]
      ),
      "two arrays of the name 'a'",
    ),
    (
      lambda p: npz(
        p, [("a.b.npy", npy("<f4", (1,), 4)), ("a/b.npy", npy("<f4", (1,), 4))]
      ),
      "two arrays of the path 'a/b'",
    ),
  ],
)
def test_an_archive_that_lies_is_refused(tmp_path, make, message):
  """A lie cost memory or a traceback; of two arrays one was lost in silence."""
  with pytest.raises(ValueError, match=message):
    weights.read_params(make(tmp_path / "x.npz"))


@pytest.mark.parametrize(
  ("header", "message"),
  [
    ({"a": tensor(0, 9, [9]), "b": tensor(8, 10, [2])}, "bytes 8 to 10"),
    ({"a": tensor(0, 65, [65])}, "bytes 0 to 65 of 64"),
    ({"a": tensor(0, 2, "2")}, "bytes 0 to 2"),
    ({"a": tensor(0, 1, [1] * 65)}, "bytes 0 to 1"),
    ({"a": tensor(0, 1, [1.0])}, "bytes 0 to 1"),
    ({"a": {"dtype": ["F32"], "shape": [], "data_offsets": [0, 4]}}, "damaged"),
    (b'{"a": 1, "a": 2}', "two arrays of the name 'a'"),
    (b"[" * 10**5, "damaged header"),
  ],
)
def test_a_header_that_lies_is_refused(tmp_path, header, message):
  path = safetensors(tmp_path / "x.safetensors", header)
  with pytest.raises(ValueError, match=message):
    weights.read_params(path)


def test_reading_takes_no_more_memory_than_a_file_can_hold(tmp_path):
  """Many arrays over the same bytes, and an archive of zeros in zeros."""
  size = 1 << 20
  many = {f"a{i}": tensor(0, size, [size]) for i in range(200)}
  overlapping = safetensors(tmp_path / "x.safetensors", many, size)
  bomb = npz(
    tmp_path / "x.npz",
    [(f"{i}.npy", npy("|u1", (size,), size)) for i in range(40)],
    zipfile.ZIP_DEFLATED,
  )
  assert bomb.stat().st_size < size / 8
  tracemalloc.start()
  try:
    with mock.patch.object(formats, "_LARGEST_UNPACKED", size):
      for path in (overlapping, bomb):
        with pytest.raises(ValueError, match=r"bytes 0 to|would unpack to"):
          weights.read_params(path)
    assert tracemalloc.get_traced_memory()[1] < 20 * size
  finally:
    tracemalloc.stop()
