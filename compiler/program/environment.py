"""The values of a spec's names for one checkpoint: arguments as given or by default, facts as the shapes say.

A fact that the source's config states as well must agree with the checkpoint; a value that nobody reads is listed,
never dropped in silence. Requirements are judged here, before anything is planned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Protocol

from compiler.diagnostics import Diagnostic, Refusal, Report, Span, listed, nearest
from compiler.language.expression import Expr
from compiler.language.expression_value import Shapes
from compiler.language.name_pattern import MOST_DIGITS, Pattern
from compiler.language.name_pattern_parser import parse_pattern
from compiler.program.program import Program


class Typed(Protocol):
    """What a plan needs to know of a tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...


TensorTable = Mapping[str, Typed]


class Origin(Enum):
    """Where the value of an argument comes from."""

    CHECKPOINT = "checkpoint"
    CONFIG_FILE = "config file"
    ASSIGNMENT = "--set"
    RELEASE = "released model"
    DERIVED = "facts"
    DEFAULT = "default"
    GUESS = "guess"
    EXAMPLE = "example"


@dataclass(frozen=True)
class Given:
    """A value and its source; `place` is how a message names it: `--set`, `config.json`, `the checkpoint's 'args'`."""

    value: Any
    place: str
    origin: Origin = Origin.EXAMPLE


class NamedShapes:
    """Answers expressions from the names and shapes of a checkpoint."""

    def __init__(self, signature: TensorTable) -> None:
        self.signature = signature
        self.counts: dict[str, int] = {}

    def dim(self, name: str, axis: int) -> int:
        if name not in self.signature:
            raise LookupError(f"no tensor is called {name}; {nearest(name, self.signature) or 'nothing is near'}")
        shape = self.signature[name].shape
        if not -len(shape) <= axis < len(shape):
            raise LookupError(f"{name} has the shape {list(shape)}, so no axis {axis}")
        return shape[axis]

    def count(self, pattern: str) -> int:
        if pattern not in self.counts:
            parsed = parse_pattern(pattern, Span(""))
            self.counts[pattern] = sum(parsed.match(name) is not None for name in self.signature)
        return self.counts[pattern]

    def exists(self, pattern: str) -> bool:
        return pattern in self.signature or self.count(pattern) > 0


