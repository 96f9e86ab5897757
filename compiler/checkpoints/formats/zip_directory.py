"""The table of contents of a zip file, read strictly: which stored bytes lie where.

Takes an open file; returns records by name. Written for the zip files that torch writes, where every record is stored
as it is and lies alone. Refuses what two zip readers could read differently: names twice, records that overlap, bytes
before the archive, a header that contradicts the table; and compressed or encrypted records.
Source: PKWARE APPNOTE 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.14-16 (its end, zip64).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise
from typing import NoReturn, Protocol

from compiler.checkpoints.formats.zip_structs import CENTRAL, END, END64, FULL16, FULL32, LOCAL, LOCATOR64
from compiler.diagnostics import refuse

_MOST_TABLE = 128 << 20  # bytes; of more than a million records


class Readable(Protocol):
    """What an archive needs of a file."""

    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def read(self, size: int, /) -> bytes: ...


@dataclass(slots=True)
class ZipRecord:
    """One stored record: its header lies at `header`, its bytes end at or before `limit`."""

    name: str
    size: int
    crc: int
    header: int
    compressed: bool
    limit: int = 0


class Slice:
    """Some bytes of an open file as a file."""

    def __init__(self, file: Readable, start: int, length: int) -> None:
        self.file, self.start, self.length = file, start, length
        self.position = 0

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self.position = offset + (self.length if whence == 2 else 0)
        return self.position

    def read(self, size: int, /) -> bytes:
        self.file.seek(self.start + self.position)
        data = self.file.read(max(0, min(size, self.length - self.position)))
        self.position += len(data)
        return data


class Archive:
    """The records of one zip file, in the order of its table. The file must stay open while records are located."""

    def __init__(self, file: Readable, path: str) -> None:
        self.file, self.path = file, path
        size = file.seek(0, 2)
        start, length, count = self._end(size)
        self.records = self._table(start, length, count)
        self._lay_out(start)

    def locate(self, record: ZipRecord) -> int:
        """The offset of a record's first byte, which only its local header tells."""
        if record.compressed:
            hint = "torch stores records as they are; load and save the file again with torch.save"
            refuse(self.path, f"{record.name!r} is compressed", "unknown-format", hint)
        encoded = record.name.encode()
        head = self._at(record.header, LOCAL.size + len(encoded))
        signature, _, flags, method, _, _, _, _, size, name_length, extra_length = LOCAL.unpack_from(head)
        start = record.header + LOCAL.size + name_length + extra_length
        agrees = signature == b"PK\3\4" and method == 0 and not flags & 1 and size in (0, FULL32, record.size)
        if not agrees or head[LOCAL.size :] != encoded or name_length != len(encoded):
            self._refuse(f"the header of {record.name!r} contradicts the table of contents")
        if start + record.size > record.limit:
            self._refuse(f"{record.name!r} runs into the record after it")
        return start

    def read(self, record: ZipRecord) -> bytes:
        """The bytes of a record, checked against its checksum; a checksum of 0 means that none was written."""
        data = self._at(self.locate(record), record.size)
        if record.crc and zlib.crc32(data) != record.crc:
            self._refuse(f"the checksum of {record.name!r} does not match its bytes")
        return data

    def _end(self, size: int) -> tuple[int, int, int]:
        """Where the table lies, its length in bytes, and how many records it names."""
        tail_start = max(0, size - END.size - FULL16)
        tail = self._at(tail_start, size - tail_start)
        found = tail.rfind(b"PK\5\6")
        if found < 0 or found + END.size > len(tail):
            hint = "download or copy it again; compare its size with the original's"
            refuse(self.path, "a zip file without its end: it was cut short", "damaged-file", hint)
        _, disk, table_disk, here, count, length, start, comment = END.unpack_from(tail, found)
        end = tail_start + found
        if end + END.size + comment != size:
            self._refuse("there are stray bytes after its end")
        locator = self._at(end - LOCATOR64.size, LOCATOR64.size) if end >= LOCATOR64.size else b""
        if locator.startswith(b"PK\6\7"):  # torch writes the zip64 end always, beside the plain one
            record = LOCATOR64.unpack(locator)[2]
            if record + END64.size + LOCATOR64.size > end:
                self._refuse("its zip64 end is missing")
            magic, _, _, _, disk, table_disk, here, wide_count, wide_length, wide_start = END64.unpack(
                self._at(record, END64.size)
            )
            narrow, wide = (count, length, start), (wide_count, wide_length, wide_start)
            full = (FULL16, FULL32, FULL32)
            if magic != b"PK\6\6" or any(n not in (w, f) for n, w, f in zip(narrow, wide, full, strict=True)):
                self._refuse("its zip64 end contradicts its end")
            (count, length, start), end = wide, record
        if disk or table_disk or here != count:
            self._refuse("it is one part of a split archive")
        if start + length != end:
            self._refuse("its table of contents is not where it says")
        if length > _MOST_TABLE:
            self._refuse(f"its table of contents has {length:,} bytes")
        return start, length, count

    def _table(self, start: int, length: int, count: int) -> dict[str, ZipRecord]:
        table = self._at(start, length)
        records: dict[str, ZipRecord] = {}
        position = 0
        while position + CENTRAL.size <= length:
            fields = CENTRAL.unpack_from(table, position)
            signature, _, _, flags, method, _, _, crc, packed, size, names, extras, comments, _, _, _, header = fields
            if signature != b"PK\1\2":
                break
            position += CENTRAL.size
            try:
                name = table[position : position + names].decode()
            except UnicodeDecodeError:
                name = ""
            if not name or not name.isprintable():
                self._refuse("a record's name is no text")
            position += names
            if FULL32 in (packed, size, header):
                extra = table[position : position + extras]
                size, packed, header = self._wide(extra, [size, packed, header], name)
            position += extras + comments
            if flags & 1:
                refuse(
                    self.path, f"{name!r} is encrypted", "unknown-format", "torch writes no encrypted files; unpack it"
                )
            if packed != size and not method:
                self._refuse(f"{name!r} has two sizes")
            if name in records:
                self._refuse(f"it holds {name!r} twice")
            records[name] = ZipRecord(name, packed, crc, header, bool(method))
        if position != length or len(records) != count:
            self._refuse(f"its table of contents is broken after {len(records)} of {count} records")
        return records

    def _wide(self, extra: bytes, values: list[int], name: str) -> list[int]:
        """Size, packed size and offset, with those that did not fit 32 bits taken from the zip64 extra field."""
        wanted = [i for i, value in enumerate(values) if value == FULL32]
        position = 0
        while position + 4 <= len(extra):
            kind, length = struct.unpack_from("<2H", extra, position)
            if kind == 1:
                break
            position += 4 + length
        if position + 4 + 8 * len(wanted) > len(extra):
            self._refuse(f"the zip64 sizes of {name!r} are missing")
        for place, i in enumerate(wanted):
            values[i] = struct.unpack_from("<Q", extra, position + 4 + 8 * place)[0]
        return values

    def _lay_out(self, table: int) -> None:
        """Give each record its limit: the next one's header, or the table."""
        ordered = sorted(self.records.values(), key=lambda r: r.header)
        for record, after in pairwise(ordered):
            record.limit = after.header
        if ordered:
            ordered[-1].limit = table
        for record in ordered:
            if record.header + LOCAL.size + record.size > record.limit:
                self._refuse(f"{record.name!r} runs into the record after it")

    def _at(self, offset: int, length: int) -> bytes:
        self.file.seek(offset)
        data = self.file.read(length)
        if len(data) != length:
            self._refuse("it ends too early")
        return data

    def _refuse(self, problem: str) -> NoReturn:
        refuse(self.path, f"a damaged zip file: {problem}", "damaged-file", "download or copy it again")
