"""Writes files whose bytes come from other files, at the speed of a copy, in bounded memory.

Takes outputs (path, size, header, moves) and the paths of the sources. Space for every output is reserved before a
byte is written. Threads take contiguous ranges of the targets in turn: plain moves go through a private buffer of
1 MiB that is filled by vectored reads and written at once; the others go tile by tile through `gather`, the only
part that loads numpy. Knows nothing of specs or tensors' names; names of outputs are final, so a caller that wants
all or nothing hands in a temporary folder. Refuses a full disk and a source that ends early, with file and offset.
The first error stops all threads, removes the outputs and is raised; so does an interrupt.
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
from typing import TYPE_CHECKING, NamedTuple

from compiler.files import Source, Target
from compiler.moves import Move, Tile, extents, tiles

if TYPE_CHECKING:
    from compiler.gather import Gatherer

WINDOW = 1 << 20  # bytes: two of them stay in the processor's cache between reading and writing
BLOCK = 4 << 20  # bytes of a tile: its sides are about 1400 elements of two bytes
TASK = 32 << 20  # bytes of target that a thread takes at a time
VECTOR = 512  # buffers per read; Linux allows 1024


@dataclass(frozen=True)
class Output:
    """A file to write: `header` first, then the moves' ranges, which ascend and leave no gap up to `size`."""

    path: Path
    size: int
    header: bytes
    moves: Sequence[Move]


def transfer(
    outputs: Sequence[Output],
    sources: Mapping[str, Path],
    *,
    jobs: int = 2,
    fsync: bool = False,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write all outputs. `progress` is told of bytes written, from any thread.

    Raises Refusal (`disk-full`, `file-truncated`), OSError with the file's name, or what an interrupt raises;
    ValueError where the moves of an output do not cover it.
    """
    for output in outputs:
        _check_cover(output)
    with contextlib.ExitStack() as stack:
        readers = {name: stack.enter_context(Source(path)) for name, path in sources.items()}
        targets = [stack.enter_context(Target(output.path, output.size)) for output in outputs]
        for target, output in zip(targets, outputs, strict=True):
            target.write(memoryview(output.header), 0)
        _Crew(readers, _tasks(targets, outputs), progress).run(jobs)
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
    """One tile of a move that is not plain."""

    target: Target
    move: Move
    tile: Tile


def _tasks(targets: Sequence[Target], outputs: Sequence[Output]) -> Iterator[_Copy | _Gather]:
    """All the work, in target order."""
    for target, output in zip(targets, outputs, strict=True):
        for plain, group in itertools.groupby(output.moves, key=lambda move: move.plain):
            moves = list(group)
            if plain:
                end = moves[-1].target + moves[-1].length
                for start in range(moves[0].target, end, TASK):
                    yield _Copy(target, moves, start, min(end, start + TASK))
            else:
                for move in moves:
                    for tile in tiles(move, BLOCK):
                        yield _Gather(target, move, tile)


class _Crew:
    """Threads that share one supply of tasks, and the first error that any of them meets."""

    def __init__(
        self, sources: Mapping[str, Source], tasks: Iterator[_Copy | _Gather], progress: Callable[[int], None] | None
    ) -> None:
        self.sources = sources
        self.tasks = tasks
        self.progress = progress
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
        except BaseException as error:
            with self.lock:
                self.error = self.error or error
            self.stop.set()


class _Worker:
    """The buffers of one thread. Its methods yield the bytes written so far, window by window."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self.sources = sources
        self.gatherer: Gatherer | None = None
        self.window = memoryview(b"")

    def copy(self, task: _Copy) -> Iterator[int]:
        self.window = self.window or memoryview(bytearray(WINDOW))
        index = bisect.bisect_right(task.moves, task.start, key=lambda move: move.target) - 1
        for start in range(task.start, task.stop, WINDOW):
            stop = min(task.stop, start + WINDOW)
            wanted: list[tuple[str, int, int, int]] = []
            while index < len(task.moves) and (move := task.moves[index]).target < stop:
                for extent in extents(move, max(0, start - move.target), min(move.length, stop - move.target)):
                    # A window may end within an element.
                    first, last = max(start, extent.target_offset), min(stop, extent.target_offset + extent.length)
                    skipped = first - extent.target_offset
                    wanted.append((extent.source, extent.source_offset + skipped, first - start, last - first))
                if move.target + move.length > stop:
                    break
                index += 1
            self.read(wanted)
            task.target.write(self.window[: stop - start], start)
            yield stop - start

    def read(self, wanted: list[tuple[str, int, int, int]]) -> None:
        """(source, byte, window byte, length) each; what lies together in a source is read together."""
        wanted.sort()
        buffers: list[memoryview] = []
        source, begin, end = "", 0, 0
        for name, offset, place, length in wanted:
            if buffers and (name != source or offset != end or len(buffers) == VECTOR):
                self.sources[source].read(begin, buffers)
                buffers = []
            if not buffers:
                source, begin = name, offset
            buffers.append(self.window[place : place + length])
            end = offset + length
        if buffers:
            self.sources[source].read(begin, buffers)

    def gather(self, task: _Gather) -> Iterator[int]:
        if self.gatherer is None:
            from compiler.gather import Gatherer

            self.gatherer = Gatherer(lambda name, offset, buffer: self.sources[name].read(offset, [buffer]))
        tile = task.tile
        block = self.gatherer.fill(tile, task.move.dtype)
        if tile.width == tile.pitch:
            task.target.write(block, tile.target)
        else:
            for row in range(tile.rows):
                data = block[row * tile.width : (row + 1) * tile.width]
                task.target.write(data, tile.target + row * tile.pitch)
        yield len(block)


def _check_cover(output: Output) -> None:
    end = len(output.header)
    for move in output.moves:
        if move.target != end:
            raise ValueError(f"{output.path}: bytes from {min(end, move.target)} on are written twice or not at all")
        end += move.length
    if end != output.size:
        raise ValueError(f"{output.path}: {end} bytes are described, {output.size} are to be written")
