"""Writes files whose bytes come from other files, at the speed of a copy, in bounded memory.

Takes outputs (path, size, header, moves) and the paths of the sources. Space for every output is reserved before a
byte is written. Threads take contiguous ranges of the targets in turn: plain moves go through a private buffer of
1 MiB that is filled by vectored reads and written at once; the others go tile by tile through `gather`, the only
part that loads numpy. Knows nothing of specs or tensors' names; names of outputs are final, so a caller that wants
all or nothing hands in a temporary folder. Refuses a full disk and a source that ends early, with file and offset.
The first error stops all threads, removes the outputs and is raised; so does an interrupt. With a ledger the outputs
stay, and what it has from an earlier run is not written again.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from compiler.files import Source, Target
from compiler.moves import Extent, Move, Tile, extents, tiles

if TYPE_CHECKING:
    from compiler.gather import Gatherer

WINDOW = 1 << 20  # bytes: two of them stay in the processor's cache between reading and writing
BLOCK = 4 << 20  # bytes of a tile: about 1000 by 2000 elements of two bytes
TASK = 32 << 20  # bytes of target that a thread takes at a time
GAP = 16 << 10  # bytes: reading as much for nothing costs less than another call
VECTOR = 512  # wanted buffers per read, and as many gaps; Linux allows 1024


@dataclass(frozen=True)
class Output:
    """A file to write: `header` first, then the moves' ranges, which ascend and leave no gap up to `size`."""

    path: Path
    size: int
    header: bytes
    moves: Sequence[Move]


class Ledger(Protocol):
    """Knows what an earlier run has written, and is told of what is written now, from any thread."""

    def has(self, path: Path, start: int, stop: int) -> bool: ...
    def wrote(self, path: Path, start: int, stop: int) -> None: ...


def transfer(
    outputs: Sequence[Output],
    sources: Mapping[str, Path],
    *,
    jobs: int = 2,
    fsync: bool = False,
    progress: Callable[[int], None] | None = None,
    ledger: Ledger | None = None,
) -> None:
    """Write all outputs. `progress` is told of bytes written, from any thread.

    Raises Refusal (`disk-full`, `file-truncated`), OSError with the file's name, or what an interrupt raises;
    ValueError where the moves of an output do not cover it.
    """
    for output in outputs:
        _check_cover(output)
    with contextlib.ExitStack() as stack:
        readers = {name: stack.enter_context(Source(path)) for name, path in sources.items()}
        targets = [stack.enter_context(Target(output.path, output.size, ledger is not None)) for output in outputs]
        for target, output in zip(targets, outputs, strict=True):
            target.write(memoryview(output.header), 0)
        _Crew(readers, _tasks(targets, outputs, ledger), progress, ledger).run(jobs)
        if fsync:
            for target in targets:
                os.fsync(target.fd)


class _Copy(NamedTuple):
    """Plain moves, of which the target's bytes from `start` to `stop` are to be written."""

    target: Target
    moves: Sequence[Move]
    start: int
    stop: int


class _Gather(NamedTuple):
    """One tile of a move that is not plain, and how many such there are."""

    target: Target
    move: Move
    tile: Tile
    tiles: int


def _tasks(targets: Sequence[Target], outputs: Sequence[Output], ledger: Ledger | None) -> Iterator[_Copy | _Gather]:
    """All the work that is left, in target order."""
    for target, output in zip(targets, outputs, strict=True):
        for plain, group in itertools.groupby(output.moves, key=lambda move: move.plain):
            moves = list(group)
            if plain:
                end = moves[-1].target + moves[-1].length
                for start in range(moves[0].target, end, TASK):
                    stop = min(end, start + TASK)
                    if not ledger or not ledger.has(output.path, start, stop):
                        yield _Copy(target, moves, start, stop)
            else:
                for move in moves:
                    if ledger and ledger.has(output.path, move.target, move.target + move.length):
                        continue
                    found = list(tiles(move, BLOCK))
                    for tile in found:
                        yield _Gather(target, move, tile, len(found))


