"""The header of a GGUF file: every tensor with its byte range, and the key-values that describe the model.

Takes a path; returns the tensors, in torch's order of axes, and a table of plain values: a key that begins with the
architecture's name loses that, and dots become underscores (`NAME.attention.head_count` is `attention_head_count`). A
float32 becomes the shortest decimal that rounds to it. Long lists, such as a vocabulary, are skipped. A tensor of
quantized blocks is one of float32 that is computed. Refuses blocks without a kernel, and a header that claims more than the
file can hold. Source:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and `ggml_type` in ggml.h.
"""

from __future__ import annotations

import itertools
import math
import struct
from pathlib import Path
from typing import BinaryIO, NoReturn

from compiler.checkpoints.formats.stored_tensor import Encoded, Tensor, dense_strides
from compiler.diagnostics import listed, refuse
from compiler.dtypes import ITEM_SIZES
from compiler.quantized.ggml_blocks import BLOCKS, PLAIN, UNREAD, DequantizeGgml

MAGIC = b"GGUF"
MOST_AXES = 4  # GGML_MAX_DIMS
MOST_TENSORS = 1_000_000
MOST_ITEMS = 4_000_000  # of lists of texts; a tokenizer has four such lists of some 250,000
MOST_TEXT = 1 << 20  # bytes of a key, a name or a text
MOST_LISTED = 64  # values of a list; longer lists are skipped
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

Value = bool | int | float | str | list[bool | int | float | str]


