"""Targets that must be computed, as tasks of a transfer.

If rows can be computed separately, a task computes some of them, one block in memory at a time; else one task computes
the complete group, and few such tasks run at once. Takes arrays and the nodes that they refer to. The first task that
runs imports torch. If a kernel fails, raises a Refusal with the diagnostic of `failure`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from compiler.diagnostics import Diagnostic, Refusal
from compiler.dtypes import ITEM_SIZES
from compiler.layout.array import Array, narrow, reshape
from compiler.layout.computed import Node, block_rows
from compiler.transfer.engine import Portion, Targets, Task
from compiler.transfer.worker import Worker

TASK = 16 << 20  # bytes of target that one task computes, block by block
AT_ONCE = 256 << 20  # bytes of complete groups that are computed at the same time; a larger group is computed alone


@dataclass(frozen=True)
class Place:
    """Where a target is written: at `offset` bytes into the file `path`."""

    path: Path
    offset: int
    array: Array

    @property
    def nbytes(self) -> int:
        return math.prod(self.array.shape) * ITEM_SIZES[self.array.dtype]


class MemoryGate:
    """Limits the memory of complete groups: one enters if it fits with those inside, or if there are none."""

    def __init__(self) -> None:
        self.used = 0
        self.changed = threading.Condition()

    def enter(self, size: int) -> None:
        with self.changed:
            self.changed.wait_for(lambda: not self.used or self.used + size <= AT_ONCE)
            self.used += size

    def leave(self, size: int) -> None:
        with self.changed:
            self.used -= size
            self.changed.notify_all()


def tasks_of(
    places: Sequence[Place], nodes: Mapping[str, Node], failure: Callable[[str], Diagnostic], gate: MemoryGate
) -> Iterator[Task]:
    """The tasks that write the targets of one group."""
    places = [_in_rows(place, nodes) for place in places]
    heights = [block_rows(place.array, nodes) for place in places]
    if not all(heights):
        portions = tuple(Portion(p.path, p.offset, p.offset + p.nbytes) for p in places)
        yield Task(partial(_write_whole, places, nodes, failure, gate), portions)
        return
    for place, height in zip(places, heights, strict=True):
        rows = place.array.shape[0]
        row = place.nbytes // rows
        step = max(1, TASK // (height * row)) * height
        for start in range(0, rows, step):
            stop = min(rows, start + step)
            portion = Portion(place.path, place.offset + start * row, place.offset + stop * row)
            yield Task(partial(_write_rows, place, nodes, failure, (start, stop, height)), (portion,))


def _in_rows(place: Place, nodes: Mapping[str, Node]) -> Place:
    """The place with a matrix of the same bytes, if its rows can be computed separately and those of the first axis
    cannot, because they are too large."""
    shape = place.array.shape
    if len(shape) < 3 or block_rows(place.array, nodes):
        return place
    matrix = reshape(place.array, (math.prod(shape[:-1]), shape[-1]))
    return replace(place, array=matrix) if block_rows(matrix, nodes) else place


def _write_rows(
    place: Place,
    nodes: Mapping[str, Node],
    failure: Callable[[str], Diagnostic],
    rows: tuple[int, int, int],
    worker: Worker,
    targets: Targets,
) -> Iterator[int]:
    from compiler.executor.evaluator import ArrayEvaluator

    evaluator = ArrayEvaluator(nodes, worker.fill)
    start, stop, height = rows
    row = place.nbytes // place.array.shape[0]
    for first in range(start, stop, height):
        array = narrow(place.array, 0, first, min(stop, first + height) - first)
        data = _guarded(lambda array=array: evaluator.bytes(array), failure)  # type: ignore[misc]
        targets[place.path].write(data, place.offset + first * row)
        yield len(data)


def _write_whole(
    places: Sequence[Place],
    nodes: Mapping[str, Node],
    failure: Callable[[str], Diagnostic],
    gate: MemoryGate,
    worker: Worker,
    targets: Targets,
) -> Iterator[int]:
    from compiler.executor.evaluator import ArrayEvaluator

    size = sum(place.nbytes for place in places)
    gate.enter(size)
    try:
        evaluator = ArrayEvaluator(nodes, worker.fill, keep=True)
        for place in places:
            data = _guarded(lambda place=place: evaluator.bytes(place.array), failure)  # type: ignore[misc]
            targets[place.path].write(data, place.offset)
            yield len(data)
    finally:
        gate.leave(size)


def _guarded(call: Callable[[], memoryview], failure: Callable[[str], Diagnostic]) -> memoryview:
    try:
        return call()
    except (RuntimeError, MemoryError, ValueError) as error:
        raise Refusal([failure(str(error))]) from error
