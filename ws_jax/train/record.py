"""The files that a run leaves.

A workdir holds `config.json`, `metrics.jsonl` (one JSON object a line),
TensorBoard events, `checkpoints/` and `status.json`, and of a task that
classifies `predictions.npz`. JSON files are written whole or not at all.
"""

import contextlib
import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from ws_jax import config as config_lib
from ws_jax.base import numerics
from ws_jax.base.disk import (
  NO_LOCKS,
  clean,
  holder,
  is_number,
  locked,
  overwrite_json,
  read_json,
  write_json,
)
from ws_jax.train.history import (
  MetricWriter,
  iterate,
  newest,
  read_metrics,
)
from ws_jax.train.predictions import Predictions
from ws_jax.train.progress import Progress

__all__ = ["MetricWriter", "Run", "about", "iterate", "read_metrics"]


class Run:
  """The folder of one run: its config, rows, status and seconds.

  Args:
    workdir: Folder, made if it is not there.
    config: Resolved configuration.
    may_change: Dotted keys in which a resumed run may differ.
    about: Versions, device, commit, data and metric, for `status.json`.
    clock: Clock whose seconds `status.json` tells.
    metric: Name of the metric that the progress line shows.
    writes: Whether this process writes; of several only one does.

  Attributes:
    ended: Step at which an earlier attempt was done; None if none was.
    evaluated: Step of the last evaluation of an earlier attempt, once started.

  Raises:
    ValueError: the folder holds a run of another configuration, or files that
      cannot be read; or another process trains in it.
  """

  def __init__(
    self,
    workdir,
    config,
    *,
    may_change,
    about,
    clock,
    metric="",
    writes=True,
  ):
    self.workdir = pathlib.Path(workdir)
    self.clock = clock
    self.metrics: dict[str, float] = {}
    self.ended: int | None = None
    self.evaluated: int | None = None
    self._about, self._steps, self._writes = about, config.train.steps, writes
    self._keep_rows = config.train.keep_log_rows
    self._every = config.train.log_every_steps
    self._shown = {
      f"{split}/{name}"
      for split in ("train", "eval")
      for name in (metric, "loss")
    }
    self._writer: MetricWriter | None = None
    self._progress: Progress | None = None
    self._held = contextlib.ExitStack()
    if writes:
      self.workdir.mkdir(parents=True, exist_ok=True)
      self._lock()
    try:
      before = self._begin(config, may_change)
    except BaseException:
      self._held.close()
      raise
    for name, seconds in before.get("seconds", {}).items():
      self.clock.seconds[name] += seconds
    self._name, self._step = self.workdir.name, 0

  def _lock(self) -> None:
    """Keeps other processes from the folder until this run is closed."""
    path = self.workdir / ".lock"
    try:
      held = self._held.enter_context(locked(path, wait=False))
    except OSError as error:
      if error.errno not in NO_LOCKS:
        raise
      held = True  # as before there were locks: nobody can tell
    if not held:
      raise ValueError(
        f"{self.workdir} is in use: {holder(path)} trains in it. Wait for it,"
        " stop it, or choose another --workdir"
      )

  def _begin(self, config, may_change) -> dict[str, Any]:
    """Writes the config; returns the status that an earlier attempt left."""
    before = _status(self.workdir / "status.json")
    done, at = before.get("status") == "done", before.get("step")
    self.ended = at if done and isinstance(at, int) else None
    kept = config.train.keep_checkpoints > 0 and any(
      self.workdir.glob("checkpoints/[0-9]*")
    )
    _same_run(self.workdir, config, may_change, done and kept)
    if self._writes:
      clean(self.workdir)
      write_json(self.workdir / "config.json", config.to_dict())
    self._before = before
    return before

  def start(self, step: int) -> None:
    """Opens the writers; the run goes on from `step`."""
    self._step = step
    self._compare_machines(step)
    if self._writes:
      self._writer = MetricWriter(
        self.workdir, step, keep=self._keep_rows, every=self._every
      )
      self._progress = Progress(self._steps, step, self._name)
    metrics, self.evaluated = newest(self.workdir)
    self.metrics |= metrics
    self.status("running")

  def _compare_machines(self, step: int) -> None:
    """Records, and says, that a run goes on where other bits come out."""
    before = self._before
    if step >= self._steps:  # nothing is computed any more
      keys = {key.partition(".")[0] for key in (*numerics.FACTS, "mixed")}
      self._about |= {key: before[key] for key in keys if key in before}
    elif step:
      mixed = list(before.get("mixed", ()))
      now = numerics.of(self._about)
      if new := numerics.changes(numerics.of(before), now):
        line = f"{', '.join(new)} (from step {step})"
        mixed.append(line)
        if self._writes:
          note = "the bits are not those of a run in one piece"
          print(f"{self._name}: {line}: {note}", file=sys.stderr, flush=True)
      self._about |= {"mixed": mixed} if mixed else {}

  def advance(self, step: int) -> None:
    """Shows that `step` steps are done."""
    self._step = step
    shown = {k: x for k, x in self.metrics.items() if k in self._shown}
    if self._progress:
      self._progress.update(step, shown)

  def write(self, metrics: Mapping[str, float]) -> None:
    """Records a row of metrics of the current step."""
    self.metrics.update(metrics)
    if self._writer:
      self._writer.write(self._step, metrics)

  def keep(self, answers: Predictions) -> None:
    """Writes what the last evaluation answered to `predictions.npz`."""
    if self._writes:
      answers.write(self.workdir)

  def status(self, status: str, step: int | None = None, reason: str = ""):
    """Writes `status.json`."""
    if not self._writes:
      return
    seconds = {k: round(v, 3) for k, v in self.clock.seconds.items()}
    content = {
      "status": status,
      "step": self._step if step is None else step,
      "reason": reason,
      "seconds": seconds,
      "metrics": self.metrics,
      **self._about,
    }
    path = self.workdir / "status.json"
    try:
      write_json(path, content)
    except OSError:
      if status != "failed":  # of which the reason is more than this one
        raise
      overwrite_json(path, content)

  def close(self) -> None:
    """Closes the writers, and lets other processes into the folder."""
    with self._held:
      if self._writer:
        self._writer.close()
      if self._progress:
        self._progress.close()