class _Crew:
    """Threads that share one supply of tasks, and the first error that any of them meets."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        tasks: Iterator[_Copy | _Gather],
        progress: Callable[[int], None] | None,
        ledger: Ledger | None,
    ) -> None:
        self.sources = sources
        self.tasks = tasks
        self.progress = progress
        self.ledger = ledger
        self.tiles: dict[tuple[str, int], int] = {}  # of the move at a place of a target, how many are written
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.error: BaseException | None = None

    def run(self, jobs: int) -> None:
        threads = [threading.Thread(target=self.work, name=f"transfer-{n}") for n in range(max(1, jobs))]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:  # an interrupt reaches the main thread only: the others end with their window
            self.stop.set()
            for thread in threads:
                if thread.ident:
                    thread.join()
        if self.error:
            raise self.error

    def work(self) -> None:
        worker = _Worker(self.sources)
        try:
            while not self.stop.is_set():
                with self.lock:
                    task = next(self.tasks, None)
                if task is None:
                    return
                for count in worker.copy(task) if isinstance(task, _Copy) else worker.gather(task):
                    if self.progress:
                        self.progress(count)
                    if self.stop.is_set():
                        return
                self.record(task)
        except BaseException as error:
            with self.lock:
                self.error = self.error or error
            self.stop.set()

    def record(self, task: _Copy | _Gather) -> None:
        """Tell the ledger what a task, or the last tile of a move, has completed."""
        if not self.ledger:
            return
        path = Path(task.target.path)
        if isinstance(task, _Copy):
            self.ledger.wrote(path, task.start, task.stop)
            return
        move = task.move
        place = task.target.path, move.target
        with self.lock:
            self.tiles[place] = self.tiles.get(place, 0) + 1
            whole = self.tiles[place] == task.tiles
        if whole:
            self.ledger.wrote(path, move.target, move.target + move.length)


class _Worker:
    """The buffers of one thread. Its methods yield the bytes written so far, window by window."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self.sources = sources
        self.gatherer: Gatherer | None = None
        self.window = memoryview(b"")
        self.unwanted = memoryview(b"")  # where the bytes between two wanted runs go

    def copy(self, task: _Copy) -> Iterator[int]:
        self.window = self.window or memoryview(bytearray(WINDOW))
        self.unwanted = self.unwanted or memoryview(bytearray(GAP))
        index = bisect.bisect_right(task.moves, task.start, key=lambda move: move.target) - 1
        for start in range(task.start, task.stop, WINDOW):
            stop = min(task.stop, start + WINDOW)
            wanted: list[Extent] = []
            while index < len(task.moves) and (move := task.moves[index]).target < stop:
                wanted += extents(move, max(0, start - move.target), min(move.length, stop - move.target))
                if move.target + move.length > stop:
                    break
                index += 1
            # A window may begin and end within an element.
            wanted[0], wanted[-1] = _within(wanted[0], start, stop), _within(wanted[-1], start, stop)
            self.read(wanted, start)
            task.target.write(self.window[: stop - start], start)
            yield stop - start

    def read(self, wanted: list[Extent], start: int) -> None:
        """Fill the window that begins at `start` of the target; what lies close together in a source is one read."""
        wanted.sort()
        buffers: list[memoryview] = []
        source, begin, end = "", 0, 0
        for name, offset, target, length in wanted:
            gap = offset - end
            if buffers and (name != source or not 0 <= gap <= GAP or len(buffers) >= 2 * VECTOR - 1):
                self.sources[source].read(begin, buffers)
                buffers = []
            if not buffers:
                source, begin = name, offset
            elif gap:
                buffers.append(self.unwanted[:gap])
            buffers.append(self.window[target - start : target - start + length])
            end = offset + length
        self.sources[source].read(begin, buffers)

    def gather(self, task: _Gather) -> Iterator[int]:
        if self.gatherer is None:
            from compiler.gather import Gatherer

            self.gatherer = Gatherer(lambda name, reads: self.sources[name].read_each(reads))
        tile = task.tile
        block = self.gatherer.fill(tile, task.move.dtype)
        if tile.width == tile.pitch:
            task.target.write(block, tile.target)
        else:
            starts = range(0, len(block), tile.width)
            places = itertools.count(tile.target, tile.pitch)
            task.target.write_each((block[n : n + tile.width], place) for n, place in zip(starts, places, strict=False))
        yield len(block)


def _within(extent: Extent, start: int, stop: int) -> Extent:
    """The part of an extent that lies in [start, stop) of the target."""
    source, offset, target, length = extent
    first, last = max(start, target), min(stop, target + length)
    return Extent(source, offset + first - target, first, last - first)


def _check_cover(output: Output) -> None:
    end = len(output.header)
    for move in output.moves:
        if move.target != end:
            raise ValueError(f"{output.path}: bytes from {min(end, move.target)} on are written twice or not at all")
        end += move.length
    if end != output.size:
        raise ValueError(f"{output.path}: {end} bytes are described, {output.size} are to be written")
