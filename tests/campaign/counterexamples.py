"""Sources that a check of a spec rejects: each `fixed` field with another value, each requirement unmet.

A counterexample is a source that the spec converts, with one thing changed: an argument, a tensor that is added or left
out, the length of an axis.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from support.controls import unmet
from support.synthetic import Synthetic, request_of

from compiler.diagnostics import Refusal, Span
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.language.expression import Expr
from compiler.language.name_pattern import options
from compiler.language.name_pattern_parser import parse_pattern
from compiler.program.program import Program

if TYPE_CHECKING:
    from campaign.judge import Source


@dataclass(frozen=True)
class Change:
    """Arguments and tensors (None: left out) that differ from those of an example."""

    arguments: Mapping[str, Any]
    tensors: Mapping[str, tuple[int, ...] | None]

    def __str__(self) -> str:
        return ", ".join(f"{name} = {value!r}" for name, value in {**self.arguments, **self.tensors}.items())


@dataclass(frozen=True)
class Counterexample:
    """`also`: other requirements of the spec reject it too, whatever source has this change."""

    what: str
    request: Request
    control: Mapping[str, Any]
    also: bool = False


def against_field(program: Program, source: Source, made: Synthetic, name: str, place: Path) -> Counterexample | None:
    """A source whose config has a value that `fixed` excludes."""
    field = program.spec.fixed[name]
    plan = prepare(program, source.request).plan
    fields = {n: v for n, v in plan.values.items() if v is not None} | dict(made.arguments)
    for value in _other_values(field.values[0]):
        if field.allows(value):
            continue
        path = place / "counterexample.json"
        path.write_text(json.dumps(fields | {name: value}))
        request = Request(source.request.source, config=path)
        try:
            prepare(program, request)
        except Refusal as refusal:
            if any(d.span == field.span for d in refusal.diagnostics):
                return Counterexample(f"{name} = {value!r}", request, {"field": name, "value": value})
    return None


def against_requirement(program: Program, made: Sequence[Synthetic], text: str, place: Path) -> Counterexample | None:
    """A source that does not meet one requirement; if possible, one that meets all others."""
    expr = next(expr for expr, _ in program.spec.require if expr.text == text.strip())
    best: tuple[int, int, Change] | None = None
    for n, one in enumerate(made):
        for change in _changes(program, one, expr):
            failing = unmet(program, one, change.arguments, change.tensors)
            if expr.text in failing and (best is None or len(failing) < best[0]):
                best = len(failing), n, change
            if best and best[0] == 1:
                break
    if best is None:
        return None
    failing_count, n, change = best
    control = {"example": n, "set": dict(change.arguments), "tensors": dict(change.tensors)}
    if failing_count > 1:
        return Counterexample(str(change), Request([]), control, also=True)
    tensors = dict(made[n].tensors)
    for name, shape in change.tensors.items():
        if shape is None:
            tensors.pop(name, None)
        else:
            like = tensors.get(name, next(iter(tensors.values())))
            tensors[name] = torch.ones(shape).to(like.dtype)
    arguments = {**made[n].arguments, **change.arguments}
    folder = place / f"{program.spec.name.value}_unmet_{abs(hash((text, n)))}"
    folder.mkdir(exist_ok=True)
    request = request_of(Synthetic(tensors, made[n].ignored, arguments), folder, program)
    return Counterexample(str(change), request, control)


def _changes(program: Program, made: Synthetic, expr: Expr) -> Iterator[Change]:
    spec = program.spec
    names, asked = _reached(program, expr)
    for name in spec.arguments:
        if name in names:
            argument = spec.arguments[name]
            value = made.arguments.get(name, argument.default)
            constants = [n.value for n in ast.walk(expr.tree) if isinstance(n, ast.Constant)]
            for other in [*_other_values(value), *constants, None]:
                if other != value or type(other) is not type(value):
                    yield Change({name: other}, {})
    yield from _together(program, made, names)
    constants = [n.value for n in ast.walk(expr.tree) if isinstance(n, ast.Constant) and type(n.value) is int]
    for function, text in asked:
        pattern = parse_pattern(text, Span(""))
        present = [name for name in made.tensors if pattern.match(name) is not None]
        if present:
            yield Change({}, dict.fromkeys(present))
            for name in present[:1]:
                shape = tuple(made.tensors[name].shape)
                for axis, length in enumerate(shape):
                    for other in (length + 1, length * 2, length // 2, length + 2, 1, *constants):
                        yield Change({}, {name: (*shape[:axis], other, *shape[axis + 1 :])})
        elif function == "exists":
            words = {hole: (options(part) or ["0"])[0] for hole, part in pattern.holes.items()}
            yield Change({}, {pattern.fill(words): (2,)})


def _together(program: Program, made: Synthetic, names: set[str]) -> Iterator[Change]:
    """Two arguments that are off, turned on together."""
    off = {
        n: a.default for n, a in program.spec.arguments.items() if n in names and not made.arguments.get(n, a.default)
    }
    for one, other in combinations(off, 2):
        for a in _other_values(off[one]):
            for b in _other_values(off[other]):
                yield Change({one: a, other: b}, {})


def _reached(program: Program, expr: Expr) -> tuple[set[str], list[tuple[str, str]]]:
    """The names that an expression depends on, and what it asks of the tensors, through facts."""
    names: set[str] = set()
    asked: list[tuple[str, str]] = []
    todo = [expr]
    while todo:
        one = todo.pop()
        asked += [(function, text) for function, text, _ in one.asked]
        for name in one.names - names:
            names.add(name)
            todo += [e for e in (program.spec.facts.get(name),) if e]
            argument = program.spec.arguments.get(name)
            todo += [argument.derive] if argument and argument.derive else []
    return names, asked


def _other_values(value: Any) -> list[Any]:
    match value:
        case bool():
            return [not value]
        case int():
            return [value * 2, value + 1, value // 2, 1, 0, -1]
        case float():
            return [value * 2, 0.5, 0.0, -1.0]
        case str():
            return ["other", "gelu", "relu"]
        case dict():
            return [value | {key: other} for key, inner in value.items() for other in _other_values(inner)]
        case list():
            return [value[::-1], value + value, [1], []]
        case None:
            return [7, True, 0.5, "other", [1, 2], {"factor": 2.0}]
    return []