def about(setup: Any) -> dict[str, Any]:
  """Returns what `status.json` says of the data and the metric of a run.

  It is enough to use the trained model without the data; see
  `ws_jax.train.load_run`.
  """
  dataset, metric = setup.dataset, setup.program.task.METRIC
  info = dataclasses.asdict(dataset.info)
  content = {
    "metric": dataclasses.asdict(metric),
    "data": info | {"mean": dataset.mean, "std": dataset.std},
  }
  if dataset.stream is not None:
    content["input"] = setup.source.counts  # as they are when it is written
  return content


def _same_run(workdir, config, may_change, may_go_on) -> None:
  """Refuses to go on in the folder of another run.

  One that has ended, and left a checkpoint, may be made longer.
  """
  path = workdir / "config.json"
  try:
    before = read_json(path)
    if before is None:
      return
    old = config_lib.flatten(config_lib.from_saved(before))
  except (AttributeError, TypeError, ValueError) as error:
    raise ValueError(
      f"{path} cannot be read: {error}. Choose another --workdir, or delete"
      " that one."
    ) from error
  new = config_lib.flatten(config)
  steps = old["train.steps"]
  longer = may_go_on and steps is not None and new["train.steps"] > steps
  allowed = {*may_change, *(("train.steps", "train.epochs") if longer else ())}
  changed = [
    f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
    for key in sorted(old | new)
    if not _same(old.get(key), new.get(key)) and key not in allowed
  ]
  if changed:
    raise ValueError(
      f"{workdir} holds a run of another configuration: {'; '.join(changed)}."
      " Choose another --workdir, or delete that one."
    )


def _status(path: pathlib.Path) -> dict[str, Any]:
  """Returns what an earlier attempt wrote; it is only informative.

  Without what is damaged: the run makes a new one.
  """
  try:
    status = read_json(path)
  except ValueError:
    status = None
  status = status if isinstance(status, dict) else {}
  seconds, mixed = status.get("seconds"), status.get("mixed")
  if not isinstance(seconds, dict) or not all(map(is_number, seconds.values())):
    status.pop("seconds", None)
  if not isinstance(mixed, list):
    status.pop("mixed", None)
  return status


def _same(old: Any, new: Any) -> bool:
  """Compares two values as JSON, which has no tuples, stores them."""
  return json.dumps(old, default=str) == json.dumps(new, default=str)
