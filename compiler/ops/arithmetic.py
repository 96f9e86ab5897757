"""Ops that compute values and have an inverse: `pad`, `affine`, the constants of `create`; and `crop`, which undoes `pad`.

Each except `crop` calls a function of `kernels`, which generated converters contain as text. The class states its shape
rule, dtype, inverse and how rows of its result are computed. `lossy` has the ops without an inverse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from compiler.layout.kernel_op import RowCut, Shape
from compiler.ops.algebra import Algebra, Bundle, Op, OpError, Size, T, axis_of, shown
from compiler.ops.written_step import StepReader, WrittenStep

Real = Size | float


@dataclass(frozen=True)
class Computed(Op):
    """An op that the function `kernel` computes from `takes` tensors. An op of one tensor is applied to every slot.

    `counts`: the fields that are sizes; `reals`: the fields that are any number.
    """

    kernel: ClassVar[str]
    takes: ClassVar[int] = 1
    counts: ClassVar[tuple[str, ...]] = ()
    reals: ClassVar[tuple[str, ...]] = ()

    def sizes_used(self) -> Iterable[Size]:
        return [getattr(self, name) for name in (*self.counts, *self.reals)]

    def bind(self, number: Callable[..., Any]) -> Self:
        bound = {name: number(getattr(self, name)) for name in self.counts}
        return replace(self, **bound, **{name: number(getattr(self, name), whole=False) for name in self.reals})

    @property
    def values(self) -> tuple[Any, ...]:
        """The arguments of the kernel after its tensors; by default none."""
        return ()

    def result(self, *shapes: Shape) -> Shape:
        """The shape of the result. Raises OpError."""
        raise NotImplementedError(self.word)

    def row_grain(self, shape: Shape) -> int:
        """How many rows of a result of this shape must be computed together; by default all."""
        return max(1, shape[0]) if shape else 1

    def cut_rows(self, start: int, stop: int, shapes: Sequence[Shape]) -> RowCut:
        """The op that computes some rows; by default from the same rows of each tensor."""
        return RowCut(self, ((start, stop - start),) * self.takes)

    def arity(self, slots: int, holes: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
        if self.takes == 1:
            return slots, holes
        if slots != self.takes:
            raise OpError(f"{self.word} takes {self.takes} tensors, here {'is' if slots == 1 else 'are'} {slots}")
        return 1, holes

    def apply(self, bundle: Bundle[T], algebra: Algebra[T]) -> Bundle[T]:
        def call(*tensors: T) -> T:
            shape = self.result(*map(algebra.shape, tensors))
            return algebra.compute(self, tensors, shape)

        if self.takes == 1:
            return bundle.map(call)
        keys = bundle.slots[0] if bundle.slots else [()]
        return replace(bundle, slots=({key: call(*(slot[key] for slot in bundle.slots)) for key in keys},))


@dataclass(frozen=True)
class Pad(Computed):
    """Extend an axis from `of` to `to` positions; the new ones, at its end, are `fill`."""

    word: ClassVar[str] = "pad"
    kernel: ClassVar[str] = "pad"
    counts: ClassVar[tuple[str, ...]] = ("of", "to")
    axis: int
    of: Size
    to: Size
    fill: float

    @property
    def values(self) -> tuple[Any, ...]:
        return self.axis, self.to, self.fill

    def result(self, *shapes: Shape) -> Shape:
        return _resized(self, shapes[0])

    def row_grain(self, shape: Shape) -> int:
        return 1

    def cut_rows(self, start: int, stop: int, shapes: Sequence[Shape]) -> RowCut:
        if self.axis % len(shapes[0]):
            return super().cut_rows(start, stop, shapes)
        first = min(start, shapes[0][0])
        length = min(stop, shapes[0][0]) - first
        return RowCut(Pad(0, length, stop - start, self.fill), ((first, length),))

    def inverse(self) -> Op:
        return Crop(self.axis, self.to, self.of)


@dataclass(frozen=True)
class Crop(Op):
    """Keep the first `to` of the `of` positions of an axis. Reversed, the others are `fill`, where that is given."""

    word: ClassVar[str] = "crop"
    undo: ClassVar[str] = "none"
    loss: ClassVar[str] = "the cropped positions are lost"
    axis: int
    of: Size
    to: Size
    fill: float | None = None

    @property
    def refills(self) -> bool:
        return self.fill is not None

    def sizes_used(self) -> Iterable[Size]:
        return self.of, self.to

    def bind(self, number: Callable[..., Any]) -> Crop:
        return replace(self, of=number(self.of), to=number(self.to))

    def apply(self, bundle: Bundle[T], algebra: Algebra[T]) -> Bundle[T]:
        def cut(tensor: T) -> T:
            shape = algebra.shape(tensor)
            axis = axis_of(self.axis, len(shape), self.word, shape)
            length = _resized(self, shape)[axis]
            return algebra.split(tensor, axis, [length, shape[axis] - length])[0]

        return bundle.map(cut)

    def inverse(self) -> Op:
        return Pad(self.axis, self.to, self.of, self.fill or 0.0)


def _resized(op: Pad | Crop, shape: Shape) -> Shape:
    axis = axis_of(op.axis, len(shape), op.word, shape)
    if not isinstance(op.of, int) or not isinstance(op.to, int) or shape[axis] != op.of:
        raise OpError(f"{op.word} expects {op.of} positions, not axis {axis} of {shown(shape)}")
    if (op.to < op.of and isinstance(op, Pad)) or (op.to > op.of and isinstance(op, Crop)):
        raise OpError(f"{op.word} cannot make {op.to} positions from {op.of}")
    return (*shape[:axis], op.to, *shape[axis + 1 :])


@dataclass(frozen=True)
class Affine(Computed):
    """`scale` times every element, plus `shift`; with `back` the inverse, exact up to rounding."""

    word: ClassVar[str] = "affine"
    undo: ClassVar[str] = "tolerance"
    kernel: ClassVar[str] = "affine"
    reals: ClassVar[tuple[str, ...]] = ("scale", "shift")
    scale: Real
    shift: Real
    back: bool = False

    @property
    def values(self) -> tuple[Any, ...]:
        if not self.back:
            return self.scale, self.shift
        assert isinstance(self.scale, int | float)
        assert isinstance(self.shift, int | float)
        return 1 / self.scale, -self.shift / self.scale

    def result(self, *shapes: Shape) -> Shape:
        if self.back and self.scale == 0:
            raise OpError("affine with a scale of 0 has no inverse")
        return shapes[0]

    def row_grain(self, shape: Shape) -> int:
        return 1

    def inverse(self) -> Op:
        return replace(self, back=not self.back)


@dataclass(frozen=True)
class Full(Computed):
    """A tensor of one value: what `create` writes. A plan sets its shape and dtype."""

    word: ClassVar[str] = "create"
    kernel: ClassVar[str] = "full"
    takes: ClassVar[int] = 0
    fill: float
    shape: tuple[Size, ...] | None = None
    dtype: str = "float32"

    def sizes_used(self) -> Iterable[Size]:
        return self.shape or ()

    def bind(self, number: Callable[..., Any]) -> Full:
        return replace(self, shape=tuple(map(number, self.shape)) if self.shape is not None else None)

    def dtypes(self, dtypes: tuple[str, ...]) -> tuple[str, ...]:
        return (self.dtype,)

    @property
    def values(self) -> tuple[Any, ...]:
        return self.result(), self.fill, self.dtype

    def result(self, *shapes: Shape) -> Shape:
        return tuple(n for n in self.shape or () if isinstance(n, int))

    def row_grain(self, shape: Shape) -> int:
        return 1

    def cut_rows(self, start: int, stop: int, shapes: Sequence[Shape]) -> RowCut:
        return RowCut(replace(self, shape=(stop - start, *self.result()[1:])), ())

    def inverse(self) -> Op:
        raise OpError("a tensor of create is compared with its value and dropped, not undone")


def _read_pad(written: WrittenStep) -> Op:
    fill = float(written.plain_field("fill"))
    return Pad(written.plain_field("axis", 0), written.size_field("from"), written.size_field("to"), fill)


def _read_crop(written: WrittenStep) -> Op:
    fill = written.plain_field("fill", None)
    sizes = written.size_field("from"), written.size_field("to")
    return Crop(written.plain_field("axis", 0), *sizes, None if fill is None else float(fill))


def _read_affine(written: WrittenStep) -> Op:
    return Affine(written.real_field("scale", 1.0), written.real_field("shift", 0.0))


READERS = {"pad": StepReader(_read_pad), "crop": StepReader(_read_crop), "affine": StepReader(_read_affine)}
