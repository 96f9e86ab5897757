"""What the layout needs to know about an op that computes: its kernel, and how rows of its result are computed.

The ops of `compiler.ops` implement it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

Shape = tuple[int, ...]


class KernelOp(Protocol):
    """A bound op whose result is `kernel(*tensors, *values)`."""

    kernel: ClassVar[str]
    host_only: ClassVar[bool]  # whether another device computes other bits

    @property
    def values(self) -> tuple[Any, ...]:
        """The arguments of the kernel after its tensors."""

    def dtypes(self, dtypes: tuple[str, ...]) -> tuple[str, ...]:
        """The dtype of the result, given those of the tensors."""

    def row_grain(self, shape: Shape) -> int:
        """How many rows of a result of this shape must be computed together to get the same bits."""

    def cut_rows(self, start: int, stop: int, shapes: Sequence[Shape]) -> RowCut:
        """How to compute the rows from `start`, a multiple of the grain, to `stop`, another multiple or the end.
        `shapes`: of the tensors that the complete result is computed from."""


@dataclass(frozen=True)
class RowCut:
    """The op that computes some rows of a result, and the (first, count) of the rows that it takes from each tensor."""

    op: KernelOp
    operands: tuple[tuple[int, int], ...]
