"""The ops that move elements without changing them, and `cast`.

An op is a frozen value whose sizes are expressions; `bind` turns them into integers. It is written once over the eight
operations of an `Algebra`, so that its shape rule, its effect on torch tensors and its byte ranges agree. Every op knows
the op that undoes it.

A rule's tensors are passed as a `Bundle`: one slot for each name pattern of the rule, and in a slot one tensor for each
value of the indices that `stack` folds or `unstack` opens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from compiler.diagnostics import refuse
from compiler.ops.algebra import Algebra, Bundle, Key, Op, OpError, Size, T, axis_of, integers, plus, shown
from compiler.ops.written_step import StepReader, WrittenStep


@dataclass(frozen=True)
class Split(Op):
    """Split one tensor along `axis` into pieces of the given sizes, or into `parts` equal ones."""

    word: ClassVar[str] = "split"
    axis: int
    parts: int
    sizes: tuple[Size, ...] | None = None

    def sizes_used(self) -> Iterable[Size]:
        return self.sizes or ()

    def bind(self, number: Callable[..., Any]) -> Split:
        return replace(self, sizes=tuple(map(number, self.sizes)) if self.sizes else None)

    def arity(self, slots: int, holes: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
        if slots != 1:
            raise OpError(f"split takes one tensor, not {slots}")
        return self.parts, holes

    def dtypes(self, dtypes: tuple[str, ...]) -> tuple[str, ...]:
        return dtypes * self.parts

    def apply(self, bundle: Bundle[T], algebra: Algebra[T]) -> Bundle[T]:
        pieces = {key: self.cut(tensor, algebra) for key, tensor in bundle.slots[0].items()}
        return replace(bundle, slots=tuple({k: p[n] for k, p in pieces.items()} for n in range(self.parts)))

    def cut(self, tensor: T, algebra: Algebra[T]) -> Sequence[T]:
        shape = algebra.shape(tensor)
        axis = axis_of(self.axis, len(shape), self.word, shape)
        length = shape[axis]
        if self.sizes is None:
            if length % self.parts:
                raise OpError(f"split cannot divide axis {axis} of {shown(shape)} into {self.parts} equal parts")
            return algebra.split(tensor, axis, [length // self.parts] * self.parts)
        sizes = integers(self.sizes)
        if sum(sizes) != length:
            raise OpError(f"split sizes {plus(sizes)} = {sum(sizes)} are not axis {axis} of {shown(shape)}")
        return algebra.split(tensor, axis, sizes)

    def inverse(self) -> Op:
        return Concat(self.axis, self.parts, self.sizes)

    @classmethod
    def read(cls, written: WrittenStep) -> Split:
        sizes = written.sizes(written.targets)
        parts = len(sizes) if sizes else written.modifier("parts", len(written.targets))
        return cls(written.value, parts, sizes)


@dataclass(frozen=True)
class Concat(Op):
    """Join the slots along `axis`. `sizes`: the length of each; without it, reversing needs equal lengths."""

    word: ClassVar[str] = "concat"
    axis: int
    parts: int
    sizes: tuple[Size, ...] | None = None

    def sizes_used(self) -> Iterable[Size]:
        return self.sizes or ()

    def bind(self, number: Callable[..., Any]) -> Concat:
        return replace(self, sizes=tuple(map(number, self.sizes)) if self.sizes else None)

    def arity(self, slots: int, holes: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
        if slots != self.parts:
            raise OpError(f"concat takes {self.parts} tensors, not {slots}")
        return 1, holes

    def dtypes(self, dtypes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(dtypes)) > 1:
            raise OpError(f"concat of different dtypes: {', '.join(sorted(set(dtypes)))}")
        return dtypes[:1]

    def apply(self, bundle: Bundle[T], algebra: Algebra[T]) -> Bundle[T]:
        return replace(
            bundle, slots=({key: self.join([s[key] for s in bundle.slots], algebra) for key in bundle.slots[0]},)
        )

    def join(self, tensors: Sequence[T], algebra: Algebra[T]) -> T:
        shapes = [algebra.shape(t) for t in tensors]
        axis = axis_of(self.axis, len(shapes[0]), self.word, shapes[0])
        rest = {s[:axis] + s[axis + 1 :] for s in shapes}
        if len(rest) != 1 or len({len(s) for s in shapes}) != 1:
            raise OpError(f"concat along axis {axis} of shapes that differ elsewhere: {', '.join(map(shown, shapes))}")
        lengths = [s[axis] for s in shapes]
        if self.sizes is not None and list(self.sizes) != lengths:
            raise OpError(f"concat of sizes {plus(integers(self.sizes))} along axis {axis} got {plus(lengths)}")
        if self.sizes is None and len(set(lengths)) != 1:
            raise OpError(f"concat of unequal lengths {plus(lengths)} needs `sizes`, to be reversible")
        return algebra.concat(tensors, axis)

    def inverse(self) -> Op:
        return Split(self.axis, self.parts, self.sizes)

    @classmethod
    def read(cls, written: WrittenStep) -> Concat:
        sizes = written.sizes(written.sources)
        if sizes and len(sizes) != written.slots:
            message = f"concat joins {written.slots} tensors but has {len(sizes)} sizes"
            refuse(written.span, message, "op-mismatch")
        return cls(written.value, written.slots, sizes)


@dataclass(frozen=True)
class Copy(Op):
    """Make `parts` equal tensors of one; with `back` the inverse: of `parts` tensors with the same bits, one. A reversed
    conversion compares them before it writes anything."""

    word: ClassVar[str] = "copy"
    parts: int
    back: bool = False

    def arity(self, slots: int, holes: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
        taken, made = (self.parts, 1) if self.back else (1, self.parts)
        if slots != taken:
            raise OpError(f"copy takes {'one tensor' if taken == 1 else f'{taken} tensors'}, not {slots}")
        return made, holes

    def dtypes(self, dtypes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(dtypes)) > 1:
            raise OpError(f"copies of different dtypes: {', '.join(sorted(set(dtypes)))}")
        return dtypes[:1] if self.back else dtypes * self.parts

    def apply(self, bundle: Bundle[T], algebra: Algebra[T]) -> Bundle[T]:
        if not self.back:
            return replace(bundle, slots=bundle.slots * self.parts)
        for key in bundle.slots[0]:
            if len(shapes := dict.fromkeys(algebra.shape(slot[key]) for slot in bundle.slots)) > 1:
                raise OpError(f"copies of one tensor must have one shape, not {', '.join(map(shown, shapes))}")
        return replace(bundle, slots=bundle.slots[:1])

    def inverse(self) -> Op:
        return replace(self, back=not self.back)


@dataclass(frozen=True)
class Stack(Op):
    """Fold an index of the names into a new axis, in numeric order from 0 without a gap."""

    word: ClassVar[str] = "stack"
    hole: str
    axis: int = 0

    def arity(self, slots: int, holes: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
        if self.hole not in holes:
            raise OpError(f"stack folds {{{self.hole}}}, which is not an open index here")
        return slots, tuple(h for h in holes if h != self.hole)

    def apply(self, bundle: Bundle[T], algebra: Algebra[T]) -> Bundle[T]:
        at = bundle.holes.index(self.hole)
        slots = []
        for slot in bundle.slots:
            groups: dict[Key, dict[int, T]] = {}
            for key, tensor in slot.items():
                groups.setdefault(key[:at] + key[at + 1 :], {})[key[at]] = tensor
            slots.append({key: self.fold(group, algebra) for key, group in groups.items()})
        return Bundle(tuple(slots), bundle.holes[:at] + bundle.holes[at + 1 :])

    def fold(self, group: Mapping[int, T], algebra: Algebra[T]) -> T:
        if missing := sorted(set(range(max(group) + 1)) - set(group)):
            raise OpError(f"stack over {{{self.hole}}} lacks number {', '.join(map(str, missing[:8]))}")
        tensors = [group[n] for n in range(len(group))]
        shapes = [algebra.shape(t) for t in tensors]
        if len(set(shapes)) != 1:
            raise OpError(
                f"stack over {{{self.hole}}} of shapes that differ: {', '.join(map(shown, sorted(set(shapes))))}"
            )
        return algebra.stack(tensors, axis_of(self.axis, len(shapes[0]) + 1, self.word, shapes[0]))

    def inverse(self) -> Op:
        return Unstack(self.hole, self.axis)


@dataclass(frozen=True)
class Unstack(Op):
    """Open an axis into an index of the names."""

    word: ClassVar[str] = "unstack"
    hole: str
    axis: int = 0

    def arity(self, slots: int, holes: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
        if self.hole in holes:
            raise OpError(f"unstack opens {{{self.hole}}}, which is already open")
        return slots, (*holes, self.hole)

    def apply(self, bundle: Bundle[T], algebra: Algebra[T]) -> Bundle[T]:
        slots = []
        for slot in bundle.slots:
            unfolded: dict[Key, T] = {}
            for key, tensor in slot.items():
                shape = algebra.shape(tensor)
                axis = axis_of(self.axis, len(shape), self.word, shape)
                unfolded |= {(*key, n): t for n, t in enumerate(algebra.unstack(tensor, axis))}
            slots.append(unfolded)
        return Bundle(tuple(slots), (*bundle.holes, self.hole))

    def inverse(self) -> Op:
        return Stack(self.hole, self.axis)


@dataclass(frozen=True)
class Rearrange(Op):
    """A permutation of elements in einops' notation; `...` at the end is all further axes on both sides. `only`: the slots
    that it changes, if not all."""

    word: ClassVar[str] = "rearrange"
    left: tuple[tuple[str, ...], ...]
    right: tuple[tuple[str, ...], ...]
    rest: bool
    sizes: tuple[tuple[str, Size], ...] = ()
    only: tuple[int, ...] = ()

    def sizes_used(self) -> Iterable[Size]:
        return [size for _, size in self.sizes]

    def bind(self, number: Callable[..., Any]) -> Rearrange:
        return replace(self, sizes=tuple((name, number(size)) for name, size in self.sizes))

    def arity(self, slots: int, holes: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
        if self.only and max(self.only) >= slots:
            raise OpError(f"`only` of rearrange names tensor {max(self.only)}, counted from 0, of {slots}")
        return slots, holes

    def apply(self, bundle: Bundle[T], algebra: Algebra[T]) -> Bundle[T]:
        return bundle.map(lambda tensor: algebra.rearrange(tensor, *self.recipe(algebra.shape(tensor))), self.only)

    def recipe(self, shape: tuple[int, ...]) -> tuple[list[int], list[int], list[int]]:
        """(inner, order, outer) for a tensor of this shape. Raises OpError."""
        if len(shape) < len(self.left) or (len(shape) > len(self.left) and not self.rest):
            raise OpError(f"rearrange {self} does not fit the {len(shape)} axes of {shown(shape)}")
        known: dict[str, int] = {name: size for name, size in self.sizes if isinstance(size, int)}
        lengths: dict[str, int] = {}
        for group, length in zip(self.left, shape, strict=False):
            product = math.prod(known.get(name, 1) for name in group)
            unknown = [name for name in group if name not in known]
            if len(unknown) > 1:
                raise OpError(f"rearrange {self} needs the size of {unknown[0]} or {unknown[1]}")
            if product == 0 or length % product or (not unknown and length != product):
                raise OpError(f"rearrange {self} cannot cut {length} of {shown(shape)} into parts of {product}")
            lengths |= {name: known.get(name, length // product) for name in group}
        extra = list(shape[len(self.left) :])
        names = [name for group in self.left for name in group]
        inner = [lengths[name] for name in names] + extra
        order = [names.index(name) for group in self.right for name in group]
        order += range(len(names), len(inner))
        outer = [math.prod(lengths[name] for name in group) for group in self.right] + extra
        return inner, order, outer

    def inverse(self) -> Op:
        return replace(self, left=self.right, right=self.left)

    def __str__(self) -> str:
        def side(groups: tuple[tuple[str, ...], ...]) -> str:
            words = [g[0] if len(g) == 1 else f"({' '.join(g)})" for g in groups]
            return " ".join(words + ["..."] * self.rest)

        return f"{side(self.left)} -> {side(self.right)}"


@dataclass(frozen=True)
class Cast(Op):
    """Change the dtype, rounding to nearest even."""

    word: ClassVar[str] = "cast"
    undo: ClassVar[str] = "none"
    loss: ClassVar[str] = "a cast does not record the dtype that it came from"
    dtype: str

    def dtypes(self, dtypes: tuple[str, ...]) -> tuple[str, ...]:
        return (self.dtype,) * len(dtypes)

    def apply(self, bundle: Bundle[T], algebra: Algebra[T]) -> Bundle[T]:
        return bundle.map(lambda tensor: algebra.cast(tensor, self.dtype))

    def inverse(self) -> Op:
        return self


READERS = {
    "split": StepReader(Split.read, ("sizes", "parts")),
    "concat": StepReader(Concat.read, ("sizes",)),
    "copy": StepReader(lambda written: Copy(written.value)),
    "stack": StepReader(lambda written: Stack(written.value, written.modifier("axis", 0)), ("axis",)),
    "unstack": StepReader(lambda written: Unstack(written.value, written.modifier("axis", 0)), ("axis",)),
    "cast": StepReader(lambda written: Cast(written.value)),
}
