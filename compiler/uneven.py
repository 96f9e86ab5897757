"""Tensors of one rule that differ in shape from layer to layer.

Few architectures mean it, and no shape of another tensor contradicts it. Takes a Plan, returns sentences for a person.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from compiler.diagnostics import listed
from compiler.plan import Plan


def uneven(plan: Plan) -> Iterator[str]:
    """One sentence for each name pattern whose tensors, but for the numbers in their names alike, are of two shapes."""
    found: dict[tuple[int, int, tuple[str, ...]], list[tuple[str, tuple[int, ...]]]] = {}
    for group in plan.groups:
        for place, (pattern, slot) in enumerate(zip(group.rule.targets, group.targets.slots, strict=False)):
            for target in slot.values():
                captures = pattern.match(target.name) or {}
                words = tuple(text for hole, text in captures.items() if not pattern.holes[hole].is_index)
                key = (group.rule.span.line, place, words)
                found.setdefault(key, []).append((target.name, target.shape))
    for targets in found.values():
        shapes = Counter(shape for _, shape in targets)
        if len(shapes) > 1:
            (usual, count), *_ = shapes.most_common()
            odd = [f"{name} {list(shape)}" for name, shape in targets if shape != usual]
            yield f"of another shape than the {count} others like it, {list(usual)}: {listed(odd, 4)}"
