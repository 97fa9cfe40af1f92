"""What SIGTERM and SIGINT do while a run or a sweep is under way."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

_CAUGHT = (signal.SIGTERM, signal.SIGINT)


class Stop:
  """Tells whether a signal has asked to stop.

  Attributes:
    signum: the number of the signal, None before it comes.
  """

  signum: int | None = None


@contextlib.contextmanager
def stop_on_first() -> Iterator[Stop]:
  """Records the first SIGTERM or SIGINT; a second one kills as usual."""
  stop = Stop()

  def receive(signum: int, _: Any) -> None:
    stop.signum = signum
    signal.signal(signum, signal.SIG_DFL)

  with _handled(receive):
    yield stop


def until(stop: Stop, items: Iterable[Any]) -> Iterator[Any]:
  """Yields items until a signal has come."""
  for item in items:
    if stop.signum is not None:
      return
    yield item


@contextlib.contextmanager
def interrupt() -> Iterator[None]:
  """Makes SIGTERM and SIGINT raise KeyboardInterrupt.

  SIGINT too, because a shell starts background jobs with it ignored.
  """

  def stop(signum: int, _: Any) -> None:
    raise KeyboardInterrupt(signal.Signals(signum).name)

  with _handled(stop):
    yield


@contextlib.contextmanager
def _handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
  # Python allows handlers in the main thread alone; elsewhere nobody signals.
  main = threading.current_thread() is threading.main_thread()
  caught = _CAUGHT if main else ()
  before = {signum: signal.signal(signum, handler) for signum in caught}
  try:
    yield
  finally:
    for signum, old in before.items():
      signal.signal(signum, old)
