"""Tensors as arrangements of stored bytes: split, concat, stack and rearrange without touching an element.

An `Array` is a shape tiled by pieces. A `Piece` is an affine map: its atoms are counters, and each count moves the
place in the source by `stride` bytes and the place along one axis of the array by `step` positions. Every op rewrites
steps, strides and origins only, so that a transpose of any size stays one piece, and so does every chain of ops whose
cuts fall between the counters. Only a cut through a counter divides a piece.

Takes shapes, strides and byte offsets; returns arrays; reads no file. `moves` turns them into byte ranges.
Raises ValueError where element types would mix without a cast.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from compiler.dtypes import ITEM_SIZES
from compiler.layout.kernel_op import KernelOp


class Atom(NamedTuple):
    """A counter: `length` elements, `stride` source bytes and `step` target positions apart."""

    length: int
    stride: int
    step: int


Atoms = tuple[Atom, ...]


class Lattice(NamedTuple):
    """Positions along one axis: `origin` plus the counts of `atoms`, whose steps nest (each exceeds all below it)."""

    origin: int
    atoms: Atoms


class Piece(NamedTuple):
    """A box of one source. `types` are the element types that its values pass through, the stored one first."""

    source: str
    types: tuple[str, ...]
    offset: int  # of the first element, in bytes from the start of the source file
    axes: tuple[Lattice, ...]

    @property
    def itemsize(self) -> int:
        return ITEM_SIZES[self.types[0]]


@dataclass(frozen=True, slots=True)
class Array:
    """`pieces` fill `shape`: every position exactly once. Its elements have the type `dtype`."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


# Arrays and what can be done to them --------------------------------------------------------------------------------


def source(name: str, dtype: str, shape: Sequence[int], offset: int = 0, strides: Sequence[int] | None = None) -> Array:
    """A stored tensor: C order, or `strides` in elements as torch counts them (0 repeats); `offset` in bytes."""
    size = ITEM_SIZES[dtype]
    steps = [n * size for n in strides] if strides is not None else _weights(shape, size)
    axes = tuple([Lattice(0, (Atom(n, step, 1),)) for n, step in zip(shape, steps, strict=True)])
    return Array(dtype, tuple(shape), (Piece(name, (dtype,), offset, axes),) if math.prod(shape) else ())


def narrow(array: Array, axis: int, start: int, length: int) -> Array:
    """`length` positions of an axis from `start` on."""
    shape = (*array.shape[:axis], length, *array.shape[axis + 1 :])
    pieces = []
    for piece in array.pieces:
        for skipped, part in cut(piece.axes[axis], start, start + length):
            moved = part._replace(origin=part.origin - start)
            pieces.append(_with_axis(piece, axis, moved, skipped))
    return Array(array.dtype, shape, tuple(pieces))


def split(array: Array, axis: int, sizes: Sequence[int]) -> list[Array]:
    """Consecutive parts of an axis."""
    starts = itertools.accumulate(sizes, initial=0)
    return [narrow(array, axis, start, size) for start, size in zip(starts, sizes, strict=False)]


def concat(arrays: Sequence[Array], axis: int) -> Array:
    """Arrays one behind the other along an axis. Raises ValueError where their element types differ."""
    if len(types := sorted({a.dtype for a in arrays})) > 1:
        raise ValueError(f"cannot join {' and '.join(types)} without a cast")
    pieces, start = [], 0
    for array in arrays:
        for piece in array.pieces:
            lattice = piece.axes[axis]
            pieces.append(_with_axis(piece, axis, lattice._replace(origin=lattice.origin + start)))
        start += array.shape[axis]
    first = arrays[0]
    return Array(first.dtype, (*first.shape[:axis], start, *first.shape[axis + 1 :]), tuple(pieces))


def stack(arrays: Sequence[Array], axis: int) -> Array:
    """Arrays of one shape along a new axis."""
    first = arrays[0]
    thin = (*first.shape[:axis], 1, *first.shape[axis:])
    return concat([Array(a.dtype, thin, tuple([_insert(p, axis) for p in a.pieces])) for a in arrays], axis)


