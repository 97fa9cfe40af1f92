"""Strategies for texts, JSON, damaged bytes, archives and images."""

import contextlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import PIL.Image
from hypothesis import strategies as st

# A strategy, and the function that runs a case.
Made = tuple[st.SearchStrategy[Any], Callable[[Any], None]]


@contextlib.contextmanager
def one_line(*errors: type[Exception]) -> Iterator[None]:
  """Ends a case that raises one of the errors that a command expects."""
  with contextlib.suppress(*errors):
    yield


# Texts that mean something to a parser, a shell, a path, a terminal or a page.
TEXTS = st.one_of(
  st.sampled_from(
    [
      *("", " ", "0", "-1", "1e400", "1e999999999", "1/0", "nan", "inf"),
      *("none", "true", "(1, 2)", "{[]: 1}", "[" * 300, "(" * 9000, "9" * 5000),
      *("{'a': 1}", "{1: 2}", "../../x", "/etc/passwd", "a/b", ".", "~", "\0"),
      *("<script>alert(1)</script>", '"><img src=x onerror=a>', "</script>"),
      *("$title", "${x}", "javascript:a", "\x1b[2J", "\ud800", "\u2028", "%s"),
      *("=1+1", "a|b", "$\\frac{", "math:sqrt", "no.such:thing", "a" * 300),
    ]
  ),
  st.text(max_size=8),
)
# What a JSON file can hold.
NUMBERS = st.one_of(
  st.integers(-5, 300),
  st.floats(),
  st.sampled_from([2**31, 2**63, 10**30, 10**400, -1, 0.5, 1e300, 1e-320]),
)
JSON = st.recursive(
  st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
  lambda inner: st.one_of(
    st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)
  ),
  max_leaves=6,
)


# What is nested too deep for a parser, or too long for a number or a cell.
DEEP = st.sampled_from([b"[" * 10**5, b'{"a":' * 10**5, b"1" * 5000])
DEEP |= st.just(b'"' + b"a" * 200_000)


@st.composite
def changed(draw, value: Any) -> Any:
  """Returns a JSON value in which something is another, missing or more."""
  if isinstance(value, dict) and value and draw(st.integers(0, 9)):
    value, key = dict(value), draw(st.sampled_from(sorted(value)))
    if draw(st.integers(0, 9)) == 0:
      del value[key]
    else:
      value[key] = draw(changed(value[key]))
    return value
  if isinstance(value, list) and value and draw(st.integers(0, 3)):
    value, i = list(value), draw(st.integers(0, len(value) - 1))
    value[i] = draw(changed(value[i]))
    return value
  return draw(JSON)


@st.composite
def damaged(draw, whole: bytes) -> bytes:
  """Returns bytes that were cut, flipped, mixed or lengthened."""
  data = bytearray(whole)
  for _ in range(draw(st.integers(1, 3))):
    end = max(len(data) - 1, 0)
    at = draw(st.integers(0, min(end, 64)) | st.integers(0, end))
    kind = draw(
      st.sampled_from(["flip", "cut", "end", "more", "copy", "number"])
    )
    if kind == "flip" and data:
      data[at] ^= 1 << draw(st.integers(0, 7))
    elif kind == "cut":
      del data[at : at + draw(st.integers(1, 400))]
    elif kind == "end":
      del data[at:]
    elif kind == "more":
      data[at:at] = draw(st.binary(max_size=20))
    elif kind == "copy":
      data[at:at] = data[: draw(st.integers(0, len(data)))]
    elif kind == "number":
      size = draw(st.sampled_from([1, 2, 4, 8]))
      number = draw(st.sampled_from([0, 1, 2**31 - 1, 2**63, 2**64 - 1]))
      order = draw(st.sampled_from(["little", "big"]))
      data[at : at + size] = (number % 2 ** (8 * size)).to_bytes(size, order)
  return bytes(data)


def some_arrays(size: int = 6) -> dict[str, np.ndarray]:
  """Returns the arrays of a tiny set of images."""
  rng = np.random.default_rng(0)
  made: dict[str, np.ndarray] = {}
  for split, count in (("train", 12), ("test", 8)):
    shape = (count, size, size, 1)
    made[f"{split}_x"] = rng.integers(0, 255, shape).astype(np.uint8)
    made[f"{split}_y"] = np.arange(count, dtype=np.int32) % 4
  return made


