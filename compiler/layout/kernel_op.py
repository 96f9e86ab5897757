"""What the layout needs to know of an op that computes: which kernel it calls, and how its result is cut into rows.

The ops of `compiler.ops` implement it; each states its own rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

Shape = tuple[int, ...]


class KernelOp(Protocol):
    """An op with numbers for sizes, whose result is `kernel(*tensors, *values)`."""

    kernel: ClassVar[str]
    host_only: ClassVar[bool]  # other bits come out on another device

    @property
    def values(self) -> tuple[Any, ...]:
        """What the kernel takes after its tensors."""

    def dtypes(self, dtypes: tuple[str, ...]) -> tuple[str, ...]:
        """The element type of the result, for those of the tensors."""

    def row_grain(self, shape: Shape) -> int:
        """How many rows of a result of this shape have to be computed together for the same bits."""

    def cut_rows(self, start: int, stop: int, shapes: Sequence[Shape]) -> RowCut:
        """How to compute the rows from `start`, a multiple of the grain, to `stop`, another or the end. `shapes` are
        those of the tensors that the whole result takes."""


@dataclass(frozen=True)
class RowCut:
    """The op that computes some rows, and the (first, count) of the rows that it takes of each tensor."""

    op: KernelOp
    operands: tuple[tuple[int, int], ...]
