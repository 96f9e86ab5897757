"""The element types of GGUF files, by their number in the file.

A plain type is one of `compiler.dtypes`. A type of blocks stores `elements` consecutive elements of a row in `nbytes`
bytes; a row is a whole number of blocks. Blocks with a kernel are read (`ggml_kernels`), the others are only known by name.
Source: `ggml_type` in ggml.h and the block structs of ggml-common.h (https://github.com/ggml-org/ggml).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from compiler.quantized.dequantize import Dequantize


class Blocks(NamedTuple):
    """`elements` elements of a row in `nbytes` bytes."""

    name: str
    elements: int
    nbytes: int


PLAIN = {
    0: "float32", 1: "float16", 24: "int8", 25: "int16", 26: "int32", 27: "int64", 28: "float64", 30: "bfloat16",
}  # fmt: skip
BLOCKS = {
    2: Blocks("Q4_0", 32, 18),
    3: Blocks("Q4_1", 32, 20),
    6: Blocks("Q5_0", 32, 22),
    7: Blocks("Q5_1", 32, 24),
    8: Blocks("Q8_0", 32, 34),
    10: Blocks("Q2_K", 256, 84),
    11: Blocks("Q3_K", 256, 110),
    12: Blocks("Q4_K", 256, 144),
    13: Blocks("Q5_K", 256, 176),
    14: Blocks("Q6_K", 256, 210),
    20: Blocks("IQ4_NL", 32, 18),
    23: Blocks("IQ4_XS", 256, 136),
    34: Blocks("TQ1_0", 256, 54),
    35: Blocks("TQ2_0", 256, 66),
    39: Blocks("MXFP4", 32, 17),
}
# Blocks whose values are in tables of hundreds of vectors, and intermediate results that no file keeps.
UNREAD = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S",
    29: "IQ1_M", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip


@dataclass(frozen=True)
class DequantizeGgml(Dequantize):
    """Rows of blocks [row, byte] to float32 [row, element]. `type` is a name of BLOCKS."""

    kernel: ClassVar[str] = "dequantize_ggml"
    type: str

    @property
    def label(self) -> str:
        return self.type

    @property
    def values(self) -> tuple[Any, ...]:
        return (self.type,)
