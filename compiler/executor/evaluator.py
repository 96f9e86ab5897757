"""Evaluates arrays that contain computed bytes, in torch, in host memory.

Takes an array and the nodes that it refers to (`layout.computed`); returns a tensor. Operands are read when they are
needed. With `keep`, each node is computed once and completely; without, only the rows that an array needs. Both give the
same bits. Raises what torch raises, and ValueError if a kernel's result has another shape or dtype than its op states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

from compiler.layout.array import Array, Atom, Lattice, Piece, flatten
from compiler.layout.computed import CastOp, Node, rows_needed
from compiler.ops import kernels

if TYPE_CHECKING:
    from torch import Tensor

Fill = Callable[[Array, memoryview], None]  # puts the bytes of an array of stored pieces into a buffer


class ArrayEvaluator:
    """Evaluates the arrays of one group. `fill` reads stored bytes."""

    def __init__(self, nodes: Mapping[str, Node], fill: Fill, keep: bool = False) -> None:
        self.nodes = nodes
        self.fill = fill
        self.cache: dict[str, Tensor] | None = {} if keep else None

    def tensor(self, array: Array) -> Tensor:
        """The elements of an array, C-contiguous."""
        needed = rows_needed(array, self.nodes)
        if not needed:
            return self.stored(array)
        made = {name: (self.rows_of_node(name, start, stop), start) for name, (start, stop) in needed.items()}
        if len(array.pieces) == 1 and (whole := made[array.pieces[0].source][0]).shape == array.shape:
            piece = array.pieces[0]
            if piece == _plain(piece, array.shape, needed[piece.source][0], self.nodes[piece.source]):
                return _cast(whole, piece)
        result = kernels.empty(array.shape, array.dtype)
        flat = result.view(-1)
        for piece in array.pieces:
            origin, atoms = flatten(piece.axes, array.shape)
            lengths = [a.length for a in atoms]
            if piece.source in made:
                tensor, start = made[piece.source]
                offset = piece.offset - start * self.nodes[piece.source].row_bytes
                steps = [a.stride // piece.itemsize for a in atoms]
                values = tensor.reshape(-1).as_strided(lengths, steps, offset // piece.itemsize)
                values = _cast(values, piece)
            else:
                values = self.stored(_alone(piece, atoms, array.dtype))
            flat.as_strided(lengths, [a.step for a in atoms], origin).copy_(values)
        return result

    def bytes(self, array: Array) -> memoryview:
        """The bytes of an array, in C order."""
        return kernels.bytes_of(self.tensor(array))

    def stored(self, array: Array) -> Tensor:
        """The elements of an array of stored pieces."""
        tensor = kernels.empty(array.shape, array.dtype)
        if array.pieces:
            self.fill(array, kernels.bytes_of(tensor))
        return tensor

    def rows_of_node(self, name: str, start: int, stop: int) -> Tensor:
        """Some rows of a node's tensor."""
        if self.cache is None:
            return self.compute(self.nodes[name].rows(start, stop))
        if name not in self.cache:
            self.cache[name] = self.compute(self.nodes[name])
        return self.cache[name][start:stop] if self.nodes[name].shape else self.cache[name]

    def compute(self, node: Node) -> Tensor:
        algebra = kernels.TorchAlgebra()
        tensors = [self.tensor(operand) for operand in node.operands]
        if isinstance(node.op, CastOp):
            return algebra.cast(tensors[0], node.dtype)
        result = algebra.compute(node.op, tensors, node.shape)
        if tuple(result.shape) != node.shape or kernels.dtype_of(result) != node.dtype:
            raise ValueError(
                f"{node.op.kernel} made {list(result.shape)} of {kernels.dtype_of(result)}, "
                f"not {list(node.shape)} of {node.dtype}"
            )
        return result


def _plain(piece: Piece, shape: tuple[int, ...], start: int, node: Node) -> Piece:
    """The piece that is the rows of a node from `start` on, unchanged."""
    size = piece.itemsize
    strides = [size]
    for length in reversed(shape[1:]):
        strides.append(strides[-1] * length)
    axes = tuple(Lattice(0, (Atom(n, s, 1),)) for n, s in zip(shape, reversed(strides[: len(shape)]), strict=True))
    return piece._replace(offset=start * node.row_bytes, axes=axes)


def _alone(piece: Piece, atoms: tuple[Atom, ...], dtype: str) -> Array:
    """A piece as a separate array, with one axis for each of its counters."""
    axes = tuple(Lattice(0, (Atom(a.length, a.stride, 1),)) for a in atoms)
    return Array(dtype, tuple(a.length for a in atoms), (piece._replace(axes=axes),))


def _cast(tensor: Tensor, piece: Piece) -> Tensor:
    """Cast to the piece's types, one after the other."""
    for _, dtype in pairwise(piece.types):
        tensor = kernels.TorchAlgebra().cast(tensor, dtype)
    return tensor