class Environment(Mapping[str, Any]):
    """Arguments and facts by name; a fact is evaluated when it is first asked for."""

    def __init__(
        self, program: Program, shapes: Shapes, given: Mapping[str, Given], trusted: bool | Set[str] = False
    ) -> None:
        """`trusted`: given facts, all or these, are taken as they are (an example, or the config of a folder to reverse)."""
        self.spec = program.spec
        self.shapes = shapes
        self.given = given
        self.trusted = frozenset(program.spec.facts) if trusted is True else trusted or frozenset()
        self.found: dict[str, Any] = {}
        self.meant: dict[tuple[str, str], bool] = {}  # (index, number) -> whether its guard holds
        self.deciding: list[str] = []  # facts under evaluation, the innermost last

    def __getitem__(self, name: str) -> Any:
        if self.deciding and self.deciding[-1] == name:
            return self.fallback(name)
        if name not in self.found:
            self.found[name] = self.find(name)
        return self.found[name]

    def __contains__(self, name: object) -> bool:
        return name in self.spec.arguments or name in self.spec.facts

    def __iter__(self) -> Iterator[str]:
        return iter([*self.spec.arguments, *self.spec.facts])

    def __len__(self) -> int:
        return len(self.spec.arguments) + len(self.spec.facts)

    def find(self, name: str) -> Any:
        given = self.given.get(name)
        if name in self.spec.facts:
            fact = self.spec.facts[name]
            if given is not None and given.value is not None and name in self.trusted:
                return given.value
            self.deciding.append(name)
            try:
                value = self.evaluate(fact)
            finally:
                self.deciding.pop()
            if given is not None and given.value is not None:
                self.agree(name, fact, given, value)
            return value
        argument = self.spec.arguments[name]
        if given is not None:
            return typed(name, argument.default, given, argument.span)
        value = self.evaluate(argument.derive) if argument.derive else argument.default
        if argument.required or (argument.derive and value is None):
            raise Refusal(
                [
                    Diagnostic(
                        argument.span,
                        f"{name} is not known: {argument.help or 'the checkpoint does not tell it'}",
                        "missing-argument",
                        f"give it with --set {name}=VALUE, or a --config that has it",
                    )
                ]
            )
        return value

    def fallback(self, name: str) -> Any:
        """What a fact means by its own name: the value given, or the default of the field of that name."""
        given, field = self.given.get(name), self.spec.fields.get(name)
        if given is not None and given.value is not None:
            return given.value
        if field is None:
            fact = self.spec.facts[name]
            raise Refusal(
                [Diagnostic(fact.name_span(name), f"nothing gives {name}", "missing-argument", f"--set {name}=VALUE")]
            )
        return self.evaluate(field.expr) if field.expr else field.constant

    def agree(self, name: str, fact: Expr, given: Given, value: Any) -> None:
        if (
            type(value) is not type(given.value) and not all(isinstance(v, (int, float)) for v in (value, given.value))
        ) or value != given.value:
            hint = "the two do not belong together, or the checkpoint is incomplete"
            counted = [parse_pattern(text, fact.span) for function, text, _ in fact.asked if function == "count"]
            if (
                counted
                and len(counted[0].holes) == 1
                and isinstance(given.value, int)
                and isinstance(value, int)
                and given.value > value
            ):
                hint = f"no tensor is called {_next_name(counted[0], value)}"
            raise Refusal(
                [
                    Diagnostic(
                        fact.span,
                        f"{given.place} says {name} = {given.value!r}, the checkpoint says {value!r}",
                        "config-mismatch",
                        hint,
                    )
                ]
            )

    def evaluate(self, expr: Expr) -> Any:
        return expr.evaluate(self, self.shapes)

    def number(self, size: Expr | float, whole: bool = True) -> Any:
        """A number of an op: a size, or with `whole=False` any. Raises Refusal where it is none."""
        value = self.evaluate(size) if isinstance(size, Expr) else size
        fits = (isinstance(value, int) and value >= 1) if whole else isinstance(value, int | float)
        if not fits or isinstance(value, bool):
            span = size.span if isinstance(size, Expr) else Span(self.spec.path)
            text = size.text if isinstance(size, Expr) else str(size)
            wanted = "a whole number from 1 on" if whole else "a number"
            raise Refusal([Diagnostic(span, f"{text} is {value!r}, where {wanted} is needed", "wrong-size")])
        return value

    def holds(self, when: Expr | None) -> bool:
        return when is None or bool(self.evaluate(when))

    def match(self, pattern: Pattern, name: str) -> dict[str, str] | None:
        """What `pattern.match` captures; None also where an index has a number that its guard rules out."""
        captures = pattern.match(name)
        if captures is None or all(self.admits(hole, text) for hole, text in captures.items()):
            return captures
        return None

    def admits(self, hole: str, text: str) -> bool:
        """Whether an index may stand for this number, as `indices` of the spec says. Raises Refusal."""
        guard = self.spec.indices.get(hole)
        if guard is None:
            return True
        if (hole, text) not in self.meant:
            values = {name: self[name] for name in guard.names - {hole}} | {hole: int(text[:MOST_DIGITS])}
            self.meant[hole, text] = bool(guard.evaluate(values, self.shapes))
        return self.meant[hole, text]

    # -----------------------------------------------------------------------------------------------------------------

    @property
    def arguments(self) -> dict[str, Given]:
        """The arguments that were evaluated so far, each with its value and where that comes from."""
        found: dict[str, Given] = {}
        for name, argument in self.spec.arguments.items():
            if name in self.given and name in self.found:
                found[name] = replace(self.given[name], value=self.found[name])
            elif name in self.found:
                origin = Origin.GUESS if argument.guess else Origin.DERIVED if argument.derive else Origin.DEFAULT
                found[name] = Given(self.found[name], f"the spec's {origin.value}", origin)
        return found

    def check(self) -> None:
        """Judge the requirements, then evaluate every name. Raises Refusal with all that fails.

        A requirement that is plainly broken tells more than the missing tensors that follow from it, so that those
        are only reported where no requirement speaks.
        """
        broken, unclear = Report(), Report()
        for expr, reason in self.spec.require:
            try:
                if not self.evaluate(expr):
                    broken.add(expr.span, reason, "unmet-requirement", f"required: {expr.text}")
            except Refusal as refusal:
                unclear.absorb(refusal)
        broken.settle()
        for name in self:
            try:
                self[name]
            except Refusal as refusal:
                unclear.absorb(refusal)
        unclear.settle()


def _next_name(pattern: Pattern, index: int) -> str:
    return pattern.fill(dict.fromkeys(pattern.holes, str(index)))


def typed(name: str, default: Any, given: Given, span: Span) -> Any:
    """The given value as the type of the default; only a whole number may stand for a float. Raises Refusal."""
    value = given.value
    if default is None or value is None or type(value) is type(default):
        return value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, int) and not isinstance(default, bool) and isinstance(value, float) and value.is_integer():
        return int(value)
    raise Refusal(
        [
            Diagnostic(
                span,
                f"{given.place} says {name} = {value!r}, which is {_TYPES.get(type(value), 'something else')} "
                f"and not {_TYPES.get(type(default), 'like the default')}",
                "wrong-type",
                f"the default is {default!r}",
            )
        ]
    )


_TYPES: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a mapping",
}


def unfounded(program: Program, given: Mapping[str, object]) -> frozenset[str]:
    """The facts that follow from an argument that nothing gives, be it by way of others."""
    spec = program.spec
    loose: Set[str] = {n for n, a in spec.arguments.items() if n not in given and a.derive is None}
    while more := {name for name, fact in spec.facts.items() if name not in loose and fact.names & loose}:
        loose |= more
    return frozenset(loose & spec.facts.keys())


def check_given(program: Program, names: Mapping[str, Any]) -> None:
    """Refuse a `--set` that names nothing of the spec. Raises Refusal."""
    known = [*program.spec.arguments, *program.spec.facts]
    report = Report()
    for name in names:
        if name not in known and name not in program.spec.fixed:
            report.add(
                Span("--set"),
                f"{program.spec.name} has no argument {name!r}",
                "unknown-argument",
                nearest(name, known) or f"its arguments are {listed(program.spec.arguments, 30)}",
            )
    report.settle()
