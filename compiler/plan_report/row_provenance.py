"""Where the rows of a target come from, computed from the byte layout: the HTML page draws an op from this.

Takes one application of a rule; returns, for each of its targets, samples of its rows. A row is everything before the
last axis. There are two samples, one spread over the complete tensor and one of its first rows, because a split shows in
the first and an interleaving in the second.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.checkpoints.formats.stored_tensor import Tensor
from compiler.dtypes import ITEM_SIZES
from compiler.executor.execute import arrange_group
from compiler.layout.moves import Move, extents, lower
from compiler.ops.structural import Cast
from compiler.plan.plan import Group

ROWS = 64
MOST = 8  # targets of one application that are drawn


@dataclass
class Sample:
    """One target: `whole` and `first` are lists of [source number, source row, source column], `step` rows apart."""

    target: str
    rows: int
    step: int
    whole: list[list[int]]
    first: list[list[int]]


@dataclass
class Picture:
    """(name, rows, columns) of each source of one application, and samples of its targets."""

    sources: list[tuple[str, int, int]]
    targets: list[Sample]


def picture(group: Group, checkpoint: Checkpoint) -> Picture:
    """The picture of one application, without casts, which move nothing. Raises NotImplementedError if the rule computes."""
    arrays = arrange_group(replace(group, ops=tuple(op for op in group.ops if not isinstance(op, Cast))), checkpoint)
    tensors = [part for name in group.source_names for part in checkpoint.tensors[name].parts]
    drawn = Picture([(t.name, *_rows(t.shape)) for t in tensors], [])
    for slot, targets in zip(arrays.slots, group.targets.slots, strict=True):
        for key, target in targets.items():
            if len(drawn.targets) == MOST:
                return drawn
            rows, width = _rows(target.shape)
            step = max(1, -(-rows // ROWS))
            moves = lower(slot[key])
            size = width * ITEM_SIZES[slot[key].dtype]
            drawn.targets.append(
                Sample(
                    target.name,
                    rows,
                    step,
                    [_origin(moves, row * size, tensors) for row in range(0, rows, step)],
                    [_origin(moves, row * size, tensors) for row in range(min(rows, ROWS))] if step > 1 else [],
                )
            )
    return drawn


def _origin(moves: list[Move], offset: int, tensors: list[Tensor]) -> list[int]:
    """The source element at the target's byte `offset`: tensor number, row, column."""
    move = moves[bisect_right(moves, offset, key=lambda m: m.target) - 1]
    start = offset - move.target
    extent = next(extents(move, start, start + ITEM_SIZES[move.dtype]))
    for number, tensor in enumerate(tensors):
        begin = tensor.offset
        if str(tensor.path) == extent.source and begin <= extent.source_offset < begin + max(1, tensor.nbytes):
            _, width = _rows(tensor.shape)
            element = (extent.source_offset - begin) // ITEM_SIZES[tensor.dtype]
            return [number, element // width, element % width]
    return [0, 0, 0]


def _rows(shape: tuple[int, ...]) -> tuple[int, int]:
    width = max(1, shape[-1]) if len(shape) > 1 else 1
    return math.prod(shape) // width, width
