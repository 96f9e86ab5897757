"""An `Array` as what has to be moved: contiguous byte ranges of the target, each with the pieces that fill it.

A `Move` describes its range compactly, whatever its size: a transpose is one move of one piece. Where its runs are
long, `extents` spells it out as plain byte copies, and `strip` as columns of a matrix; where they are short, `tiles`
cuts it into blocks that fit in memory, chosen so that both the reads and the writes of a block are as long as they can
be. Takes arrays, returns moves; reads no file.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter, mul
from typing import NamedTuple

from compiler.dtypes import ITEM_SIZES
from compiler.layout.array import Array, Atom, Atoms, Lattice, Piece, cut, flatten, narrow, reshape, span

SHORT_RUN = 512  # bytes; below this, a system call for each run costs more than moving elements in memory
FEW_RUNS = 256


class Extent(NamedTuple):
    """`length` bytes at `source_offset` of `source` belong at `target_offset`."""

    source: str
    source_offset: int
    target_offset: int
    length: int


Copy = tuple[str, int, int, int]  # the fields of an Extent


@dataclass(frozen=True, slots=True)
class Move:
    """`length` bytes from `target` on, of element type `dtype`, filled by `pieces`, which have one flat axis each.

    Positions on that axis count elements from `target`. `run` is the length in bytes of the shortest contiguous run,
    or 0 where the elements change their type on the way.
    """

    dtype: str
    target: int
    length: int
    pieces: tuple[Piece, ...]
    run: int

    @property
    def plain(self) -> bool:
        """Whether byte copies do it: no cast, and no more short runs than are worth the trouble of a tile."""
        return self.run >= SHORT_RUN or self.run * FEW_RUNS >= self.length


class Strip(NamedTuple):
    """A move that takes the same columns of every row: `rows` runs of `width` bytes, the first at byte `offset` of
    `source`, `pitch` bytes apart there, one behind the other from byte `target` on."""

    source: str
    offset: int
    rows: int
    pitch: int
    width: int
    target: int


def strip(move: Move) -> Strip | None:
    """The move as a strip, where it is one."""
    if len(move.pieces) > 1 or not move.run or len(move.pieces[0].axes[0].atoms) != 2:
        return None
    piece, size = move.pieces[0], ITEM_SIZES[move.dtype]
    down, across = piece.axes[0].atoms
    if (across.step, across.stride, down.step) != (1, size, across.length) or down.stride < across.length * size:
        return None
    return Strip(piece.source, piece.offset, down.length, down.stride, across.length * size, move.target)


def lower(array: Array, target: int = 0) -> list[Move]:
    """The moves that write `array` in C order from byte `target` on, ascending, together covering every byte once."""
    flat = []
    for source, types, offset, axes in array.pieces:
        origin, atoms = flatten(axes, array.shape)
        flat.append(Piece(source, types, offset, (Lattice(origin, _merged(atoms)),)))
    if len(flat) > 1:
        flat.sort(key=lambda piece: piece.axes[0].origin)
    groups: list[list[Piece]] = []
    end = 0
    for piece in flat:
        origin, atoms = piece.axes[0]
        if origin < end:
            groups[-1].append(piece)
        elif groups and (longer := _joined(groups[-1], piece)):
            groups[-1] = [longer]
        else:
            groups.append([piece])
        end = max(end, origin + span(atoms) + 1)
    return [_move(group, array.dtype, target) for group in groups]


def extents(move: Move, start: int = 0, stop: int | None = None) -> Iterator[Extent]:
    """The byte copies of a move without a cast, ascending in the target, adjacent ones as one.

    `start` and `stop` bound a part of it, in bytes from its beginning.
    """
    parts = [itertools.chain.from_iterable(_runs(move, p, start, stop)) for p in move.pieces]
    runs = parts[0] if len(parts) == 1 else heapq.merge(*parts, key=itemgetter(2))
    first = next(runs, None)
    if first is None:
        return
    source, offset, position, length = first
    for name, at, place, more in runs:
        if at == offset + length and name == source:
            length += more
        else:
            yield Extent(source, offset, position, length)
            source, offset, position, length = name, at, place, more
    yield Extent(source, offset, position, length)


def copies(move: Move, start: int, stop: int) -> list[Copy]:
    """The same as plain tuples, in any order, and cut at `start` and `stop` where those fall into an element."""
    clipped: list[Copy] = []
    for piece in move.pieces:
        for runs in _runs(move, piece, start, stop):
            clipped += runs
    if (start | stop) % ITEM_SIZES[move.dtype]:
        first, last = move.target + start, move.target + stop
        clipped = [_clipped(copy, first, last) for copy in clipped]
    return clipped


def _clipped(copy: Copy, start: int, stop: int) -> Copy:
    source, offset, target, length = copy
    first, last = max(start, target), min(stop, target + length)
    return source, offset + first - target, first, last - first


class Tile(NamedTuple):
    """A block of a move: `rows` runs of `width` bytes, `pitch` bytes apart, the first at byte `target` of the file.

    `pieces` have one flat axis each, on which the elements of the block lie row after row without gaps.
    """

    target: int
    rows: int
    width: int
    pitch: int
    pieces: tuple[Piece, ...]


def tiles(move: Move, block: int) -> Iterator[Tile]:
    """The blocks of a move, each at most about `block` bytes."""
    size = ITEM_SIZES[move.dtype]
    count = move.length // size
    pitch, high, wide = _tiling(move, count, max(1, block // size))
    grid = reshape(Array(move.dtype, (count,), move.pieces), (count // pitch, pitch))
    for row in range(0, count // pitch, high):
        band = narrow(grid, 0, row, min(high, count // pitch - row))
        for column in range(0, pitch, wide):
            tile = narrow(band, 1, column, min(wide, pitch - column))
            rows, width = tile.shape
            pieces = tuple([piece._replace(axes=(flatten(piece.axes, tile.shape),)) for piece in tile.pieces])
            target = move.target + (row * pitch + column) * size
            yield Tile(target, rows, width * size, pitch * size, pieces)


def _tiling(move: Move, count: int, block: int) -> tuple[int, int, int]:
    """(pitch, rows, width) of a block, in elements.

    It has to be long along the target's own order and along the counter that is closest together in the source, whose
    counts lie `pitch` apart in the target: a transpose is read and written best in blocks that are about square.
    """
    piece = move.pieces[0]
    closest = min((a for a in piece.axes[0].atoms if a.stride), key=lambda a: a.stride, default=Atom(1, 0, 1))
    pitch = closest.step
    if pitch == 1 or count % pitch:  # the source runs as the target does: one row, cut at the ends of counters
        block = max(1, block // 4)  # which leaves room in the cache for what an element was and becomes
        grain = max([a.step for a in piece.axes[0].atoms if a.step <= block], default=1)
        return count, 1, block // grain * grain
    # Twice as wide as high, because a write costs about twice as much as a read.
    high = min(closest.length, max(1, math.isqrt(block // 2), block // pitch))
    return pitch, high, min(pitch, max(1, block // high))


def _move(group: list[Piece], dtype: str, target: int) -> Move:
    first = group[0].axes[0].origin
    size = ITEM_SIZES[dtype]
    count, shortest = 0, 0
    pieces: list[Piece] = []
    for source, types, offset, ((origin, atoms),) in group:
        length, run = _count_and_run(atoms, types[0])
        count += length
        run = run * size if len(set(types)) == 1 else 0
        shortest = min(shortest, run) if pieces else run
        pieces.append(Piece(source, types, offset, (Lattice(origin - first, atoms),)))
    return Move(dtype, target + first * size, count * size, tuple(pieces), shortest)


def _joined(group: list[Piece], piece: Piece) -> Piece | None:
    """One run for two that follow each other in the source as in the target."""
    last = group[-1]
    if len(group) > 1 or last.source != piece.source or last.types != piece.types:
        return None
    size = last.itemsize
    (before, run), (after, further) = [_count_and_run(p.axes[0].atoms, p.types[0]) for p in (last, piece)]
    if run < before or further < after or last.offset + before * size != piece.offset:
        return None
    lattice = Lattice(last.axes[0].origin, (Atom(before + after, size, 1),))
    return Piece(last.source, last.types, last.offset, (lattice,))


def _merged(atoms: Atoms) -> Atoms:
    """Counters that continue each other on both sides as one; outermost first."""
    merged: list[Atom] = []
    for atom in atoms:
        length, stride, step = atom
        if length == 1:
            continue
        if merged and merged[-1].stride == length * stride and merged[-1].step == length * step:
            merged[-1] = Atom(merged[-1].length * length, stride, step)
        else:
            merged.append(atom)
    return tuple(merged)


def _count_and_run(atoms: Atoms, dtype: str) -> tuple[int, int]:
    """How many elements there are, and how many of them lie together on both sides."""
    count = 1
    for atom in atoms:
        count *= atom.length
    together = bool(atoms) and atoms[-1].step == 1 and atoms[-1].stride == ITEM_SIZES[dtype]
    return count, atoms[-1].length if together else 1


def _runs(move: Move, piece: Piece, start: int, stop: int | None) -> Iterator[Iterable[Copy]]:
    """Every run of a piece that lies in [start, stop), ascending in the target; those of its last counter together.

    Very many runs may be very short, so that they are made by the standard library's own loops.
    """
    size = ITEM_SIZES[move.dtype]
    stop = move.length if stop is None else stop
    for skipped, (origin, atoms) in cut(piece.axes[0], start // size, -(-stop // size)):
        run = _count_and_run(atoms, piece.types[0])[1]
        outer = list(atoms[:-1] if run > 1 else atoms)
        length, name = run * size, piece.source
        offset, place = piece.offset + skipped, move.target + origin * size
        if not outer:
            yield ((name, offset, place, length),)
            continue
        *outer, (count, stride, step) = outer
        strides, steps = [a.stride for a in outer], [a.step * size for a in outer]
        for counts in itertools.product(*[range(a.length) for a in outer]):
            at, to = offset + sum(map(mul, counts, strides)), place + sum(map(mul, counts, steps))
            offsets = range(at, at + count * stride, stride) if stride else itertools.repeat(at, count)
            places = range(to, to + count * step * size, step * size)
            yield zip(itertools.repeat(name), offsets, places, itertools.repeat(length), strict=False)
