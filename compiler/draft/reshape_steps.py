"""Steps that turn a tensor of one shape into a tensor of another, found by shape arithmetic.

`reshape` takes two name families and returns the steps as a spec writes them, or None if no step fits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise, permutations
from typing import Any

from compiler.draft.tensor_roles import NameFamily, Shape

Step = dict[str, Any]


@dataclass(frozen=True)
class Reshaping:
    """Steps, and whether they are the only ones that the shapes allow."""

    steps: tuple[Step, ...]
    certain: bool = True


TRANSPOSE: Step = {"transpose": True}


def reshape(source: NameFamily, target: NameFamily) -> Reshaping | None:
    """The steps from one source tensor to one target tensor, or None."""
    if source.mixed or target.mixed:  # one step has to serve all layers
        same = source.shapes == target.shapes and source.numbers == target.numbers
        return Reshaping(()) if same else None
    if source.level == target.level:
        heads = "num_key_value_heads" if source.role in ("k", "v") else "num_attention_heads"
        by_heads = source.role in ("q", "k", "v", "o")
        return _one_to_one(source.shape, target.shape, heads if by_heads else "", source.part)
    if target.level == source.level + 1:
        return _unstacked(source.shape, target.shape, len(target.numbers[-1]))
    if source.level == target.level + 1:
        return _stacked(source.shape, target.shape, len(source.numbers[-1]))
    return None


def _one_to_one(source: Shape, target: Shape, heads: str, part: str) -> Reshaping | None:
    if source == target:
        return Reshaping(())
    if len(source) == len(target) == 2 and source == target[::-1]:
        return Reshaping((TRANSPOSE,))
    if len(source) == len(target) == 3 and source == (target[0], target[2], target[1]):
        return Reshaping(({"rearrange": "e a b -> e b a"},))
    flat = len(target) == 1 and part == "weight"  # a matrix of weights never becomes a vector
    few = heads and 0 < len(source) <= 3 and 0 < len(target) <= 3
    if math.prod(source) == math.prod(target) and few and not flat:
        found = list(_rearranged(source, target))
        if found:
            sizes = {"sizes": {"head": heads}} if "head" in found[0] else {}
            return Reshaping(({"rearrange": found[0], **sizes},), len(found) == 1)
    return None


def _rearranged(source: Shape, target: Shape) -> Iterator[str]:
    """einops patterns: every order and grouping of the source axes that gives the target shape, fewest moves first."""
    names = {3: "head model row", 2: "head row", 1: "row"}[len(source)].split()
    if len(source) == 3 and source[2] > source[1]:
        names = ["head", "row", "model"]
    length = dict(zip(names, source, strict=True))
    orders = sorted(
        permutations(range(len(names))), key=lambda o: [o.index(names.index("head")) if "head" in names else 0, *o]
    )
    for order in orders:
        for cuts in combinations(range(1, len(names)), len(target) - 1):
            ends = [0, *cuts, len(names)]
            groups = [[names[n] for n in order[a:b]] for a, b in pairwise(ends)]
            if [math.prod(length[n] for n in group) for group in groups] == list(target):
                right = " ".join(f"({' '.join(g)})" if len(g) > 1 else g[0] for g in groups)
                together = not any({"head", "row"} == set(g) and g != ["head", "row"] for g in groups)
                if together:
                    yield f"{' '.join(names)} -> {right}"


def _unstacked(source: Shape, target: Shape, count: int) -> Reshaping | None:
    """One tensor of all experts to one tensor per expert."""
    if source == (count, *target):
        return Reshaping(({"unstack": "e"},))
    if len(target) != 2:
        return None
    high, wide = target
    if source == (count, wide, high):
        return Reshaping(({"rearrange": "e a b -> e b a"}, {"unstack": "e"}))
    sizes = {"e": "num_experts"}
    if source == (count * high, wide):
        return Reshaping(({"rearrange": "(e row) d -> e row d", "sizes": sizes}, {"unstack": "e"}))
    if source == (count * wide, high):
        return Reshaping(({"rearrange": "(e row) d -> e d row", "sizes": sizes}, {"unstack": "e"}))
    return None


def _stacked(source: Shape, target: Shape, count: int) -> Reshaping | None:
    """One tensor per expert to one tensor of all experts."""
    if target == (count, *source):
        return Reshaping(({"stack": "e"},))
    if len(source) == 2 and target == (count, *source[::-1]):
        return Reshaping(({"stack": "e"}, {"rearrange": "e a b -> e b a"}))
    return None
