"""A Plan for people: one line for all applications of a rule that differ only in their indices.

Takes a plan and its checkpoint; returns an `Overview` of plain values, from which text, JSON and the HTML page are made.
Reads no tensor data. The cost of a line is computed from one of its applications, since they are all alike.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.checkpoints.formats.stored_tensor import Encoded
from compiler.diagnostics import listed
from compiler.executor.execute import arrange_group
from compiler.language.expression import Expr
from compiler.layout.moves import lower
from compiler.ops.algebra import Op
from compiler.output import safetensors_layout
from compiler.plan.config_table import ConfigRow, config_table
from compiler.plan.plan import Group, Plan
from compiler.plan_report.effect import effect, label
from compiler.plan_report.row_provenance import Picture, picture
from compiler.resources import spec_label
from compiler.tensor_names import NUMBER
from compiler.transfer.engine import crew_size
from compiler.transfer.worker import BLOCK, GAP, WINDOW


@dataclass
class OverviewSide:
    """Tensors that differ only in their indices. `symbols`: for each axis the fact or argument that has its length."""

    name: str
    shape: list[int]
    symbols: list[str]
    dtype: str
    count: int


@dataclass
class Line:
    """Applications of one rule that are alike. `effect` and `label`: see `effect.py`; `nbytes`: written by all; `moves`: byte
    ranges that one application copies, -1 if it computes; `run`: the shortest of them in bytes."""

    rule: str
    kind: str
    effect: str
    label: str
    file: str
    line: int
    ops: list[str]
    sources: list[OverviewSide]
    targets: list[OverviewSide]
    count: int
    nbytes: int
    moves: int
    run: int
    lossy: list[str]
    picture: Picture | None


@dataclass
class Overview:
    """Everything that `plan` prints. `ties`: alias, owner, and the evidence that they are equal. `config_table`: the fields
    of config.json with their origins. `totals` are in bytes."""

    spec: str
    summary: str
    target: str
    reverse: bool
    lines: list[Line]
    ties: list[list[str]]
    ignored: list[list[str]]
    config: dict[str, Any]
    config_table: list[ConfigRow]
    values: dict[str, Any]
    defaults: dict[str, Any]
    notes: list[str]
    totals: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Folded:
    """Names that are equal except for their indices; `numbers`: the values of each index."""

    form: list[str]
    shape: tuple[int, ...]
    dtype: str
    numbers: list[set[int]]
    count: int = 0

    def take(self, found: Sequence[str]) -> None:
        self.count += 1
        for values, number in zip(self.numbers, found, strict=True):
            values.add(int(number))


def overview(
    plan: Plan,
    checkpoint: Checkpoint,
    *,
    defaults: Mapping[str, Any],
    notes: Sequence[str],
    jobs: int,
    full: bool,
    compared: bool,
) -> Overview:
    """What a plan does. `full`: one line per application; `compared`: tied tensors were read and are equal."""
    spec = plan.program.spec
    symbols = _Symbols(plan)
    lines = [_line(groups, checkpoint, symbols) for groups in _alike(plan, checkpoint, full)]
    computing = any(line.moves < 0 for line in lines)
    files = [] if plan.reverse else safetensors_layout.lay_out(plan.targets, 10**15)
    written = sum(target.nbytes for target in plan.targets)
    totals = {
        "source_tensors": len(checkpoint.tensors),
        "source_bytes": sum(t.nbytes for tensor in checkpoint.tensors.values() for t in tensor.parts),
        "target_tensors": len(plan.targets),
        "target_bytes": written,
        "disk_bytes": sum(file.size for file in files) or written,
        "peak_bytes": _heaviest(plan, checkpoint)
        if computing or plan.reverse
        else crew_size(jobs) * (WINDOW + GAP + 2 * BLOCK),
    }
    return Overview(
        f"{plan.first.program.spec.name} --to {spec.name}" if plan.first else spec.name.value,
        spec.summary,
        "the source of " + spec.target.class_name if plan.reverse else spec.target.class_name,
        plan.reverse,
        lines,
        [[alias, owner, _equal(checkpoint, alias, owner, compared)] for alias, owner in plan.ties],
        [[name, reason] for name, reason in folded_reasons([*plan.ignored, *_made(plan, compared)])],
        dict(plan.config),
        config_table(plan),
        dict(plan.values),
        dict(defaults),
        list(notes),
        totals,
    )


def _equal(checkpoint: Checkpoint, alias: str, owner: str, compared: bool) -> str:
    """The evidence that an alias equals its owner."""
    if checkpoint.tensors[alias].region == checkpoint.tensors[owner].region:
        return "both are the same bytes"
    return (
        "equal bit for bit"
        if compared
        else "not compared yet: a run, or --compare, reads both and rejects them if they differ"
    )


def _made(plan: Plan, compared: bool) -> Iterator[tuple[str, str]]:
    """Tensors that the spec creates and the reverse drops."""
    for name, fill in plan.made:
        yield (
            name,
            f"created by the spec; {'every element is' if compared else 'a run requires every element to be'} {fill}",
        )


def _heaviest(plan: Plan, checkpoint: Checkpoint) -> int:
    """Peak bytes of the largest group when torch computes: what it reads, and twice what it makes."""
    return max(
        (
            sum(t.nbytes for n in group.source_names for t in checkpoint.tensors[n].parts)
            + 2 * sum(target.nbytes for target in group.target_list)
            for group in plan.groups
        ),
        default=0,
    )


def _alike(plan: Plan, checkpoint: Checkpoint, full: bool) -> Iterable[list[Group]]:
    found: dict[object, list[Group]] = {}
    for number, group in enumerate(plan.groups):
        tensors = checkpoint.tensors
        read = tuple(
            dict.fromkeys((NUMBER.sub("#", n), tensors[n].shape, tensors[n].dtype) for n in group.source_names)
        )
        made = tuple(dict.fromkeys((NUMBER.sub("#", t.name), t.shape, t.dtype) for t in group.target_list))
        span = group.rule.span
        key = number if full else (*_rules(group), span.line, span.column, len(group.source_names), read, made)
        found.setdefault(key, []).append(group)
    return found.values()


def _line(groups: list[Group], checkpoint: Checkpoint, symbols: _Symbols) -> Line:
    one = groups[0]
    tensors = checkpoint.tensors
    read = ((n, tuple(tensors[n].shape), tensors[n].dtype) for group in groups for n in group.source_names)
    made = ((t.name, t.shape, t.dtype) for group in groups for t in group.target_list)
    moves, run = _moves(one, checkpoint)
    return Line(
        one.rule.name or one.rule.kind,
        one.rule.kind,
        effect(one.ops),
        label(one.ops),
        short_path(one.rule.span.path),
        one.rule.span.line,
        [*decoding(one, checkpoint), *_through(one), *_steps(one)],
        [symbols.side(folded) for folded in _fold(read)],
        [symbols.side(folded) for folded in _fold(made)],
        len(groups),
        sum(t.nbytes for group in groups for t in group.target_list),
        moves,
        run,
        list(dict.fromkeys(op.loss for op in one.all_ops if op.loss)),
        picture(one, checkpoint) if one.ops and one.source_names and moves >= 0 else None,
    )


def _rules(group: Group) -> tuple[str, ...]:
    """What tells the rules of a group apart, those that it goes through first."""
    before = tuple(f"{one.rule.kind} {one.rule.name} {one.rule.span.line}" for one in group.through)
    return (*before, group.rule.kind, group.rule.name)


def _steps(group: Group) -> list[str]:
    return [op_text(op) for op in (*(op for op, _ in group.rule.steps), *group.ops[len(group.rule.steps) :])]


def decoding(group: Group, checkpoint: Checkpoint) -> list[str]:
    """What is done to quantized sources before the first step."""
    sources = (checkpoint.tensors[name] for name in group.source_names)
    return list(dict.fromkeys(f"dequantize {s.op.label}" for s in sources if isinstance(s, Encoded)))


def _through(group: Group) -> list[str]:
    """The steps of the groups that a group goes through, and the target class's names between."""
    steps = list(dict.fromkeys(step for one in group.through for step in _steps(one)))
    names = list(dict.fromkeys(NUMBER.sub("#", name) for name in group.read_names))
    return [*steps, f"as {listed(names, 3)}"] if group.through else []


