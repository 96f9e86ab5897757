"""Moves bytes from open sources to where they belong, through buffers that one thread keeps.

Plain moves go through a private window of 1 MiB that is filled by vectored reads and written at once; the others go
tile by tile through `gather`, the only part that loads numpy. The methods that write yield how many bytes each step
has written, so that a caller can stop between two steps. Raises what reading and writing raise.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from compiler.layout.array import Array
from compiler.layout.moves import Copy, Move, Strip, Tile, copies, lower, tiles
from compiler.transfer.files import InputFile

if TYPE_CHECKING:
    from compiler.transfer.strided_copy import Gatherer

WINDOW = 1 << 20  # bytes: two of them stay in the processor's cache between reading and writing
BLOCK = 4 << 20  # bytes of a tile: about 1000 by 2000 elements of two bytes
GAP = 16 << 10  # bytes: reading as much for nothing costs less than another call
VECTOR = 512  # wanted buffers per read, and as many gaps; Linux allows 1024


class Sink(Protocol):
    """Where bytes go: `files.OutputFile` or `Memory`."""

    def write(self, data: memoryview, offset: int) -> None: ...
    def write_each(self, writes: Iterable[tuple[memoryview, int]]) -> None: ...
    def write_all(self, data: list[memoryview], offset: int) -> None: ...


class Memory:
    """A buffer as a sink."""

    def __init__(self, buffer: memoryview) -> None:
        self.buffer = buffer

    def write(self, data: memoryview, offset: int) -> None:
        self.buffer[offset : offset + len(data)] = data

    def write_each(self, writes: Iterable[tuple[memoryview, int]]) -> None:
        for data, offset in writes:
            self.write(data, offset)

    def write_all(self, data: list[memoryview], offset: int) -> None:
        for part in data:
            self.write(part, offset)
            offset += len(part)


class Worker:
    """The buffers of one thread, over sources that are open by name."""

    def __init__(self, sources: Mapping[str, InputFile]) -> None:
        self.sources = sources
        self.gatherer: Gatherer | None = None
        self.window = memoryview(b"")
        self.rows = memoryview(b"")
        self.unwanted = memoryview(b"")  # where the bytes between two wanted runs go

    def copy(self, sink: Sink, moves: Sequence[Move], start: int, stop: int) -> Iterator[int]:
        """Write the bytes from `start` to `stop` of plain moves that ascend without a gap."""
        self.window = self.window or memoryview(bytearray(WINDOW))
        index = bisect.bisect_right(moves, start, key=lambda move: move.target) - 1
        for first in range(start, stop, WINDOW):
            last = min(stop, first + WINDOW)
            wanted: list[Copy] = []
            while index < len(moves) and (move := moves[index]).target < last:
                wanted += copies(move, max(0, first - move.target), min(move.length, last - move.target))
                if move.target + move.length > last:
                    break
                index += 1
            self.read(wanted, first, self.window[: last - first])
            sink.write(self.window[: last - first], first)
            yield last - first

    def cut(self, strips: Sequence[tuple[Sink, Strip]], start: int, stop: int) -> Iterator[int]:
        """Write the rows from `start` to `stop` of strips of the same rows, each of which is read once."""
        first, pitch = strips[0][1], strips[0][1].pitch
        base = min(strip.offset for _, strip in strips)
        span = max(strip.offset + strip.width for _, strip in strips) - base
        high = max(1, WINDOW // pitch)
        if len(self.rows) < (size := (high - 1) * pitch + span):
            self.rows = memoryview(bytearray(size))
        for row in range(start, stop, high):
            count = min(high, stop - row)
            rows = self.rows[: (count - 1) * pitch + span]
            self.sources[first.source].read(base + row * pitch, [rows])
            for sink, strip in strips:
                begin, width = strip.offset - base, strip.width
                runs = [rows[n : n + width] for n in range(begin, begin + count * pitch, pitch)]
                sink.write_all(runs, strip.target + row * width)
            yield count * sum(strip.width for _, strip in strips)

    def gather(self, sink: Sink, move: Move, tile: Tile) -> Iterator[int]:
        """Write one tile of a move that is not plain."""
        if self.gatherer is None:
            from compiler.transfer.strided_copy import Gatherer

            self.gatherer = Gatherer(lambda name, reads: self.sources[name].read_each(reads))
        block = self.gatherer.fill(tile, move.dtype)
        if tile.width == tile.pitch:
            sink.write(block, tile.target)
        else:
            starts = range(0, len(block), tile.width)
            places = itertools.count(tile.target, tile.pitch)
            sink.write_each((block[n : n + tile.width], place) for n, place in zip(starts, places, strict=False))
        yield len(block)

    def fill(self, array: Array, buffer: memoryview) -> None:
        """Put the bytes of an array, in C order, into a buffer of their size."""
        memory = Memory(buffer)
        for move in lower(array):
            end = move.target + move.length
            if move.plain:
                for first in range(move.target, end, WINDOW):
                    last = min(end, first + WINDOW)
                    wanted = copies(move, first - move.target, last - move.target)
                    self.read(wanted, first, buffer[first:last])
            else:
                for tile in tiles(move, BLOCK):
                    for _ in self.gather(memory, move, tile):
                        pass

    def read(self, wanted: list[Copy], start: int, window: memoryview) -> None:
        """Fill the window that begins at `start` of the target; runs close to each other in a source are one read."""
        self.unwanted = self.unwanted or memoryview(bytearray(GAP))
        wanted.sort()
        buffers: list[memoryview] = []
        source, begin, end = "", 0, 0
        for name, offset, target, length in wanted:
            gap = offset - end
            if gap or name != source or len(buffers) >= 2 * VECTOR - 1 or not buffers:
                if buffers and (name != source or not 0 <= gap <= GAP or len(buffers) >= 2 * VECTOR - 1):
                    self.sources[source].read(begin, buffers)
                    buffers = []
                if not buffers:
                    source, begin = name, offset
                elif gap:
                    buffers.append(self.unwanted[:gap])
            buffers.append(window[target - start : target - start + length])
            end = offset + length
        self.sources[source].read(begin, buffers)
