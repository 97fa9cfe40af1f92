"""PyTorch's DataLoader on the same files, in a process of its own.

The transforms are the calls of Pillow that torchvision's `RandomResizedCrop`
and `RandomHorizontalFlip` make for PIL images; torchvision is not needed.
"""

import math
import pathlib
import random
import time

import numpy as np
import PIL.Image
import torch
import torch.utils.data


class Images(torch.utils.data.Dataset):
  """The images of a folder, `CLASS/*.jpg`, cropped at random.

  Args:
    folder: Path of the folder.
    size: Pixels of a side.
    normalize: Whether they become floats, channels first, as torchvision's
      `ToTensor` and `Normalize` leave them; else they stay bytes as ours do.
  """

  def __init__(self, folder: str, size: int, normalize: bool):
    self._files = sorted(pathlib.Path(folder).glob("*/*.jpg"))
    self._size, self._normalize = size, normalize
    self._mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    self._std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
    with open(self._files[index], "rb") as file:
      image = PIL.Image.open(file).convert("RGB")
    image = image.crop(_window(*image.size))
    size = (self._size, self._size)
    image = image.resize(size, PIL.Image.Resampling.BILINEAR)
    if random.random() < 0.5:
      image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(image))
    if self._normalize:
      pixels = pixels.permute(2, 0, 1).contiguous().float().div(255)
      pixels = pixels.sub(self._mean).div(self._std)
    return pixels, index % 10


class Loader:
  """A contender: loads some batches, and returns the seconds of one.

  Args:
    folder: Path of the folder with a folder for each class.
    size: Pixels of a side.
    batch_size: Number of images of a batch.
    batches: Number of batches that are timed.
    workers: Number of worker processes.
    normalize: As for `Images`.
  """

  def __init__(
    self,
    folder: str,
    size: int,
    batch_size: int,
    batches: int,
    workers: int,
    normalize: bool,
  ):
    images = Images(folder, size, normalize)
    self._batches = batches
    sampler = torch.utils.data.RandomSampler(
      images, replacement=True, num_samples=batch_size * (batches + 4)
    )
    self._loader = torch.utils.data.DataLoader(
      images, batch_size, sampler=sampler, num_workers=workers
    )

  def __call__(self) -> float:
    ready = iter(self._loader)
    next(ready)  # Until then the workers start.
    began = time.perf_counter()
    for _ in range(self._batches):
      next(ready)
    return (time.perf_counter() - began) / self._batches


def _window(width: int, height: int) -> tuple[int, int, int, int]:
  """Returns a random part, as `ws_jax.data.stream.crops.random_window`."""
  for _ in range(10):
    area = width * height * random.uniform(0.08, 1.0)
    ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
    w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if 0 < w <= width and 0 < h <= height:
      left, top = random.randint(0, width - w), random.randint(0, height - h)
      return left, top, left + w, top + h
  return 0, 0, width, height
