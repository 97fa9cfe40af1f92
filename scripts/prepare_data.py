"""Prepares a TFDS set, or a folder of audio or images, for training to read.

    python scripts/prepare_data.py cifar10
    python scripts/prepare_data.py fashion_mnist --from_debian
    python scripts/prepare_data.py cifar10 --manual_dir=FOLDER_WITH_THE_ARCHIVE
    python scripts/prepare_data.py spoken_digit --seconds=1
    python scripts/prepare_data.py --audio_folder=DIR --name=my_words
    python scripts/prepare_data.py --image_folder=DIR --name=my_images

An image folder holds a folder for each split, and in it one for each class. It
can be trained on as it is; packed into few large files (`--format=tar` or
array_record) it is read faster from a disk that many share.

An audio folder holds a folder of clips for each class. Neither needs
TensorFlow. TFDS does, for its builders; training then reads what they write
(array_record) without it. The builder and its checksums are those of TFDS,
wherever the files come from. Clips of a TFDS set, such as speech_commands, are
decoded here once, because that needs TensorFlow, too.
"""

import importlib.util
import os
import pathlib
import queue
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable

from absl import app, flags, logging

from ws_jax import data
from ws_jax.data import audio, audio_prepare, fashion_mnist, find, stream
from ws_jax.data.stream import prepare as prepare_images

_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Folder to put it in (default: the folder TFDS uses)."
)
_FROM_DEBIAN = flags.DEFINE_bool(
  "from_debian",
  False,
  "Take fashion_mnist from Debian's package.",
)
_MANUAL_DIR = flags.DEFINE_string(
  "manual_dir", None, "Folder with source files that you brought yourself."
)
_AUDIO_FOLDER = flags.DEFINE_string(
  "audio_folder", None, "Folder with a folder of audio files for each class."
)
_IMAGE_FOLDER = flags.DEFINE_string(
  "image_folder", None, "Folder with SPLIT/CLASS/ and images in it, to pack."
)
_FORMAT = flags.DEFINE_enum(
  "format", "array_record", prepare_images.KINDS, "Files to pack images into."
)
_NAME = flags.DEFINE_string(
  "name", None, "Name for data.name that the folder gets."
)
_SAMPLE_RATE = flags.DEFINE_integer(
  "sample_rate", None, "Samples of a second of audio; others are resampled."
)
_SECONDS = flags.DEFINE_float(
  "seconds", None, "Length that clips are padded or cut to."
)
_SPEAKER = flags.DEFINE_string(
  "speaker", None, "Pattern with one group: the speaker in a file's path."
)
_VAL_SPEAKERS = flags.DEFINE_list(
  "val_speakers", [], "Speakers for validation, where no file says the splits."
)
_TEST_SPEAKERS = flags.DEFINE_list(
  "test_speakers", [], "Speakers for the test, where no file says the splits."
)
_SKIP_UNREADABLE = flags.DEFINE_bool(
  "skip_unreadable", False, "Leave out audio files that cannot be read."
)
# absl takes `--data-dir` for another flag than `--data_dir`; people do not.
for _flag in ("data_dir", "from_debian", "manual_dir"):
  flags.DEFINE_alias(_flag.replace("_", "-"), _flag)

PROBE_SECONDS = 5.0


class PrepareError(Exception):
  """A reason to stop, in words for whoever typed the command."""


def install_debian_package() -> None:
  """Installs Debian's package unless its files are there.

  Raises:
    PrepareError: it cannot be installed from here; the message says what to
      type.
  """
  if fashion_mnist.debian_files_exist():
    return
  command = ["apt-get", "install", "-y", fashion_mnist.DEBIAN_PACKAGE]
  typed = shlex.join(command)
  if shutil.which("apt-get") is None:
    raise PrepareError(
      "--from_debian needs Debian or Ubuntu (there is no apt-get here): run "
      "without it to download the files, or put them in a folder and pass "
      "--manual_dir"
    )
  if os.geteuid() != 0:
    raise PrepareError(f"not root: type `sudo {typed}` first, then run again")
  logging.info("running %s", typed)
  # The lists of a fresh container are empty; a stale list is no reason to stop.
  subprocess.run(["apt-get", "update", "-qq"], check=False)
  if subprocess.run(command, check=False).returncode:
    raise PrepareError(f"`{typed}` failed, see its message above")


