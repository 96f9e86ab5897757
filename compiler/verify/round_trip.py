"""Whether a converted folder goes back to its source: the derived inverse of its weights, tensor by tensor.

This shows that nothing was lost, mixed up or damaged on the way. It does not show that the spec's idea of the two
layouts is right, since the inverse has the same idea. Takes what `convert` takes; returns the differences. Raises
Refusal where a rule has no inverse.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.executor.apply_rule import applied, loaded
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.plan.plan import Plan
from compiler.program.program import Program, Rule

ROUNDINGS = 4  # how many units of the last place arithmetic and its inverse may be apart


@dataclass(frozen=True)
class Difference:
    """A tensor of the source that does not come back, and the rule that reads it."""

    name: str
    rule: Rule
    what: str


@dataclass(frozen=True)
class Return:
    """`equal` tensors come back bit for bit, `rounded` up to the rounding of a narrower type or of arithmetic."""

    equal: int
    rounded: int
    differences: tuple[Difference, ...]


def round_trip(program: Program, request: Request, out: Path) -> Return:
    """Hold the derived inverse of `out` to the source."""
    prepared = prepare(program, request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    back = replace(request, source=[out], config=None, reverse=True, dtype=None)
    prepared = prepare(program, back)
    reverse, held = prepared.plan, prepared.checkpoint
    return compared(plan, checkpoint, reverse, held)


def compared(plan: Plan, checkpoint: Checkpoint, reverse: Plan, held: Checkpoint) -> Return:
    """The same for plans at hand."""
    equal = rounded = 0
    wrong: list[Difference] = []
    readers = {name: group.rule for group in plan.groups for name in group.source_names}
    seen: set[str] = set()
    for group in reverse.groups:
        for name, made in applied(group, lambda n: loaded(held.tensors[n])).items():
            if name not in readers:  # an alias, which the source was held to already
                continue
            seen.add(name)
            what = _difference(made, loaded(checkpoint.tensors[name]))
            if what:
                wrong.append(Difference(name, readers[name], what))
            elif what is None:
                equal += 1
            else:
                rounded += 1
    wrong += [Difference(name, rule, "does not come back") for name, rule in readers.items() if name not in seen]
    return Return(equal, rounded, tuple(wrong))


def _difference(made: Any, source: Any) -> str | None:
    """None where the bits are equal, empty where only rounding lies between, else what is different."""
    import torch

    if made.shape != source.shape:
        return f"comes back as {list(made.shape)}, not {list(source.shape)}"
    cast = source.to(made.dtype)
    if torch.equal(made.contiguous().view(torch.uint8), cast.contiguous().view(torch.uint8)):
        return None if made.dtype == source.dtype else ""
    if made.is_floating_point():
        step = ROUNDINGS * torch.finfo(made.dtype).eps
        apart = (made.double() - cast.double()).abs()
        if bool((apart <= step * cast.double().abs().clamp(min=1.0)).all()) and not bool(apart.isnan().any()):
            return ""
    count = int((made != cast).sum())
    return f"comes back with {count:,} of {cast.numel():,} elements changed"
