"""The members of an uncompressed tar archive, read strictly: the byte range of every file in it.

Takes a path; returns `Member`s by name, without a leading `./`. Reads one header for each member and seeks over the bytes.
Knows the ustar, pax and GNU forms. Refuses what two tar readers could read differently or what is no plain file: names
twice, links, sparse files and devices, wrong checksums, members that leave the file, archives without an end.
Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Header Block"; GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from compiler.checkpoints.formats.pickle_plain import shown
from compiler.diagnostics import refuse

BLOCK = 512
MOST_MEMBERS = 100_000
_MOST_EXTENDED = 1 << 16  # bytes of a pax header or of a long name; paths are at most 4096
_MAGICS = (b"ustar\x0000", b"ustar  \0")  # POSIX, GNU
_FILES, _FOLDER, _PAX, _PAX_OF_ALL, _LONG_NAME = (b"0", b"\0", b"7"), b"5", b"x", b"g", b"L"
_PAX_RECORD = re.compile(rb"([1-9]\d{0,5}) ([^=\n]+)=")


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive: its bytes begin at `start`."""

    name: str
    start: int
    size: int


def is_tar(head: bytes) -> bool:
    """Whether a file with these first 512 bytes is a tar archive of a known form."""
    return head[257:265] in _MAGICS


def read_tar(path: Path) -> dict[str, Member]:
    """The files of an archive by name. Raises Refusal."""
    with path.open("rb") as file:
        return _Reader(path, file).members()


class _Reader:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.size = os.fstat(file.fileno()).st_size
        self.position = 0

    def members(self) -> dict[str, Member]:
        members: dict[str, Member] = {}
        extended: dict[str, str] = {}  # what the headers before a member say of it
        seen = 0
        while any(header := self.read(BLOCK)):
            seen += 1
            if seen > MOST_MEMBERS:
                self.refuse(f"it has more than {MOST_MEMBERS:,} members")
            self.check(header)
            kind, size = header[156:157], self.number(header[124:136])
            if kind in (_PAX, _PAX_OF_ALL, _LONG_NAME):
                if size > _MOST_EXTENDED:
                    self.refuse(f"a header of {size:,} bytes")
                data = self.read(size, padded=True)
                if kind == _LONG_NAME:
                    extended["path"] = self.text(data.rstrip(b"\0"))
                elif records := self.pax(data):
                    if kind == _PAX_OF_ALL and records.keys() & {"path", "size"}:
                        self.refuse("one header names all of its members")
                    extended |= records if kind == _PAX else {}
                continue
            name = extended.get("path") or self.name(header)
            if "size" in extended:
                size = self.decimal(extended["size"])
            if any(key.startswith("GNU.sparse") for key in extended) or kind not in (*_FILES, _FOLDER):
                hint = "unpack it and pack it again without links and sparse files"
                refuse(str(self.path), f"{shown(name)} in it is no plain file", "unsupported-tensor", hint)
            extended = {}
            start = self.position
            if kind == _FOLDER:
                size = 0
            elif (plain := "/".join(part for part in name.split("/") if part not in ("", "."))) in members:
                self.refuse(f"it holds {shown(plain)} twice")
            else:
                members[plain] = Member(plain, start, size)
            self.position += -(-size // BLOCK) * BLOCK
            if start + size > self.size:
                self.refuse(f"{shown(name)} reaches to byte {start + size:,} of {self.size:,}")
        return members

    def check(self, header: bytes) -> None:
        total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
        if not is_tar(header) or self.number(header[148:156]) != total:
            self.refuse(f"the header at byte {self.position - BLOCK:,} is malformed")

    def name(self, header: bytes) -> str:
        prefix = header[345:500].split(b"\0")[0] if header[257:265] == _MAGICS[0] else b""
        return self.text(b"/".join(part for part in (prefix, header[:100].split(b"\0")[0]) if part))

    def number(self, field: bytes) -> int:
        """An octal number, or in the GNU form a binary one whose first bit is set."""
        if field[0] == 0x80:
            return int.from_bytes(field[1:])
        digits = field.strip(b" \0")
        if not re.fullmatch(rb"[0-7]{1,12}", digits):
            self.refuse(f"the header at byte {self.position - BLOCK:,} is malformed")
        return int(digits, 8)

    def pax(self, data: bytes) -> dict[str, str]:
        """The records of a pax header: `LENGTH KEY=VALUE` and a line end, where LENGTH counts the complete record."""
        records: dict[str, str] = {}
        at = 0
        while at < len(data):
            match = _PAX_RECORD.match(data, at)
            end = at + int(match[1]) if match else 0
            if match is None or end > len(data) or end <= match.end() or data[end - 1 : end] != b"\n":
                self.refuse("a pax header is malformed")
            key = self.text(match[2])
            if key in records:
                self.refuse(f"a pax header has {shown(key)} twice")
            records[key] = self.text(data[match.end() : end - 1]) if key in ("path", "size") else ""
            at = end
        return records

    def decimal(self, text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text):
            self.refuse("a pax header is malformed")
        return int(text)

    def text(self, data: bytes) -> str:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            text = ""
        if not text or not text.isprintable() or ".." in text.split("/") or text.startswith("/"):
            self.refuse(f"a member's name is no relative path: {ascii(text or data)[:80]}")
        return text

    def read(self, length: int, padded: bool = False) -> bytes:
        self.file.seek(self.position)
        data = self.file.read(length)
        if len(data) != length:
            hint = "download or copy it again; compare its size with the original's"
            refuse(str(self.path), "a tar archive without its end: it was cut short", "damaged-file", hint)
        self.position += -(-length // BLOCK) * BLOCK if padded else length
        return data

    def refuse(self, problem: str) -> NoReturn:
        refuse(str(self.path), f"a damaged tar archive: {problem}", "damaged-file", "download or copy it again")