def reachable(urls: Iterable[str]) -> bool:
  """Returns whether any of the hosts answers, or the proxy in front of them.

  TFDS tries each file ten times with growing waits, and so takes minutes to say
  that there is no network; this takes seconds.
  """
  proxies = urllib.request.getproxies()
  hosts = set()
  for url in urls:
    scheme = urllib.parse.urlsplit(url).scheme
    parts = urllib.parse.urlsplit(proxies.get(scheme, url))
    default = 443 if parts.scheme == "https" else 80
    hosts.add((parts.hostname, parts.port or default))
  answers: queue.Queue[bool] = queue.Queue()

  def probe(host: tuple[str, int]) -> None:
    try:
      socket.create_connection(host, PROBE_SECONDS).close()
      answers.put(True)
    except OSError:
      answers.put(False)

  # Threads, because a name server that does not answer has no timeout here.
  for host in hosts:
    threading.Thread(target=probe, args=(host,), daemon=True).start()
  deadline = time.monotonic() + PROBE_SECONDS
  try:
    return any(
      answers.get(timeout=max(0.0, deadline - time.monotonic())) for _ in hosts
    )
  except queue.Empty:
    return False


def _refuse_downloads() -> None:
  """Makes each download fail at once; files that are there still serve."""
  import requests

  def refuse(self, request, **kwargs):
    raise requests.ConnectionError(f"no network, and {request.url} is needed")

  requests.Session.send = refuse


def wanted_files(builder) -> str:
  """Returns the list of a builder's source files, to bring them by hand."""
  lines = [
    f"  {info.filename or url.rsplit('/', 1)[-1]}  {int(info.size)} bytes  "
    f"sha256 {info.checksum}\n    {url}"
    for url, info in (builder.url_infos or {}).items()
  ]
  return "\n".join(lines)


def prepare(
  name: str, data_dir: pathlib.Path, manual_dir: pathlib.Path | None
) -> pathlib.Path:
  """Runs the TFDS builder of that name.

  Args:
    name: `set`, `set/config` or `set/config:version`, as TFDS writes it.
    data_dir: the folder of all prepared sets.
    manual_dir: a folder with source files, searched before any download.

  Returns:
    The folder of the prepared set.

  Raises:
    PrepareError: the name is unknown, there is no network, source files are
      missing, or an interrupted preparation is in the way.
  """
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder(
      name, data_dir=data_dir, file_format="array_record", try_gcs=False
    )
  except tfds.core.DatasetNotFoundError:
    raise PrepareError(data.unknown_name(name, data_dir)) from None
  except (AssertionError, ValueError) as error:  # Its config or its version.
    # The sentence behind the arguments, and before the list of alternatives.
    reason = str(error).rpartition('}": ')[2].partition(". ")[0]
    raise PrepareError(f"TFDS has no {name!r}: {reason}") from error
  prepared = pathlib.Path(builder.data_path)
  if prepared.exists():
    if not (prepared / "dataset_info.json").exists():
      raise PrepareError(
        f"{prepared} is left from an interrupted preparation: delete it and "
        "run again"
      )
    logging.info("%s is there already: %s", name, prepared)
    return prepared
  urls = list(builder.url_infos or {})
  offline = bool(urls) and not reachable(urls)
  if offline:
    _refuse_downloads()
  config = tfds.download.DownloadConfig(
    manual_dir=str(manual_dir) if manual_dir else None
  )
  try:
    builder.download_and_prepare(
      download_config=config, file_format="array_record"
    )
  except (OSError, tfds.download.DownloadError) as error:
    why = f"the files of {name} could not be downloaded: {error}"
    if offline:
      why = (
        f"no network: none of the hosts of {name} answered within "
        f"{PROBE_SECONDS:.0f} s ({error})"
      )
    raise PrepareError(
      f"{why}. If you have these files, put them in a folder and pass it as "
      f"--manual_dir:\n{wanted_files(builder)}"
    ) from error
  except tfds.download.download_manager.NonMatchingChecksumError as error:
    raise PrepareError(str(error)) from error
  except ImportError as error:  # TFDS leaves the decoder of audio to the user.
    raise PrepareError(
      f"{name} needs a package that is missing ({str(error).splitlines()[0]}):"
      f" type {install_command()}"
    ) from error
  except AssertionError as error:  # How TFDS says "bring the files yourself".
    raise PrepareError(str(error)) from error
  return prepared


