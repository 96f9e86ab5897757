"""How one entry of a spec's `merge` divides a tensor among files: along an axis, in equal or unequal blocks, or by the
numbers of an index, of which each file has a range.

Takes the rule, the shapes of the first file and the names of all files; returns the complete tensor. Raises OpError for
parts that do not fit together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from compiler.checkpoints.formats.stored_tensor import Joined, Tensor
from compiler.ops.algebra import OpError, axis_of, plus, shown
from compiler.program.environment import NamedShapes
from compiler.program.program import Merged


@dataclass(frozen=True)
class Cut:
    """One rule. `shapes` are those of the first file, `names` are those of all files, `files` is their number."""

    rule: Merged
    shapes: NamedShapes
    names: tuple[str, ...]
    files: int

    @cached_property
    def axis(self) -> int:
        assert self.rule.axis is not None
        return int(self.rule.axis.evaluate({}, self.shapes))

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Of the blocks of each part; empty where they are equal."""
        return tuple(int(length.evaluate({}, self.shapes)) for length in self.rule.lengths)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Name -> the number of the index by which the tensors are divided."""
        found = ((name, self.rule.pattern.match(name)) for name in self.names)
        return {name: int(holes[self.rule.by]) for name, holes in found if holes is not None}

    def only(self, name: str, files: Sequence[int], tensors: Sequence[Tensor]) -> Tensor:
        """The tensor of the one file that has it. `files`: the numbers of those that do. Raises OpError."""
        index, number, count = self.rule.by, self.numbers[name], 1 + max(self.numbers.values())
        if count % self.files:
            raise OpError(f"the {count} numbers of {{{index}}} cannot be divided among {self.files} files")
        wanted = number // (count // self.files)
        if list(files) != [wanted]:
            there = " and ".join(f"file {n}" for n in files)
            raise OpError(f"it is in {there}, but number {number} of {count} belongs to file {wanted} of {self.files}")
        return tensors[0]

    def concatenated(self, tensors: Sequence[Tensor]) -> Tensor | Joined:
        """The parts, joined block by block. Raises OpError."""
        first, blocks = tensors[0], self.rule.blocks
        axis = axis_of(self.axis, len(first.shape), "joining", first.shape)
        for other in tensors:
            shapes = [tensor.shape[:axis] + tensor.shape[axis + 1 :] for tensor in (first, other)]
            if (other.dtype, len(other.shape)) != (first.dtype, len(first.shape)) or shapes[0] != shapes[1]:
                both = f"{shown(first.shape)} and {shown(other.shape)}"
                raise OpError(f"parts of {both} cannot be joined along axis {axis}")
            if self.lengths and sum(self.lengths) != other.shape[axis]:
                raise OpError(f"blocks of {plus(self.lengths)} are not axis {axis} of {shown(other.shape)}")
            if not self.lengths and other.shape[axis] % blocks:
                raise OpError(f"axis {axis} of {shown(other.shape)} cannot be divided into {blocks} equal blocks")
        if len(tensors) == 1:
            return first
        lengths = [self.lengths or (tensor.shape[axis] // blocks,) * blocks for tensor in tensors]
        starts = [list(accumulate(own, initial=0)) for own in lengths]
        pieces = [
            tensor.narrow(axis, starts[n][block], lengths[n][block])
            for block in range(blocks)
            for n, tensor in enumerate(tensors)
        ]
        shape = (*first.shape[:axis], sum(map(sum, lengths)), *first.shape[axis + 1 :])
        return Joined(first.name, first.dtype, shape, axis, tuple(pieces))
