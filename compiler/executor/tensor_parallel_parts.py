"""A state_dict in the tensor-parallel parts that its trainer reads: the way back from `parts.merge`.

Takes the reversed Plan of a spec whose files are parts of one model; returns the files to write, each with the part of
every tensor that it holds: a slice of each block along the axis of its rule, or all of what every part holds alike.
Refuses a spec that knows no parts, and a tensor that so many parts cannot share evenly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from compiler.diagnostics import Report, Span, refuse
from compiler.executor.execute import StateDict
from compiler.layout.array import Array, concat, narrow
from compiler.ops.algebra import OpError, axis_of, shown
from compiler.plan.plan import Plan, TargetTensor
from compiler.program.environment import NamedShapes
from compiler.program.program import Program


@dataclass(frozen=True)
class Share:
    """One of `count` equal slices of each of `blocks` blocks of an axis."""

    axis: int
    blocks: int
    count: int

    def length(self, shape: tuple[int, ...]) -> int:
        """Of a slice; OpError where the axis cannot be shared so."""
        length, left = divmod(shape[self.axis], self.blocks * self.count)
        if left or not length:
            blocks = f" in {self.blocks} blocks" if self.blocks > 1 else ""
            raise OpError(f"{self.count} parts cannot share axis {self.axis} of {shown(shape)} evenly{blocks}")
        return length

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[: self.axis], self.blocks * self.length(shape), *shape[self.axis + 1 :])

    def cut(self, array: Array, part: int) -> Array:
        # (blocks parts length) -> (blocks length)
        length = self.length(array.shape)
        starts = [(block * self.count + part) * length for block in range(self.blocks)]
        return concat([narrow(array, self.axis, start, length) for start in starts], self.axis)


def check_parts(program: Program, count: int) -> None:
    """Refuse a number of parts that the spec has no use for (`wrong-usage`)."""
    if count < 1:
        refuse("--parts", f"{count} parts cannot be made", "wrong-usage")
    if count > 1 and not program.merged:
        refuse("--parts", f"{program.spec.name.value} reads one checkpoint, not parts of one", "wrong-usage")


def state_dicts(plan: Plan, place: Path, count: int) -> list[StateDict]:
    """The one file at `place`, or in a folder there those of `count` parts, named as the spec looks for them. Raises
    Refusal."""
    if count == 1:
        return [StateDict(place, plan.targets)]
    shares = _shares(plan, {target.name: target for target in plan.targets}, count)
    found = []
    for part in range(count):
        held = [replace(t, shape=shares[t.name].shape(t.shape)) if t.name in shares else t for t in plan.targets]

        def piece(name: str, array: Array, part: int = part) -> Array:
            return shares[name].cut(array, part) if name in shares else array

        found.append(StateDict(place / plan.program.spec.weights.replace("*", f"{part:02d}"), held, piece))
    return found


def _shares(plan: Plan, targets: Mapping[str, TargetTensor], count: int) -> dict[str, Share]:
    """How each tensor that is not the same everywhere is shared. Raises Refusal with all that cannot be."""
    report, found = Report(), {}
    rules = [(rule, rule.axis.evaluate({}, NamedShapes(targets))) for rule in plan.program.merged]
    for name, target in targets.items():
        for rule, axis in rules:
            if rule.pattern.match(name) is not None:
                try:
                    found[name] = Share(axis_of(axis, len(target.shape), "cutting", target.shape), rule.blocks, count)
                    found[name].length(target.shape)
                except OpError as error:
                    report.add(Span("--parts"), f"{name}: {error}", "unfit-parts")
                break
    report.settle()
    return found
