"""The base of the ops that make numbers of quantized ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from compiler.layout.kernel_op import RowCut, Shape


@dataclass(frozen=True)
class Dequantize:
    """Makes a matrix of stored ones, of which it may take fewer rows than it makes.

    Any device computes the same bits, since every element is a few products and sums that are rounded one by one.
    """

    kernel: ClassVar[str]
    host_only: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """The layout's name for people."""
        raise NotImplementedError

    @property
    def made(self) -> str:
        """The dtype of the result."""
        return "float32"

    @property
    def values(self) -> tuple[Any, ...]:
        return ()

    @property
    def rows_per_row(self) -> tuple[int, ...]:
        """For each tensor that it takes, how many rows of the result are made of one of its rows; 0 if every row is made
        of all of it."""
        return (1,)

    def dtypes(self, dtypes: tuple[str, ...]) -> tuple[str, ...]:
        return (self.made,)

    def row_grain(self, shape: Shape) -> int:
        return math.lcm(*(count for count in self.rows_per_row if count))

    def cut_rows(self, start: int, stop: int, shapes: Sequence[Shape]) -> RowCut:
        cuts = []
        for count, shape in zip(self.rows_per_row, shapes, strict=True):
            first, end = (start // count, -(-stop // count)) if count else (0, shape[0])
            cuts.append((first, end - first))
        return RowCut(self, tuple(cuts))
