r"""How few examples does a pretrained net need, with BN and with GN+WS?

Question: a small ResNet is pretrained on eight classes of photographs and
fine-tuned on the other two, and on the clothes of Fashion-MNIST, with 20 to
2,000 examples in all. Big Transfer trains with GN+WS because it transfers
better than BN (Kolesnikov et al. 2020, 1912.11370, section 4.3). Does it here,
and what does pretraining bring over a fresh start?

Scientific parameters: BN or GN+WS; the target; the number of its examples;
  pretrained or fresh.
Nuisance parameters: the learning rates of pretraining and of fine-tuning, on
  one grid for all arms. Both are chosen on held-out training images, with one
  seed; the numbers are of the test images, which chose nothing. Seeds: 3, of
  the order and of the head; the few examples are the same for all.
Fixed parameters: configs/resnet8_small.py at full width; pretraining on 12,000
  images, batch 128, five epochs; fine-tuning with all layers, the head of a
  pretrained net from zero, 200 steps of batch 20, no weight decay, no crop.

The photographs are cifar10_jpeg, a JPEG copy of CIFAR-10, in
workdirs/cifar10_jpeg/{train,test}/CLASS/*.jpg. The clothes are those in the
package, padded to 32 pixels and as grey in three channels.

Plan: 10 runs of pretraining, 128 to choose rates, 96 for the numbers. About 12
minutes of two cores, by a pilot with a tenth of the steps on a busy machine.

  python experiments/transfer.py --to=experiments/transfer

It can be stopped and started again. Started twice at once, the two share the
work, each on the cores it is bound to.
"""

import functools
import json
import pathlib

import numpy as np
from absl import app, flags, logging

from ws_jax import config, data
from ws_jax.base import disk
from ws_jax.report import figures, tables
from ws_jax.sweep import log_grid, product, rows, run_sweep
from ws_jax.sweep.arms import arm_of
from ws_jax.train import backend

BASE = "configs/resnet8_small.py:width=1,keep_checkpoints=1"
PHOTOGRAPHS = "workdirs/cifar10_jpeg"
TARGET = ("cat", "truck")

ARMS = (
  {"model.norm": "batch", "model.ws": False},
  {"model.norm": "group", "model.ws": True},
)
TARGETS = ("two", "clothes")  # functions of this file
SIZES = (20, 100, 500, 2000)
RATES = log_grid(0.003, 0.3, 4)
# Of both targets; the examples before it are trained on.
HELD_OUT = "train[8000:10000]"


@functools.cache
def photographs():
  """Returns the photographs of all ten classes."""
  return data.load(data.Request(PHOTOGRAPHS))


def eight():
  """Returns the classes to pretrain on."""
  every = photographs().info.classes
  return data.only_classes(
    photographs(), [name for name in every if name not in TARGET]
  )


def two():
  """Returns the classes to transfer to."""
  return data.only_classes(photographs(), TARGET)


def clothes():
  """Returns Fashion-MNIST in the shape of the photographs."""
  small = data.load(data.Request("fashion_mnist_10k"))
  around = ((0, 0), (2, 2), (2, 2), (0, 0))
  large = lambda images: np.repeat(np.pad(images, around), 3, axis=-1)
  split = lambda part: part | {"image": large(part["image"])}
  return {
    "train": split(small.train),
    "test": split(small.test),
    "classes": small.info.classes,
  }


def pretraining():
  """Returns the runs of pretraining: two arms, five rates."""
  fixed = {
    "data.name": ["experiments.transfer:eight"],
    "data.train_split": ["train[:12000]"],
    "data.eval_split": ["train[36000:]"],
    "train.epochs": [5.0],
  }
  return product(ARMS, **fixed, **{"optim.learning_rate": log_grid(0.03, 3, 5)})


