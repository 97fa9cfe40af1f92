"""What a run leaves on disk, and what it says on the terminal.

A workdir holds `config.json`, `metrics.jsonl` (one JSON object a line),
TensorBoard events, `checkpoints/` and `status.json`. JSON files are written
whole or not at all.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ws_jax.base.disk import read_json, write_json, write_text
from ws_jax.train.progress import Progress


class Run:
  """The folder of one run: its config, rows, status and seconds.

  Args:
    workdir: made if it is not there.
    config: the resolved configuration, as nested dicts.
    cadence: dotted keys in which a continued run may differ.
    about: versions, device and commit, for `status.json`.
    clock: counts the seconds that `status.json` tells.

  Raises:
    ValueError: the folder holds a run of another configuration.
  """

  def __init__(self, workdir, config, *, cadence, about, clock):
    self.workdir = pathlib.Path(workdir)
    self.clock = clock
    self.metrics: dict[str, float] = {}
    self._about, self._steps = about, config["train"]["steps"]
    self._writer: MetricWriter | None = None
    self._progress: Progress | None = None
    config = json.loads(json.dumps(config, default=str))
    _same_run(self.workdir, config, cadence)
    self.workdir.mkdir(parents=True, exist_ok=True)
    write_json(self.workdir / "config.json", config)
    before = read_json(self.workdir / "status.json") or {}
    for name, seconds in before.get("seconds", {}).items():
      self.clock.seconds[name] += seconds
    self._name, self._step = self.workdir.name, 0

  def start(self, step: int) -> None:
    """Opens the writers; the run goes on from `step`."""
    self._step = step
    self._writer = MetricWriter(self.workdir, step)
    for row in read_metrics(self.workdir):
      self.metrics.update(row)
    self.metrics.pop("step", None)
    self._progress = Progress(self._steps, step, self._name)
    self.status("running")

  def advance(self, step: int) -> None:
    """Tells that `step` steps are done."""
    assert self._progress, "start() comes first"
    self._step = step
    self._progress.update(step, self.metrics)

  def write(self, metrics: Mapping[str, float]) -> None:
    """Records a row of metrics of the current step."""
    assert self._writer, "start() comes first"
    self.metrics.update(metrics)
    self._writer.write(self._step, metrics)

  def status(self, status: str, step: int | None = None, reason: str = ""):
    """Writes `status.json`."""
    seconds = {k: round(v, 3) for k, v in self.clock.seconds.items()}
    content = {
      "status": status,
      "step": self._step if step is None else step,
      "reason": reason,
      "seconds": seconds,
      "metrics": self.metrics,
      **self._about,
    }
    write_json(self.workdir / "status.json", content)

  def close(self) -> None:
    if self._writer:
      self._writer.close()
    if self._progress:
      self._progress.close()


def _same_run(workdir, config, cadence) -> None:
  before = read_json(workdir / "config.json")
  if before is None:
    return
  old, new = _flat(before), _flat(config)
  changed = [
    f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
    for key in sorted(old | new)
    if old.get(key) != new.get(key) and key not in cadence
  ]
  if changed:
    raise ValueError(
      f"{workdir} holds a run of another configuration: {'; '.join(changed)}."
      " Choose another --workdir, or delete that one."
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in tree.items():
    inner = isinstance(value, Mapping)
    flat |= _flat(value, f"{prefix}{key}.") if inner else {prefix + key: value}
  return flat


class MetricWriter:
  """Appends rows to `metrics.jsonl` and to TensorBoard events.

  Args:
    workdir: the folder of the run.
    step: the step it continues from; later rows of an earlier attempt are
      dropped, so that a resumed run leaves what an uninterrupted one would.
  """

  def __init__(self, workdir: pathlib.Path, step: int):
    from tensorboard.summary import Writer

    path = workdir / "metrics.jsonl"
    if path.exists():
      kept = [row for row in read_metrics(workdir) if row["step"] <= step]
      write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
    self._file = path.open("a")
    self._events = Writer(str(workdir))

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """One row: `step` and the metrics, flushed."""
    self._file.write(json.dumps({"step": step, **metrics}) + "\n")
    self._file.flush()
    for name, value in metrics.items():
      self._events.add_scalar(name, value, step)

  def close(self) -> None:
    self._file.close()
    self._events.close()


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of `metrics.jsonl`; a last line cut off by a crash is left out."""
  path = workdir / "metrics.jsonl"
  rows = []
  for line in path.read_text().splitlines() if path.exists() else []:
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return rows
