"""A numpy `.npz` file: the name, type, shape and byte range of every array, from the headers of its records.

The header of an array is a Python literal; only the one form that numpy writes is taken, by a pattern, so that nothing is
evaluated. Refuses compressed archives, big-endian arrays, records and types that no tensor has, and sizes that contradict
the header.
Source: numpy/lib/format.py (versions 1.0 to 3.0 of the format).
"""

from __future__ import annotations

import re
from math import prod
from pathlib import Path
from typing import NoReturn

from compiler.checkpoints.formats.pickle_plain import shown
from compiler.checkpoints.formats.stored_tensor import Tensor, dense_strides
from compiler.checkpoints.formats.zip_directory import Archive
from compiler.diagnostics import refuse
from compiler.dtypes import ITEM_SIZES

SUFFIX = ".npy"
_MAGIC = b"\x93NUMPY"
_MOST_HEADER = 10_000  # numpy's own limit
_MOST_AXES = 64
_HEADER = re.compile(
    r"\{'descr': '([<>|=][a-zA-Z]\d{1,2})', 'fortran_order': (True|False), 'shape': \(((?:\d{1,18}, ?)*\d{0,18})\), \}[ ]*\n"
)
_TYPES = {
    "b1": "bool", "i1": "int8", "u1": "uint8", "i2": "int16", "u2": "uint16", "i4": "int32", "u4": "uint32",
    "i8": "int64", "u8": "uint64", "f2": "float16", "f4": "float32", "f8": "float64", "c8": "complex64",
}  # fmt: skip


def open_npz(path: Path) -> tuple[dict[str, Tensor], dict[tuple[Path, int, int], int]]:
    """The arrays of an archive by name, and the checksums of their records. Raises Refusal."""
    tensors: dict[str, Tensor] = {}
    checksums: dict[tuple[Path, int, int], int] = {}
    with path.open("rb", buffering=0) as file:
        archive = Archive(file, str(path))
        for record in archive.records.values():
            if not record.name.endswith(SUFFIX):
                refuse(
                    str(path), f"{shown(record.name)} in it is no array", "unknown-format", "only .npy records are read"
                )
            if record.compressed:
                hint = "save it with numpy.savez instead of savez_compressed"
                refuse(str(path), f"{shown(record.name)} is compressed", "unknown-format", hint)
            start = archive.locate(record)
            file.seek(start)
            tensor = _array(path, record.name.removesuffix(SUFFIX), file.read(min(record.size, _MOST_HEADER)), start)
            if tensor.offset + tensor.nbytes != start + record.size:
                _damaged(path, record.name, f"its shape needs {tensor.nbytes:,} bytes, and it has another number")
            tensors[tensor.name] = tensor
            if record.crc:
                checksums[path, start, start + record.size] = record.crc
    if not tensors:
        refuse(str(path), "an archive without arrays", "missing-weights")
    return tensors, checksums


def _array(path: Path, name: str, head: bytes, start: int) -> Tensor:
    width = 2 if head[6:7] == b"\1" else 4
    length = int.from_bytes(head[8 : 8 + width], "little")
    end = 8 + width + length
    if not head.startswith(_MAGIC) or head[6:7] not in (b"\1", b"\2", b"\3") or end > len(head):
        _damaged(path, name, "it does not begin like an array of numpy")
    match = _HEADER.fullmatch(head[8 + width : end].decode("latin-1"))
    if match is None:
        hint = "structured types and objects are not tensors; save plain arrays"
        refuse(str(path), f"{shown(name)} is not a plain array", "unsupported-tensor", hint)
    kind, fortran, sizes = match[1], match[2] == "True", match[3]
    dtype = _TYPES.get(kind[1:])
    if dtype is None or kind[0] in ">=" or (kind[0] == "|" and ITEM_SIZES[dtype] > 1):
        hint = "numpy has no bfloat16 and writes it as bytes of no type; save it as float32" if "V" in kind else ""
        refuse(str(path), f"{shown(name)} has the type {kind!r}", "unsupported-tensor", hint or "save it little-endian")
    shape = tuple(int(size) for size in re.findall(r"\d+", sizes))
    if len(shape) > _MOST_AXES:
        _damaged(path, name, "it has too many axes")
    strides = tuple(reversed(dense_strides(shape[::-1]))) if fortran else dense_strides(shape)
    size = prod(shape) * ITEM_SIZES[dtype]
    return Tensor(name, dtype, shape, strides, path, start + end, (start + end, start + end + size))


def _damaged(path: Path, name: str, problem: str) -> NoReturn:
    refuse(str(path), f"{shown(name)}: {problem}", "damaged-file", "download or copy it again")
