"""Records which byte ranges of an unfinished output are safely on disk.

`Journal.wrote` collects byte ranges as they are written. Every few seconds, a thread syncs them to disk and appends
them with their SHA-256 to a file of one JSON line per note. A run that continues another skips the ranges whose hash
still matches. A short run never writes a note, and pays nothing. Raises OSError where the disk fails, in the thread
that writes.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

EVERY = 5.0  # seconds between two notes, and at least SHARE times as long as the last one took
SHARE = 4
_CHUNK = 1 << 20

Range = tuple[str, int, int]  # file, first byte, end


class Journal:
    """The journal at `path` of the files in `folder`. Within its context, `wrote` may be called from any thread."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        self.folder = folder
        self.safe: dict[str, list[tuple[int, int]]] = {}
        self.pending: list[Range] = []
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.error: OSError | None = None
        self.thread = threading.Thread(target=self._run, name="journal", daemon=True)

    @property
    def total(self) -> int:
        """How many bytes are safe."""
        return sum(stop - start for ranges in self.safe.values() for start, stop in ranges)

    def begin(self, fingerprint: str) -> None:
        """Start a new journal for the run of that fingerprint."""
        self.path.write_text(json.dumps({"fingerprint": fingerprint}) + "\n", encoding="utf-8")

    def recall(self) -> str:
        """Read an earlier run's notes and keep the ranges whose hash still matches; returns that run's fingerprint.

        An empty string if there is no journal.
        """
        self._unite()
        try:
            first, *notes = self.path.read_bytes().decode("ascii", "replace").split("\n")[:-1]
            fingerprint = json.loads(first)["fingerprint"]
        except (OSError, ValueError, LookupError, TypeError):
            return ""
        ranges: list[Range] = []
        for note in notes:
            ranges += self._holding(note)
        self.safe = _by_file(ranges)
        return str(fingerprint)

    def _unite(self) -> None:
        """Append the journals of that run's other ranks (PATH.RANK) to this one."""
        for other in sorted(self.path.parent.glob(f"{self.path.name}.*")):
            with self.path.open("a+b", buffering=0) as journal:
                journal.seek(0)
                first, _, notes = other.read_bytes().partition(b"\n")
                if notes and journal.read(len(first) + 1) == first + b"\n":
                    journal.write(b"\n" + notes)  # the last note of either may have been cut short
                    os.fsync(journal.fileno())
            other.unlink()

    def _holding(self, note: str) -> list[Range]:
        """The ranges of a note whose hash still fits; a note that was cut short holds nothing."""
        try:
            content = json.loads(note)
            ranges = [(str(file), int(start), int(stop)) for file, start, stop in content["ranges"]]
            inside = all(not os.path.isabs(file) and ".." not in Path(file).parts for file, _, _ in ranges)
            return ranges if inside and self._hash(ranges) == content["sha256"] else []
        except (OSError, ValueError, LookupError, TypeError):
            return []

    # -----------------------------------------------------------------------------------------------------------------

    def has(self, path: Path, start: int, stop: int) -> bool:
        """Whether an earlier run has made all of these bytes safe."""
        ranges = self.safe.get(self._name(path), [])
        place = bisect.bisect_right(ranges, (start, 1 << 63)) - 1
        return place >= 0 and stop <= ranges[place][1]

    def wrote(self, path: Path, start: int, stop: int) -> None:
        """These bytes of a file are written. Raises the OSError that an earlier note met."""
        if self.error:
            raise self.error
        with self.lock:
            self.pending.append((self._name(path), start, stop))

    def _name(self, path: Path) -> str:
        return path.name if path.parent == self.folder else path.relative_to(self.folder).as_posix()

    def __enter__(self) -> Journal:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop.set()
        self.thread.join()
        if kind is not None and not issubclass(kind, Exception):  # interrupted: what is written shall not be lost
            self.note()
        elif kind is None and self.error:
            raise self.error

    def _run(self) -> None:
        pause = EVERY
        while not self.stop.wait(pause):
            began = time.monotonic()
            try:
                self.note(hurried=True)
            except OSError as error:
                self.error = error
                return
            pause = max(EVERY, SHARE * (time.monotonic() - began))

    def note(self, hurried: bool = False) -> None:
        """Make safe what was written since the last time; if `hurried`, not where the end comes first."""
        with self.lock:
            ranges, self.pending = _merged(self.pending), []
        if not ranges:
            return
        for file in sorted({file for file, _, _ in ranges}):
            sync(self.folder / file)
        digest = self._hash(ranges, hurried)
        if not digest:
            with self.lock:
                self.pending += ranges
            return
        line = json.dumps({"ranges": ranges, "sha256": digest}) + "\n"
        with self.path.open("ab", buffering=0) as journal:
            journal.write(line.encode("ascii"))
            os.fsync(journal.fileno())
        self.safe = _by_file([*self._all(), *ranges])

    def _all(self) -> Iterator[Range]:
        return ((file, start, stop) for file, ranges in self.safe.items() for start, stop in ranges)

    def _hash(self, ranges: Iterable[Range], hurried: bool = False) -> str:
        digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK))
        for file, start, stop in ranges:
            with (self.folder / file).open("rb", buffering=0) as opened:
                opened.seek(start)
                left = stop - start
                while (
                    left
                    and not (hurried and self.stop.is_set())
                    and (got := opened.readinto(buffer[: min(left, _CHUNK)]))
                ):
                    digest.update(buffer[:got])
                    left -= got
            if left and hurried and self.stop.is_set():
                return ""
            if left:
                raise ValueError(f"{file} ends before byte {stop}")
        return digest.hexdigest()


def sync(path: Path) -> None:
    """Have the disk hold a file or a folder's names as they are now. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from error
    finally:
        os.close(handle)


def _merged(ranges: Iterable[Range]) -> list[Range]:
    """Sorted, with those that touch as one."""
    merged: list[Range] = []
    for file, start, stop in sorted(ranges):
        if merged and merged[-1][0] == file and start <= merged[-1][2]:
            merged[-1] = (file, merged[-1][1], max(stop, merged[-1][2]))
        else:
            merged.append((file, start, stop))
    return merged


def _by_file(ranges: Iterable[Range]) -> dict[str, list[tuple[int, int]]]:
    by_file: dict[str, list[tuple[int, int]]] = {}
    for file, start, stop in _merged(ranges):
        by_file.setdefault(file, []).append((start, stop))
    return by_file
