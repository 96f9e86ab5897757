"""A msgpack file of Flax: the name, type, shape and byte range of every array, from one pass over its structure.

Takes a path; returns tensors by name, the keys of nested maps joined by dots, and the other values by name. An array is
an extension of type 1 that packs (shape, name of the dtype, bytes in C order); one of more than 1 GiB is a map of flat
pieces, which are joined. The bytes of arrays are skipped, so the cost is the number of values. Of a training state, which has
`params` beside `opt_state`, the parameters are read. Refuses types that no tensor has, keys that are not texts or occur
twice, and sizes that contradict the file.
Source: flax/serialization.py (`_ndarray_to_bytes`, `_chunk`); https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from compiler.checkpoints.formats.boxes import Box, flat_boxes, tiled
from compiler.checkpoints.formats.pickle_plain import shown
from compiler.checkpoints.formats.stored_tensor import Joined, Tensor, dense_strides
from compiler.diagnostics import listed, nearest, refuse
from compiler.dtypes import ITEM_SIZES

MOST_DEPTH = 32  # of maps in maps
MOST_VALUES = 1_000_000
MOST_AXES = 64
LONGEST_TEXT = 1 << 16  # bytes
_ARRAY = 1  # the type of the extension; 2 is a complex number, 3 a scalar of numpy
_PIECES = "__msgpack_chunked_array__"
_PARAMS, _OPTIMIZER = "params", "opt_state"
_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_TEXT, _BYTES, _LIST, _MAP, _EXTENSION = "text", "bytes", "list", "map", "extension"
# First byte -> what it is and how many bytes state its length; of the short forms, the length itself.
_SIZED = {
    0xC4: (_BYTES, 1), 0xC5: (_BYTES, 2), 0xC6: (_BYTES, 4), 0xC7: (_EXTENSION, 1), 0xC8: (_EXTENSION, 2), 0xC9: (_EXTENSION, 4),
    0xD9: (_TEXT, 1), 0xDA: (_TEXT, 2), 0xDB: (_TEXT, 4), 0xDC: (_LIST, 2), 0xDD: (_LIST, 4), 0xDE: (_MAP, 2), 0xDF: (_MAP, 4),
}  # fmt: skip
_SHORT = {
    **{0x80 + n: (_MAP, n) for n in range(16)}, **{0x90 + n: (_LIST, n) for n in range(16)},
    **{0xA0 + n: (_TEXT, n) for n in range(32)}, **{0xD4 + n: (_EXTENSION, 1 << n) for n in range(5)},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Array:
    """A stored array: its bytes begin at `start`."""

    dtype: str
    shape: tuple[int, ...]
    start: int

    def tensor(self, path: Path, name: str) -> Tensor:
        extent = self.start, self.start + math.prod(self.shape) * ITEM_SIZES[self.dtype]
        return Tensor(name, self.dtype, self.shape, dense_strides(self.shape), path, self.start, extent)


@dataclass
class FlaxFile:
    """The arrays of a file by name, its other values by name, and notes."""

    tensors: dict[str, Tensor | Joined] = field(default_factory=dict)
    objects: dict[str, object] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def is_flax(head: bytes) -> bool:
    """Whether a file with these first bytes begins with a map whose first key is a name, as msgpack writes it."""
    width = {0xDE: 3, 0xDF: 5}.get(head[0], 1 if 0x81 <= head[0] <= 0x8F else 0)
    kind, length = _SHORT.get(head[width], ("", 0)) if 0 < width < len(head) else ("", 0)
    name = head[width + 1 : width + 1 + length]
    return kind == _TEXT and length > 0 and name.isascii() and name.decode().isprintable()


def open_flax(path: Path, root: str | None = None) -> FlaxFile:
    """The arrays and other values of a file; `root`: the dotted path of the map to read. Raises Refusal."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = _Reader(path, data)
        tree = reader.value()
        if not isinstance(tree, dict) or reader.position != len(data):
            reader.refuse("it is not one map of names")
    opened = FlaxFile()
    if root is None and isinstance(tree.get(_PARAMS), dict) and _OPTIMIZER in tree:
        root = _PARAMS
        opened.notes.append(f"opened {root!r} (beside: {listed(shown(key) for key in tree if key != root)})")
    node = tree
    for key in root.split(".") if root else ():
        if not isinstance(node.get(key), dict):
            hint = nearest(key, node) or f"there is: {listed(map(shown, node))}"
            refuse(str(path), f"--weights {root!r}: there is no {key!r}", "missing-weights", hint)
        node = node[key]
    _collect(path, node, "", opened)
    if not opened.tensors:
        refuse(str(path), "a msgpack file without arrays", "missing-weights")
    return opened


def _collect(path: Path, node: dict[str, Any], prefix: str, opened: FlaxFile) -> None:
    for key, value in node.items():
        name = prefix + key
        if name in opened.tensors or name in opened.objects:
            hint = "one has a dot in its key; rename it"
            refuse(str(path), f"two values are called {shown(name)}", "colliding-names", hint)
        if isinstance(value, _Array):
            opened.tensors[name] = value.tensor(path, name)
        elif isinstance(value, dict) and _PIECES in value:
            opened.tensors[name] = _joined(path, name, value)
        elif isinstance(value, dict):
            _collect(path, value, f"{name}.", opened)
        else:
            opened.objects[name] = value


