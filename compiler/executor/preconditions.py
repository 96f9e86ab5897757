"""Checks before anything is written: tied tensors are equal, and dropped constants have their value.

Compares the stored bytes of a Plan's sources. Raises Refusal.
"""

from __future__ import annotations

from typing import Any

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.checkpoints.formats.stored_tensor import read_bytes
from compiler.diagnostics import Report, refuse
from compiler.plan.plan import Plan


def check_constants(plan: Plan, checkpoint: Checkpoint) -> None:
    """Compare each tensor that the reverse drops with its constant. Raises Refusal with every one that differs."""
    report = Report()
    for name, fill in plan.made:
        if not _is_constant(plan, checkpoint, name, fill):
            rule = next(r for r in plan.program.created if r.targets[0].match(name) is not None)
            report.add(
                rule.span,
                f"{name} must be {fill} everywhere, because the source layout cannot store it",
                "lost-values",
                "was the model trained after the conversion? Then it cannot be converted back",
            )
    report.settle()


def _is_constant(plan: Plan, checkpoint: Checkpoint, name: str, fill: float) -> bool:
    from compiler.executor.apply_rule import applied, loaded

    def load(source: str) -> Any:
        return loaded(checkpoint.tensors[source])

    if plan.first is None:
        return bool((load(name) == fill).all())
    group = next(group for group in plan.first.groups if any(t.name == name for t in group.target_list))
    return bool((applied(group, load)[name] == fill).all())


def equal_tensors(checkpoint: Checkpoint, one: str, other: str) -> bool:
    """Whether two tensors of a checkpoint have the same dtype, shape and bytes."""
    a, b = checkpoint.tensors[one], checkpoint.tensors[other]
    return a.region == b.region or ((a.dtype, a.shape) == (b.dtype, b.shape) and read_bytes(a) == read_bytes(b))


def check_ties(plan: Plan, checkpoint: Checkpoint) -> None:
    """Compare each alias with its owner, bit for bit. Raises Refusal."""
    spec = plan.program.spec
    for alias, owner in plan.ties:
        if equal_tensors(checkpoint, alias, owner):
            continue
        tie = next(t for t in plan.program.ties if t.alias.match(alias) is not None)
        free = tie.when.text if tie.when is not None and tie.when.text in spec.arguments else ""
        refuse(
            tie.alias.span,
            f"{alias} differs from {owner}, but the spec ties them, so that only one would be written",
            "untied-weights",
            f"if they are not tied: --set {free}=false" if free else "the source was trained without the tie",
        )