def short_path(path: str) -> str:
    """What a person calls a file: a shipped spec by its name, another by the shorter of its two paths."""
    return min(spec_label(path), os.path.relpath(path), key=len)


def _moves(group: Group, checkpoint: Checkpoint) -> tuple[int, int]:
    """How many byte ranges one application copies, and the shortest contiguous run; (-1, 0) if it computes."""
    try:
        arrays = arrange_group(group, checkpoint)
    except NotImplementedError:
        return -1, 0
    found = [move for slot in arrays.slots for array in slot.values() for move in lower(array)]
    return len(found), min((move.run for move in found), default=0)


def _fold(names: Iterable[tuple[str, tuple[int, ...], str]]) -> list[_Folded]:
    found: dict[object, _Folded] = {}
    for name, shape, dtype in names:
        form, numbers = NUMBER.split(name), NUMBER.findall(name)
        key = (*form, shape, dtype)
        if key not in found:
            found[key] = _Folded(form, shape, dtype, [set() for _ in numbers])
        found[key].take(numbers)
    return list(found.values())


def spread(numbers: set[int]) -> str:
    """`7` for one number, `{0-31}` for a run, `{0,2,4,…}` for others."""
    if len(numbers) == 1:
        return str(next(iter(numbers)))
    values = sorted(numbers)
    if values[-1] - values[0] == len(values) - 1:
        return f"{{{values[0]}-{values[-1]}}}"
    return "{" + ",".join(map(str, values[:6])) + (",…" if len(values) > 6 else "") + "}"


