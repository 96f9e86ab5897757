"""One tensor made of boxes: parts of a global tensor that several files hold, each with its offsets and sizes.

`tiled` joins boxes that fill a tensor, `flat_boxes` cuts a range of a flattened tensor into boxes. Both only rearrange
places in files; no byte is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

from compiler.checkpoints.formats.stored_tensor import Joined, Tensor, dense_strides

Sizes = tuple[int, ...]


class Untiled(Exception):
    """Why boxes do not fill their tensor."""


@dataclass(frozen=True, slots=True)
class Box:
    """A part of a tensor: `tensor` has the shape `sizes` and begins at `offsets`, all in elements."""

    offsets: Sizes
    sizes: Sizes
    tensor: Tensor


def tiled(name: str, boxes: Sequence[Box], shape: Sizes) -> Tensor | Joined:
    """The tensor of this shape that the boxes fill. Raises Untiled where they overlap or leave a hole."""
    return _filled(name, boxes, (0,) * len(shape), shape, 0)


def _filled(name: str, boxes: Sequence[Box], start: Sizes, shape: Sizes, axis: int) -> Tensor | Joined:
    """The boxes that fill the region at `start`, joined along `axis` and those behind it."""
    if len(boxes) == 1 and (boxes[0].offsets, boxes[0].sizes) == (start, shape):
        return boxes[0].tensor
    if axis == len(shape) or not boxes:
        raise Untiled("do not tile it")
    bands: dict[int, list[Box]] = {}
    for box in boxes:
        bands.setdefault(box.offsets[axis], []).append(box)
    members, place = [], start[axis]
    for first, band in sorted(bands.items()):
        length = band[0].sizes[axis]
        if first != place or any(box.sizes[axis] != length for box in band):
            raise Untiled(f"overlap or leave a hole along axis {axis}")
        corner = (*start[:axis], first, *start[axis + 1 :])
        members.append(_filled(name, band, corner, (*shape[:axis], length, *shape[axis + 1 :]), axis + 1))
        place = first + length
    if place != start[axis] + shape[axis]:
        raise Untiled(f"end before it does along axis {axis}")
    return members[0] if len(members) == 1 else Joined(name, members[0].dtype, shape, axis, tuple(members))


def flat_boxes(flat: Tensor, first: int, shape: Sizes) -> Iterator[Box]:
    """The boxes of a contiguous `flat` tensor that holds the elements from `first` on of one of this shape, in C order: at
    most two for each axis, because only the first and the last row of a range can be cut."""
    count, place = flat.shape[0], 0
    if not shape:
        if count:
            yield Box((), (), replace(flat, shape=(), strides=()))
        return
    inner = prod(shape[1:])
    while place < count and inner:
        row, column = divmod(first + place, inner)
        rows = (count - place) // inner if not column else 0
        taken = rows * inner or min(inner - column, count - place)
        part = flat.narrow(0, place, taken)
        if rows:
            sizes = (rows, *shape[1:])
            whole = replace(part, shape=sizes, strides=dense_strides(sizes))
            yield Box((row, *(0,) * (len(shape) - 1)), sizes, whole)
        else:
            for box in flat_boxes(part, column, shape[1:]):
                sizes = (1, *box.sizes)
                cut = replace(box.tensor, shape=sizes, strides=dense_strides(sizes))
                yield Box((row, *box.offsets), sizes, cut)
        place += taken


def flat_range(pieces: Sequence[Tensor], first: int, length: int) -> Iterator[tuple[int, Tensor]]:
    """The parts of `length` elements from `first` on of flat tensors one behind the other, each with its own first element
    counted from `first`."""
    start = 0
    for piece in pieces:
        low, high = max(first, start), min(first + length, start + piece.shape[0])
        if low < high:
            yield low - first, piece.narrow(0, low - start, high - low)
        start += piece.shape[0]
