"""The ops without an inverse: `normalize`, `sum`, `dequantize` and `lora`.

A plan that would have to undo one is an error, with the reason. Their `inverse` restores shapes only, which is what the
proof of a spec needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from compiler.diagnostics import refuse
from compiler.language import document
from compiler.layout.kernel_op import RowCut, Shape
from compiler.ops.algebra import Algebra, Bundle, Op, OpError, Size, T, axis_of, shown
from compiler.ops.arithmetic import Computed, Full, Real
from compiler.ops.written_step import StepReader, WrittenStep, size_of


@dataclass(frozen=True)
class Normalize(Computed):
    """Each vector along `axis` divided by its Euclidean length, as `torch.nn.functional.normalize` with eps 1e-12 does in
    float32; zero vectors stay zero."""

    word: ClassVar[str] = "normalize"
    undo: ClassVar[str] = "none"
    loss: ClassVar[str] = "the lengths of the vectors are lost"
    kernel: ClassVar[str] = "normalize"
    host_only: ClassVar[bool] = True  # its sums are added in another order there
    axis: int

    @property
    def values(self) -> tuple[Any, ...]:
        return (self.axis,)

    def result(self, *shapes: Shape) -> Shape:
        axis_of(self.axis, len(shapes[0]), self.word, shapes[0])
        return shapes[0]

    def row_grain(self, shape: Shape) -> int:
        return 1 if self.axis % len(shape) else super().row_grain(shape)

    def inverse(self) -> Op:
        return self


@dataclass(frozen=True)
class Lossy(Computed):
    """A `Computed` op that knows the shapes and dtypes of the tensors that it takes."""

    undo: ClassVar[str] = "none"
    from_dtypes: ClassVar[tuple[str, ...]]

    def origins(self, shape: Shape) -> tuple[Shape, ...]:
        """The shapes of the tensors that a result of this shape was computed from. Raises OpError."""
        raise NotImplementedError(self.word)

    def inverse(self) -> Op:
        return Origin(self)


@dataclass(frozen=True)
class Origin(Op):
    """The tensors that a lossy op takes, without their values."""

    word: ClassVar[str] = "origin"
    undo: ClassVar[str] = "none"
    loss: ClassVar[str] = "it restores shapes only"
    of: Lossy

    def bind(self, number: Callable[..., Any]) -> Origin:
        return Origin(self.of.bind(number))

    def arity(self, slots: int, holes: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
        return self.of.takes, holes

    def dtypes(self, dtypes: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dtype or dtypes[0] for dtype in self.of.from_dtypes)

    def apply(self, bundle: Bundle[T], algebra: Algebra[T]) -> Bundle[T]:
        def made(shape: Shape) -> T:
            return algebra.compute(Full(0.0, shape), (), shape)

        origins = {key: self.of.origins(algebra.shape(tensor)) for key, tensor in bundle.slots[0].items()}
        slots = tuple({key: made(shapes[n]) for key, shapes in origins.items()} for n in range(self.of.takes))
        return replace(bundle, slots=slots)

    def inverse(self) -> Op:
        return self.of


@dataclass(frozen=True)
class Sum(Lossy):
    """The sum of `parts` tensors of one shape that are stored one behind the other along the first axis, times `scale`: in
    float64, rounded once."""

    word: ClassVar[str] = "sum"
    loss: ClassVar[str] = "the summands are lost"
    kernel: ClassVar[str] = "add_parts"
    host_only: ClassVar[bool] = True  # its sums are added in another order there
    counts: ClassVar[tuple[str, ...]] = ("parts",)
    reals: ClassVar[tuple[str, ...]] = ("scale",)
    from_dtypes: ClassVar[tuple[str, ...]] = ("",)
    parts: Size
    scale: Real

    @property
    def values(self) -> tuple[Any, ...]:
        return self.parts, self.scale

    def result(self, *shapes: Shape) -> Shape:
        shape = shapes[0]
        axis_of(0, len(shape), self.word, shape)
        if not isinstance(self.parts, int) or self.parts < 1 or shape[0] % self.parts:
            raise OpError(f"sum cannot divide axis 0 of {shown(shape)} into {self.parts} equal parts")
        return (shape[0] // self.parts, *shape[1:])

    def cut_rows(self, start: int, stop: int, shapes: Sequence[Shape]) -> RowCut:
        return RowCut(self, ((0, shapes[0][0]),))  # the grain is all rows

    def origins(self, shape: Shape) -> tuple[Shape, ...]:
        assert isinstance(self.parts, int)
        axis_of(0, len(shape), self.word, shape)
        return ((self.parts * shape[0], *shape[1:]),)


@dataclass(frozen=True)
class DequantizeBlocks(Lossy):
    """A matrix and one scale for each of its blocks, to a matrix of `dtype`: FP8 with `weight_scale_inv`, as `Fp8Dequantize` of
    transformers' finegrained_fp8 integration computes it. Blocks at the edges may be smaller."""

    word: ClassVar[str] = "dequantize"
    loss: ClassVar[str] = "quantizing again would not restore the bits"
    kernel: ClassVar[str] = "dequantize_blocks"
    takes: ClassVar[int] = 2
    counts: ClassVar[tuple[str, ...]] = ("rows", "columns")
    from_dtypes: ClassVar[tuple[str, ...]] = ("float8_e4m3fn", "float32")
    rows: Size
    columns: Size
    dtype: str

    def dtypes(self, dtypes: tuple[str, ...]) -> tuple[str, ...]:
        return (self.dtype,)

    @property
    def values(self) -> tuple[Any, ...]:
        return self.rows, self.columns, self.dtype

    def result(self, *shapes: Shape) -> Shape:
        weight, scale = shapes
        if len(weight) < 2 or scale != self.origins(weight)[1]:
            raise OpError(f"dequantize by blocks of [{self.rows}, {self.columns}]: {shown(weight)} and {shown(scale)}")
        return weight

    def row_grain(self, shape: Shape) -> int:
        assert isinstance(self.rows, int)
        return self.rows if len(shape) == 2 else 1

    def cut_rows(self, start: int, stop: int, shapes: Sequence[Shape]) -> RowCut:
        if len(shapes[0]) != 2:
            return super().cut_rows(start, stop, shapes)
        assert isinstance(self.rows, int)
        count = stop - start
        return RowCut(self, ((start, count), (start // self.rows, -(-count // self.rows))))

    def origins(self, shape: Shape) -> tuple[Shape, ...]:
        assert isinstance(self.rows, int)
        assert isinstance(self.columns, int)
        if len(shape) < 2:
            raise OpError(f"dequantize by blocks makes matrices, not {shown(shape)}")
        *outer, height, width = shape
        return shape, (*outer, -(-height // self.rows), -(-width // self.columns))


@dataclass(frozen=True)
class DequantizeMxfp4(Lossy):
    """Blocks [..., group, 16] of packed FP4 and their scales [..., group], both bytes, to [..., 32 * group] of `dtype`.
    Source: OCP Microscaling Formats (MX) 1.0, sections 5.3.3 and 6."""

    word: ClassVar[str] = "dequantize"
    loss: ClassVar[str] = DequantizeBlocks.loss
    kernel: ClassVar[str] = "dequantize_mxfp4"
    takes: ClassVar[int] = 2
    from_dtypes: ClassVar[tuple[str, ...]] = ("uint8", "uint8")
    dtype: str

    def dtypes(self, dtypes: tuple[str, ...]) -> tuple[str, ...]:
        return (self.dtype,)

    @property
    def values(self) -> tuple[Any, ...]:
        return (self.dtype,)

    def result(self, *shapes: Shape) -> Shape:
        blocks, scales = shapes
        if len(blocks) < 2 or blocks[-1] != 16 or scales != blocks[:-1]:
            raise OpError(f"dequantize takes blocks [..., group, 16] and scales: {shown(blocks)} and {shown(scales)}")
        return (*scales[:-1], 32 * scales[-1])

    def row_grain(self, shape: Shape) -> int:
        return 1 if len(shape) > 1 else super().row_grain(shape)

    def origins(self, shape: Shape) -> tuple[Shape, ...]:
        if not shape or shape[-1] % 32:
            raise OpError(f"dequantize makes groups of 32, not {shown(shape)}")
        scales = (*shape[:-1], shape[-1] // 32)
        return (*scales, 16), scales


@dataclass(frozen=True)
class Lora(Lossy):
    """A matrix plus `scale` times the product of its adapter: W [out, in], A [rank, in], B [out, rank]."""

    word: ClassVar[str] = "lora"
    loss: ClassVar[str] = "a merged adapter cannot be separated from its matrix"
    kernel: ClassVar[str] = "add_low_rank"
    host_only: ClassVar[bool] = True  # and never cut: a product of another shape adds its sums in another order
    takes: ClassVar[int] = 3
    counts: ClassVar[tuple[str, ...]] = ("rank",)
    reals: ClassVar[tuple[str, ...]] = ("scale",)
    from_dtypes: ClassVar[tuple[str, ...]] = ("", "", "")
    rank: Size
    scale: Real

    def dtypes(self, dtypes: tuple[str, ...]) -> tuple[str, ...]:
        return dtypes[:1]

    @property
    def values(self) -> tuple[Any, ...]:
        return (self.scale,)

    def result(self, *shapes: Shape) -> Shape:
        if len(shapes[0]) != 2 or shapes != self.origins(shapes[0]):
            added = " and ".join(map(shown, shapes[1:]))
            raise OpError(f"lora of rank {self.rank} cannot add {added} to {shown(shapes[0])}")
        return shapes[0]

    def origins(self, shape: Shape) -> tuple[Shape, ...]:
        assert isinstance(self.rank, int)
        return shape, (self.rank, shape[1]), (shape[0], self.rank)


def _read_dequantize(written: WrittenStep) -> Op:
    dtype = written.plain_field("dtype", "bfloat16")
    if written.plain_field("format") == "mxfp4":
        return DequantizeMxfp4(dtype)
    block = written.field("block")
    if not isinstance(block, document.Sequence):
        refuse(written.node.span, "dequantize by blocks needs the block size", "missing-size", "block: [128, 128]")
    rows, columns = map(size_of, block.items)
    return DequantizeBlocks(rows, columns, dtype)


READERS = {
    "normalize": StepReader(lambda written: Normalize(written.value)),
    "sum": StepReader(lambda written: Sum(written.size_field("parts"), written.real_field("scale", 1.0))),
    "dequantize": StepReader(_read_dequantize),
    "lora": StepReader(lambda written: Lora(written.size_field("rank"), written.real_field("scale", 1.0))),
}
