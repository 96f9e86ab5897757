"""Builds an `Array` from torch tensors in one pass: each byte is copied once, however many ops led to the array.

Takes arrays whose pieces name tensors, and these tensors; returns tensors on the same device. Raises what torch raises.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from compiler.dtypes import ITEM_SIZES
from compiler.layout.array import Array, Piece, source

MOST_PIECES = 256  # each is one kernel call; for more pieces, applying the ops one by one is faster


def stored(name: str, tensor: Tensor) -> Array:
    """A contiguous tensor as an array whose source has that name."""
    return source(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def arranged(array: Array, tensors: Mapping[str, Tensor], device: torch.device) -> Tensor:
    """The tensor of an array; a view of a source if its bytes are already contiguous."""
    weights = [math.prod(array.shape[axis + 1 :]) for axis in range(len(array.shape))]
    made: Tensor | None = None
    for piece in array.pieces:
        sizes, strides, steps, start = _counters(piece, weights)
        given = tensors[piece.source]
        offset = given.storage_offset() + piece.offset // piece.itemsize
        if len(array.pieces) == 1 and strides == steps and len(piece.types) == 1:
            return given.as_strided(array.shape, weights, offset)
        if made is None:
            made = torch.empty(array.shape, dtype=getattr(torch, array.dtype), device=device)
        values = given.as_strided(sizes, strides, offset)
        for between in piece.types[1:-1]:
            values = values.to(getattr(torch, between))
        made.as_strided(sizes, steps, start).copy_(values)
    return torch.empty(array.shape, dtype=getattr(torch, array.dtype), device=device) if made is None else made


def _counters(piece: Piece, weights: Sequence[int]) -> tuple[list[int], list[int], list[int], int]:
    """The lengths of a piece's counters, their strides in source and target, and its first target position, in elements."""
    item = ITEM_SIZES[piece.types[0]]
    atoms = [(atom, weight) for lattice, weight in zip(piece.axes, weights, strict=True) for atom in lattice.atoms]
    start = sum(lattice.origin * weight for lattice, weight in zip(piece.axes, weights, strict=True))
    steps = [atom.step * weight for atom, weight in atoms]
    return [atom.length for atom, _ in atoms], [atom.stride // item for atom, _ in atoms], steps, start
