"""Two conversions as one Plan: the first makes tensors of a target class, the second reads them, and none is stored.

Takes the plan of a conversion and the reversed plan of another one from the same class. The ops of both are applied to
one arrangement of bytes (`Group.apply`), so that rearrangements that cancel leave byte ranges to copy, and casts and
arithmetic stay in their order.
"""

from __future__ import annotations

from dataclasses import replace

from compiler.plan.plan import Group, Plan


def compose(first: Plan, second: Plan) -> Plan:
    """The plan that reads the checkpoint of `first` and writes the targets of `second`, which reads the targets of `first`."""
    makers = {target.name: group for group in first.groups for target in group.target_list}
    groups = []
    for group in second.groups:
        through: list[Group] = []
        for name in group.read_names:
            if not any(makers[name] is one for one in through):
                through.append(makers[name])
        groups.append(replace(group, through=tuple(through)))
    return replace(second, groups=tuple(groups), ties=first.ties, ignored=first.ignored, first=first)
