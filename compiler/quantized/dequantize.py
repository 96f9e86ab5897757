"""The base of the ops that make numbers of quantized ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from compiler.layout.kernel_op import RowCut, Shape


@dataclass(frozen=True)
class Dequantize:
    """Makes a matrix of stored ones with as many rows each; a subclass may need fewer of some.

    `made` is the dtype of the result. Rows are computed separately, on any device with the same bits.
    """

    kernel: ClassVar[str]
    host_only: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """The layout's name for people."""
        raise NotImplementedError

    @property
    def made(self) -> str:
        return "float32"

    @property
    def values(self) -> tuple[Any, ...]:
        return ()

    def dtypes(self, dtypes: tuple[str, ...]) -> tuple[str, ...]:
        return (self.made,)

    def row_grain(self, shape: Shape) -> int:
        return 1

    def cut_rows(self, start: int, stop: int, shapes: Sequence[Shape]) -> RowCut:
        return RowCut(self, ((start, stop - start),) * len(shapes))
