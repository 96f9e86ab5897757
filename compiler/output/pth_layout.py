"""Computes the layout of a `.pth` as torch.save writes it, before any tensor is written; torch is not imported.

Format: a zip without compression that holds `data.pkl` (a pickled OrderedDict whose tensors refer to storages by key)
and one record per storage under `data/`, each aligned to 64 bytes (torch/serialization.py, `_save`). The order of
the records is free, so that the tensors come first. Takes targets, and the plain objects that are stored with them;
returns where the bytes of each belong; `finish` adds the rest once they are written.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from compiler.checkpoints.formats.pickle_globals import STORAGE_TYPES
from compiler.checkpoints.formats.stored_tensor import dense_strides
from compiler.checkpoints.formats.zip_structs import CENTRAL, END, END64, FULL16, FULL32, LOCAL, LOCATOR64
from compiler.layout.array import Array
from compiler.output.earlier_run import MARK
from compiler.output.safetensors_layout import OutFile
from compiler.plan.plan import TargetTensor

ALIGNMENT = 64
_CHUNK = 1 << 20
_VERSION, _EPOCH = 45, (0, 0x21)  # zip64; midnight of 1 January 1980
_STORAGES = {dtype: name for name, dtype in STORAGE_TYPES.items() if name != "UntypedStorage"}


@dataclass(frozen=True)
class Wrapping:
    """What surrounds the tensors in a file: the dictionaries under whose `keys` they are, the outermost first, and plain
    `objects` beside the outermost key, of which the `namespaces` are instances of argparse.Namespace. `dictionaries`: beginnings
    of names, without their last dot, that are dictionaries in the state dict."""

    keys: tuple[str, ...] = ()
    objects: Mapping[str, Any] = field(default_factory=dict)
    namespaces: tuple[str, ...] = ()
    dictionaries: tuple[str, ...] = ()


@dataclass(frozen=True)
class PthRecord:
    """One record of the zip: its header starts at byte `header`, its `size` data bytes at `start`."""

    name: bytes
    header: int
    start: int
    size: int
    content: bytes | None = None  # of a record that is no tensor

    def local(self, crc: int) -> bytes:
        """The header, padded so that it ends where the bytes begin."""
        extra = struct.pack("<2H2Q", 1, 16, self.size, self.size)
        room = self.start - self.header - LOCAL.size - len(self.name) - len(extra)
        extra += b"FB" + (room - 4).to_bytes(2, "little") + b"Z" * (room - 4)  # a field that readers pass over
        values = (b"PK\3\4", _VERSION, 0, 0, *_EPOCH, crc, FULL32, FULL32, len(self.name), len(extra))
        return LOCAL.pack(*values) + self.name + extra

    def central(self, crc: int) -> bytes:
        """The entry in the table of contents."""
        extra = struct.pack("<2H3Q", 1, 24, self.size, self.size, self.header)
        sizes = (crc, FULL32, FULL32, len(self.name), len(extra))
        return (
            CENTRAL.pack(b"PK\1\2", _VERSION, _VERSION, 0, 0, *_EPOCH, *sizes, 0, 0, 0, 0, FULL32) + self.name + extra
        )


@dataclass(frozen=True)
class PthFile:
    """A file before it is written: `offsets` gives the place of each target's bytes; `finish` writes the rest."""

    records: tuple[PthRecord, ...]
    offsets: dict[str, int]
    size: int

    @property
    def gaps(self) -> list[tuple[int, int]]:
        """(start, length) of all that is no tensor."""
        tensors = [record for record in self.records if record.content is None]
        ends = [0, *(record.start + record.size for record in tensors)]
        starts = [*(record.start for record in tensors), self.size]
        return [(end, start - end) for end, start in zip(ends, starts, strict=True)]

    def finish(self, path: Path, base: int = 0) -> None:
        """Write the headers with the checksums of what was written, and the table of contents. The zip starts at byte
        `base` of the file. Raises OSError."""
        with path.open("r+b") as file:
            table = bytearray()
            for record in self.records:
                if record.content is None:
                    crc = _checksum(file, base + record.start, record.size)
                else:
                    crc = zlib.crc32(record.content)
                    _put(file, base + record.start, record.content)
                _put(file, base + record.header, record.local(crc))
                table += record.central(crc)
            start = self.records[-1].start + self.records[-1].size
            _put(file, base + start, bytes(table) + _end(start, len(table), len(self.records)))


def lay_out(name: str, targets: Sequence[TargetTensor], wrapping: Wrapping = Wrapping()) -> PthFile:
    """The file of that name for these tensors, in their order."""
    return _lay_out(name.strip(".").split(".")[0] or "archive", targets, _pickled(targets, wrapping))


def out_file(
    path: str,
    targets: Sequence[TargetTensor],
    wrapping: Wrapping = Wrapping(),
    names: Mapping[str, str] | None = None,
    cut: Callable[[str, Array], Array] | None = None,
) -> OutFile:
    """The file of these targets at a relative path. `names`: what the file calls targets that it has under another name;
    `cut`: the part that it has of each, of the shape that is given."""
    names = names or {}
    renamed = [replace(target, name=names.get(target.name, target.name)) for target in targets]
    file = lay_out(Path(path).name, renamed, wrapping)
    offsets = {target.name: file.offsets[own.name] for target, own in zip(targets, renamed, strict=True)}
    return OutFile(path, b"", offsets, file.size, tuple(file.gaps), file.finish, cut)


