"""How images are streamed: the keys of `config.data` that only a stream has."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Options:
  """Settings of a stream; hashable.

  Attributes:
    image_size: the pixels of a side of what the model sees.
    eval_resize: the pixels that the shorter side is resized to before the
      central crop of evaluation.
    crop_area: the smallest part of an image that a random crop may keep.
    rand_augment: the number of operations of RandAugment; 0 for none.
    rand_augment_strength: their strength, from 0 to 30.
    workers: the threads that decode in each process; None for one a core, and
      for one in each worker process.
    processes: the worker processes; 0 to decode in threads of this process,
      which share Python's lock: a few thousand images a second. A program that
      sets this needs `if __name__ == "__main__":`, as each of them imports it.
    on_error: "raise", or "skip" to go on without what cannot be read.
  """

  image_size: int = 224
  eval_resize: int = 256
  crop_area: float = 0.08
  rand_augment: int = 0
  rand_augment_strength: float = 9.0
  workers: int | None = None
  processes: int = 0
  on_error: str = "raise"
