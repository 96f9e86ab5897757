"""Compares name families by their shapes, and divides those whose shapes differ.

The axes of a family are those of its tensors and, behind them, the number of values of each index.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from compiler.draft.tensor_roles import FUSED, NameFamily


@dataclass(frozen=True)
class Pair:
    """A tensor of the class and a source tensor, by their places. `value` sums up how many axes agree and how alike the
    names are."""

    value: float
    agreement: float
    similar: float
    target: int
    source: int


def lengths(family: NameFamily) -> tuple[int, ...]:
    """The axes of a family: its shape and the number of values of each index."""
    return (*family.shape, *map(len, family.numbers))


def comparable(source: NameFamily, target: NameFamily) -> bool:
    """Whether both have as many axes and indices."""
    return (len(source.shape), source.level) == (len(target.shape), target.level)


def unfused(sources: Sequence[NameFamily], roles: Collection[str]) -> list[NameFamily]:
    """The sources; a matrix of queries, keys and values as equal parts where the class has one for each."""
    found: list[NameFamily] = []
    for source in sources:
        parts = FUSED.get(source.role, ())
        if source.role in roles or not parts or not {*parts} <= {*roles} or not all(source.shapes):
            found.append(source)
            continue
        shapes = tuple((shape[0] // len(parts), *shape[1:]) for shape in source.shapes)
        found += [replace(source, shapes=shapes, role=role) for role in parts]
    return found


def each_shape(families: Sequence[NameFamily]) -> list[NameFamily]:
    """The families, those with other shapes in other layers as one of each tensor."""
    found: list[NameFamily] = []
    for family in families:
        stages = family.apart() if family.mixed and family.level == 2 else [family]
        found += [one for stage in stages for one in (stage.each() if stage.mixed else [stage])]
    return found


def agreement(source: NameFamily, target: NameFamily) -> float:
    """The share of axes of the same length, 0 to 1; half of it where a tensor would have to be split or transposed."""
    a, b = lengths(source), lengths(target)
    if not comparable(source, target):
        return 0.0
    if not a:
        return 1.0
    equal = float(sum(m == n for m, n in zip(a, b, strict=True)))
    if len(source.shape) == 2 and a[:2] != b[:2]:
        equal = max(equal, sum(m == n for m, n in zip((a[1], a[0], *a[2:]), b, strict=True)) - 0.5)
    divisible = sum(m != n and n > 0 and m % n == 0 for m, n in zip(a, b, strict=True))
    return (equal + 0.25 * divisible) / len(a)


def resized(family: NameFamily, axes: Mapping[int, int]) -> NameFamily:
    """The family with other lengths of some axes."""
    if not axes:
        return family
    rank = len(family.shape)
    shape = tuple(axes.get(n, length) for n, length in enumerate(family.shape))
    numbers = tuple(
        frozenset(range(axes[rank + n])) if rank + n in axes else values for n, values in enumerate(family.numbers)
    )
    count = math.prod(map(len, numbers)) if axes.keys() - {*range(rank)} else len(family.shapes)
    shapes = family.shapes if shape == family.shape and count == len(family.shapes) else (shape,) * max(1, count)
    return NameFamily(family.text, shapes, family.dtype, numbers, family.names, family.role, family.part, family.clear)


def odd_layers(families: Sequence[NameFamily]) -> list[tuple[int, ...]]:
    """The layers that have each shape of a family in which layers differ."""
    found = {
        tuple(n for n, one in enumerate(family.shapes) if one == shape)
        for family in families
        if family.mixed and family.level == 1
        for shape in {*family.shapes}
    }
    return sorted(found)