def tuning(pretrained, out):
  """Yields the runs that choose the rates of fine-tuning.

  Args:
    pretrained: Rows of pretraining.
    out: Folder of those runs.
  """
  for arm in ARMS:
    row = best(row for row in pretrained if arm.items() <= row.items())
    yield from product(
      [arm],
      **{
        "init_from": [str(out / row["run"]), None],
        "data.name": [
          "experiments.transfer:two",
          "experiments.transfer:clothes",
        ],
        "data.train_split": [f"train[:{size}]" for size in SIZES],
        "data.eval_split": [HELD_OUT],
        "data.batch_size": [20],
        "init_zero": [["head/*"]],
        "optim.weight_decay": [0.0],
        "optim.learning_rate": RATES,
        "train.steps": [200],
        "train.eval_every_epochs": [None],
        "train.keep_checkpoints": [0],
      },
    )


def final(tuned):
  """Yields the runs whose numbers count: at the best rates, three seeds."""
  cells = {}
  for row in tuned:
    overrides = json.loads(row["key"])
    del overrides["optim.learning_rate"]
    cells.setdefault(str(overrides), []).append(row)
  for rows_of_cell in cells.values():
    chosen = json.loads(best(rows_of_cell)["key"])
    chosen["data.eval_split"] = "test"
    yield from product([chosen], seed=range(3))


def best(rows):
  """Returns the row with the highest accuracy on the held-out images."""
  return max(rows, key=lambda row: row.get("eval/accuracy") or 0.0)


def main(argv: list[str]) -> None:
  """Pretrains, chooses the rates of fine-tuning, and measures at those."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)
  print(backend.configure(), flush=True)
  base, out = config.load(BASE), pathlib.Path(flags.FLAGS.out)
  pretrained = run_sweep(base, pretraining(), out / "pretraining")
  tuned = run_sweep(
    base, tuning(pretrained, out / "pretraining"), out / "tuning"
  )
  done = run_sweep(base, final(tuned), out / "final")
  to = pathlib.Path(flags.FLAGS.to or out)
  to.mkdir(parents=True, exist_ok=True)
  for name in ("pretraining", "tuning", "final"):
    found = rows.read(out / name / "runs.csv")
    rows.write(to / f"{name}.csv", found)
  disk.write_text(to / "few_shot.md", table(done))
  draw(done).savefig(to / "few_shot.png", dpi=80)


def curves(done):
  """Returns target -> arm and start -> number of examples -> accuracies."""
  found = {}
  for row in done:
    target = row["data.name"].partition(":")[2]
    start = "fresh" if row["init_from"] is None else "pretrained"
    size = int(row["data.train_split"].strip("train[:]"))
    by_size = found.setdefault(target, {}).setdefault((arm_of(row), start), {})
    by_size.setdefault(size, []).append(100 * row["eval/accuracy"])
  return found


def table(done):
  """Returns the accuracies of the test images in Markdown, mean and spread."""
  lines = [("target", "arm", "start", *map(str, SIZES))]
  for target, arms in curves(done).items():
    for (arm, start), by_size in sorted(arms.items()):
      cells = (by_size[size] for size in SIZES)
      words = (f"{np.mean(x):.1f} ± {np.std(x, ddof=1):.1f}" for x in cells)
      lines.append((target, arm, start, *words))
  return tables.markdown(lines)


def draw(done):
  """Draws the few-shot curves, a panel for each target."""
  return figures.sheet(
    [
      functools.partial(_panel, target=target, arms=arms)
      for target, arms in curves(done).items()
    ],
    columns=2,
  )


def _panel(ax, *, target, arms):
  looks = figures.looks(arm for arm, _ in arms)
  for (arm, start), by_size in sorted(arms.items()):
    means = [np.mean(by_size[size]) for size in SIZES]
    style = "-" if start == "pretrained" else ":"
    look = looks[arm] | {"linestyle": style, "label": f"{arm}, {start}"}
    ax.plot(SIZES, means, **look)
  ax.set_xscale("log")
  ax.set_xlabel(f"examples of the {target}")
  ax.set_ylabel("test accuracy in %")


if __name__ == "__main__":
  # Here, since its runs import this file a second time, for its data.
  flags.DEFINE_string("out", "workdirs/transfer", "Folder of the runs.")
  flags.DEFINE_string("to", None, "Folder of the results. Default: --out.")
  app.run(main)
