"""The base of all ops: `Op`, the eight operations of an `Algebra`, and the `Bundle` that carries a rule's tensors.

Every op is written once over an `Algebra`. Shapes, torch tensors and byte layouts are three implementations of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from compiler.language.expression import Expr
from compiler.layout.kernel_op import KernelOp

T = TypeVar("T")
Size = Expr | int
Key = tuple[int, ...]


class OpError(ValueError):
    """An op does not fit its tensors. The message names the op and the shapes."""


class Algebra(Protocol[T]):
    """The operations on tensors of a type T. `rearrange` is reshape to `inner`, permute by `order`, reshape to `outer`; `compute`
    calls the op's kernel, the function of that name in `kernels`, which returns a tensor of `shape`. An algebra that
    cannot compute raises NotImplementedError.
    """

    def shape(self, tensor: T) -> tuple[int, ...]: ...
    def split(self, tensor: T, axis: int, sizes: Sequence[int]) -> Sequence[T]: ...
    def concat(self, tensors: Sequence[T], axis: int) -> T: ...
    def stack(self, tensors: Sequence[T], axis: int) -> T: ...
    def unstack(self, tensor: T, axis: int) -> Sequence[T]: ...
    def rearrange(self, tensor: T, inner: Sequence[int], order: Sequence[int], outer: Sequence[int]) -> T: ...
    def cast(self, tensor: T, dtype: str) -> T: ...
    def compute(self, op: KernelOp, tensors: Sequence[T], shape: tuple[int, ...]) -> T: ...


@dataclass(frozen=True)
class Bundle(Generic[T]):
    """The tensors of one rule: `slots[k][key]`, where `key` holds one number for each name in `holes`."""

    slots: tuple[Mapping[Key, T], ...]
    holes: tuple[str, ...] = ()

    def map(self, function: Callable[[T], T], only: Collection[int] = ()) -> Bundle[T]:
        """`function` of every tensor, or of those in the slots `only`."""
        slots = (
            {key: function(tensor) for key, tensor in slot.items()} if not only or n in only else slot
            for n, slot in enumerate(self.slots)
        )
        return replace(self, slots=tuple(slots))


@dataclass(frozen=True)
class Op:
    """Base of all ops."""

    word: ClassVar[str]
    undo: ClassVar[str] = "exact"  # how well the inverse restores values: exact, tolerance or none
    loss: ClassVar[str] = ""  # why there is no inverse
    host_only: ClassVar[bool] = False  # whether another device computes other bits

    @property
    def refills(self) -> bool:
        """Whether --reverse may run the inverse although it does not restore what the op lost."""
        return False

    def sizes_used(self) -> Iterable[Size]:
        """The sizes that `bind` evaluates."""
        return ()

    def bind(self, number: Callable[..., Any]) -> Op:
        """The same op with numbers in place of expressions. `number(size)` returns a positive integer, `number(size,
        whole=False)` any number."""
        return self

    def arity(self, slots: int, holes: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
        """How many slots and which open indices the op returns. Raises OpError if it does not accept these."""
        return slots, holes

    def dtypes(self, dtypes: tuple[str, ...]) -> tuple[str, ...]:
        """The dtypes of the slots that the op returns. Raises OpError if the given ones must not mix."""
        return dtypes

    def apply(self, bundle: Bundle[T], algebra: Algebra[T]) -> Bundle[T]:
        """Apply the op, which must be bound. Raises OpError."""
        raise NotImplementedError(self.word)

    def inverse(self) -> Op:
        """The op that undoes this one; for a lossy op, one that restores the shapes only."""
        raise NotImplementedError(self.word)


class ShapeAlgebra:
    """The algebra of shapes: an op applied to it is the op's shape rule."""

    def shape(self, tensor: tuple[int, ...]) -> tuple[int, ...]:
        return tensor

    def split(self, tensor: tuple[int, ...], axis: int, sizes: Sequence[int]) -> list[tuple[int, ...]]:
        return [(*tensor[:axis], size, *tensor[axis + 1 :]) for size in sizes]

    def concat(self, tensors: Sequence[tuple[int, ...]], axis: int) -> tuple[int, ...]:
        return (*tensors[0][:axis], sum(t[axis] for t in tensors), *tensors[0][axis + 1 :])

    def stack(self, tensors: Sequence[tuple[int, ...]], axis: int) -> tuple[int, ...]:
        return (*tensors[0][:axis], len(tensors), *tensors[0][axis:])

    def unstack(self, tensor: tuple[int, ...], axis: int) -> list[tuple[int, ...]]:
        return [tensor[:axis] + tensor[axis + 1 :]] * tensor[axis]

    def rearrange(
        self, tensor: tuple[int, ...], inner: Sequence[int], order: Sequence[int], outer: Sequence[int]
    ) -> tuple[int, ...]:
        return tuple(outer)

    def cast(self, tensor: tuple[int, ...], dtype: str) -> tuple[int, ...]:
        return tensor

    def compute(self, op: KernelOp, tensors: Sequence[tuple[int, ...]], shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape


def axis_of(axis: int, rank: int, word: str, shape: tuple[int, ...]) -> int:
    if not -rank <= axis < rank:
        raise OpError(f"{word} along axis {axis} of {shown(shape)}, which has {rank} axes")
    return axis % rank


def integers(sizes: Sequence[Size]) -> list[int]:
    return [size for size in sizes if isinstance(size, int)]


def shown(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def plus(sizes: Sequence[int]) -> str:
    return " + ".join(map(str, sizes))
