"""A Plan: a Program bound to one checkpoint, with concrete names and integer sizes.

The plan of two conversions is one Plan too: each of its groups says through which groups of the first conversion its
sources come (`plan.composition`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from compiler.dtypes import BLOCKS, FLOATING, ITEM_SIZES
from compiler.ops.algebra import Algebra, Bundle, Op
from compiler.plan.provenance import Provenance
from compiler.program.program import Program, Rule


@dataclass(frozen=True)
class TargetTensor:
    """One tensor to write: shape in elements, dtype by its torch name, or one of `BLOCKS`."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def stored(self) -> tuple[tuple[int, ...], str]:
        """The shape and dtype of what is written: of blocks, their bytes."""
        if self.dtype not in BLOCKS:
            return self.shape, self.dtype
        elements, nbytes = BLOCKS[self.dtype]
        return (*self.shape[:-1], self.shape[-1] // elements * nbytes), "uint8"

    @property
    def nbytes(self) -> int:
        shape, dtype = self.stored
        size = ITEM_SIZES[dtype]
        for length in shape:
            size *= length
        return size


@dataclass(frozen=True)
class Group:
    """One application of one rule: source names, bound ops, and the target tensor for each result.

    `through`: the groups that make the tensors which `sources` names; none where the checkpoint has them.
    """

    rule: Rule
    sources: Bundle[str]
    ops: tuple[Op, ...]
    targets: Bundle[TargetTensor]
    through: tuple[Group, ...] = ()

    @property
    def read_names(self) -> list[str]:
        """The names of what the rule itself reads."""
        return [name for slot in self.sources.slots for name in slot.values()]

    @property
    def source_names(self) -> list[str]:
        """The names of the checkpoint's tensors that it is made of."""
        if not self.through:
            return self.read_names
        return list(dict.fromkeys(name for group in self.through for name in group.source_names))

    @property
    def all_ops(self) -> tuple[Op, ...]:
        """Its ops after those of the groups that it goes through."""
        return (*(op for group in self.through for op in group.all_ops), *self.ops)

    def apply(self, load: Callable[[str], Any], algebra: Algebra[Any]) -> Bundle[Any]:
        """The results, from the checkpoint's tensors that `load` returns by name. Raises what ops raise."""
        made: dict[str, Any] = {}
        for group in self.through:
            results = group.apply(load, algebra)
            for slot, targets in zip(results.slots, group.targets.slots, strict=True):
                made |= {target.name: slot[key] for key, target in targets.items()}
        bundle: Bundle[Any] = self.sources.map(made.__getitem__ if self.through else load)
        for op in self.ops:
            bundle = op.apply(bundle, algebra)
        return bundle

    @property
    def target_list(self) -> list[TargetTensor]:
        return [target for slot in self.targets.slots for target in slot.values()]


@dataclass(frozen=True)
class Plan:
    """What the executor does. `ties`: (alias, owner) pairs to compare; `ignored`: (name, reason)."""

    program: Program
    groups: tuple[Group, ...]
    ties: tuple[tuple[str, str], ...]
    ignored: tuple[tuple[str, str], ...]
    values: Mapping[str, Any]
    config: Mapping[str, Any]
    reverse: bool = False
    made: tuple[tuple[str, float], ...] = ()  # reversed: dropped tensors, and the value of all their elements
    processor: Mapping[str, Any] = field(default_factory=dict)  # of preprocessor_config.json; empty without a section
    places: Mapping[str, Any] = field(default_factory=dict)  # special token -> its position after the ranks
    guesses: Mapping[str, Any] = field(default_factory=dict)  # arguments without a given value -> the spec's guess
    released: tuple[str, ...] = ()  # the released models that gave arguments
    origins: Mapping[str, tuple[Provenance, ...]] = field(default_factory=dict)  # of the value of each config field
    first: Plan | None = None  # of two conversions in one: the first, which makes what this one reads

    @property
    def targets(self) -> list[TargetTensor]:
        return [target for group in self.groups for target in group.target_list]

    @property
    def dtype(self) -> str:
        """The floating-point type of most bytes."""
        totals: dict[str, int] = {}
        for target in self.targets:
            if target.dtype in FLOATING:
                totals[target.dtype] = totals.get(target.dtype, 0) + target.nbytes
        return max(totals, key=totals.__getitem__, default="float32")