def folded_reasons(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """(name, reason) pairs, with names that differ only in their indices folded into one."""
    groups: dict[str, list[tuple[str, tuple[int, ...], str]]] = {}
    for name, reason in pairs:
        groups.setdefault(reason, []).append((name, (), ""))
    for reason, names in groups.items():
        yield from ((_name(folded), reason) for folded in _fold(names))


def _name(folded: _Folded) -> str:
    text = folded.form[0]
    for numbers, rest in zip(folded.numbers, folded.form[1:], strict=True):
        text += spread(numbers) + rest
    return text


def op_text(op: Op) -> str:
    """An op, close to how a spec writes it."""
    given = {name: value for name, value in vars(op).items() if value is not None and value is not False}
    if "left" in given:
        sizes = ", ".join(f"{name}: {_number(size)}" for name, size in given["sizes"])
        some = f" only {list(given['only'])}" if given["only"] else ""
        return f"{op.word} {op}" + (f" {{{sizes}}}" if sizes else "") + some
    parts = [
        name
        if value is True
        else f"[{', '.join(map(_number, value))}]"
        if isinstance(value, tuple)
        else f"{name} {_number(value)}"
        for name, value in given.items()
        if not (name == "parts" and given.get("sizes"))
    ]
    return " ".join([op.word, *parts])


def _number(value: object) -> str:
    return value.text if isinstance(value, Expr) else str(value)


class _Symbols:
    """The fact or argument that has a given length; the first of several."""

    def __init__(self, plan: Plan) -> None:
        self.names: dict[int, str] = {}
        spec = plan.program.spec
        for name in (*spec.facts, *spec.arguments):
            value = plan.values.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 3:
                self.names.setdefault(value, name)

    def symbol(self, length: int) -> str:
        if length in self.names:
            return self.names[length]
        for factor in (2, 3, 4):
            if length % factor == 0 and length // factor in self.names:
                return f"{factor} {self.names[length // factor]}"
        return str(length)

    def side(self, folded: _Folded) -> OverviewSide:
        shape = list(folded.shape)
        return OverviewSide(_name(folded), shape, [self.symbol(n) for n in shape], folded.dtype, folded.count)