def run(name: str) -> None:
  """Prepares the set, then decodes it once to see that it can be read."""
  data_dir = pathlib.Path(_DATA_DIR.value or data.default_data_dir())
  data_dir = data_dir.expanduser()
  manual_dir = None
  if _MANUAL_DIR.value:
    manual_dir = pathlib.Path(_MANUAL_DIR.value).expanduser()
    if not manual_dir.is_dir():
      raise PrepareError(f"--manual_dir {manual_dir} is not a folder")
  if _FROM_DEBIAN.value and name != "fashion_mnist":
    raise PrepareError(
      f"--from_debian has fashion_mnist only, not {name!r}: run without it"
    )
  wants_audio = any(
    flag.value is not None for flag in (_SAMPLE_RATE, _SECONDS, _SPEAKER)
  )
  if wants_audio or not is_ready(name, data_dir):
    check_name(name, data_dir)
    check_tensorflow()
    if _FROM_DEBIAN.value:
      install_debian_package()
      with tempfile.TemporaryDirectory() as folder:
        fashion_mnist.restore_official_files(pathlib.Path(folder))
        prepare(name, data_dir, pathlib.Path(folder))
    else:
      folder = prepare(name, data_dir, manual_dir)
      if audio.is_set(folder):
        print(decode_audio(folder))
        return
      if wants_audio:
        raise PrepareError(
          f"{name} is no set of audio: --sample_rate, --seconds and --speaker"
          " do not apply"
        )
  try:
    if (clips := decoded(name, data_dir)) is not None:
      print(f"{audio_prepare.describe(name, audio.read(clips))}: {clips}")
      return
    info = data.load(data.Request(name, dir=str(data_dir))).info
  except data.DataError as error:
    try:
      said = _streamed(name, data_dir)
    except ValueError:  # Also without the extra.
      said = f"{name} is prepared, but does not suit ws_jax: {error}"
    print(said)
    return
  shape = "x".join(map(str, info.input_shape))
  kind = "images" if info.input_dtype == "uint8" else "examples"
  classes = f", {info.num_classes} classes" if info.num_classes else ""
  print(
    f"{name} is ready: {info.train_size} train and {info.eval_size} test "
    f"{kind} of {shape}{classes}"
  )


def run_images(folder: pathlib.Path, name: str | None) -> None:
  """Packs a folder of images."""
  if not name:
    raise PrepareError("--image_folder needs --name=NAME, for data.name")
  data_dir = pathlib.Path(_DATA_DIR.value or data.default_data_dir())
  data_dir = data_dir.expanduser()
  prepare_images.prepare_folder(
    folder, name, data_dir=data_dir, kind=_FORMAT.value
  )
  print(_streamed(name, data_dir))


def _streamed(name: str, data_dir: pathlib.Path) -> str:
  """Returns a sentence about a set that is to be streamed.

  Raises:
    DataError: it cannot be streamed.
  """
  split, info = None, None
  # Splits may have any name, and the test of ImageNet has no labels.
  for split in ("validation", None, "train"):
    wanted = data.Request(
      name,
      dir=str(data_dir),
      eval_split=split,
      stream=stream.Options(),
      may_overlap=True,
    )
    try:
      info = data.read_info(wanted)
      break
    except data.DataError:
      if split == "train":
        raise
  assert info is not None
  return (
    f"{name} is ready for data.source=stream: {info.train_size} train and "
    f"{info.eval_size} {split or 'test'} images, {info.num_classes} classes"
  )


