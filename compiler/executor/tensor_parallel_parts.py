"""Writes a state dict as the tensor-parallel parts that its trainer reads; the inverse of `source_files.merge`.

Takes the reversed Plan of a spec with `merge`; returns the files to write. Each has a slice of every merged tensor, along
the axis and blocks of its rule, and every replicated tensor. Rejects a spec without `merge`, and a tensor that cannot be
split evenly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from compiler.diagnostics import Report, Span, refuse
from compiler.executor.execute import StateDict
from compiler.layout.array import Array, concat, narrow
from compiler.ops.algebra import OpError, axis_of, shown
from compiler.output.pth_layout import Wrapping
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
        """The length of a slice. Raises OpError if the axis cannot be divided."""
        length, left = divmod(shape[self.axis], self.blocks * self.count)
        if left or not length:
            blocks = f" in {self.blocks} blocks" if self.blocks > 1 else ""
            raise OpError(f"axis {self.axis} of {shown(shape)}{blocks} cannot be split evenly into {self.count} parts")
        return length

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[: self.axis], self.blocks * self.length(shape), *shape[self.axis + 1 :])

    def cut(self, array: Array, part: int) -> Array:
        # (blocks parts length) -> (blocks length)
        length = self.length(array.shape)
        starts = [(block * self.count + part) * length for block in range(self.blocks)]
        return concat([narrow(array, self.axis, start, length) for start in starts], self.axis)


def check_parts(program: Program, count: int) -> None:
    """Check the number of parts. Raises Refusal: `wrong-usage`."""
    if count < 1:
        refuse("--parts", f"{count} is not a number of parts", "wrong-usage")
    if count > 1 and not program.merged:
        refuse("--parts", f"{program.spec.name.value} has no tensor-parallel parts (no `merge`)", "wrong-usage")
    for rule in program.merged if count > 1 else ():
        if rule.lengths or rule.by:
            message = f"the parts of {rule.pattern} are not equal slices; only complete tensors are written"
            refuse("--parts", message, "wrong-usage", "leave --parts out")


def state_dicts(plan: Plan, place: Path, count: int, wrapping: Wrapping | None = None) -> list[StateDict]:
    """The file at `place`, or in the folder `place` the files of `count` parts, named as `source.weights`. Raises Refusal."""
    wrapping = wrapping or Wrapping()
    if count == 1:
        return [StateDict(place, plan.targets, wrapping=wrapping)]
    shares = _shares(plan, {target.name: target for target in plan.targets}, count)
    state_dicts_of_parts = []
    for part in range(count):
        tensors = [replace(t, shape=shares[t.name].shape(t.shape)) if t.name in shares else t for t in plan.targets]

        def piece(name: str, array: Array, part: int = part) -> Array:
            return shares[name].cut(array, part) if name in shares else array

        state_dicts_of_parts.append(
            StateDict(place / plan.program.spec.weights.replace("*", f"{part:02d}"), tensors, piece, wrapping)
        )
    return state_dicts_of_parts


def _shares(plan: Plan, targets: Mapping[str, TargetTensor], count: int) -> dict[str, Share]:
    """How each tensor that is not replicated is split. Raises Refusal with every one that cannot be."""
    report, shares = Report(), {}
    rules = [(rule, rule.axis.evaluate({}, NamedShapes(targets))) for rule in plan.program.merged if rule.axis]
    for name, target in targets.items():
        for rule, axis in rules:
            if rule.pattern.match(name) is not None:
                try:
                    shares[name] = Share(
                        axis_of(axis, len(target.shape), "splitting", target.shape), rule.blocks, count
                    )
                    shares[name].length(target.shape)
                except OpError as error:
                    report.add(Span("--parts"), f"{name}: {error}", "unfit-parts")
                break
    report.settle()
    return shares
