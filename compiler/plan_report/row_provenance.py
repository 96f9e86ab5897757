"""Where the rows of a target come from, computed from the byte layout: the HTML page draws an op from this.

Takes one application of a rule; returns, for each of its targets, the runs of rows that come from equidistant rows of one
source, in the target's order. A row is everything before the last axis. Where every row stays in place and only its
elements move, the runs are of the columns of one row.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.checkpoints.formats.stored_tensor import Tensor
from compiler.dtypes import ITEM_SIZES
from compiler.executor.execute import arrange_group
from compiler.layout.array import Array, Atom, Lattice, Piece, reshape
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
    `source_step` sources and `start_step` rows further on. `block`: the spec's name for what is repeated, such as `head`."""

    target: str
    length: int
    axis: int
    runs: list[Run]
    height: int
    times: int
    source_step: int
    start_step: int
    block: str = ""


@dataclass
class Picture:
    """(name, rows, columns) of each source of one application, and where the first of its `of` targets come from."""

    sources: list[tuple[str, int, int]]
    targets: list[Rows]
    of: int


def picture(group: Group, checkpoint: Checkpoint) -> Picture | None:
    """The picture of one application, without casts, which move nothing. None if its rows do not tell what happens. Raises
    NotImplementedError if the rule computes."""
    ops = tuple(op for op in group.ops if not isinstance(op, Cast))
    arrays = arrange_group(replace(group, ops=ops), checkpoint)
    sources = _Sources([checkpoint.tensors[name].parts for name in group.source_names])
    targets: list[Rows] = []
    for slot, named in zip(arrays.slots, group.targets.slots, strict=True):
        for key, target in itertools.islice(named.items(), MOST_TARGETS - len(targets)):
            rows = _target(target.name, slot[key], sources)
            if rows is None:
                return None
            targets.append(replace(rows, block=repeated_name(ops, rows.times, rows.length) if rows.times > 1 else ""))
    return Picture(sources.sizes(), targets, len(group.target_list))


class _Sources:
    """Finds the tensor and row at a byte of a file. A tensor's rows are as wide as its last axis, or as those of the targets
    if these are copied undivided; `widths` has what was decided."""

    def __init__(self, parts: Sequence[Sequence[Tensor]]) -> None:
        self.tensors = [tensor for tensors in parts for tensor in tensors]
        self.names = [
            tensor.name + f" (part {n + 1})" * (len(tensors) > 1)
            for tensors in parts
            for n, tensor in enumerate(tensors)
        ]
        self.widths: dict[int, int] = {}
        self.order = sorted(range(len(self.tensors)), key=lambda n: (str(self.tensors[n].path), self.tensors[n].offset))
        self.starts = [(str(self.tensors[n].path), self.tensors[n].offset) for n in self.order]

    def sizes(self) -> list[tuple[str, int, int]]:
        """(name, rows, columns) of each."""
        widths = [self.widths.get(n, _rows(tensor.shape)[1]) for n, tensor in enumerate(self.tensors)]
        return [
            (name, math.prod(tensor.shape) // width, width)
            for name, tensor, width in zip(self.names, self.tensors, widths, strict=True)
        ]

    def run(self, path: str, offset: int, stride: int, to: int, count: int, undivided: int) -> Run | None:
        """The run of `count` rows that begin `stride` bytes apart; None if they are neither rows nor columns of a tensor.
        `undivided`: the elements of a row that is copied undivided, else 0."""
        number = self.order[bisect_right(self.starts, (path, offset)) - 1]
        tensor = self.tensors[number]
        size = ITEM_SIZES[tensor.dtype]
        width = self.widths.setdefault(number, undivided or _rows(tensor.shape)[1])
        row, column = divmod((offset - tensor.offset) // size, width)
        step = stride // size if count > 1 else width
        if not tensor.contiguous or undivided not in (0, width):
            return None
        if column == 0 and step % width == 0:
            return Run(to, count, number, 0, row, step // width)
        # Columns of other rows than the first would all be drawn at the same place.
        return Run(to, count, number, 1, column, step) if row == 0 and column + (count - 1) * step < width else None


def _target(name: str, array: Array, sources: _Sources) -> Rows | None:
    rows, width = _rows(array.shape)
    pieces = reshape(array, (rows, width)).pieces
    found = _runs([(p, p.axes[0], p.axes[1]) for p in pieces if p.axes[1].origin == 0], sources, width)
    length, axis = rows, 0
    if found is not None and len(found) == 1 and (found[0].start, found[0].step, found[0].axis) == (0, 1, 0):
        columns = _runs([(p, p.axes[1], None) for p in pieces if p.axes[0].origin == 0], sources, 0)
        if columns is None or len(columns) > 1:
            found, length, axis = columns, width, 1
    if found is None:
        return None
    drawn = _folded(name, length, axis, found)
    return drawn if len(drawn.runs) <= MOST_DRAWN else None


def _runs(pieces: list[tuple[Piece, Lattice, Lattice | None]], sources: _Sources, width: int) -> list[Run] | None:
    """The runs along one axis in the order of the target: (piece, its places on that axis, and within a row)."""
    found: list[Run] = []
    for piece, (origin, atoms), inner in pieces:
        whole = Lattice(0, (Atom(width, piece.itemsize, 1),) if width > 1 else ())
        undivided = width if inner == whole else 0
        together = bool(atoms) and atoms[-1].step == 1
        outer, (count, stride, _) = (atoms[:-1], atoms[-1]) if together else (atoms, (1, 0, 1))
        if len(found) + math.prod(atom.length for atom in outer) > MOST_RUNS:
            return None
        for counts in itertools.product(*[range(atom.length) for atom in outer]):
            at = piece.offset + sum(n * atom.stride for n, atom in zip(counts, outer, strict=True))
            to = origin + sum(n * atom.step for n, atom in zip(counts, outer, strict=True))
            run = sources.run(piece.source, at, stride, to, count, undivided)
            if run is None:
                return None
            found.append(run)
    found.sort(key=lambda run: run.to)
    return list(_joined(found)) or None


def _joined(runs: list[Run]) -> Iterator[Run]:
    """Runs that continue each other as one."""
    last = None
    for run in runs:
        if last and replace(run, count=last.count) == last.moved(last.count, 0, last.count * last.step):
            last = replace(last, count=last.count + run.count)
        else:
            if last:
                yield last
            last = run
    if last:
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
