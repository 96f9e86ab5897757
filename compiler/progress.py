"""How far a job is: phases, each with a number of bytes. The command line shows them as a bar."""

from __future__ import annotations

from collections.abc import Callable

Tick = Callable[[int], None]


def no_tick(size: int) -> None:
    """Does nothing."""


class Progress:
    """Shows nothing; the base of what does."""

    def begin(self, what: str, total: int) -> Tick:
        """A phase of `total` bytes begins, and the one before is over. Returns a function that is called, from any thread,
        with the number of bytes that were just done."""
        return no_tick


class WrittenBytes(Progress):
    """Calls a function with the number of bytes just written, and with nothing else."""

    def __init__(self, function: Tick) -> None:
        self.function = function

    def begin(self, what: str, total: int) -> Tick:
        return self.function if what == WRITING else no_tick


WRITING, HASHING, COMPARING = "writing", "hashing", "comparing"
