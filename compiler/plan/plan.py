"""A Plan: a Program bound to one checkpoint, with concrete names and integer sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compiler.dtypes import FLOATING, ITEM_SIZES
from compiler.ops.algebra import Bundle, Op
from compiler.plan.provenance import Provenance
from compiler.program.program import Program, Rule


@dataclass(frozen=True)
class TargetTensor:
    """One tensor to write: shape in elements, dtype by its torch name."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        size = ITEM_SIZES[self.dtype]
        for length in self.shape:
            size *= length
        return size


@dataclass(frozen=True)
class Group:
    """One application of one rule: source names, bound ops, and the target tensor for each result."""

    rule: Rule
    sources: Bundle[str]
    ops: tuple[Op, ...]
    targets: Bundle[TargetTensor]

    @property
    def source_names(self) -> list[str]:
        return [name for slot in self.sources.slots for name in slot.values()]

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
