"""The ops of the quantized layouts in folders of Transformers: what they take, row by row, and their kernels' arguments.

All take the rows of a Linear's weight, its outputs: a reader passes transposed views of what is stored the other way round.
`layout` is the name for people, `dtype` the element type of the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from compiler.quantized.dequantize import Dequantize


@dataclass(frozen=True)
class FolderLayout(Dequantize):
    layout: str
    dtype: str

    @property
    def label(self) -> str:
        return self.layout

    @property
    def made(self) -> str:
        return self.dtype


@dataclass(frozen=True)
class Scaled(FolderLayout):
    """Numbers [row, column] times scales [row block, column block] of blocks of `rows` by `columns`; 0 for an axis that all
    share. The product is computed in `arithmetic`."""

    kernel: ClassVar[str] = "dequantize_scaled"
    rows: int
    columns: int
    arithmetic: str

    @property
    def values(self) -> tuple[Any, ...]:
        return self.rows, self.columns, self.arithmetic, self.dtype

    @property
    def rows_per_row(self) -> tuple[int, ...]:
        return 1, self.rows


@dataclass(frozen=True)
class Shifted(Scaled):
    """The same after zero points, of the shape of the scales, are subtracted."""

    kernel: ClassVar[str] = "dequantize_shifted"

    @property
    def rows_per_row(self) -> tuple[int, ...]:
        return 1, self.rows, self.rows


@dataclass(frozen=True)
class Packed(Scaled):
    """`Scaled` with numbers of `bits` bits in int32 words, lowest first, less 2 ** (bits - 1); `width` of them in a row."""

    kernel: ClassVar[str] = "dequantize_packed"
    bits: int
    width: int

    @property
    def values(self) -> tuple[Any, ...]:
        return *super().values, self.bits, self.width


@dataclass(frozen=True)
class PackedShifted(Packed):
    """`Packed` with zero points, packed along the rows, instead of 2 ** (bits - 1)."""

    kernel: ClassVar[str] = "dequantize_packed_shifted"

    @property
    def rows_per_row(self) -> tuple[int, ...]:
        return 1, self.rows, 32 // self.bits


@dataclass(frozen=True)
class Fp4(FolderLayout):
    """E2M1 numbers, two to a byte, in groups of 16 with a scale each, divided by a scale of all; rounded to bfloat16."""

    kernel: ClassVar[str] = "dequantize_nvfp4"

    @property
    def values(self) -> tuple[Any, ...]:
        return (self.dtype,)

    @property
    def rows_per_row(self) -> tuple[int, ...]:
        return 1, 1, 0


@dataclass(frozen=True)
class Gptq(FolderLayout):
    """Words of inputs [output, input word], words of zero points [output word, group], scales [output, group] and the group of
    each input [1, input]. `offset` is added to the words of zero points."""

    kernel: ClassVar[str] = "dequantize_gptq"
    bits: int
    offset: int

    @property
    def values(self) -> tuple[Any, ...]:
        return self.bits, self.offset, self.dtype

    @property
    def rows_per_row(self) -> tuple[int, ...]:
        return 1, 32 // self.bits, 1, 0


@dataclass(frozen=True)
class GptqInOrder(Gptq):
    """`Gptq` whose groups are consecutive inputs."""

    kernel: ClassVar[str] = "dequantize_gptq_in_order"

    @property
    def rows_per_row(self) -> tuple[int, ...]:
        return 1, 32 // self.bits, 1


@dataclass(frozen=True)
class Awq(FolderLayout):
    """Words of outputs [output word, input], of zero points [output word, group], and scales [output, group]; four bits."""

    kernel: ClassVar[str] = "dequantize_awq"

    @property
    def values(self) -> tuple[Any, ...]:
        return (self.dtype,)

    @property
    def rows_per_row(self) -> tuple[int, ...]:
        return 8, 8, 1


@dataclass(frozen=True)
class CodeBook(FolderLayout):
    """Four-bit places in a table, two to a byte, the high half first, times the largest value of each block of consecutive
    elements; rounded to `rounding`. `apart`: whether rows are complete blocks."""

    kernel: ClassVar[str] = "dequantize_code_book"
    block: int
    width: int
    rounding: str
    apart: bool

    @property
    def values(self) -> tuple[Any, ...]:
        return self.block, self.width, self.rounding, self.dtype

    @property
    def rows_per_row(self) -> tuple[int, ...]:
        return (1, 1, 0) if self.apart else (0, 0, 0)

    def row_grain(self, shape: tuple[int, ...]) -> int:
        return 1 if self.apart else max(1, shape[0])


@dataclass(frozen=True)
class NestedScales(FolderLayout):
    """Eight-bit places in a table times the largest value of each `block`, plus `offset`: scales that are quantized
    themselves. `apart`: whether each row is one block; else there is one row."""

    kernel: ClassVar[str] = "dequantize_nested_scales"
    offset: float
    block: int
    apart: bool

    @property
    def values(self) -> tuple[Any, ...]:
        return self.block, self.offset

    @property
    def rows_per_row(self) -> tuple[int, ...]:
        return (1, 1, 0) if self.apart else (0, 0, 0)


@dataclass(frozen=True)
class RowwiseInt8(FolderLayout):
    """int8 [row, column] times the largest value of each row, divided by 127."""

    kernel: ClassVar[str] = "dequantize_rowwise_int8"

    @property
    def values(self) -> tuple[Any, ...]:
        return (self.dtype,)

    @property
    def rows_per_row(self) -> tuple[int, ...]:
        return 1, 1


@dataclass(frozen=True)
class ScaledBiased(FolderLayout):
    """Unsigned numbers of `bits` bits in words, lowest first, times a scale plus a bias for each group of consecutive ones."""

    kernel: ClassVar[str] = "dequantize_biased"
    bits: int

    @property
    def values(self) -> tuple[Any, ...]:
        return self.bits, self.dtype

    @property
    def rows_per_row(self) -> tuple[int, ...]:
        return 1, 1, 1
