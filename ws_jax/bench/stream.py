"""`input --source=stream`: images per second of the loaders, by workers.

Every contender reads the same JPEG files of ImageNet's sizes and gives bytes of
224x224 pixels, cropped by the same calls of Pillow; PyTorch's flip is done on
the device here. A call starts a loader, waits for its first batch, and times
those after it, so that no loader works while another is timed.
"""

import pathlib
import tempfile
import time
from collections.abc import Sequence

import numpy as np

from ws_jax.base import extras
from ws_jax.bench import Options, Table, timing
from ws_jax.bench.worker import Worker
from ws_jax.data import Request, stream
from ws_jax.data.stream import loader

_SIZE = 224
_BATCHES = 6
_ROUNDS = 5
# As in ImageNet: the middle size of its images, and bytes of a file.
_SHAPES = ((500, 375), (375, 500), (500, 333), (500, 400))
_QUALITY = 97
# Where Debian's packages of photographs put them.
_PHOTOGRAPHS = ("/usr/share/backgrounds", "/usr/share/wallpapers")


def run(options: Options) -> list[Table]:
  """Returns a table for each batch size and number of workers.

  Raises:
    ValueError: there are no photographs to cut the images from.
  """
  extras.need("stream", by="input --source=stream")
  places = options.photographs or _PHOTOGRAPHS
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder)
    files = cut(places, path / "train", options.examples)
    kilobytes = sum(file.stat().st_size for file in files) / len(files) / 1000
    title = f"{len(files)} JPEGs of {kilobytes:.0f} kB, {_SIZE}x{_SIZE}"
    return [
      _table(options, path, size, workers, title)
      for size in options.batch_sizes
      for workers in options.workers
    ]


class Loader:
  """A contender: loads some batches, and returns the seconds of one.

  Args:
    folder: Path of the folder with `train`.
    batch_size: Number of images of a batch.
    batches: Number of batches that are timed.
    workers: Number of workers.
    processes: Whether the workers are processes; else they are threads.
  """

  def __init__(
    self,
    folder: str,
    batch_size: int,
    batches: int,
    workers: int,
    processes: bool,
  ):
    self._options = stream.Options(
      image_size=_SIZE,
      workers=None if processes else workers,
      processes=workers if processes else 0,
    )
    wanted = Request(
      folder, eval_split="train", may_overlap=True, stream=self._options
    )
    self._stream = stream.open_stream(wanted)
    self._batch_size, self._batches, self._step = batch_size, batches, 0

  def __call__(self) -> float:
    examples = loader.TrainExamples(
      self._stream.records["train"],
      self._stream.parts[0],
      self._options,
      0,
      self._batch_size,
      np.arange(self._batch_size),
      self._step,
    )
    self._step += self._batches
    ready = loader.batches(examples, self._batch_size, self._options)
    next(ready)  # Until then the workers start.
    began = time.perf_counter()
    for _ in range(self._batches):
      next(ready)
    seconds = (time.perf_counter() - began) / self._batches
    ready.close()
    return seconds


def cut(
  places: Sequence[str], folder: pathlib.Path, count: int
) -> list[pathlib.Path]:
  """Cuts JPEG files of ImageNet's sizes out of photographs.

  Args:
    places: Paths of folders with photographs, at any depth.
    folder: Folder to write to, a folder for each of ten classes.
    count: Number of files.

  Raises:
    ValueError: there is no photograph of more than 1000 pixels a side.
  """
  import PIL.Image

  photographs = sorted(
    path for place in places for path in pathlib.Path(place).rglob("*.jpg")
  )
  large = []
  for path in photographs:
    try:
      with PIL.Image.open(path) as image:
        if min(image.size) >= 1000:
          large.append(image.convert("RGB"))
    except OSError:
      continue  # A link to elsewhere.
  if not large:
    raise ValueError(
      f"no photograph in {', '.join(places)}: name a folder by --photographs,"
      " or type apt-get install mate-backgrounds plasma-workspace-wallpapers"
    )
  rng = np.random.default_rng(0)
  files = []
  for i in range(count):
    image, (width, height) = large[i % len(large)], _SHAPES[i % len(_SHAPES)]
    scale = min(rng.uniform(1, 1.2), image.width / width, image.height / height)
    w, h = int(scale * width), int(scale * height)
    left = int(rng.integers(0, image.width - w + 1))
    top = int(rng.integers(0, image.height - h + 1))
    piece = image.resize((width, height), box=(left, top, left + w, top + h))
    file = folder / f"class{i % 10}" / f"{i}.jpg"
    file.parent.mkdir(parents=True, exist_ok=True)
    piece.save(file, quality=_QUALITY)
    files.append(file)
  return files


def _table(
  options: Options,
  folder: pathlib.Path,
  batch_size: int,
  workers: int,
  title: str,
) -> Table:
  """Compares loaders with one number of workers."""
  shared = {"batch_size": batch_size, "batches": _BATCHES, "workers": workers}
  kinds = {"threads": False, "processes": True}
  contenders: dict[str, timing.Contender] = {
    f"ws_jax, {name}": Loader(str(folder), **shared, processes=processes)
    for name, processes in kinds.items()
  }
  against = next(iter(contenders))
  with Worker(env={"XLA_FLAGS": None}) as torch:
    if "torch" in options.against:
      against = "PyTorch, bytes"
      shared |= {"folder": str(folder / "train"), "size": _SIZE}
      for name, normalize in (("bytes", False), ("normalized", True)):
        number = torch.make(
          "torch_input", "Loader", **shared, normalize=normalize
        )
        contenders[f"PyTorch, {name}"] = torch.contender(number)
    seconds = timing.interleave(contenders, options.rounds or _ROUNDS)
  rows = timing.rows(seconds, against, examples=batch_size)
  return Table(
    f"input, streamed: {title}, batch {batch_size}, workers: {workers}", rows
  )
