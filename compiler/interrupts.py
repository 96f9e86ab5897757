"""Signals that ask a run to stop, as one exception that says what is left.

Within `stoppable`, SIGTERM and SIGHUP interrupt the main thread as SIGINT does, so that whatever cleans up after one
cleans up after all. A signal that the caller ignores (nohup) stays ignored.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """Raised where a signal arrives."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Interrupted(KeyboardInterrupt):
    """The end of an interrupted run: `str` says what is left, `status` is the exit status that shells expect."""

    def __init__(self, left: str, cause: KeyboardInterrupt) -> None:
        super().__init__(left)
        self.status = 128 + (cause.number if isinstance(cause, Stopped) else signal.SIGINT)


@contextmanager
def stoppable() -> Iterator[None]:
    """Have the signals raise Stopped while inside; without effect in any thread but the main one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    default = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in default:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number in default:
            signal.signal(number, signal.SIG_DFL)


def _stop(number: int, frame: FrameType | None) -> None:
    for other in _SIGNALS:  # the next one shall not cut the cleaning short
        if signal.getsignal(other) is _stop:
            signal.signal(other, signal.SIG_IGN)
    raise Stopped(number)
