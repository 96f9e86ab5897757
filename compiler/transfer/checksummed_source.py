"""Input files whose checksums are compared while they are read, so that the disk is read once.

Takes a checkpoint; returns an `InputFile` for each of its files. The first read of any byte of a checked range reads all of
that range and compares it; the bytes that are wanted then come from the page cache. Refuses a range that does not match,
as `checkpoint.verify` does: with every other one. What nobody reads is not compared.
"""

from __future__ import annotations

import bisect
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from compiler.checkpoints.checkpoint import Checkpoint, verify
from compiler.diagnostics import refuse
from compiler.transfer.files import InputFile

WINDOW = 1 << 20  # bytes
AHEAD = 2  # ranges: a thread that would wait for another compares the next one meanwhile

Opener = Callable[[Path], InputFile]


def opener(checkpoint: Checkpoint) -> Opener:
    """How to open the files of a checkpoint."""
    ranges: dict[Path, list[tuple[int, int, int]]] = {}
    for (path, start, end), crc in sorted(checkpoint.checksums.items()):
        ranges.setdefault(path, []).append((start, end, crc))
    return lambda path: Checked(path, ranges[path], lambda: verify(checkpoint)) if path in ranges else InputFile(path)


class Checked(InputFile):
    """`ranges`: (start, end, CRC-32), ascending; `damaged` is called where one does not match, and should raise."""

    def __init__(self, path: Path, ranges: Sequence[tuple[int, int, int]], damaged: Callable[[], object]) -> None:
        super().__init__(path)
        self.ranges, self.damaged = ranges, damaged
        self.starts = [start for start, _, _ in ranges]
        self.unclaimed = set(range(len(ranges)))  # no thread has taken them
        self.unchecked = set(range(len(ranges)))  # not yet compared
        self.trouble: BaseException | None = None
        self.turn = threading.Condition()

    def read(self, offset: int, buffers: list[memoryview]) -> None:
        if self.unchecked:
            self.compare(offset, offset + sum(map(len, buffers)))
        super().read(offset, buffers)

    def read_each(self, reads: Iterable[tuple[int, memoryview]]) -> None:
        super().read_each(self.compared(reads) if self.unchecked else reads)

    def compared(self, reads: Iterable[tuple[int, memoryview]]) -> Iterator[tuple[int, memoryview]]:
        """The same reads, each once what it reads is known to match."""
        good = range(0)
        for offset, buffer in reads:
            end = offset + len(buffer)
            if not (good.start <= offset and end <= good.stop):
                good = self.compare(offset, end)
            yield offset, buffer

    def compare(self, start: int, end: int) -> range:
        """Return once all ranges between the two match; the bytes that are known to."""
        first = max(0, bisect.bisect_right(self.starts, start) - 1)
        for n in range(first, bisect.bisect_left(self.starts, end)):
            if n in self.unchecked and self.ranges[n][1] > start:
                self.settle(n)
        known = self.ranges[first] if self.ranges else (start, end, 0)
        return range(known[0], known[1]) if known[0] <= start and end <= known[1] else range(start, end)

    def settle(self, n: int) -> None:
        """Compare a range, unless another thread does; then the next one while it does, and wait for it."""
        while True:
            with self.turn:
                while n in self.unchecked and not self.trouble and not self.unclaimed.intersection(range(n, n + AHEAD)):
                    self.turn.wait()
                if self.trouble:
                    raise self.trouble
                if n not in self.unchecked:
                    return
                mine = next(m for m in range(n, n + AHEAD) if m in self.unclaimed)
                self.unclaimed.discard(mine)
            try:
                if self.sum(mine) != self.ranges[mine][2]:
                    self.damaged()
                    hint = "download or copy it again"
                    refuse(str(self.path), "its bytes do not match their checksum", "damaged-file", hint)
            except BaseException as error:
                with self.turn:
                    self.trouble = self.trouble or error
                    self.turn.notify_all()
                raise
            with self.turn:
                self.unchecked.discard(mine)
                self.turn.notify_all()

    def sum(self, n: int) -> int:
        """The CRC-32 of a range."""
        start, end, _ = self.ranges[n]
        window, crc = memoryview(bytearray(min(WINDOW, end - start))), 0
        while start < end:
            block = window[: end - start]
            super().read(start, [block])
            crc, start = zlib.crc32(block, crc), start + len(block)
        return crc
