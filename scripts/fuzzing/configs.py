"""Configurations: command lines, variants, overrides, saved configs."""

import pathlib
from typing import Any

import numpy as np
from hypothesis import strategies as st

from fuzzing.inputs import JSON, NUMBERS, TEXTS, Made, changed, one_line
from fuzzing.inputs import some_arrays as arrays
from ws_jax import config, main
from ws_jax.config import overrides as overrides_lib
from ws_jax.sweep import grid
from ws_jax.train import build

_VALUES = (
  *("resnet20", "resnet8", "nf_resnet26", "efficientnet_b0", "speech_cnn"),
  *("batch", "none", "adamw", "memory", "stream", "constant", "8", "(1, 2)"),
  *("speech_classification", "language_model", "text_classification"),
)


def overrides(folder: pathlib.Path) -> Made:
  """Makes command lines: `--config.KEY=VALUE`, and variants of a config."""
  made: Any = arrays()
  np.savez(folder / "x.npz", **made)
  known = sorted(config.keys(config.default()))
  near = st.sampled_from(known).map(lambda key: key[:-1])
  tables = st.sampled_from(["model", "norm", "optim.kwargs.x", "optim.kwargs"])
  names = st.sampled_from(known) | near | tables | TEXTS
  values = st.sampled_from(_VALUES) | TEXTS | NUMBERS.map(_printed)
  words = st.one_of(
    st.builds("--config.{}={}".format, names, values),
    st.builds("--noconfig.{}".format, names),
    st.sampled_from(["--help", "--workdir", "--nosuch=1", "x"]),
    TEXTS,
  )
  variants = st.lists(st.builds("{}={}".format, names, values), max_size=2)
  file = st.sampled_from(["configs/fashion_mnist_10k.py"] * 9) | TEXTS
  made = st.tuples(file, variants.map(",".join), st.lists(words, max_size=4))
  base = [f"--config.data.name={folder / 'x.npz'}", "--workdir=w"]

  def case(value):
    file, variant, words = value
    try:
      main.parse(["main", f"--config={file}:{variant}", *base, *words])
    except SystemExit as error:
      if error.code not in (0, 1, 2):  # 1: --help of absl
        raise
      return
    with one_line(config.ConfigError):
      build.start(main._parsed.config)

  return made, case


def _printed(number: float) -> str:
  return "9" * 400 if number == 10**400 else repr(number)


def configs(folder: pathlib.Path) -> Made:
  """Makes configurations as a sweep, `apply` or `config.json` gives them."""
  del folder
  whole = config.default().to_dict()
  names = st.sampled_from(sorted(config.flatten(whole))) | TEXTS
  points = st.dictionaries(names, JSON, max_size=4) | JSON
  made = points.map(lambda x: (True, x)) | changed(whole).map(
    lambda x: (False, x)
  )

  def case(value):
    is_point, given = value
    with one_line(ValueError):
      if is_point:
        run = grid.plan([given])[0]
        chosen = config.apply(config.default(), run.overrides)
      else:
        chosen = overrides_lib.from_saved(given)
      config.check(chosen)
      resolved = config.resolve(chosen, num_examples=100, num_devices=1)
      build.build_model(resolved, 4)
      build.build_optimizer(resolved)

  return made, case
