"""Fills the blocks of a move whose elements are scattered in the source, or change their type on the way.

A tile is read in runs as long as its source allows, into a buffer that is kept, and brought into the target's order
(and type) in memory. Takes tiles and open files, returns the block's bytes. numpy does the moving; the memory is a
small multiple of the block, whatever the size of the tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from compiler.dtypes import ITEM_SIZES
from compiler.layout.array import Atom, Atoms, Piece
from compiler.layout.moves import Tile
from compiler.transfer.casts import STORAGE, Values, convert

SPARSE = 2  # a read may fetch this many times the bytes that it needs
PADDING = 64  # bytes between reads in the buffer: at a distance of 2^n, equal columns would share few cache lines
BAND = 256  # elements of a row that are copied before the next row's turn

Read = Callable[[str, Iterable[tuple[int, memoryview]]], None]


class Gatherer:
    """The buffers of one thread. `read(source, [(offset, buffer), ...])` fills the buffers or raises."""

    def __init__(self, read: Read) -> None:
        self.read = read
        self.buffers: dict[str, Values] = {}

    def fill(self, tile: Tile, dtype: str) -> memoryview:
        """The bytes of a tile, valid until the next call."""
        block = self.buffer("block", tile.rows * tile.width)
        for piece in tile.pieces:
            self.place(piece, block.view(_unsigned(dtype)), dtype)
        return block.data

    def place(self, piece: Piece, block: Values, dtype: str) -> None:
        """Put the elements of a piece where they belong in the block."""
        origin, atoms = piece.axes[0]
        values = self.load(piece)
        if len(set(piece.types)) > 1:
            complete = values.size == block.size
            values = self.cast(values, piece, block if complete else None, dtype)
            if complete:  # the cast itself has put them in their places
                return
        strides = [a.step * block.itemsize for a in atoms]
        _copy(values, as_strided(block[origin:], values.shape, strides))

    def load(self, piece: Piece) -> Values:
        """The elements of a piece, one axis for each of its atoms."""
        atoms = piece.axes[0].atoms
        near, reach = _near(atoms, piece.itemsize)
        far = [a for a in atoms if a not in near]
        strides = {a: a.stride for a in near}
        pitch = reach + PADDING if far else reach
        size = pitch
        for atom in reversed(far):
            strides[atom] = size
            size *= atom.length
        staging = self.buffer("staging", size)
        view = staging.data
        starts = itertools.product(*[range(0, a.length * a.stride, a.stride) for a in far])
        places = zip(range(0, size, pitch), starts, strict=True)
        self.read(piece.source, ((piece.offset + sum(start), view[at : at + reach]) for at, start in places))
        first = staging[: piece.itemsize].view(_unsigned(piece.types[0]))
        return as_strided(first, [a.length for a in atoms], [strides[a] for a in atoms])

    def cast(self, values: Values, piece: Piece, out: Values | None, dtype: str) -> Values:
        """The values under the block's type: in `out`, or in a buffer of this thread."""
        stored = values
        if not values.flags.c_contiguous:
            stored = self.buffer("stored", values.nbytes).view(values.dtype).reshape(values.shape)
            _copy(values, stored)
        if out is None:
            out = self.buffer("cast", values.size * ITEM_SIZES[dtype]).view(_unsigned(dtype))
        convert(stored.reshape(-1).view(STORAGE[piece.types[0]]), piece.types, out.view(STORAGE[dtype]))
        return out.reshape(values.shape)

    def buffer(self, use: str, size: int) -> Values:
        """A buffer that is reused from tile to tile: new memory costs more than filling it."""
        block = self.buffers.get(use)
        if block is None or block.size < size:
            self.buffers[use] = block = np.empty(size, np.uint8)
        return block[:size]


def _near(atoms: Atoms, size: int) -> tuple[list[Atom], int]:
    """The counters that one read covers, and how many bytes it is long."""
    near, reach, needed = [], size, size
    for atom in sorted(atoms, key=lambda a: a.stride):
        longer = reach + (atom.length - 1) * atom.stride
        needed *= atom.length if atom.stride else 1
        if longer > SPARSE * needed:
            break
        near.append(atom)
        reach = longer
    return near, reach


def _copy(values: Values, target: Values) -> None:
    """Copy between strided views of one shape, in bands of the last axis so narrow that their cache lines last."""
    width = values.shape[-1] if values.ndim > 1 else 0
    if width <= BAND:
        np.copyto(target, values)
        return
    for start in range(0, width, BAND):
        np.copyto(target[..., start : start + BAND], values[..., start : start + BAND])


def _unsigned(dtype: str) -> np.dtype[Any]:
    """Elements as plain bits, so that no value is ever interpreted on the way."""
    return np.dtype(f"<u{ITEM_SIZES[dtype]}")
