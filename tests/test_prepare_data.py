"""The scripts that prepare data, as far as they go without TensorFlow."""

import gzip
import hashlib
import importlib.util
import io
import pathlib
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest

from ws_jax import data
from ws_jax.data import audio, fashion_mnist

ROOT = pathlib.Path(__file__).parents[1]


def _load(name):
  path = ROOT / "scripts" / f"{name}.py"
  spec = importlib.util.spec_from_file_location(f"scripts_{name}", path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


prepare_data = _load("prepare_data")
make_subset = _load("make_fashion_mnist_10k")

needs_debian = pytest.mark.skipif(
  not fashion_mnist.debian_files_exist(),
  reason=f"Debian's package {fashion_mnist.DEBIAN_PACKAGE} is not installed",
)


def _run(script, *arguments, **kwargs):
  return subprocess.run(
    [sys.executable, f"scripts/{script}.py", *arguments],
    cwd=ROOT,
    env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
    **kwargs,
  )


def _plain_gzip(content: bytes, mtime: int) -> bytes:
  body = zlib.compressobj(wbits=-15)
  packed = body.compress(content) + body.flush()
  trailer = zlib.crc32(content).to_bytes(4, "little")
  trailer += len(content).to_bytes(4, "little")
  return (
    b"\x1f\x8b\x08\x00"
    + mtime.to_bytes(4, "little")
    + b"\0\3"
    + packed
    + trailer
  )


def test_gzip_header_is_put_back():
  content = b"some labels" * 100
  debian = _plain_gzip(content, mtime=1)
  restored = fashion_mnist.restore_gzip_header(debian, "labels.gz", 1504176606)
  assert gzip.decompress(restored) == content
  assert restored[4:8] == (1504176606).to_bytes(4, "little")
  assert restored[10:17] == b"labels\0"
  assert restored[17:] == debian[10:]


def test_other_files_are_refused():
  named = gzip.compress(b"x")
  named = named[:3] + b"\x08" + named[4:]
  for packed in (b"not gzip at all", named, b""):
    with pytest.raises(data.DataError, match="plain gzip header"):
      fashion_mnist.restore_gzip_header(packed, "labels.gz", 0)


@needs_debian
def test_restored_files_have_the_checksums_of_tfds(tmp_path):
  import tensorflow_datasets as tfds

  fashion_mnist.restore_official_files(tmp_path)
  builder = tfds.builder("fashion_mnist", data_dir=tmp_path / "data")
  expected = {
    info.filename: (info.checksum, int(info.size))
    for info in (builder.url_infos or {}).values()
  }
  assert expected.keys() == fashion_mnist.OFFICIAL_MTIMES.keys()
  for filename, (checksum, size) in expected.items():
    content = (tmp_path / filename).read_bytes()
    assert len(content) == size
    assert hashlib.sha256(content).hexdigest() == checksum


@needs_debian
def test_script_makes_the_bytes_of_the_embedded_set():
  arrays = make_subset.make_arrays(fashion_mnist.DEBIAN_DIR)
  with np.load(data.EMBEDDED_PATH, allow_pickle=False) as archive:
    assert list(archive) == list(arrays)
    for name, array in arrays.items():
      np.testing.assert_array_equal(archive[name], array)
  assert make_subset.npz_bytes(arrays) == data.EMBEDDED_PATH.read_bytes()


def test_subset_takes_the_first_of_each_class(monkeypatch):
  monkeypatch.setattr(make_subset, "NUM_CLASSES", 3)
  labels = np.array([2, 0, 0, 1, 2, 0, 2, 1, 1])
  keep = make_subset.first_of_each_class(labels, 2)
  assert keep.tolist() == [0, 1, 2, 3, 4, 7]


def test_bytes_of_the_subset_depend_on_the_arrays_alone():
  arrays = {"a": np.arange(6, dtype=np.uint8).reshape(2, 3)}
  content = make_subset.npz_bytes(arrays)
  # Golden: if this changes, so does the checksum in ws_jax/data/datasets.py.
  assert hashlib.sha256(content).hexdigest() == (
    "e31fed0e529624319f7483c877990363aedb72b84831b9bd045b14498a350c3b"
  )


def test_source_that_is_not_the_official_one_is_refused(tmp_path):
  name = "train-labels-idx1-ubyte"
  (tmp_path / f"{name}.gz").write_bytes(gzip.compress(b"\0\0\x08\x01"))
  with pytest.raises(ValueError, match="is not the official file"):
    make_subset.read_idx(tmp_path, name)


# What is said on the command line. None of these may take a download's time.


@pytest.mark.skipif(
  importlib.util.find_spec("tensorflow") is not None,
  reason="TensorFlow is installed, so nothing is missing",
)
def test_missing_tensorflow_is_one_clear_line(tmp_path):
  done = _run("prepare_data", "cifar10", f"--data_dir={tmp_path}")
  assert done.returncode == 1
  assert len(done.stderr.strip().splitlines()) == 1
  assert "TensorFlow is needed" in done.stderr
  assert "-m pip install -e" in done.stderr and "[tf]" in done.stderr


def test_wrong_flags_are_one_clear_line(tmp_path):
  for arguments, message in (
    (("cifar10", "--from-debian"), "fashion_mnist only, not 'cifar10'"),
    (("cifar10", "--manual-dir=/no/such"), "/no/such is not a folder"),
  ):
    done = _run("prepare_data", *arguments, f"--data-dir={tmp_path}")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert message in done.stderr


def test_an_unknown_name_is_one_line_with_the_nearest(tmp_path):
  # TFDS answers to `cifar-10` with 48 lines; without TensorFlow it was missed.
  done = _run("prepare_data", "cifar-10", f"--data_dir={tmp_path}")
  assert done.returncode == 1 and not done.stdout
  assert len(done.stderr.strip().splitlines()) == 1
  assert "unknown data set 'cifar-10': did you mean 'cifar10'" in done.stderr


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("no_such_set", "unknown data set 'no_such_set'"),
    ("cifar10/foo", "TFDS has no 'cifar10/foo': BuilderConfig foo not found"),
    ("cifar10:9.9.9", "TFDS has no 'cifar10:9.9.9': .* 9.9.9, only: "),
  ],
)
def test_what_tfds_does_not_have_is_one_line(tmp_path, name, message):
  with pytest.raises(prepare_data.PrepareError, match=message) as caught:
    prepare_data.prepare(name, tmp_path, None)
  assert "\n" not in str(caught.value)


