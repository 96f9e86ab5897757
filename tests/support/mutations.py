"""Wrong conversions that load all the same, made automatically from a right plan.

Each is what a person gets wrong by hand: a step left out or run backwards, heads counted for groups, a fused matrix
read in another order, a square matrix transposed, two tensors of one shape under each other's names, experts in the
order of their numbers as text. What moves no element of any tensor (a group of one, say) is no mutant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from compiler.ops.algebra import Bundle, Op, OpError, ShapeAlgebra
from compiler.ops.kernels import TorchAlgebra
from compiler.ops.structural import Concat, Copy, Rearrange, Split
from compiler.plan.bind import sources_map
from compiler.plan.plan import Group, Plan

Groups = list[Group]
TRANSPOSE = Rearrange((("a",), ("b",)), (("b",), ("a",)), False)


@dataclass(frozen=True)
class Mutant:
    name: str
    plan: Plan


def mutants(plan: Plan, signature: Mapping[str, Any]) -> Iterator[Mutant]:
    """Every wrong variant of `plan`, whose source has the names and shapes of `signature`."""
    by_rule: dict[Any, Groups] = {}
    for group in plan.groups:
        by_rule.setdefault(group.rule, []).append(group)

    def made(name: str, groups: Groups, change: Callable[[Group], Group | None]) -> Iterator[Mutant]:
        """One mutant, where `change` can be made of each of `groups` and is felt by one of them."""
        changed = [(group, change(group)) for group in groups]
        if all(wrong is not None and _fits(wrong, signature) for _, wrong in changed) and any(
            _differs(group, wrong, signature) for group, wrong in changed if wrong is not None
        ):
            yield Mutant(name, _with(plan, {id(g): wrong for g, wrong in changed if wrong is not None}))

    for rule, groups in by_rule.items():
        label = rule.name or str(rule.targets[0])
        for what, ops in _other_ops(groups[0].ops):
            yield from made(f"{label}: {what}", groups, lambda g, ops=ops: replace(g, ops=ops))  # type: ignore[misc]
        yield from made(f"{label}: read from its end", groups, _from_the_end)
        yield from made(f"{label}: one block after the other", groups, _in_blocks)
        yield from made(f"{label}: in two groups", groups, _in_groups)
        square = [g for g in groups if all(len(t.shape) == 2 and len({*t.shape}) == 1 for t in g.target_list)]
        if square:
            yield from made(f"{label}: transposed", square, lambda g: replace(g, ops=(*g.ops, TRANSPOSE)))
        for side in ("sources", "targets"):
            for a, b in combinations(range(len(getattr(groups[0], side).slots)), 2):
                swap = _swapping(side, a, b)
                yield from made(f"{label}: {side} {a} and {b} exchanged", groups, swap)
    yield from _names_exchanged(plan, list(by_rule.values()))
    yield from _numbers_as_text(plan, list(by_rule.values()))


def _with(plan: Plan, changed: Mapping[int, Group]) -> Plan:
    return replace(plan, groups=tuple(changed.get(id(g), g) for g in plan.groups))


# ---------------------------------------------------------------------------------------------------------------------
# Is it one?


def _fits(group: Group, signature: Mapping[str, Any]) -> bool:
    """Whether the ops of a group give its targets their shapes, so that the result would load."""
    try:
        made = _run(sources_map(group.sources, signature), group.ops, ShapeAlgebra())
    except (OpError, ValueError, LookupError):
        return False
    return [*map(dict, made.slots)] == [*map(dict, group.targets.map(lambda target: target.shape).slots)]


def _differs(right: Group, wrong: Group, signature: Mapping[str, Any]) -> bool:
    """Whether some target would hold other elements: each element of the source is numbered."""
    numbers: dict[str, Tensor] = {}
    start = 0
    for name in right.source_names:
        shape = signature[name].shape
        numbers[name] = torch.arange(start, start + math.prod(shape)).reshape(shape)
        if signature[name].dtype == "uint8":  # codes, which a kernel looks up
            numbers[name] = (numbers[name] % 251).to(torch.uint8)
        start += math.prod(shape)

    a, b = outcome(right, numbers), outcome(wrong, numbers)
    return any(not torch.equal(a[name], b[name]) for name in a)


def outcome(group: Group, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the ops of a group make of its sources: target name -> tensor."""
    made = _run(group.sources.map(lambda name: tensors[name]), group.ops, TorchAlgebra())
    return {t.name: made.slots[n][k] for n, slot in enumerate(group.targets.slots) for k, t in slot.items()}


