"""The torch files that a reversed Plan writes: one, or one for each model-parallel rank; the inverse of `source.joined_parts`
and `source.rank_grid`.

Takes the plan of a spec with `merge` and a grid of ranks. Each file has its slice of every merged tensor, along the axis and
blocks of its rule, and every tensor that is not merged. A pipeline stage has its layers, numbered from 0; an
expert-parallel rank its experts. Raises Refusal: `wrong-usage` for a grid that the spec does not have, `unfit-parts` for
sizes that cannot be divided evenly.
Source of the names of files: NVIDIA, training/checkpointing.py (get_checkpoint_name).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product

from compiler.diagnostics import Report, Span, listed, refuse
from compiler.language.name_pattern_parser import parse_pattern
from compiler.layout.array import Array, concat, narrow
from compiler.ops.algebra import OpError, axis_of, shown
from compiler.output import pth_layout
from compiler.output.pth_layout import Wrapping
from compiler.output.safetensors_layout import OutFile
from compiler.plan.plan import Plan, TargetTensor
from compiler.program.environment import NamedShapes
from compiler.program.program import Program
from compiler.source.rank_grid import SIZES, Numbers

_AXES = {"tp": "tensor", "pp": "pipeline", "ep": "expert"}
_GRID = re.compile(r"(tp|pp|ep)=([1-9][0-9]{0,4})")


@dataclass(frozen=True)
class Grid:
    """How many ranks there are along each axis; the place of one rank among them."""

    tensor: int = 1
    pipeline: int = 1
    expert: int = 1

    @property
    def count(self) -> int:
        return self.tensor * self.pipeline * self.expert

    @property
    def places(self) -> list[Grid]:
        """The place of every rank, tensor-parallel ones first."""
        sizes = (self.pipeline, self.expert, self.tensor)
        return [Grid(tensor, stage, expert) for stage, expert, tensor in product(*map(range, sizes))]


def grid_of(ranks: str | None, parts: int) -> Grid:
    """The grid of `--ranks tp=2,pp=2,ep=1`, or of `--parts N`. Raises Refusal: `wrong-usage`."""
    if ranks is None:
        return Grid(tensor=parts)
    if parts > 1:
        refuse("--parts", f"--parts {parts} is --ranks tp={parts}", "wrong-usage", "give one of the two")
    sizes: dict[str, int] = {}
    for word in ranks.split(","):
        match = _GRID.fullmatch(word.strip())
        if match is None or _AXES[match[1]] in sizes:
            refuse("--ranks", f"{ranks!r} is not a grid of ranks", "wrong-usage", "write tp=2,pp=2,ep=1")
        sizes[_AXES[match[1]]] = int(match[2])
    return Grid(**sizes)


def check_grid(program: Program, grid: Grid) -> None:
    """Whether a spec has ranks of these kinds. Raises Refusal: `wrong-usage`."""
    name, spec = program.spec.name.value, program.spec.ranks
    if grid.count < 1:
        refuse("--parts", f"{grid.count} is not a number of parts", "wrong-usage")
    if grid.tensor > 1 and not program.merged:
        refuse("--parts", f"{name} has no tensor-parallel parts (no `merge`)", "wrong-usage")
    if unequal := [rule.pattern for rule in program.merged if grid.count > 1 and (rule.lengths or rule.by)]:
        message = f"the parts of {unequal[0]} are not equal slices; only complete tensors are written"
        refuse("--ranks", message, "wrong-usage", "leave --ranks out")
    if grid.pipeline > 1 and not (spec and spec.pipeline.value):
        refuse("--ranks", f"{name} has no pipeline stages (no `ranks: {{pipeline: ...}}`)", "wrong-usage")
    if grid.expert > 1 and not (spec and spec.expert.value):
        refuse("--ranks", f"{name} has no expert-parallel ranks (no `ranks: {{expert: ...}}`)", "wrong-usage")


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


def file_names(program: Program, grid: Grid) -> list[str]:
    """The path of each rank's file below the output, in the order of `grid.places`."""
    names = []
    for place in grid.places:
        numbers = f"{place.tensor:02d}" + f"_{place.pipeline:03d}" * (grid.pipeline > 1)
        numbers += f"_{place.expert:03d}" * (grid.expert > 1)
        names.append(program.spec.layout.path(program.spec.weights.replace("*", numbers)))
    return names


