"""The places of model-parallel files: which tensor-parallel rank, pipeline stage and expert-parallel rank wrote each, and
the names that its tensors have in the complete model.

A stage counts its layers from 0, a rank its experts; an interleaved stage holds several runs of layers, `model0.` and so
on. Takes the opened files of a spec with `source.ranks`; returns a `Rank` for each. Rejects a grid with a hole, and files
whose arguments state another grid, step or rank.
Source: NVIDIA, training/checkpointing.py (get_checkpoint_name, generate_state_dict), core/parallel_state.py (RankGenerator)
and core/transformer/transformer_layer.py (get_transformer_layer_offset).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.checkpoints.formats.stored_tensor import AnyTensor
from compiler.diagnostics import Report, Span, listed, refuse
from compiler.program.program import Program

_COPY_AGAIN = "copy all files of one step again"
SIZES = {  # axis -> the field of the arguments that has its number of ranks
    "tensor": "tensor_model_parallel_size",
    "pipeline": "pipeline_model_parallel_size",
    "expert": "expert_model_parallel_size",
}
_UNTIED = "untie_embeddings_and_output_weights"
_RUN = re.compile(r"model(\d{1,4})\.")  # of layers, in an interleaved stage

Tensors = Mapping[str, AnyTensor]


@dataclass(frozen=True)
class Rank:
    """One file: its place in the grid, and its tensors. `runs` has them under the names of the complete model, by the run
    of layers to which they belong; a stage that is not interleaved has one."""

    checkpoint: Checkpoint
    runs: tuple[Tensors, ...]
    tensor: int
    pipeline: int = 0
    expert: int = 0

    @property
    def arguments(self) -> Mapping[str, Any]:
        """What the trainer stored of its command line."""
        found = self.checkpoint.objects.get("args")
        return found if isinstance(found, Mapping) else {}

    @property
    def tied(self) -> bool:
        """Whether the arguments say that the output layer has the weights of the embedding."""
        return self.arguments.get(_UNTIED) is False

    @cached_property
    def tensors(self) -> Tensors:
        return {name: tensor for run in self.runs for name, tensor in run.items()}


def ranks_of(program: Program, checkpoints: Sequence[Checkpoint]) -> list[Rank]:
    """The files, each at its place. Without `source.ranks`, or under names of their own, they are tensor-parallel parts in
    their order. Raises Refusal."""
    if program.spec.ranks is None or not all(_numbers(program.spec.weights, part.path) for part in checkpoints):
        return [Rank(checkpoint, (checkpoint.tensors,), n) for n, checkpoint in enumerate(checkpoints)]
    ranks = _placed(program.spec.weights, checkpoints, program.spec.ranks.numbers)
    _check_statements(ranks)
    return list(_renumbered(program, ranks))


def _placed(weights: str, checkpoints: Sequence[Checkpoint], kinds: Sequence[str]) -> list[Rank]:
    """The files in the order of their stages. `kinds`: what the numbers in their paths are, if the spec states it. Raises
    Refusal where the grid has a hole."""
    first = Rank(checkpoints[0], (), 0)
    stated = {axis: size for axis, field in SIZES.items() if type(size := first.arguments.get(field)) is int}
    numbers = [_numbers(weights, checkpoint.path) for checkpoint in checkpoints]
    names = [_shown(weights, checkpoint.path) for checkpoint in checkpoints]
    folder = first.checkpoint.path.parents[weights.count("/")]
    if len({len(own) for own in numbers}) > 1:
        message = f"files of two runs: {listed(sorted(names), 4)}"
        refuse(str(folder), message, "ambiguous-container", "keep the files of one run")
    axes = kinds or [
        axis
        for axis in SIZES
        if len(numbers[0]) != 2 or axis != ("pipeline" if stated.get("pipeline") == 1 else "expert")
    ]
    places = [dict(zip(axes, own, strict=False)) for own in numbers]
    if len(totals := {place.pop("total") for place in places if "total" in place}) > 1:
        message = f"files of runs with {listed(sorted(totals))} ranks are in one folder"
        refuse(str(folder), message, "ambiguous-container", "keep the files of one run")
    sizes = {axis: 1 + max(place.get(axis, 0) for place in places) for axis in SIZES}
    for total in totals:
        if total < prod(sizes.values()):
            message = f"the names state {total} files, and there are ranks of {prod(sizes.values())}"
            refuse(str(folder), message, "unfit-parts", "the folder has files of two runs")
        sizes["tensor"] = total // (sizes["pipeline"] * sizes["expert"])
    for axis, size in stated.items():
        if size < sizes[axis]:
            message = f"its arguments state {SIZES[axis]} = {size}, and there are files of {sizes[axis]}"
            refuse(str(first.checkpoint.path), message, "unfit-parts", "the folder has files of two runs")
    sizes |= stated
    if sizes["expert"] > 1 and first.arguments.get("expert_tensor_parallel_size") not in (None, sizes["tensor"]):
        message = "its experts are cut into another number of parts than its other layers"
        refuse(str(first.checkpoint.path), message, "unsupported-tensor", "save it in the torch_dist format")
    found = {
        tuple(place.get(axis, 0) for axis in SIZES): checkpoint
        for place, checkpoint in zip(places, checkpoints, strict=True)
    }
    every = product(*(range(min(size, len(found) + 1)) for size in sizes.values()))
    if missing := next((place for place in every if place not in found), None):
        words = ", ".join(f"{axis} rank {n}" for axis, n in zip(sizes, missing, strict=True) if sizes[axis] > 1)
        message = f"the file of {words} is missing; there are {len(found)} of {prod(sizes.values())}"
        refuse(str(folder), message, "missing-part", "copy the files of all ranks into one folder")
    order = sorted(found, key=lambda place: (place[1], place[2], place[0]))
    return [Rank(found[place], _runs(found[place]), *place) for place in order]


def _check_statements(ranks: Sequence[Rank]) -> None:
    """Compare what the files state of their run with each other and with their places. Raises Refusal."""
    report = Report()
    writers = [rank.arguments.get("rank") for rank in ranks]
    each = len({*writers}) == len(ranks) > 1 and all(type(writer) is int for writer in writers)
    for rank in ranks:
        for message in _contradictions(rank, ranks[0], each):
            hint = "were files exchanged or renamed?" if each else _COPY_AGAIN
            report.add(Span(str(rank.checkpoint.path)), message, "unfit-parts", hint)
    report.settle()


def _contradictions(rank: Rank, first: Rank, each: bool) -> Iterator[str]:
    """What the statements of a file contradict. `each`: every file names its own writer, which a program that writes all
    files does not."""
    steps = [one.checkpoint.objects.get("iteration") for one in (first, rank)]
    if steps[0] != steps[1]:
        yield f"it is of step {steps[1]}, but {_place_of(first)} is of step {steps[0]}"
    for field in SIZES.values():
        stated, other = rank.arguments.get(field), first.arguments.get(field)
        if stated != other:
            yield f"its {field} is {stated}, but that of {_place_of(first)} is {other}"
            return
    if each:
        writer = rank.arguments["rank"]
        place = _coordinates(rank, writer)
        if any(getattr(rank, axis) != number for axis, number in place.items()):
            words = ", ".join(f"{axis} rank {number}" for axis, number in place.items())
            yield f"its arguments say that rank {writer} wrote it, which is {words}"


def _place_of(rank: Rank) -> str:
    return rank.checkpoint.path.parent.name


def _coordinates(rank: Rank, writer: int) -> dict[str, int]:
    """The place of a global rank, as far as the arguments determine it: tensor-parallel ranks are counted first, then
    expert-parallel ones, and stages last unless `use_tp_pp_dp_mapping`."""
    said = rank.arguments
    tensors, stages, experts = (said.get(field) or 1 for field in SIZES.values())
    world, found = said.get("world_size"), {"tensor": writer % tensors, "expert": writer // tensors % experts}
    if type(world) is int and world >= stages and not said.get("use_tp_pp_dp_mapping"):
        found["pipeline"] = writer // (world // stages)
    return found


def _renumbered(program: Program, ranks: Sequence[Rank]) -> Iterator[Rank]:
    """The ranks with the names of the complete model: all first runs of layers come before the second ones."""
    spec = program.spec.ranks
    assert spec is not None
    layer, expert = spec.pipeline.value, spec.expert.value
    names = Numbers(program, layer, expert)
    layers: dict[tuple[int, int], int] = {}
    for rank in ranks:
        if len(rank.runs) != len(ranks[0].runs):
            message = f"it has {len(rank.runs)} runs of layers, but {_place_of(ranks[0])} has {len(ranks[0].runs)}"
            refuse(str(rank.checkpoint.path), message, "unfit-parts", _COPY_AGAIN)
        for run, tensors in enumerate(rank.runs):
            count = names.count(tensors, layer)
            if layers.setdefault((run, rank.pipeline), count) != count:
                message = f"it has {count} layers, the other files of its stage {layers[run, rank.pipeline]}"
                refuse(str(rank.checkpoint.path), message, "unfit-parts", _COPY_AGAIN)
    starts, place = dict[tuple[int, int], int](), 0
    for key in sorted(layers):
        starts[key], place = place, place + layers[key]
    for rank in ranks:
        runs = []
        for run, own in enumerate(rank.runs):
            shift = {layer: starts[run, rank.pipeline], expert: rank.expert * names.count(own, expert)}
            runs.append({names.shifted(name, shift): tensor for name, tensor in own.items()})
        yield replace(rank, runs=tuple(runs))


def _runs(checkpoint: Checkpoint) -> tuple[Tensors, ...]:
    """The tensors by run of layers, `model0.` and so on; as they are where the names have no such beginning."""
    found: dict[int, dict[str, AnyTensor]] = {}
    for name, tensor in checkpoint.tensors.items():
        if match := _RUN.match(name):
            found.setdefault(int(match[1]), {})[name[match.end() :]] = tensor
    return tuple(found[n] for n in sorted(found)) if found else (checkpoint.tensors,)


class Numbers:
    """The layers' and experts' numbers in source names, as the patterns of the rules find them."""

    def __init__(self, program: Program, *indices: str) -> None:
        patterns = {p.text: p for rule in program.rules for p in rule.sources}
        self.patterns = [p for p in patterns.values() if p.holes.keys() & {*indices} and not p.free_parts]
        self.known: dict[str, tuple[int, dict[str, str]] | None] = {}

    def captures(self, name: str) -> tuple[int, dict[str, str]] | None:
        """The number of the pattern that matches a name, and what its holes capture."""
        if name not in self.known:
            found = ((n, c) for n, p in enumerate(self.patterns) if (c := p.match(name)) is not None)
            self.known[name] = next(found, None)
        return self.known[name]

    def indices(self, name: str) -> dict[str, str]:
        """What the holes of the pattern capture that matches a name; nothing where none does."""
        found = self.captures(name)
        return found[1] if found else {}

    def count(self, names: Sequence[str] | Tensors, index: str) -> int:
        """One more than the highest number of an index."""
        found = (self.captures(name) for name in names)
        return 1 + max((int(one[1][index]) for one in found if one and index in one[1]), default=-1)

    def shifted(self, name: str, shifts: Mapping[str, int]) -> str:
        found = self.captures(name)
        if found is None:
            return name
        number, held = found
        return self.patterns[number].fill(
            {hole: str(int(text) + shifts[hole]) if shifts.get(hole) else text for hole, text in held.items()}
        )


def _numbers(weights: str, path: Path) -> list[int]:
    """The numbers of a file's place, which its path has where the glob has a star; none for a file of another name."""
    match = re.fullmatch(re.escape(weights).replace(r"\*", r"([^/]*)"), _shown(weights, path))
    return [int(digits) for text in match.groups() for digits in re.findall(r"\d+", text)] if match else []


def _shown(weights: str, path: Path) -> str:
    return "/".join(path.parts[-1 - weights.count("/") :])
