"""The place of one tensor in a file, and its bytes.

A reader hands out `Tensor`s; the executor copies byte ranges by them. `read_bytes` is the plain way to one tensor's
logical bytes, for small things and for checks. Refuses a file that ends before the bytes do.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compiler.diagnostics import listed, refuse
from compiler.dtypes import ITEM_SIZES
from compiler.quantized.dequantize import Dequantize

_CODES: dict[int, Literal["B", "H", "I", "Q"]] = {
    1: "B",
    2: "H",
    4: "I",
    8: "Q",
}  # a memoryview format per element size; only the size matters
_CHUNK = 1 << 30  # one read() call returns at most 2 GiB on Linux


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a checkpoint. `strides` count elements; `offset` and `extent` count bytes of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    path: Path
    offset: int
    extent: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """The size of the logical, dense tensor, which a view of a smaller or larger storage need not have there."""
        return math.prod(self.shape) * ITEM_SIZES[self.dtype]

    @property
    def contiguous(self) -> bool:
        """Whether the logical bytes are one range of the file."""
        return not _loops(self.shape, self.strides) or _loops(self.shape, self.strides) == [(math.prod(self.shape), 1)]

    @property
    def region(self) -> tuple[object, ...]:
        """Equal for two tensors exactly where they are the same view of the same bytes."""
        return self.path, self.offset, self.dtype, self.shape, self.strides

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """What it is joined from: itself alone."""
        return (self,)

    def narrow(self, axis: int, start: int, length: int) -> Tensor:
        """`length` positions of an axis from `start` on."""
        shape = (*self.shape[:axis], length, *self.shape[axis + 1 :])
        offset = self.offset + start * self.strides[axis] * ITEM_SIZES[self.dtype]
        return Tensor(self.name, self.dtype, shape, self.strides, self.path, offset, self.extent)


@dataclass(frozen=True, slots=True)
class Joined:
    """One tensor whose `members` are stored in several places, concatenated along `axis`; a member may be joined itself."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    axis: int
    members: tuple[Tensor | Joined, ...]

    @property
    def region(self) -> tuple[object, ...]:
        return self.axis, *(member.region for member in self.members)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The stored tensors that it joins."""
        return tuple(part for member in self.members for part in member.parts)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One tensor that `op` computes from the tensors in `stored`, such as quantized numbers and their scales.

    The op makes a matrix of the shape `rows`; without it, of the rows of the last axis.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    op: Dequantize
    stored: tuple[AnyTensor, ...]
    rows: tuple[int, int] | None = None

    @property
    def matrix(self) -> tuple[int, int]:
        """The shape of what the op makes."""
        return self.rows or (math.prod(self.shape[:-1]), self.shape[-1] if self.shape else 1)

    @property
    def region(self) -> tuple[object, ...]:
        return self.op, self.dtype, self.shape, *(tensor.region for tensor in self.stored)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The stored tensors that it is computed from."""
        return tuple(part for tensor in self.stored for part in tensor.parts)


AnyTensor = Tensor | Joined | Encoded


def dense(tensor: AnyTensor) -> Tensor | Joined:
    """The tensor itself, if its elements are stored as they are. Raises Refusal: `quantized-weights`."""
    if isinstance(tensor, Encoded):
        where = str(tensor.parts[0].path)
        refuse(where, f"{tensor.name} is quantized", "quantized-weights", "convert the checkpoint to a dense one first")
    return tensor


def dequantized(tensors: Collection[AnyTensor]) -> list[str]:
    """A note that says how many of the tensors are quantized, and how; none if there are none."""
    labels = Counter(tensor.op.label for tensor in tensors if isinstance(tensor, Encoded))
    if not labels:
        return []
    layouts = listed(f"{count} {label}" for label, count in sorted(labels.items()))
    return [f"{labels.total()} of {len(tensors)} tensors are quantized ({layouts}); they are converted to dense ones"]


def dense_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides, in elements, of a C-contiguous tensor of this shape."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """How many elements a view covers, from its first to its last one; 0 for an empty view."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def read_bytes(tensor: Tensor | Joined) -> bytearray:
    """The bytes of one tensor, C-contiguous and little-endian; gathered where the view is strided or expanded."""
    if isinstance(tensor, Joined):
        rows = math.prod(tensor.shape[: tensor.axis])
        data = [memoryview(read_bytes(member)) for member in tensor.members]
        cuts = [len(part) // rows for part in data]
        return bytearray().join(
            p[n * cut : (n + 1) * cut] for n in range(rows) for p, cut in zip(data, cuts, strict=True)
        )
    item = ITEM_SIZES[tensor.dtype]
    loops = _loops(tensor.shape, tensor.strides)
    stored = _read(tensor.path, tensor.offset, span(tensor.shape, tensor.strides) * item)
    if tensor.contiguous:
        return stored
    elements = memoryview(stored).cast(_CODES[item])
    *outer, (size, stride) = loops
    out = bytearray()
    for steps in itertools.product(*(range(0, n * s, s) if s else (0,) * n for n, s in outer)):
        start = sum(steps)
        if stride:
            out += elements[start : start + size * stride : stride].tobytes()
        else:
            out += elements[start : start + 1].tobytes() * size
    return out


def _loops(shape: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """The fewest (size, stride) loops that visit a view in order; empty for an empty view or for one element."""
    if 0 in shape:
        return []
    loops: list[tuple[int, int]] = []
    for size, stride in zip(shape, strides, strict=True):
        if size == 1:
            continue
        if loops and loops[-1][1] == size * stride:
            loops[-1] = (loops[-1][0] * size, stride)
        else:
            loops.append((size, stride))
    return loops


def _read(path: Path, offset: int, length: int) -> bytearray:
    stored = bytearray(length)
    view, done = memoryview(stored), 0
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            while done < length:
                count = file.readinto(view[done : done + _CHUNK])
                if not count:
                    message = (
                        f"the file ends {length - done} bytes before a tensor does; it changed since it was opened"
                    )
                    refuse(str(path), message, "damaged-file")
                done += count
    except OSError as error:
        refuse(str(path), f"cannot be read: {error.strerror or error}", "unreadable-file")
    return stored
