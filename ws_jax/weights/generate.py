"""The verb `generate`: text that a trained language model writes."""

import argparse

from ws_jax import train


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the arguments of the verb."""
  parser.add_argument(
    "workdir", help="a run's workdir, or one checkpoint of it"
  )
  parser.add_argument("--prompt", default="", help="beginning of the text")
  parser.add_argument("--length", type=int, default=500, help="tokens to write")
  parser.add_argument(
    "--temperature", type=float, default=1.0, help="0 for the likeliest token"
  )
  parser.add_argument(
    "--top_k", type=int, default=None, help="draw from the k likeliest tokens"
  )
  parser.add_argument("--seed", type=int, default=0, help="seed of the draws")


def run(given: argparse.Namespace) -> None:
  """Prints the prompt and what the model writes behind it.

  Raises:
    ValueError: no run, no checkpoint, no language model, or a number out of
      range.
  """
  from ws_jax.train.generate import generate

  text = generate(
    train.load_run(given.workdir),
    given.prompt,
    length=given.length,
    temperature=given.temperature,
    top_k=given.top_k,
    seed=given.seed,
  )
  print(given.prompt + text, flush=True)
