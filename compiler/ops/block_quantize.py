"""The op that packs numbers into the blocks of a file format. A plan appends it; no spec can write it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from compiler.dtypes import BLOCKS
from compiler.layout.kernel_op import Shape
from compiler.ops.algebra import Op, OpError, shown
from compiler.ops.arithmetic import Computed


@dataclass(frozen=True)
class QuantizeQ8(Computed):
    """Rows of float32 [..., element] to the bytes of Q8_0 blocks [..., byte]: 32 elements are a scale and 32 integers."""

    word: ClassVar[str] = "q8_0"
    undo: ClassVar[str] = "none"
    loss: ClassVar[str] = "quantizing rounds"
    kernel: ClassVar[str] = "quantize_q8_0"
    host_only: ClassVar[bool] = True  # its quotients are not compared with another device's

    @property
    def values(self) -> tuple[Any, ...]:
        return ()

    def dtypes(self, dtypes: tuple[str, ...]) -> tuple[str, ...]:
        return ("uint8",) * len(dtypes)

    def result(self, *shapes: Shape) -> Shape:
        (*outer, width), (elements, nbytes) = shapes[0], BLOCKS[self.word]
        if not outer or width % elements:
            raise OpError(f"rows of {shown(shapes[0])} are not blocks of {elements}")
        return (*outer, width // elements * nbytes)

    def row_grain(self, shape: Shape) -> int:
        return 1

    def inverse(self) -> Op:
        raise OpError("blocks of a file are not undone by a rule")
