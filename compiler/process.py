"""This process: signals that ask it to stop, the garbage collector, and the memory it may still take.

Within `stoppable`, SIGTERM and SIGHUP raise `Stopped` in the main thread as SIGINT raises KeyboardInterrupt, so that one
clean-up serves all three. A signal that the parent ignores (nohup) stays ignored. `available` reads proc(5) and, in a
container, the control group (version 2; Documentation/admin-guide/cgroup-v2.rst).
"""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """Raised where a signal arrives."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Interrupted(KeyboardInterrupt):
    """An interrupted run. `str` describes what it left, `status` is the exit status that shells expect."""

    def __init__(self, left: str, cause: KeyboardInterrupt) -> None:
        super().__init__(left)
        self.status = 128 + (cause.number if isinstance(cause, Stopped) else signal.SIGINT)


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, the signals raise Stopped; no effect outside the main thread."""
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
    for other in _SIGNALS:  # a second signal must not interrupt the clean-up
        if signal.getsignal(other) is _stop:
            signal.signal(other, signal.SIG_IGN)
    raise Stopped(number)


@contextmanager
def uncollected() -> Iterator[None]:
    """Inside (or, as a decorator, during a call) the garbage collector is off. For work that makes very many small objects
    and no garbage, which the collector would search again and again."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


ROOT = Path("/")


def available(root: Path = ROOT) -> int | None:
    """Bytes of memory that this process may still take, None if the system does not report it. `root` contains `proc` and `sys`."""
    found = [n for n in (_of_machine(root), _of_group(root / "sys" / "fs" / "cgroup")) if n is not None]
    return min(found, default=None)


def _of_machine(root: Path) -> int | None:
    kib = _table(root / "proc" / "meminfo").get("MemAvailable:")
    return None if kib is None else kib * 1024


def _of_group(group: Path) -> int | None:
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no group, or the limit is `max`
        return None
    return max(0, limit - used + _table(group / "memory.stat").get("inactive_file", 0))


def _table(path: Path) -> dict[str, int]:
    """A file of `word number` lines as a mapping."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
