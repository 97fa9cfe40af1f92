"""Damaged and hostile files of weights: one line each, and little memory.

`test_fuzz.py` makes more of them, at random.
"""

import json
import tracemalloc
import zipfile
from unittest import mock

import numpy as np
import pytest

from ws_jax import weights
from ws_jax.weights import formats


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
    with mock.patch.object(formats, "LARGEST_UNPACKED", size):
      for path in (overlapping, bomb):
        with pytest.raises(ValueError, match=r"bytes 0 to|would unpack to"):
          weights.read_params(path)
    assert tracemalloc.get_traced_memory()[1] < 20 * size
  finally:
    tracemalloc.stop()


def test_a_checkpoint_whose_shapes_lie_takes_no_memory(tmp_path):
  """Orbax fills what it does not find in its files, whatever the size."""
  from orbax.checkpoint import v1 as ocp

  kernel = np.ones((2, 3), np.float32)
  ocp.save(str(tmp_path / "1"), {"params": {"kernel": kernel}})
  assert weights.read_params(tmp_path / "1")["kernel"].shape == (2, 3)
  with mock.patch.object(formats, "LARGEST_UNPACKED", -(10**9)):
    with pytest.raises(ValueError, match="would take 24 bytes"):
      weights.read_params(tmp_path / "1")