def unstack(array: Array, axis: int) -> list[Array]:
    """The slices of an axis, without it."""
    shape = array.shape[:axis] + array.shape[axis + 1 :]
    slices = [narrow(array, axis, n, 1) for n in range(array.shape[axis])]
    return [Array(s.dtype, shape, tuple([_remove(p, axis) for p in s.pieces])) for s in slices]


def permute(array: Array, order: Sequence[int]) -> Array:
    """Axis k of the result is axis `order[k]` of the array."""
    pieces = tuple(piece._replace(axes=tuple([piece.axes[k] for k in order])) for piece in array.pieces)
    return Array(array.dtype, tuple([array.shape[k] for k in order]), pieces)


def reshape(array: Array, shape: Sequence[int]) -> Array:
    """The same elements in C order under another shape of as many elements."""
    pieces = []
    for piece in array.pieces:
        flat = flatten(piece.axes, array.shape)
        for skipped, axes in _unflatten(flat, shape):
            pieces.append(piece._replace(axes=axes, offset=piece.offset + skipped))
    return Array(array.dtype, tuple(shape), tuple(pieces))


def rearrange(array: Array, inner: Sequence[int], order: Sequence[int], outer: Sequence[int]) -> Array:
    """What every einops pattern comes down to: reshape to `inner`, permute by `order`, reshape to `outer`."""
    return reshape(permute(reshape(array, inner), order), outer)


def cast(array: Array, dtype: str) -> Array:
    """The same values under another element type; the conversion itself happens when the bytes move."""
    if dtype == array.dtype:
        return array
    return Array(dtype, array.shape, tuple(p._replace(types=(*p.types, dtype)) for p in array.pieces))


class LayoutAlgebra:
    """The functions above under the names that ops know."""

    def shape(self, tensor: Array) -> tuple[int, ...]:
        return tensor.shape

    def split(self, tensor: Array, axis: int, sizes: Sequence[int]) -> list[Array]:
        return split(tensor, axis, sizes)

    def concat(self, tensors: Sequence[Array], axis: int) -> Array:
        return concat(tensors, axis)

    def stack(self, tensors: Sequence[Array], axis: int) -> Array:
        return stack(tensors, axis)

    def unstack(self, tensor: Array, axis: int) -> list[Array]:
        return unstack(tensor, axis)

    def rearrange(self, tensor: Array, inner: Sequence[int], order: Sequence[int], outer: Sequence[int]) -> Array:
        return rearrange(tensor, inner, order, outer)

    def cast(self, tensor: Array, dtype: str) -> Array:
        return cast(tensor, dtype)

    def compute(self, op: KernelOp, tensors: Sequence[Array], shape: tuple[int, ...]) -> Array:
        raise NotImplementedError(op.kernel)


# Lattices -----------------------------------------------------------------------------------------------------------