def lay_out_tensor(target: TargetTensor) -> PthFile:
    """What torch.save writes for one tensor."""
    return _lay_out("archive", [target], b"\x80\x02" + _tensor(0, target) + b".")


def _lay_out(root: str, targets: Sequence[TargetTensor], pickled: bytes) -> PthFile:
    records: list[PthRecord] = []
    end = 0
    texts = {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n"}
    contents: list[tuple[str, int, bytes | None]] = [(f"data/{n}", t.nbytes, None) for n, t in enumerate(targets)]
    for short, size, content in [*contents, *((short, len(text), text) for short, text in texts.items())]:
        full = f"{root}/{short}".encode()
        least = end + LOCAL.size + len(full) + 20 + 4
        start = least + -least % ALIGNMENT
        records.append(PthRecord(full, end, start, size, content))
        end = start + size
    table = sum(len(record.central(0)) for record in records)
    size = end + table + len(_end(end, table, len(records)))
    offsets = {target.name: record.start for target, record in zip(targets, records, strict=False)}
    return PthFile(tuple(records), offsets, size)


def _end(start: int, length: int, count: int) -> bytes:
    """The end records of the zip, which point to the table of contents, with the comment that marks mapspec's files."""
    wide = END64.pack(b"PK\6\6", END64.size - 12, _VERSION, _VERSION, 0, 0, count, count, length, start)
    locator = LOCATOR64.pack(b"PK\6\7", 0, start + length, 1)
    count, length, start = min(count, FULL16), min(length, FULL32), min(start, FULL32)
    return wide + locator + END.pack(b"PK\5\6", 0, 0, count, count, length, start, len(MARK)) + MARK


def _checksum(file: BinaryIO, start: int, size: int) -> int:
    file.seek(start)
    crc, left = 0, size
    while left and (chunk := file.read(min(left, _CHUNK))):
        crc, left = zlib.crc32(chunk, crc), left - len(chunk)
    return crc


def _put(file: BinaryIO, offset: int, data: bytes) -> None:
    file.seek(offset)
    file.write(data)


# ---------------------------------------------------------------------------------------------------------------------
# The pickle, in protocol 2 as torch writes it, spelled out because Python's pickler would import what it names


_ORDERED = b"ccollections\nOrderedDict\n)R"


def _pickled(targets: Sequence[TargetTensor], wrapping: Wrapping) -> bytes:
    """The tensors as the wrapping says; without any tensor, a dictionary of its objects."""
    objects = b"".join(_text(n) + _object(v, n in wrapping.namespaces) for n, v in wrapping.objects.items())
    if not targets and objects:
        return b"\x80\x02}(" + objects + b"u."
    tree: dict[str, Any] = {}
    for n, target in enumerate(targets):
        place, key, at = tree, target.name, ""
        while inner := next(
            (d for d in wrapping.dictionaries if f"{at}{key}".startswith(f"{d}.") and d.startswith(at)), ""
        ):
            word = inner[len(at) :]
            place, key, at = place.setdefault(word, {}), key[len(word) + 1 :], f"{inner}."
        place[key] = _tensor(n, target)
    held = _ORDERED + b"(" + _items(tree) + b"u"
    for depth, key in reversed(list(enumerate(wrapping.keys))):
        held = b"}(" + (objects if depth == 0 else b"") + _text(key) + held + b"u"
    return b"\x80\x02" + held + b"."


def _items(tree: Mapping[str, Any]) -> bytes:
    """The keys and values of a dictionary of pickled tensors and such dictionaries."""
    return b"".join(
        _text(key) + (held if isinstance(held, bytes) else b"}(" + _items(held) + b"u") for key, held in tree.items()
    )


def _object(value: Any, namespace: bool = False) -> bytes:
    """A plain value: null, a bool, a number, a text, or a list or dictionary of those. Raises TypeError."""
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            size = value.bit_length() // 8 + 1
            return b"\x8a" + size.to_bytes(1, "little") + value.to_bytes(size, "little", signed=True)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return _text(value)
        case list() | tuple():
            return b"](" + b"".join(map(_object, value)) + b"e"
        case Mapping():
            items = b"".join(_object(key) + _object(item) for key, item in value.items())
            return (b"cargparse\nNamespace\n)\x81" if namespace else b"") + b"}(" + items + b"u" + b"b" * namespace
    raise TypeError(f"{type(value).__name__} is not plain")


def _tensor(key: int, target: TargetTensor) -> bytes:
    """A call of the function that rebuilds a tensor. One that names the element type serves the newer ones."""
    count = target.nbytes
    storage, function, more = (
        b"ctorch.storage\nUntypedStorage\n",
        b"_rebuild_tensor_v3",
        f"ctorch\n{target.dtype}\n".encode(),
    )
    if target.dtype in _STORAGES:
        count = math.prod(target.shape)
        storage, function, more = f"ctorch\n{_STORAGES[target.dtype]}\n".encode(), b"_rebuild_tensor_v2", b""
    saved = b"(" + _text("storage") + storage + _text(str(key)) + _text("cpu") + _number(count) + b"tQ"
    view = saved + _number(0) + _numbers(target.shape) + _numbers(dense_strides(target.shape))
    return b"ctorch._utils\n" + function + b"\n(" + view + b"\x89" + _ORDERED + more + b"tR"


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return b"X" + len(data).to_bytes(4, "little") + data


def _number(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + value.to_bytes(4, "little")
    return b"\x8a\x09" + value.to_bytes(9, "little")


def _numbers(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(_number, values)) + b"t"
