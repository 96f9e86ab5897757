"""How the plans of two specs for one source differ: tensors, steps, and fields of config.json.

Takes two prepared plans, returns a `Difference` of plain values, from which text, JSON and the HTML page are made. Tensors
are compared one by one, and printed folded: names that differ only in their indices share a line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.plan.config_table import config_table
from compiler.plan.plan import Group, Plan
from compiler.plan_report.overview import decoding, folded_reasons, op_text, short_path
from compiler.tensor_names import NUMBER

Bound = tuple[Plan, Checkpoint]  # a plan and the checkpoint as its spec opened it


@dataclass(frozen=True)
class Making:
    """How a plan makes a target tensor. `rule` and `place` (`path:line`) are for people and are not compared: a rule may be
    renamed or moved. `steps` have the sizes of this checkpoint."""

    shape: tuple[int, ...]
    dtype: str
    sources: tuple[str, ...]
    steps: tuple[str, ...]
    rule: str = field(compare=False)
    place: str = field(compare=False)

    @property
    def alike(self) -> object:
        """Equal for tensors that are made alike except for their indices."""
        return (*(NUMBER.sub("#", name) for name in self.sources), *self.steps, self.shape, self.dtype, self.place)


@dataclass(frozen=True)
class Change:
    """`count` target tensors that only one plan makes (the other is None), or that both make in different ways."""

    target: str
    count: int
    before: Making | None
    after: Making | None


@dataclass(frozen=True)
class FieldChange:
    """A field of config.json as JSON text, with its origin; None where a plan does not write it."""

    field: str
    before: tuple[str, str] | None
    after: tuple[str, str] | None


@dataclass(frozen=True)
class Difference:
    """From the plan `before` to the plan `after`, which are the paths or names of their specs. `classes`: their target
    classes. `unread`: source tensors that only the plan before reads; `newly_read`: only the plan after. `equal_tensors` and
    `equal_fields` count what is the same."""

    before: str
    after: str
    classes: tuple[str, str]
    changes: list[Change]
    unread: list[str]
    newly_read: list[str]
    config: list[FieldChange]
    equal_tensors: int
    equal_fields: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def difference(before: Bound, after: Bound) -> Difference:
    """How the plan `after` differs from the plan `before`, both of one source."""
    bound = (before, after)
    specs = [plan.program.spec for plan, _ in bound]
    old, new = (_makings(plan, checkpoint) for plan, checkpoint in bound)
    fields = [{row.field: (row.text, row.origin) for row in config_table(plan) if not row.repeats} for plan, _ in bound]
    names = {**fields[0], **fields[1]}
    changed = [
        FieldChange(name, fields[0].get(name), fields[1].get(name))
        for name in names
        if _value(fields[0].get(name)) != _value(fields[1].get(name))
    ]
    read = [{name: None for group in plan.groups for name in group.source_names} for plan, _ in bound]
    return Difference(
        short_path(specs[0].path),
        short_path(specs[1].path),
        (specs[0].target.class_name, specs[1].target.class_name),
        list(_changes(old, new)),
        _folded(name for name in read[0] if name not in read[1]),
        _folded(name for name in read[1] if name not in read[0]),
        changed,
        sum(old.get(name) == making for name, making in new.items()),
        len(names) - len(changed),
    )


def _value(written: tuple[str, str] | None) -> str | None:
    return written and written[0]


def _makings(plan: Plan, checkpoint: Checkpoint) -> dict[str, Making]:
    return {name: making for group in plan.groups for name, making in _of_group(group, checkpoint)}


def _of_group(group: Group, checkpoint: Checkpoint) -> Iterator[tuple[str, Making]]:
    targets = group.target_list
    steps = (*decoding(group, checkpoint), *map(op_text, group.all_ops))
    place = f"{short_path(group.rule.span.path)}:{group.rule.span.line}"
    for number, target in enumerate(targets, start=1):
        part = (f"result {number} of {len(targets)}",) if len(targets) > 1 else ()
        yield (
            target.name,
            Making(
                target.shape,
                target.dtype,
                tuple(group.source_names),
                (*steps, *part),
                group.rule.name or group.rule.kind,
                place,
            ),
        )


def _changes(old: dict[str, Making], new: dict[str, Making]) -> Iterator[Change]:
    """Changes that are alike except for their indices, as one."""
    groups: dict[object, list[str]] = {}
    for name in {**old, **new}:
        before, after = old.get(name), new.get(name)
        if before != after:
            key = (NUMBER.sub("#", name), before and before.alike, after and after.alike)
            groups.setdefault(key, []).append(name)
    for names in groups.values():
        target = _folded(names)
        yield Change(target[0], len(names), _joined(old, names), _joined(new, names))


def _joined(makings: dict[str, Making], names: Sequence[str]) -> Making | None:
    """The making of the first name, with the sources of all."""
    if names[0] not in makings:
        return None
    sources = dict.fromkeys(source for name in names for source in makings[name].sources)
    return replace(makings[names[0]], sources=tuple(_folded(sources)))


def _folded(names: Iterable[str]) -> list[str]:
    return [name for name, _ in folded_reasons((name, "") for name in names)]
