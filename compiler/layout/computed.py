"""Tensors as arrangements of stored and of computed bytes.

`Formulas` is the layout algebra, except that `compute` records a `Node` and returns an array whose source is that node.
So every target of a group is one array, whatever its ops do, and can be computed row by row: `Node.rows` is the node of
some rows, as its op states. Reads and computes nothing itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from compiler.dtypes import ITEM_SIZES
from compiler.layout import array as layout
from compiler.layout.array import Array, Piece, narrow
from compiler.layout.kernel_op import KernelOp, RowCut, Shape

BLOCK = (
    2 << 20
)  # bytes of a target that are computed at a time; with all operands in float32, ten times as many are in memory
WASTE = 4  # computing in blocks may compute this many times the bytes that are needed
_CASTS = frozenset(("float16", "bfloat16", "float32", "float64"))  # casts between these are done while bytes are copied


@dataclass(frozen=True)
class CastOp:
    """A cast that cannot be done while bytes are copied. Rows are independent."""

    kernel: ClassVar[str] = "cast"
    host_only: ClassVar[bool] = False
    dtype: str

    @property
    def values(self) -> tuple[Any, ...]:
        return (self.dtype,)

    def dtypes(self, dtypes: tuple[str, ...]) -> tuple[str, ...]:
        return (self.dtype,)

    def row_grain(self, shape: Shape) -> int:
        return 1

    def cut_rows(self, start: int, stop: int, shapes: Sequence[Shape]) -> RowCut:
        return RowCut(self, ((start, stop - start),))


@dataclass(frozen=True, eq=False)
class Node:
    """The tensor of this dtype and shape that `op` computes from its operands."""

    op: KernelOp
    operands: tuple[Array, ...]
    dtype: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * ITEM_SIZES[self.dtype]

    @property
    def height(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def grain(self) -> int:
        """How many rows must be computed together."""
        return self.op.row_grain(self.shape)

    def rows(self, start: int, stop: int) -> Node:
        """The node of the rows from `start`, a multiple of the grain, to `stop`, another multiple or the end."""
        if (start, stop) == (0, self.height):
            return self
        cut = self.op.cut_rows(start, stop, [operand.shape for operand in self.operands])
        operands = (narrow(o, 0, first, count) for o, (first, count) in zip(self.operands, cut.operands, strict=True))
        return Node(cut.op, tuple(operands), self.dtype, (stop - start, *self.shape[1:]))


class Formulas(layout.LayoutAlgebra):
    """The layout algebra, and the nodes that it recorded, by the name of their source in arrays."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}

    def cast(self, tensor: Array, dtype: str) -> Array:
        if tensor.dtype == dtype or {tensor.dtype, dtype} <= _CASTS:
            return layout.cast(tensor, dtype)
        return self._record(Node(CastOp(dtype), (tensor,), dtype, tensor.shape))

    def compute(self, op: KernelOp, tensors: Sequence[Array], shape: tuple[int, ...]) -> Array:
        (dtype,) = op.dtypes(tuple(tensor.dtype for tensor in tensors))
        return self._record(Node(op, tuple(tensors), dtype, shape))

    def _record(self, node: Node) -> Array:
        name = f"\0{len(self.nodes)}"  # no path contains this character
        self.nodes[name] = node
        return layout.source(name, node.dtype, node.shape)

    def is_computed(self, array: Array) -> bool:
        """Whether some of the array's elements must be computed."""
        return any(piece.source in self.nodes for piece in array.pieces)


def block_rows(array: Array, nodes: Mapping[str, Node]) -> int:
    """How many rows of an array to compute at a time; 0 if its nodes should be computed as a whole."""
    if not array.shape or not math.prod(array.shape):
        return 0
    row = math.prod(array.shape[1:]) * ITEM_SIZES[array.dtype]
    grain = max((nodes[p.source].grain for p in array.pieces if p.source in nodes), default=1)
    rows = min(array.shape[0], max(1, BLOCK // row // grain) * grain)
    if rows * row > WASTE * BLOCK:
        return 0
    for start in {0, array.shape[0] // rows // 2 * rows, (array.shape[0] - 1) // rows * rows}:
        count = min(rows, array.shape[0] - start)
        if _cost(narrow(array, 0, start, count), nodes) > WASTE * max(count * row, BLOCK):
            return 0
    return rows


def _cost(array: Array, nodes: Mapping[str, Node]) -> int:
    """How many bytes of nodes must be computed for an array."""
    total = 0
    for name, (start, stop) in rows_needed(array, nodes).items():
        node = nodes[name].rows(start, stop)
        total += (stop - start) * node.row_bytes + sum(_cost(operand, nodes) for operand in node.operands)
    return total


def rows_needed(array: Array, nodes: Mapping[str, Node]) -> dict[str, tuple[int, int]]:
    """The rows of each node that an array needs, from the first to the last, rounded to the grain."""
    rows: dict[str, tuple[int, int]] = {}
    for piece in array.pieces:
        if (node := nodes.get(piece.source)) is not None:
            start, stop = _rows_of(piece, node)
            before = rows.get(piece.source, (start, stop))
            rows[piece.source] = min(start, before[0]), max(stop, before[1])
    return rows


def _rows_of(piece: Piece, node: Node) -> tuple[int, int]:
    reach = sum((a.length - 1) * a.stride for axis in piece.axes for a in axis.atoms)
    first, last = piece.offset // node.row_bytes, (piece.offset + reach) // node.row_bytes
    grain = node.grain
    return first // grain * grain, min(node.height, (last // grain + 1) * grain)