_DTYPES = (
  *("<f4", ">f4", "<f2", "<f8", "|O", "<c8", "|S3", "<U2", "|V2", "|b1", "<i8"),
  *("<M8[s]", "|u1", "<i4", "<f16", "|S0", "<q9", "[('a','<f4')]"),
)


def _npy(draw: Any) -> bytes:
  """Returns an .npy file whose header may lie."""
  dtype = draw(st.sampled_from(_DTYPES))
  shape = tuple(
    draw(st.lists(st.sampled_from([0, 1, 2, 3, -1, 2**31, 10**30]), max_size=4))
  )
  head = repr({"descr": dtype, "fortran_order": False, "shape": shape})
  if draw(st.integers(0, 5)) == 0:
    head = draw(TEXTS)
  text = head.encode("utf-8", "replace")[:9000] + b"\n"
  version = draw(st.sampled_from([1, 1, 1, 2, 3, 9]))
  body = b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2, "little")
  size = draw(st.sampled_from([0, 1, 16, 64]))
  if 0 < np.prod(shape, dtype=float) < 99 and draw(st.booleans()):
    with contextlib.suppress(TypeError):
      size = int(np.prod(shape)) * np.dtype(dtype).itemsize
  return body + text + bytes(size)


@st.composite
def archives(draw, names: st.SearchStrategy[str]) -> bytes:
  """Returns an npz file of any members, some with headers that lie."""
  made = io.BytesIO()
  method = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
  with zipfile.ZipFile(made, "w", method) as archive:
    for name in draw(st.lists(names, max_size=5, unique=True)):
      with contextlib.suppress(IndexError, UnicodeEncodeError):  # "\0"
        archive.writestr(f"{name}.npy", _npy(draw))
  return made.getvalue()


_MEMBERS = ["stem/kernel", "stem/bias", "../../x/kernel", "/etc/passwd", "a.b"]
NAMES = st.sampled_from([*_MEMBERS, "a/b", "ws_jax", ""]) | st.text(max_size=6)


@st.composite
def tensors(draw) -> bytes:
  """Returns a safetensors file of any header, with a few bytes of data."""
  entry = JSON | st.fixed_dictionaries(
    {
      "dtype": st.sampled_from(["F32", "F16", "U8", "F8_E5M2", "BF16", "I64"]),
      "shape": st.lists(st.integers(0, 4), max_size=5),
      "data_offsets": st.lists(st.integers(0, 64), min_size=2, max_size=2),
    }
  )
  header = draw(st.dictionaries(NAMES, entry, max_size=4))
  fields = ["ddof", "eps", "eps_place", "min_fan_in", "no"]
  note = {
    "folded": JSON,
    "convention": st.dictionaries(st.sampled_from(fields), JSON),
  }
  if draw(st.booleans()):
    text = JSON | st.fixed_dictionaries(note).map(json.dumps)
    header["__metadata__"] = {"ws_jax": draw(text)}
  text = json.dumps(header).encode()
  return len(text).to_bytes(8, "little") + text + bytes(64)


def as_json(value: Any) -> bytes:
  """Returns a value as a JSON file; a surrogate as an escape."""
  return json.dumps(value).encode("utf-8", "replace")


def as_lines(value: Any) -> bytes:
  """Returns a value as a file of JSON lines."""
  if isinstance(value, list):
    return b"\n".join(map(as_json, value))
  return as_json(value)


def pictures() -> list[bytes]:
  """Returns small images as files of several kinds."""
  pixels = np.random.default_rng(0).integers(0, 255, (9, 7, 3)).astype(np.uint8)
  colour = PIL.Image.fromarray(pixels)
  found = []
  for image, how in (
    (colour, {"format": "JPEG"}),
    (colour, {"format": "JPEG", "progressive": True, "exif": b"Exif\0\0MM\0*"}),
    (colour.convert("L"), {"format": "JPEG"}),
    (colour, {"format": "PNG"}),
    (colour.convert("P"), {"format": "PNG"}),
    (colour.convert("L"), {"format": "PNG"}),
    (colour.convert("CMYK"), {"format": "JPEG"}),
    (colour, {"format": "GIF"}),
    (colour, {"format": "TIFF"}),
    (colour, {"format": "WEBP"}),
    (colour, {"format": "BMP"}),
  ):
    file = io.BytesIO()
    options: Any = how
    image.save(file, **options)
    found.append(file.getvalue())
  found.append(
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
  )
  return found