def open_gguf(path: Path) -> tuple[dict[str, Tensor | Encoded], dict[str, Value]]:
    """Every tensor by name, and the model's values by key. Raises Refusal."""
    with path.open("rb") as file:
        reader = _Reader(path, file)
        count, values = reader.preamble()
        table = [reader.entry() for _ in range(count)]
        begin = file.tell()
        size = reader.size
    alignment = values.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment % 8:
        _damaged(path, f"its alignment is {alignment!r}")
    base = -(-begin // alignment) * alignment
    _refuse_unread(path, [(name, kind) for name, _, kind, _ in table])
    tensors: dict[str, Tensor | Encoded] = {}
    for name, shape, kind, offset in table:
        tensor = _tensor(path, name, shape, kind, base + offset)
        if name in tensors:
            _damaged(path, f"the tensor {name!r} occurs twice")
        (stored,) = tensor.parts
        start, end = stored.extent
        if offset % alignment or end > size:
            _damaged(path, f"the tensor {name!r} reaches from byte {start:,} to {end:,} of {size:,}")
        tensors[name] = tensor
    places = sorted((part for tensor in tensors.values() for part in tensor.parts), key=lambda t: t.extent)
    for before, after in itertools.pairwise(places):
        if before.extent[1] > after.extent[0]:
            _damaged(path, f"the tensors {before.name!r} and {after.name!r} overlap")
    return tensors, _named(values)


def _named(values: dict[str, Value]) -> dict[str, Value]:
    architecture = f"{values.get('general.architecture', '')}."
    return {key.removeprefix(architecture).replace(".", "_"): value for key, value in values.items()}


def _tensor(path: Path, name: str, shape: tuple[int, ...], kind: int, start: int) -> Tensor | Encoded:
    """A tensor of this type at byte `start`. Raises Refusal: `damaged-file`."""
    if kind in PLAIN:
        dtype = PLAIN[kind]
        end = start + math.prod(shape) * ITEM_SIZES[dtype]
        return Tensor(name, dtype, shape, dense_strides(shape), path, start, (start, end))
    blocks = BLOCKS[kind]
    width = shape[-1] if shape else 1
    if width % blocks.elements:
        _damaged(
            path, f"the tensor {name!r} has rows of {width:,}, which are no {blocks.name} blocks of {blocks.elements}"
        )
    rows = math.prod(shape[:-1]), width // blocks.elements * blocks.nbytes
    stored = Tensor(name, "uint8", rows, dense_strides(rows), path, start, (start, start + math.prod(rows)))
    return Encoded(name, "float32", shape, DequantizeGgml(blocks.name), (stored,))


def _refuse_unread(path: Path, kinds: list[tuple[str, int]]) -> None:
    unread = {kind: name for name, kind in reversed(kinds) if kind not in PLAIN and kind not in BLOCKS}
    if unread:
        types = listed(f"{UNREAD.get(kind, f'type {kind}')} ({unread[kind]!r})" for kind in sorted(unread))
        hint = f"{listed(blocks.name for blocks in BLOCKS.values())} are read; start from one of these or from the original"
        refuse(str(path), f"tensors of a quantized type without a kernel: {types}", "unsupported-tensor", hint)


class _Reader:
    """Reads values from a file in order, never past its end."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.size = file.seek(0, 2)
        self.items = 0  # of lists that cannot be skipped in one step
        file.seek(0)

    def preamble(self) -> tuple[int, dict[str, Value]]:
        """The number of tensors, and the values under their complete keys."""
        self.take(len(MAGIC))
        version = int(self.number("I"))
        if version & 0xFFFF == 0:
            refuse(
                str(self.path),
                "it was written on a big-endian machine",
                "unknown-format",
                "make it again on a little-endian machine",
            )
        if version not in (2, 3):
            hint = "versions 2 and 3 are known; make it again with a newer tool"
            refuse(str(self.path), f"a GGUF file of version {version}", "unknown-format", hint)
        count, pairs = int(self.number("Q")), int(self.number("Q"))
        if count * 24 + pairs * 12 > self.size or count > MOST_TENSORS:
            _damaged(self.path, f"its header claims {count:,} tensors and {pairs:,} values")
        values: dict[str, Value] = {}
        for _ in range(pairs):
            key = self.text()
            if key in values:
                _damaged(self.path, f"the key {key!r} occurs twice")
            value = self.value(int(self.number("I")))
            if value is not None:
                values[key] = value
        return count, values

    def entry(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, type and offset of a tensor. GGUF lists the innermost axis first."""
        name, axes = self.text(), int(self.number("I"))
        if axes > MOST_AXES:
            _damaged(self.path, f"the tensor {name!r} has {axes:,} axes")
        sizes = struct.unpack(f"<{axes}Q", self.take(8 * axes))
        if math.prod(sizes) >= 1 << 60:
            _damaged(self.path, f"the tensor {name!r} has the sizes {list(sizes)}")
        return name, tuple(reversed(sizes)), int(self.number("I")), int(self.number("Q"))

    def value(self, kind: int, depth: int = 0) -> Value | None:
        """A value of this type; None for a list that is too long, or that holds lists."""
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.number(self.code(kind))
        kind, length = int(self.number("I")), int(self.number("Q"))
        if length > self.size or depth > 2:
            _damaged(self.path, f"a list of {length:,} values")
        if kind in (STRING, ARRAY):
            self.items += length
            if self.items > MOST_ITEMS:
                _damaged(self.path, f"lists of more than {MOST_ITEMS:,} texts or lists")
            texts: list[bool | int | float | str] = []
            for _ in range(length):
                item = self.value(kind, depth + 1)
                if isinstance(item, str) and len(texts) < MOST_LISTED:
                    texts.append(item)
            return texts if len(texts) == length else None
        size = struct.calcsize(self.code(kind))
        if length <= MOST_LISTED:
            return [*struct.unpack(f"<{length}{self.code(kind)}", self.take(length * size))]
        if self.file.tell() + length * size > self.size:
            _damaged(self.path, "it ends within its header")
        self.file.seek(length * size, 1)
        return None

    def code(self, kind: int) -> str:
        if kind not in SCALARS:
            _damaged(self.path, f"a value of the type {kind}")
        return SCALARS[kind]

    def number(self, code: str) -> bool | int | float:
        number: bool | int | float = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]
        return _meant(number) if code == "f" else number

    def text(self) -> str:
        length = int(self.number("Q"))
        if length > MOST_TEXT:
            _damaged(self.path, f"a text of {length:,} bytes")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            _damaged(self.path, "a text that is not UTF-8")

    def take(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) < count:
            _damaged(self.path, "it ends within its header")
        return data


def _meant(value: float) -> float:
    """The shortest decimal that is this number in float32: 1e-05, not 9.999999747378752e-06."""
    texts = (f"{value:.{digits}g}" for digits in range(1, 9))
    short = (float(text) for text in texts if math.isfinite(value) and abs(float(text)) < 3e38)
    return next((number for number in short if struct.unpack("<f", struct.pack("<f", number))[0] == value), value)


def _damaged(path: Path, problem: str) -> NoReturn:
    refuse(str(path), f"a damaged GGUF file: {problem}", "damaged-file", "download or copy it again")