def _joined(path: Path, name: str, node: Mapping[str, Any]) -> Tensor | Joined:
    """The array that a map of flat pieces makes. Raises Refusal."""
    shape, pieces = (
        tuple(part.values()) if isinstance(part := node.get(key), dict) else () for key in ("shape", "chunks")
    )
    arrays = [piece for piece in pieces if isinstance(piece, _Array) and len(piece.shape) == 1]
    sizes = tuple(n for n in shape if type(n) is int and n >= 0)
    count = sum(array.shape[0] for array in arrays)
    same_type = len({array.dtype for array in arrays}) == 1
    if len(arrays) < len(pieces) or sizes != shape or not same_type or not count == math.prod(sizes) > 0:
        problem = f"the pieces of {shown(name)} do not make an array of the shape {list(shape)[:MOST_AXES]}"
        refuse(str(path), problem, "damaged-file", "download or copy it again")
    boxes: list[Box] = []
    first = 0
    for array in arrays:
        boxes += flat_boxes(array.tensor(path, name), first, sizes)
        first += array.shape[0]
    return tiled(name, boxes, sizes)


class _Reader:
    """The values of a file, one after the other from `position` on."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.position = path, data, 0
        self.values = 0

    def value(self, depth: int = 0) -> Any:
        """A number, a text, a dict, an `_Array`, or None for bytes. A list is a dict of its positions, as Flax has them."""
        self.values += 1
        if self.values > MOST_VALUES or depth > MOST_DEPTH:
            self.refuse("it has too many values, or maps in too many maps")
        first = self.take(1)[0]
        if first <= 0x7F or first >= 0xE0:
            return first if first <= 0x7F else first - 0x100
        if first in _CONSTANTS:
            return _CONSTANTS[first]
        if code := _NUMBERS.get(first):
            return struct.unpack(code, self.take(struct.calcsize(code)))[0]
        kind, length = self.head(first)
        if kind == _TEXT:
            return self.text(length)
        if kind == _BYTES:
            return self.skip(length)
        if kind == _EXTENSION:
            return self.extension(length)
        if kind == _LIST:
            return {str(n): self.value(depth + 1) for n in range(self.many(length))}
        values: dict[str, Any] = {}
        for _ in range(self.many(length)):
            key = self.value(depth + 1)
            if type(key) is not str or not key:
                self.refuse("a key that is no name")
            if key in values:
                self.refuse(f"the key {shown(key)} is there twice")
            values[key] = self.value(depth + 1)
        return values

    def head(self, first: int) -> tuple[str, int]:
        """What a first byte begins, and its length or number of items."""
        if first in _SHORT:
            return _SHORT[first]
        if first not in _SIZED:
            self.refuse(f"the byte {first:#x} begins nothing")
        kind, width = _SIZED[first]
        return kind, int.from_bytes(self.take(width))

    def many(self, count: int) -> int:
        """A number of items, each of which takes a byte and more."""
        if count > len(self.data) - self.position:
            self.refuse(f"it claims {count:,} values")
        return count

    def extension(self, length: int) -> _Array | None:
        kind, start = self.take(1)[0], self.position
        self.skip(length)
        if kind != _ARRAY:
            return None
        end, self.position = self.position, start
        what, count = self.head(self.take(1)[0])
        shape = self.value(MOST_DEPTH - 1) if (what, count) == (_LIST, 3) else None
        dtype = self.value(MOST_DEPTH - 1)
        stored, size = self.head(self.take(1)[0]) if isinstance(dtype, str) else ("", 0)
        if stored != _BYTES or not isinstance(shape, dict) or self.position + size != end or len(shape) > MOST_AXES:
            self.refuse("an array is malformed")
        if dtype not in ITEM_SIZES:
            refuse(str(self.path), f"an array has the type {dtype[:40]!r}", "unsupported-tensor", "save it as float32")
        sizes = tuple(shape.values())
        if not all(type(n) is int and n >= 0 for n in sizes) or math.prod(sizes) * ITEM_SIZES[dtype] != size:
            self.refuse(f"an array of the shape {list(sizes)} has {size:,} bytes")
        array = _Array(dtype, sizes, self.position)
        self.position = end
        return array

    def text(self, length: int) -> str:
        if length > LONGEST_TEXT:
            self.refuse(f"a text of {length:,} bytes")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            self.refuse("a text is not UTF-8")

    def skip(self, length: int) -> None:
        if length > len(self.data) - self.position:
            self.refuse("it ends too early")
        self.position += length

    def take(self, length: int) -> bytes:
        start = self.position
        self.skip(length)
        return self.data[start : self.position]

    def refuse(self, problem: str) -> NoReturn:
        where = f"a damaged msgpack file: {problem} (byte {self.position:,})"
        refuse(str(self.path), where, "damaged-file", "download or copy it again")
