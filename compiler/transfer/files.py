"""Files that are read and written at given places: whole or with an error that says which file and which byte.

An `InputFile` fills buffers, an `OutputFile` takes bytes; both are open within their context and safe to use from
several threads; `Unchanged` checks that nobody has written to a source in the meantime.
Refuses a source that ends early (`file-truncated`) and a target without room (`disk-full`); any other
trouble is an OSError with the file's name and the offset. Never overwrites: a target must not exist yet, unless it is
one that is continued.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from compiler.diagnostics import refuse

BEHIND = 32 << 20  # bytes written before the disk is asked to begin with them
VECTOR = 1024  # buffers per call, as many as Linux allows
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class InputFile:
    """A file to read from, open within its context."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> InputFile:
        self.fd = os.open(self.path, os.O_RDONLY)
        if hasattr(os, "posix_fadvise"):  # doubles the kernel's own read-ahead; asking for more by hand was slower
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self.fd)

    def read(self, offset: int, buffers: list[memoryview]) -> None:
        """Fill the buffers, in their order, with the bytes from `offset` on."""
        left = sum(map(len, buffers))
        while left:
            try:
                got = os.preadv(self.fd, buffers, offset)
            except OSError as error:
                raise OSError(
                    error.errno, f"{os.strerror(error.errno or 0)} at byte {offset}", str(self.path)
                ) from error
            if not got:
                refuse(str(self.path), f"the file ends at byte {offset}, {left} bytes early", "file-truncated",
                       "it was cut short or has changed since its header was read; fetch it again")  # fmt: skip
            offset, left = offset + got, left - got
            while left and got:
                first = buffers[0]
                buffers = [first[got:], *buffers[1:]] if got < len(first) else buffers[1:]
                got -= min(got, len(first))

    def read_each(self, reads: Iterable[tuple[int, memoryview]]) -> None:
        """Fill each buffer with the bytes from its offset on: for very many small reads."""
        fd, preadv = self.fd, os.preadv
        for offset, buffer in reads:
            if preadv(fd, (buffer,), offset) != len(buffer):
                self.read(offset, [buffer])


class Unchanged:
    """The size and time of change of files, to detect later writes."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.seen = {path: self.stamp(path) for path in paths}

    def stamp(self, path: Path) -> tuple[int, int]:
        status = path.stat()
        return status.st_size, status.st_mtime_ns

    def check(self) -> None:
        """Refuse the first one that was written to since (`file-changed`)."""
        for path, stamp in self.seen.items():
            if self.stamp(path) != stamp:
                hint = "wait until nothing writes to it, then run again"
                refuse(str(path), "it changed while it was read", "file-changed", hint)


class OutputFile:
    """A file being written, open within its context and removed if that ends in an error.

    With `keep` it may exist already, its content stays, and an error does not remove it.
    """

    def __init__(self, path: Path, size: int, keep: bool = False) -> None:
        self.path = str(path)
        self.size = size
        self.keep = keep
        self.begun = 0  # writeback was started for the bytes before it

    def __enter__(self) -> OutputFile:
        self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | (0 if self.keep else os.O_EXCL), 0o666)
        try:
            self.reserve()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        os.close(self.fd)
        if kind is not None and not self.keep:
            os.unlink(self.path)

    def reserve(self) -> None:
        """Reserve the space, so that a full disk fails now and blocks are contiguous."""
        try:
            if not hasattr(os, "posix_fallocate"):  # macOS
                raise OSError(errno.ENOSYS, "no posix_fallocate")
            os.posix_fallocate(self.fd, 0, max(1, self.size))
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                self.fail(error, 0)
            import shutil

            if self.size > (free := shutil.disk_usage(os.path.dirname(self.path) or ".").free):
                self.fail(OSError(errno.ENOSPC, f"{free} bytes are free"), 0)
        os.ftruncate(self.fd, self.size)

    def write(self, data: memoryview, offset: int) -> None:
        """Put all of `data` at `offset`."""
        while data:
            try:
                written = os.pwrite(self.fd, data, offset)
            except OSError as error:
                self.fail(error, offset)
            data, offset = data[written:], offset + written

    def write_each(self, writes: Iterable[tuple[memoryview, int]]) -> None:
        """Put each buffer at its offset: for very many very small writes."""
        fd, pwrite = self.fd, os.pwrite
        for data, offset in writes:
            if pwrite(fd, data, offset) != len(data):
                self.write(data, offset)

    def write_all(self, data: list[memoryview], offset: int) -> None:
        """Put the buffers one behind the other from `offset` on."""
        for start in range(0, len(data), VECTOR):
            parts = data[start : start + VECTOR]
            try:
                written = os.pwritev(self.fd, parts, offset)
            except OSError as error:
                self.fail(error, offset)
            end = offset
            for part in parts if written < sum(map(len, parts)) else ():  # what it has left over goes one by one
                end += len(part)
                if offset + written < end:
                    left = min(len(part), end - offset - written)
                    self.write(part[len(part) - left :], end - left)
            offset += sum(map(len, parts))

    def begin(self, end: int) -> None:
        """Start writing the bytes before `end` to disk, so that the last fsync has less to wait for.

        On POSIX_FADV_DONTNEED Linux starts writeback of dirty pages and returns at once (mm/fadvise.c
        `generic_fadvise`); elsewhere the call does no harm.
        """
        start, self.begun = self.begun, min(self.begun, end)  # another thread may do the same: that is no harm
        if end - start >= BEHIND and hasattr(os, "posix_fadvise"):
            self.begun = end
            os.posix_fadvise(self.fd, start, end - start, os.POSIX_FADV_DONTNEED)

    def fail(self, error: OSError, offset: int) -> NoReturn:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            refuse(self.path, f"there is no room for its {self.size} bytes", "disk-full",
                   "free some space or write to another disk")  # fmt: skip
        raise OSError(error.errno, f"{os.strerror(error.errno or 0)} at byte {offset}", self.path) from error