def test_what_an_interruption_left_is_not_taken_for_a_set(tmp_path):
  import tensorflow_datasets as tfds

  left = pathlib.Path(tfds.builder("mnist", data_dir=tmp_path).data_path)
  left.mkdir(parents=True)
  with pytest.raises(prepare_data.PrepareError, match="interrupted") as caught:
    prepare_data.prepare("mnist", tmp_path, None)
  assert str(left) in str(caught.value)


def test_set_that_is_there_needs_no_tensorflow(tmp_path):
  done = _run("prepare_data", "fashion_mnist_10k", f"--data_dir={tmp_path}")
  assert done.returncode == 0, done.stderr
  assert "10000 train and 2000 test images of 28x28x1" in done.stdout


def test_clips_that_are_decoded_need_no_tensorflow(tmp_path):
  folder = tmp_path / "spoken_digit" / "1.0.9"
  folder.mkdir(parents=True)
  (folder / "dataset_info.json").write_text("{}")
  number = np.zeros(3, np.int32)
  clips = audio.Clips(
    *(np.ones((3, 8000), np.int16), number + 8000, number, number, number),
    *(("zero",), ("theo",), ("train",), 8000),
  )
  audio.write(folder, clips, "")
  done = _run("prepare_data", "spoken_digit", f"--data_dir={tmp_path}")
  assert done.returncode == 0, done.stderr
  assert "3 train clips of 1.00 s at 8000 Hz, 1 classes" in done.stdout


def test_a_decoder_that_tfds_lacks_is_one_line(tmp_path, monkeypatch):
  import tensorflow_datasets as tfds

  def fail(self, **_):
    raise ImportError("No module named 'pydub'\nand more")

  builder = tfds.builder("mnist", data_dir=tmp_path)
  monkeypatch.setattr(type(builder), "download_and_prepare", fail)
  monkeypatch.setattr(prepare_data, "reachable", lambda urls: True)
  with pytest.raises(
    prepare_data.PrepareError, match=r"missing \(No module .*\[tf\]"
  ) as caught:
    prepare_data.prepare("mnist", tmp_path, None)
  assert "\n" not in str(caught.value)


def test_debian_package_without_rights_says_what_to_type(monkeypatch, tmp_path):
  monkeypatch.setattr(fashion_mnist, "DEBIAN_DIR", tmp_path)
  monkeypatch.setattr(prepare_data.shutil, "which", lambda name: "/bin/apt-get")
  monkeypatch.setattr(prepare_data.os, "geteuid", lambda: 1000)
  with pytest.raises(
    prepare_data.PrepareError,
    match="sudo apt-get install -y dataset-fashion-mnist",
  ):
    prepare_data.install_debian_package()
  monkeypatch.setattr(prepare_data.shutil, "which", lambda name: None)
  with pytest.raises(prepare_data.PrepareError, match="Debian or Ubuntu"):
    prepare_data.install_debian_package()


def test_probe_gives_up_on_a_network_that_is_not_there(monkeypatch):
  calls = []

  def refuse(address, timeout):
    calls.append(address)
    raise OSError("no network")

  monkeypatch.setattr(prepare_data.urllib.request, "getproxies", dict)
  monkeypatch.setattr(prepare_data.socket, "create_connection", refuse)
  urls = [
    "https://a.example/x.zip",
    "http://b.example:81/y",
    "http://c.example",
  ]
  assert not prepare_data.reachable(urls)
  expected = {("a.example", 443), ("b.example", 81), ("c.example", 80)}
  assert set(calls) == expected


def test_probe_asks_the_proxy_where_there_is_one(monkeypatch):
  calls = []

  class Connection:
    def close(self):
      pass

  def answer(address, timeout):
    calls.append(address)
    return Connection()

  monkeypatch.setattr(
    prepare_data.urllib.request,
    "getproxies",
    lambda: {"https": "http://proxy.example:3128"},
  )
  monkeypatch.setattr(prepare_data.socket, "create_connection", answer)
  assert prepare_data.reachable(["https://a.example/x.zip"])
  assert calls == [("proxy.example", 3128)]


def test_probe_does_not_wait_for_a_silent_host(monkeypatch):
  never = threading.Event()

  def hang(address, timeout):
    never.wait(20)
    return io.BytesIO()  # One who waits this long hears that it answered.

  monkeypatch.setattr(prepare_data, "PROBE_SECONDS", 0.05)
  monkeypatch.setattr(prepare_data.socket, "create_connection", hang)
  assert not prepare_data.reachable(["http://a.example", "http://b.example"])
  never.set()