def decode_audio(folder: pathlib.Path) -> str:
  """Decodes a set of clips that TFDS prepared, as the flags say.

  Args:
    folder: Folder of the prepared version.

  Returns:
    A sentence that says what is there.
  """
  return audio_prepare.prepare_set(
    folder,
    sample_rate=_SAMPLE_RATE.value,
    seconds=_SECONDS.value,
    speaker=_SPEAKER.value,
  )


def decoded(name: str, data_dir: pathlib.Path) -> pathlib.Path | None:
  """Returns the folder of a set whose clips are decoded; None without them."""
  folder = find.find(data_dir, name)
  if folder is None or not (folder / audio.FILE_NAME).is_file():
    return None
  return folder


def run_audio(folder: pathlib.Path, name: str | None) -> None:
  """Decodes a folder of audio files, once."""
  if not name:
    raise PrepareError("--audio_folder needs --name=NAME, for data.name")
  data_dir = pathlib.Path(_DATA_DIR.value or data.default_data_dir())
  said = audio_prepare.prepare_folder(
    folder,
    name,
    data_dir=data_dir.expanduser(),
    sample_rate=_SAMPLE_RATE.value,
    seconds=_SECONDS.value,
    speaker=_SPEAKER.value,
    val_speakers=_VAL_SPEAKERS.value,
    test_speakers=_TEST_SPEAKERS.value,
    skip_unreadable=_SKIP_UNREADABLE.value,
  )
  print(said)


def is_ready(name: str, data_dir: pathlib.Path) -> bool:
  """Returns whether the set is there already, so that nothing is needed."""
  try:
    # Clips of a single split are ready, too, although a request must say which
    # speaker is left out.
    if decoded(name, data_dir) is None:
      data.read_info(data.Request(name, dir=str(data_dir)))
  except data.DataError:
    try:
      _streamed(name, data_dir)
    except ValueError:  # Also without the extra.
      return False
  return True


def check_name(name: str, data_dir: pathlib.Path) -> None:
  """Checks that TFDS has a set of that name, before anything else is needed.

  Raises:
    PrepareError: it has none; the message names the nearest.
  """
  base, _, rest = name.partition(":")
  namespaced = bool(rest) and not rest[0].isdigit()  # TFDS asks the network.
  if not namespaced and base.partition("/")[0] not in data.tfds_names():
    raise PrepareError(data.unknown_name(name, data_dir))


def check_tensorflow() -> None:
  """Raises PrepareError with how to get TensorFlow, where it is missing."""
  if importlib.util.find_spec("tensorflow") is None:
    raise PrepareError(
      "TensorFlow is needed to prepare data (not to train). Type: "
      f"{install_command()}"
    )


def install_command() -> str:
  """Returns the command that installs what preparing TFDS sets needs."""
  root = pathlib.Path(__file__).resolve().parent.parent
  return (
    f"{shlex.quote(sys.executable)} -m pip install "
    f"-e {shlex.quote(f'{root}[tf]')}"
  )


def main(argv: list[str]) -> None:
  folders = [x for x in (_AUDIO_FOLDER.value, _IMAGE_FOLDER.value) if x]
  if len(folders) > 1 or len(argv) != (1 if folders else 2):
    raise app.UsageError(
      "give the name of one set: prepare_data.py NAME; or --audio_folder=DIR"
      " or --image_folder=DIR, and --name=NAME"
    )
  # TensorFlow logs at length which processor features it could use.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  try:
    if _AUDIO_FOLDER.value:
      run_audio(pathlib.Path(_AUDIO_FOLDER.value).expanduser(), _NAME.value)
    elif _IMAGE_FOLDER.value:
      run_images(pathlib.Path(_IMAGE_FOLDER.value).expanduser(), _NAME.value)
    else:
      run(argv[1])
  except (PrepareError, data.DataError) as error:
    sys.exit(f"prepare_data: {error}")


if __name__ == "__main__":
  app.run(main)
