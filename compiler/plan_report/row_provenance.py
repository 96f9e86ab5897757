"""Where the rows of a target come from, computed from the byte layout: the HTML page draws an op from this.

Takes one application of a rule; returns, for each of its targets, the runs of rows that come from equidistant rows of one
source, in the target's order. A row is everything before the last axis. Where every row stays in place and only its
elements move, the runs are of the columns of one row.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.checkpoints.formats.stored_tensor import Tensor
from compiler.dtypes import ITEM_SIZES
from compiler.executor.execute import arrange_group
from compiler.layout.array import Array, Lattice, reshape
from compiler.ops.structural import Cast
from compiler.plan.plan import Group
from compiler.plan_report.effect import repeated_name

MOST_TARGETS = 8  # of one application that are drawn
MOST_RUNS = 1 << 14  # that are looked at
MOST_DRAWN = 256  # runs of one target in a picture


@dataclass(frozen=True)
class Run:
    """`count` rows of the target from row `to` on are rows (or columns, if `axis` is 1) `start`, `start` + `step`, ... of
    source number `source`."""

    to: int
    count: int
    source: int
    axis: int
    start: int
    step: int

    def moved(self, to: int, source: int, start: int) -> Run:
        return replace(self, to=self.to + to, source=self.source + source, start=self.start + start)


@dataclass
class Rows:
    """The rows (or columns, if `axis` is 1) of one target. `runs` make `height` rows; they come `times` times, each time
    `source_step` sources and `start_step` rows further on."""

    target: str
    length: int
    axis: int
    runs: list[Run]
    height: int
    times: int
    source_step: int
    start_step: int


@dataclass
class Picture:
    """(name, rows, columns) of each source of one application, and where its targets come from. `block`: the spec's name
    for what `times` counts, such as `head`, if it has one."""

    sources: list[tuple[str, int, int]]
    targets: list[Rows]
    block: str


def picture(group: Group, checkpoint: Checkpoint) -> Picture | None:
    """The picture of one application, without casts, which move nothing. None if it takes too many runs. Raises
    NotImplementedError if the rule computes."""
    ops = tuple(op for op in group.ops if not isinstance(op, Cast))
    arrays = arrange_group(replace(group, ops=ops), checkpoint)
    tensors = [part for name in group.source_names for part in checkpoint.tensors[name].parts]
    places = _Places(tensors)
    targets: list[Rows] = []
    for slot, named in zip(arrays.slots, group.targets.slots, strict=True):
        for key, target in itertools.islice(named.items(), MOST_TARGETS - len(targets)):
            rows = _target(target.name, slot[key], places)
            if rows is None:
                return None
            targets.append(rows)
    times = {rows.times for rows in targets}
    block = repeated_name(ops, times.pop()) if len(times) == 1 else ""
    return Picture([(t.name, *_rows(t.shape)) for t in tensors], targets, block)


class _Places:
    """Finds the tensor and element at a byte of a file."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors
        self.order = sorted(range(len(tensors)), key=lambda n: (str(tensors[n].path), tensors[n].offset))
        self.starts = [(str(tensors[n].path), tensors[n].offset) for n in self.order]

    def run(self, path: str, offset: int, stride: int, to: int, count: int) -> Run | None:
        """The run of `count` rows that begin `stride` bytes apart; None if they are neither rows nor columns of a tensor."""
        number = self.order[bisect_right(self.starts, (path, offset)) - 1]
        tensor = self.tensors[number]
        size, (_, width) = ITEM_SIZES[tensor.dtype], _rows(tensor.shape)
        row, column = divmod((offset - tensor.offset) // size, width)
        step = stride // size if count > 1 else width
        if not tensor.contiguous:
            return None
        if column == 0 and step % width == 0:
            return Run(to, count, number, 0, row, step // width)
        return Run(to, count, number, 1, column, step) if column + (count - 1) * step < width else None


def _target(name: str, array: Array, places: _Places) -> Rows | None:
    rows, width = _rows(array.shape)
    pieces = reshape(array, (rows, width)).pieces
    found = _runs(((p.source, p.offset, p.axes[0]) for p in pieces if p.axes[1].origin == 0), places)
    length, axis = rows, 0
    if found is not None and len(found) == 1 and (found[0].start, found[0].step, found[0].axis) == (0, 1, 0):
        columns = _runs(((p.source, p.offset, p.axes[1]) for p in pieces if p.axes[0].origin == 0), places)
        if columns is not None and len(columns) > 1:
            found, length, axis = columns, width, 1
    if found is None:
        return None
    drawn = _folded(name, length, axis, found)
    return drawn if len(drawn.runs) <= MOST_DRAWN else None


def _runs(lattices: Iterable[tuple[str, int, Lattice]], places: _Places) -> list[Run] | None:
    """The runs along one axis in the order of the target."""
    found: list[Run] = []
    for path, offset, (origin, atoms) in lattices:
        together = bool(atoms) and atoms[-1].step == 1
        outer, (count, stride, _) = (atoms[:-1], atoms[-1]) if together else (atoms, (1, 0, 1))
        if len(found) + math.prod(atom.length for atom in outer) > MOST_RUNS:
            return None
        for counts in itertools.product(*[range(atom.length) for atom in outer]):
            at = offset + sum(n * atom.stride for n, atom in zip(counts, outer, strict=True))
            to = origin + sum(n * atom.step for n, atom in zip(counts, outer, strict=True))
            run = places.run(path, at, stride, to, count)
            if run is None:
                return None
            found.append(run)
    found.sort(key=lambda run: run.to)
    return list(_joined(found))


def _joined(runs: list[Run]) -> Iterator[Run]:
    """Runs that continue each other as one."""
    last = runs[0]
    for run in runs[1:]:
        follows = last.moved(last.count, 0, last.count * last.step)
        if replace(run, count=last.count) == follows:
            last = replace(last, count=last.count + run.count)
        else:
            yield last
            last = run
    yield last


def _folded(name: str, length: int, axis: int, runs: list[Run]) -> Rows:
    """The fewest runs whose repetition gives all."""
    for few in (n for n in range(1, len(runs)) if len(runs) % n == 0):
        to, source, start = (getattr(runs[few], key) - getattr(runs[0], key) for key in ("to", "source", "start"))
        if all(one.moved(to, source, start) == other for one, other in zip(runs, runs[few:], strict=False)):
            return Rows(name, length, axis, runs[:few], to, len(runs) // few, source, start)
    return Rows(name, length, axis, runs, length, 1, 0, 0)


def _rows(shape: tuple[int, ...]) -> tuple[int, int]:
    width = max(1, shape[-1]) if len(shape) > 1 else 1
    return math.prod(shape) // width, width
