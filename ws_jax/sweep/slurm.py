"""Submits a sweep as a job array of Slurm: one task for the runs of a program.

A task runs a `ws_jax.sweep.workers.Fleet` on what Slurm has allocated. Before
its time is over, or when it is preempted, its workers save and it queues again.
"""

import pathlib
import time
from collections.abc import Sequence
from typing import Any

from ws_jax.sweep import grid
from ws_jax.sweep import rows as rows_lib
from ws_jax.sweep.workers import Fleet

# Slurm warns a task this long before the end of its time, so that it can save.
_NOTICE_SECONDS = 120
# Number of times that a task may queue again because its time was over. It is
# large, as nobody knows how much time a sweep needs.
_MAX_TIMEOUTS = 1000


class Task:
  """The work of one task of the array; submitit pickles it, and calls it.

  Args:
    overrides: Overrides of each run of the task.
    out: Folder of the sweep.
    command: Command that starts a worker.
    workers: Number of workers.
  """

  def __init__(
    self,
    overrides: Sequence[grid.Overrides],
    out: str,
    command: Sequence[str],
    workers: int,
  ):
    self._given = (overrides, out, command, workers)
    self._fleet: Fleet | None = None

  def __call__(self) -> None:
    overrides, out, command, workers = self._given
    self._fleet = Fleet(
      grid.plan(overrides),
      pathlib.Path(out),
      command,
      workers=workers,
      notify=_print_line,
    )
    try:
      self._fleet.run()
    except KeyboardInterrupt:
      # SIGTERM means that the task is being cancelled or preempted. Slurm then
      # either kills it, or asks for a checkpoint: wait for one of them.
      time.sleep(_NOTICE_SECONDS)
      raise

  def checkpoint(self) -> Any:
    """Saves and queues again; submitit calls this when the task has to end."""
    import submitit

    if self._fleet:
      self._fleet.stop(_NOTICE_SECONDS)
    return submitit.helpers.DelayedSubmission(Task(*self._given))


def submit(
  runs: Sequence[grid.Run],
  out: pathlib.Path,
  command: Sequence[str],
  *,
  workers: int = 1,
  partition: str | None = None,
  minutes: int = 60,
  gpus: int | None = None,
  cpus: int | None = None,
) -> list[str]:
  """Submits runs as a job array.

  Args:
    runs: Runs to do, as `runner.choose` returns them.
    out: Folder of the sweep, which all nodes see. Logs go to `out/slurm`.
    command: Command that starts a worker.
    workers: Number of workers of each task.
    partition: Partition of the cluster; None for its default.
    minutes: Time limit of a task. A task that needs more saves and queues
      again.
    gpus: Number of GPUs of each task; None for the cluster's default.
    cpus: Number of CPU cores of each task; None for the cluster's default.

  Returns:
    The job ids, one for each program.

  Raises:
    ValueError: submitit is not installed, or this is no Slurm cluster.
  """
  try:
    import submitit

    executor = submitit.SlurmExecutor(
      folder=out.absolute() / "slurm", max_num_timeout=_MAX_TIMEOUTS
    )
  except ModuleNotFoundError as error:
    raise ValueError(f"{error}: pip install 'ws_jax[slurm]'") from None
  except RuntimeError as error:
    raise ValueError(f"no Slurm here: {error}") from None
  wanted = {"partition": partition, "gpus_per_node": gpus}
  if cpus:
    # srun does not take this over from sbatch.
    wanted |= {"cpus_per_task": cpus, "srun_args": [f"--cpus-per-task={cpus}"]}
  executor.update_parameters(
    job_name=out.name,
    time=minutes,
    signal_delay_s=_NOTICE_SECONDS,
    stderr_to_stdout=True,
    additional_parameters={"requeue": True},
    **{name: value for name, value in wanted.items() if value is not None},
  )
  with executor.batch():
    jobs = [
      executor.submit(
        Task(
          [run.overrides for run in members],
          str(out.absolute()),
          list(command),
          workers,
        )
      )
      for members in grid.by_structure(runs).values()
    ]
  return [job.job_id for job in jobs]


def _print_line(number: int, run: grid.Run, row: rows_lib.Row | None) -> None:
  verdict = "begins" if row is None else rows_lib.verdict(row)
  print(f"worker {number}: {run.name}: {verdict}", flush=True)