def _run(bundle: Bundle[Any], ops: Sequence[Op], algebra: Any) -> Bundle[Any]:
    for op in ops:
        bundle = op.apply(bundle, algebra)
    return bundle


# ---------------------------------------------------------------------------------------------------------------------
# The steps of one rule


def _other_ops(ops: Sequence[Op]) -> Iterator[tuple[str, tuple[Op, ...]]]:
    """A chain with one step left out, run backwards, or with another number; rows in another order before and after."""
    if len(ops) > 1:
        yield "without its steps", ()
    for n, op in enumerate(ops):
        before, after = tuple(ops[:n]), tuple(ops[n + 1 :])
        if not isinstance(op, Copy):
            yield f"without step {n}", (*before, *after)
        if isinstance(op, Rearrange):
            yield f"step {n} backwards", (*before, op.inverse(), *after)
            for one in op.only:
                rest = tuple(slot for slot in op.only if slot != one)
                yield f"step {n} not on {one}", (*before, *([replace(op, only=rest)] if rest else []), *after)
            if op.only:
                yield f"step {n} on all", (*before, replace(op, only=()), *after)
        if isinstance(op, (Split, Concat)):
            rows = Rearrange((("block", "row"),), (("row", "block"),), True, (("block", op.parts),))
            yield f"rows dealt out before step {n}", (*before, rows, *ops[n:])
            yield f"rows dealt out after step {n}", (*ops[: n + 1], rows, *after)
    sized = {name: size for op in ops if isinstance(op, Rearrange) for name, size in op.sizes if isinstance(size, int)}
    for name, size in sized.items():
        for other in sorted({size // 2, size * 2, 1} - {0, size}):  # per head for grouped, and the other way about
            yield f"{other} for {name}", tuple(_resized(op, name, other) for op in ops)


def _resized(op: Op, name: str, size: int) -> Op:
    if not isinstance(op, Rearrange):
        return op
    return replace(op, sizes=tuple((n, size if n == name else s) for n, s in op.sizes))


def _from_the_end(group: Group) -> Group | None:
    """The pieces of a fused matrix in the opposite order: values, keys, queries."""
    ends = [n for n, op in enumerate(group.ops) if isinstance(op, (Split, Concat))]
    if len(ends) != 1:
        return None
    op = group.ops[ends[0]]
    assert isinstance(op, (Split, Concat))
    turned = replace(op, sizes=op.sizes[::-1] if op.sizes else None)
    ops = (*group.ops[: ends[0]], turned, *group.ops[ends[0] + 1 :])
    side = "targets" if isinstance(op, Split) else "sources"
    bundle = getattr(group, side)
    return replace(group, ops=ops, **{side: replace(bundle, slots=bundle.slots[::-1])})


def _in_blocks(group: Group) -> Group | None:
    """A grouped matrix as if it were fused plainly: all queries, all keys, all values."""
    found = [op for op in group.ops if isinstance(op, (Split, Concat))]
    if len(found) != 1 or len(group.ops) == 1:
        return None
    pieces = group.targets if isinstance(found[0], Split) else None
    rows = tuple(next(iter(slot.values())).shape[0] for slot in pieces.slots) if pieces else None
    return replace(group, ops=(replace(found[0], axis=0, sizes=rows),))


def _in_groups(group: Group) -> Group | None:
    """A plainly fused matrix as if it were grouped: queries, key and value of one group after the other."""
    if len(group.ops) != 1 or not isinstance(op := group.ops[0], (Split, Concat)) or op.axis != 0:
        return None
    halves = tuple(n // 2 for n in op.sizes if isinstance(n, int)) if op.sizes else None
    part = Rearrange((("group", "row"),), (("group",), ("row",)), True, (("group", 2),))
    return replace(group, ops=(part, replace(op, axis=1, sizes=halves), part.inverse()))


# ---------------------------------------------------------------------------------------------------------------------
# Names


def _swapping(side: str, a: int, b: int) -> Callable[[Group], Group]:
    """Two slots for each other: gate and up, keys and values."""

    def change(group: Group) -> Group:
        bundle = getattr(group, side)
        slots = list(bundle.slots)
        slots[a], slots[b] = slots[b], slots[a]
        return replace(group, **{side: replace(bundle, slots=tuple(slots))})

    return change


def _names_exchanged(plan: Plan, rules: Sequence[Groups]) -> Iterator[Mutant]:
    """What two rules write under each other's names, or what one rule writes for two words of a choice."""
    kinds: list[tuple[str, Groups]] = []
    for groups in rules:
        if any(len(g.target_list) != 1 for g in groups):
            continue
        parted: dict[str, Groups] = {}
        for group in groups:
            parted.setdefault("".join(w for w in _captures(group).values() if not w.isdecimal()), []).append(group)
        kinds += [(f"{part[0].rule.targets[0]} {word}".strip(), part) for word, part in parted.items()]
    for (name, first), (other, second) in combinations(kinds, 2):
        if [g.target_list[0].shape for g in first] == [g.target_list[0].shape for g in second]:
            pairs = list(zip(first, second, strict=True))
            changed = {id(a): _named_as(a, b) for a, b in pairs} | {id(b): _named_as(b, a) for a, b in pairs}
            yield Mutant(f"{name} and {other} exchanged", _with(plan, changed))


def _named_as(group: Group, other: Group) -> Group:
    """A group of one target that writes it under the name of the other's."""
    (name,) = (target.name for target in other.target_list)
    return replace(group, targets=group.targets.map(lambda target: replace(target, name=name)))


def _captures(group: Group) -> dict[str, str]:
    if not group.source_names:  # created
        return group.rule.targets[0].match(group.target_list[0].name) or {}
    return group.rule.sources[0].match(group.source_names[0]) or {}


def _numbers_as_text(plan: Plan, rules: Sequence[Groups]) -> Iterator[Mutant]:
    """Experts (any index beyond 10) in the order 0, 1, 10, 11, 2: within one application, or from one to the next."""
    for groups in rules:
        for side in ("sources", "targets"):
            bundle = getattr(groups[0], side)
            if bundle.holes and len(bundle.slots[0]) > 10:
                keys = sorted(bundle.slots[0])
                as_text = sorted(keys, key=str)
                slots = tuple({k: slot[t] for k, t in zip(keys, as_text, strict=True)} for slot in bundle.slots)
                changed = replace(groups[0], **{side: replace(bundle, slots=slots)})
                yield Mutant(f"{groups[0].rule.name}: {bundle.holes[0]} as text", _with(plan, {id(groups[0]): changed}))
        for hole in groups[0].rule.outer:
            alike = [g for g in groups if {**_captures(g), hole: ""} == {**_captures(groups[0]), hole: ""}]
            words = [_captures(g)[hole] for g in alike]
            if len(alike) > 10 and all(map(str.isdecimal, words)):
                by_number = sorted(alike, key=lambda g, hole=hole: int(_captures(g)[hole]))  # type: ignore[misc]
                by_text = sorted(alike, key=lambda g, hole=hole: _captures(g)[hole])  # type: ignore[misc]
                swapped = {id(g): replace(g, targets=t.targets) for g, t in zip(by_number, by_text, strict=True)}
                yield Mutant(f"{alike[0].rule.targets[0]}: {hole} as text", _with(plan, swapped))
