"""The seven things that can be done to a tensor, and what a rule's tensors travel as.

`ops` writes every op once over an `Algebra`; shapes, torch tensors and byte layouts each are one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from compiler.exprs import Expr

T = TypeVar("T")
Size = Expr | int
Key = tuple[int, ...]


class OpError(ValueError):
    """An op that does not fit its tensors; the message names op and shapes."""


class Algebra(Protocol[T]):
    """What can be done to one tensor. `rearrange` is reshape to `inner`, permute by `order`, reshape to `outer`."""

    def shape(self, tensor: T) -> tuple[int, ...]: ...
    def split(self, tensor: T, axis: int, sizes: Sequence[int]) -> Sequence[T]: ...
    def concat(self, tensors: Sequence[T], axis: int) -> T: ...
    def stack(self, tensors: Sequence[T], axis: int) -> T: ...
    def unstack(self, tensor: T, axis: int) -> Sequence[T]: ...
    def rearrange(self, tensor: T, inner: Sequence[int], order: Sequence[int], outer: Sequence[int]) -> T: ...
    def cast(self, tensor: T, dtype: str) -> T: ...


@dataclass(frozen=True)
class Bundle(Generic[T]):
    """The tensors of one rule: `slots[k][key]`, where `key` holds one number for each name in `holes`."""

    slots: tuple[Mapping[Key, T], ...]
    holes: tuple[str, ...] = ()

    def map(self, function: Callable[[T], T]) -> Bundle[T]:
        return replace(self, slots=tuple({k: function(t) for k, t in slot.items()} for slot in self.slots))


class ShapeAlgebra:
    """The ops on shapes alone: the shape rule of each."""

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