def cut(lattice: Lattice, start: int, stop: int) -> Iterator[tuple[int, Lattice]]:
    """The positions in [start, stop), ascending: (source bytes skipped, lattice) for each part.

    A counter is whole between its first and last partly covered count, so there are at most 2 parts per atom, plus 1.
    """
    origin, atoms = lattice
    reach = span(atoms)
    if start <= origin and origin + reach < stop:
        yield 0, lattice
        return
    if origin >= stop or origin + reach < start:
        return
    (length, stride, step), rest = atoms[0], atoms[1:]
    inner = reach - (length - 1) * step

    def parts(counts: Iterable[int]) -> Iterator[tuple[int, Lattice]]:
        for n in counts:
            for skipped, part in cut(Lattice(origin + n * step, rest), start, stop):
                yield skipped + n * stride, part

    def within(count: int) -> int:
        return max(0, min(length, count))

    touched = within(-((origin + inner - start) // step)), within((stop - 1 - origin) // step + 1)
    whole = within(-((origin - start) // step)), within((stop - 1 - inner - origin) // step + 1)
    yield from parts(range(touched[0], min(whole[0], touched[1])))
    if whole[0] < whole[1]:
        block = Atom(whole[1] - whole[0], stride, step)
        yield whole[0] * stride, Lattice(origin + whole[0] * step, (block, *rest))
    yield from parts(range(max(whole), touched[1]))


def flatten(axes: Sequence[Lattice], shape: Sequence[int]) -> Lattice:
    """The axes of a C-order shape as one: steps grow by the size of what lies inside, and still nest."""
    start, flat = 0, []
    for (origin, atoms), weight in zip(axes, _weights(shape, 1), strict=True):
        start += origin * weight
        for length, stride, step in atoms:
            if length > 1:
                flat.append(Atom(length, stride, step * weight))
    return Lattice(start, tuple(flat))


def _unflatten(flat: Lattice, shape: Sequence[int]) -> Iterator[tuple[int, tuple[Lattice, ...]]]:
    """One axis as the axes of `shape`: (source bytes skipped, axes) for each part."""
    if len(shape) <= 1:
        yield 0, (flat,) * len(shape)
        return
    for skipped, outer, inner in _divide(flat, math.prod(shape[1:])):
        for further, axes in _unflatten(inner, shape[1:]):
            yield skipped + further, (outer, *axes)


def _divide(flat: Lattice, row: int) -> Iterator[tuple[int, Lattice, Lattice]]:
    """One axis as (rows, places in a row of `row`): (source bytes skipped, outer, inner) for each part."""
    if folded := _fold(flat, row):
        yield 0, *folded
        return
    # A counter runs over the end of a row: cut off what leaves rows incomplete, and only if that does not help, cut
    # at every row. Counters of whole rows are the same for all parts and stay whole.
    shared = tuple([Atom(a.length, a.stride, a.step // row) for a in flat.atoms if a.step % row == 0])
    rest = Lattice(flat.origin, tuple([a for a in flat.atoms if a.step % row]))
    first, end = flat.origin, flat.origin + span(rest.atoms) + 1
    edges = sorted({first, -(-first // row) * row, end // row * row, end})
    for start, stop in itertools.pairwise(edges):
        for skipped, part in cut(rest, start, stop):
            rows = [start, stop] if _fold(part, row) else [*range(start // row * row, stop, row), stop]
            for lower, upper in itertools.pairwise(rows):
                for further, piece in cut(part, lower, upper):
                    if folded := _fold(piece, row):
                        outer, inner = folded
                        yield skipped + further, Lattice(outer.origin, shared + outer.atoms), inner


def _fold(flat: Lattice, row: int) -> tuple[Lattice, Lattice] | None:
    """The lattice as (rows, places), or None where a counter runs over the end of a row; within one row none does."""
    outer, inner = [], []
    for atom in flat.atoms:
        length, stride, step = atom
        if step % row == 0:
            outer.append(Atom(length, stride, step // row))
        elif row % step == 0 and length * step > row and length % (row // step) == 0:
            count = row // step
            outer.append(Atom(length // count, stride * count, 1))
            inner.append(Atom(count, stride, step))
        else:
            inner.append(atom)
    number, place = divmod(flat.origin, row)
    if place + span(inner) >= row:
        return None
    return Lattice(number, tuple(outer)), Lattice(place, tuple(inner))


def _with_axis(piece: Piece, axis: int, lattice: Lattice, skipped: int = 0) -> Piece:
    axes = (*piece.axes[:axis], lattice, *piece.axes[axis + 1 :])
    return Piece(piece.source, piece.types, piece.offset + skipped, axes)


def _insert(piece: Piece, axis: int) -> Piece:
    return Piece(piece.source, piece.types, piece.offset, (*piece.axes[:axis], Lattice(0, ()), *piece.axes[axis:]))


def _remove(piece: Piece, axis: int) -> Piece:
    """Without an axis of one position, whose counters stand still."""
    return Piece(piece.source, piece.types, piece.offset, piece.axes[:axis] + piece.axes[axis + 1 :])


def span(atoms: Iterable[Atom]) -> int:
    return sum([(a.length - 1) * a.step for a in atoms])


def _weights(shape: Sequence[int], unit: int) -> list[int]:
    weights = [unit]
    for length in reversed(shape[1:]):
        weights.append(weights[-1] * length)
    return weights[::-1] if shape else []