def out_files(plan: Plan, grid: Grid, wrapping: Wrapping) -> list[OutFile]:
    """The file of each rank, named by `source.weights`. Raises Refusal."""
    shares = _shares(plan, {target.name: target for target in plan.targets}, grid.tensor)
    contents = _Contents(plan, grid)
    files = []
    for place, path in zip(grid.places, file_names(plan.program, grid), strict=True):
        names = contents.of(place)
        tensors = [
            replace(t, shape=shares[t.name].shape(t.shape)) if t.name in shares else t
            for t in plan.targets
            if t.name in names
        ]

        def piece(name: str, array: Array, part: int = place.tensor) -> Array:
            return shares[name].cut(array, part) if name in shares else array

        files.append(pth_layout.out_file(path, tensors, wrapping, names, piece))
    return files


def with_sizes(program: Program, wrapping: Wrapping, grid: Grid) -> Wrapping:
    """The same, with the number of ranks along each axis among the arguments of a spec with `ranks`."""
    if program.spec.ranks is None:
        return wrapping
    sizes = {field: getattr(grid, axis) for axis, field in SIZES.items()}
    key = program.spec.layout.arguments
    objects = {name: {**value, **sizes} if name == key else value for name, value in wrapping.objects.items()}
    return replace(wrapping, objects=objects)


class _Contents:
    """Which tensors each rank has, and what it calls them. Raises Refusal where layers or experts cannot be divided."""

    def __init__(self, plan: Plan, grid: Grid) -> None:
        self.names = [target.name for target in plan.targets]
        spec = plan.program.spec.ranks
        self.layer, self.expert = (spec.pipeline.value, spec.expert.value) if spec else ("", "")
        self.numbers = Numbers(plan.program, self.layer, self.expert)
        first = [parse_pattern(name.value, name.span) for name in spec.first] if spec else []
        self.first = {name for name in self.names if any(p.match(name) is not None for p in first)}
        copies = {owner.value: copy.value for copy, owner in spec.copies} if spec else {}
        self.copies = {owner: copy for owner, copy in copies.items() if copy not in self.names}
        self.last = grid.pipeline - 1
        self.layers = self._each(self.layer, grid.pipeline, "layers", "pipeline stages")
        self.experts = self._each(self.expert, grid.expert, "experts", "expert-parallel ranks")

    def _each(self, index: str, ranks: int, things: str, kind: str) -> int:
        """How many values of an index one rank has."""
        count = self.numbers.count(self.names, index) if index else 0
        if count % ranks or (ranks > 1 and not count):
            few = listed(n for n in range(2, count + 1) if count % n == 0)
            hint = f"{count} can be divided by {few}" if few else ""
            refuse("--ranks", f"{count} {things} cannot be divided evenly among {ranks} {kind}", "unfit-parts", hint)
        return count // ranks

    def of(self, place: Grid) -> dict[str, str]:
        """The name of each target of a rank -> what its file calls it."""
        held: dict[str, str] = {}
        for name in self.names:
            found = self.numbers.indices(name)
            layer, expert = (int(found[index]) if index in found else None for index in (self.layer, self.expert))
            if layer is None:
                stages = {0} if name in self.first else {self.last}
                if self.last and name in self.copies:
                    stages.add(self.last)
            else:
                stages = {layer // self.layers}
            if place.pipeline in stages and expert in (None, *range_of(self.experts, place.expert)):
                shifts = {self.layer: -place.pipeline * self.layers, self.expert: -place.expert * self.experts}
                copied = layer is None and place.pipeline and name in self.copies
                held[name] = self.copies[name] if copied else self.numbers.shifted(name, shifts)
        return held


def range_of(each: int, rank: int) -> range:
    return range(rank * each, (rank + 1) * each)


def _shares(plan: Plan, targets: Mapping[str, TargetTensor], count: int) -> dict[str, Share]:
    """How each tensor that is not replicated is split. Raises Refusal with every one that cannot be."""
    report, shares = Report(), {}
    rules = [(rule, rule.axis) for rule in plan.program.merged if count > 1 and rule.axis]
    axes = [(rule, axis.evaluate({}, NamedShapes(targets))) for rule, axis in rules]
    for name, target in targets.items():
        for rule, axis in axes:
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
