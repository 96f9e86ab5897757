"""How a tensor of one shape may become one of another, by shape arithmetic: steps as a spec writes them.

Takes two forms; returns the candidates, the likeliest first, or none. What shapes leave open is the caller's to say.
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
class Way:
    """Steps, and whether the shapes allow no other."""

    steps: tuple[Step, ...]
    certain: bool = True


TRANSPOSE: Step = {"transpose": True}


def way(source: NameFamily, target: NameFamily) -> Way | None:
    """From one tensor to one."""
    if source.level == target.level:
        heads = "num_key_value_heads" if source.role in ("k", "v") else "num_attention_heads"
        return _same_level(source.shape, target.shape, heads, source.part)
    if target.level == source.level + 1:
        return _opened(source.shape, target.shape, len(target.numbers[-1]))
    if source.level == target.level + 1:
        return _folded(source.shape, target.shape, len(source.numbers[-1]))
    return None


def _same_level(source: Shape, target: Shape, heads: str, part: str) -> Way | None:
    if source == target:
        return Way(())
    if len(source) == len(target) == 2 and source == target[::-1]:
        return Way((TRANSPOSE,))
    if len(source) == len(target) == 3 and source == (target[0], target[2], target[1]):
        return Way(({"rearrange": "e a b -> e b a"},))
    flat = len(target) == 1 and part == "weight"  # a matrix is no vector, whatever the product
    if math.prod(source) == math.prod(target) and len(source) <= 3 and len(target) <= 3 and not flat:
        found = list(_rearranged(source, target))
        if found:
            sizes = {"sizes": {"head": heads}} if "head" in found[0] else {}
            return Way(({"rearrange": found[0], **sizes},), len(found) == 1)
    return None


def _rearranged(source: Shape, target: Shape) -> Iterator[str]:
    """Every order and grouping of the source's axes that gives the target's, the least moved first."""
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


def _opened(source: Shape, target: Shape, count: int) -> Way | None:
    """One tensor of all experts to one of each."""
    if source == (count, *target):
        return Way(({"unstack": "e"},))
    if len(target) != 2:
        return None
    high, wide = target
    if source == (count, wide, high):
        return Way(({"rearrange": "e a b -> e b a"}, {"unstack": "e"}))
    sizes = {"e": "num_experts"}
    if source == (count * high, wide):
        return Way(({"rearrange": "(e row) d -> e row d", "sizes": sizes}, {"unstack": "e"}))
    if source == (count * wide, high):
        return Way(({"rearrange": "(e row) d -> e d row", "sizes": sizes}, {"unstack": "e"}))
    return None


def _folded(source: Shape, target: Shape, count: int) -> Way | None:
    """One tensor of each expert to one of all."""
    if target == (count, *source):
        return Way(({"stack": "e"},))
    if len(source) == 2 and target == (count, *source[::-1]):
        return Way(({"stack": "e"}, {"rearrange": "e a b -> e b a"}))
    return None
