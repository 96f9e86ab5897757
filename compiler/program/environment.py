"""The values of a spec's arguments and facts for one checkpoint.

Arguments are given or have a default; facts are computed from names and shapes. A fact that the source's config also
states must agree with the checkpoint. `check` evaluates the requirements before anything is planned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Protocol, runtime_checkable

from compiler.diagnostics import Diagnostic, Refusal, Report, Span, listed, nearest
from compiler.language.expression import Expr, Shapes
from compiler.language.name_pattern import MOST_DIGITS, Pattern
from compiler.language.name_pattern_parser import parse_pattern
from compiler.program.program import Program
from compiler.program.requirements import explanation


class Typed(Protocol):
    """The shape and dtype of a tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...


TensorTable = Mapping[str, Typed]


class Origin(Enum):
    """Where a value comes from."""

    SHAPE = "shape"
    SPEC = "spec"
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
    """Answers expressions from the names and shapes of a checkpoint, and `equal` by the function that compares two of
    its tensors, if there is one."""

    def __init__(self, signature: TensorTable, compare: Callable[[str, str], bool] | None = None) -> None:
        self.signature = signature
        self.counts: dict[str, int] = {}
        self.compare = compare
        self.compared: dict[tuple[str, str], bool] = {}

    def dim(self, name: str, axis: int) -> int:
        if name not in self.signature:
            raise LookupError(f"there is no tensor {name}; {nearest(name, self.signature) or 'no name is similar'}")
        shape = self.signature[name].shape
        if not -len(shape) <= axis < len(shape):
            raise LookupError(f"{name} has shape {list(shape)} and no axis {axis}")
        return shape[axis]

    def count(self, pattern: str) -> int:
        if pattern not in self.counts:
            parsed = parse_pattern(pattern, Span(""))
            self.counts[pattern] = sum(parsed.match(name) is not None for name in self.signature)
        return self.counts[pattern]

    def exists(self, pattern: str) -> bool:
        return pattern in self.signature or self.count(pattern) > 0

    def equal(self, one: str, other: str) -> bool:
        """Whether both tensors exist and have the same dtype, shape and bytes."""
        if one not in self.signature or other not in self.signature:
            return False
        a, b = self.signature[one], self.signature[other]
        if (tuple(a.shape), a.dtype) != (tuple(b.shape), b.dtype):
            return False
        if self.compare is None:
            raise LookupError(f"the data of {one} and {other} is not known here; give the fact a value")
        if (one, other) not in self.compared:
            self.compared[one, other] = self.compare(one, other)
        return self.compared[one, other]


@runtime_checkable
class AsksGuards(Protocol):
    """Shapes that depend on which guards are true."""

    holds: Callable[[Expr | None], bool] | None


class Environment(Mapping[str, Any]):
    """Arguments and facts by name; a fact is evaluated when it is first asked for."""

    def __init__(
        self, program: Program, shapes: Shapes, given: Mapping[str, Given], trusted: bool | Set[str] = False
    ) -> None:
        """`trusted`: these given facts (True: all) are used without comparing them with the shapes: those of an example, or of
        the config of a folder to reverse."""
        self.program = program
        self.spec = program.spec
        self.shapes = shapes
        self.given = given
        self.trusted = frozenset(program.spec.facts) if trusted is True else trusted or frozenset()
        self.found: dict[str, Any] = {}
        self.admitted: dict[tuple[str, str], bool] = {}  # (index, number) -> whether its guard is true
        self.deciding: list[str] = []  # facts under evaluation, the innermost last
        if isinstance(shapes, AsksGuards):
            shapes.holds = self.holds

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
                        f"{name} has no value: {argument.help or 'the checkpoint does not contain it'}",
                        "missing-argument",
                        f"give it with --set {name}=VALUE or with a --config that contains it",
                        subject=name,
                    )
                ]
            )
        return value

    def fallback(self, name: str) -> Any:
        """The value of a fact's own name inside its expression: the given value, or the default of the config field."""
        given, field = self.given.get(name), self.spec.fields.get(name)
        if given is not None and given.value is not None:
            return given.value
        if field is None:
            fact = self.spec.facts[name]
            raise Refusal(
                [
                    Diagnostic(
                        fact.name_span(name),
                        f"{name} has no value",
                        "missing-argument",
                        f"--set {name}=VALUE",
                        subject=name,
                    )
                ]
            )
        return self.evaluate(field.expr) if field.expr else field.constant

    def agree(self, name: str, fact: Expr, given: Given, value: Any) -> None:
        if (
            type(value) is not type(given.value) and not all(isinstance(v, (int, float)) for v in (value, given.value))
        ) or value != given.value:
            hint = "the config belongs to another checkpoint, or the checkpoint is incomplete"
            counted = [parse_pattern(text, fact.span) for function, text, _ in fact.asked if function == "count"]
            if (
                counted
                and len(counted[0].holes) == 1
                and isinstance(given.value, int)
                and isinstance(value, int)
                and given.value > value
            ):
                hint = f"there is no tensor {_next_name(counted[0], value)}"
            raise Refusal(
                [
                    Diagnostic(
                        fact.span,
                        f"{name} = {given.value!r} ({given.place}), but the checkpoint has {value!r}",
                        "config-mismatch",
                        hint,
                    )
                ]
            )

    def evaluate(self, expr: Expr) -> Any:
        return expr.evaluate(self, self.shapes)

    def number(self, size: Expr | float, whole: bool = True) -> Any:
        """The value of a size (a positive integer) or, with `whole=False`, of any number of an op. Raises Refusal: `wrong-size`."""
        value = self.evaluate(size) if isinstance(size, Expr) else size
        fits = (isinstance(value, int) and value >= 1) if whole else isinstance(value, int | float)
        if not fits or isinstance(value, bool):
            span = size.span if isinstance(size, Expr) else Span(self.spec.path)
            text = size.text if isinstance(size, Expr) else str(size)
            wanted = "a positive integer" if whole else "a number"
            raise Refusal([Diagnostic(span, f"{text} is {value!r}, but must be {wanted}", "wrong-size")])
        return value

    def holds(self, when: Expr | None) -> bool:
        return when is None or bool(self.evaluate(when))

    def match(self, pattern: Pattern, name: str) -> dict[str, str] | None:
        """The captures of `pattern.match`; None also where the guard of an index excludes its number."""
        captures = pattern.match(name)
        if captures is None or all(self.admits(hole, text) for hole, text in captures.items()):
            return captures
        return None

    def admits(self, hole: str, text: str) -> bool:
        """Whether the guard of an index (`indices` of the spec) admits this number. Raises Refusal."""
        guard = self.spec.indices.get(hole)
        if guard is None:
            return True
        if (hole, text) not in self.admitted:
            values = {name: self[name] for name in guard.names - {hole}} | {hole: int(text[:MOST_DIGITS])}
            self.admitted[hole, text] = bool(guard.evaluate(values, self.shapes))
        return self.admitted[hole, text]

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

    def with_value(self, name: str, value: Any) -> Environment:
        """The same environment with another value of an argument."""
        given = replace(self.given[name], value=value) if name in self.given else Given(value, "")
        return Environment(self.program, self.shapes, {**self.given, name: given}, self.trusted)

    def check(self) -> None:
        """Evaluate the requirements, then every argument and fact. Raises Refusal with all that fails.

        An unmet requirement explains the missing tensors that follow from it, so those are reported only when every
        requirement is met.
        """
        broken, unclear = Report(), Report()
        for expr, reason in self.spec.require:
            try:
                if not self.evaluate(expr):
                    broken.add(expr.span, reason, "unmet-requirement", explanation(self, expr))
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
    """The given value as the type of the default; an int is accepted for a float. Raises Refusal: `wrong-type`."""
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
                f"{name} = {value!r} ({given.place}) is {_TYPES.get(type(value), 'of another type')}, "
                f"but must be {_TYPES.get(type(default), 'of the type of the default')}",
                "wrong-type",
                f"the default is {default!r}",
            )
        ]
    )


_TYPES: dict[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "a mapping",
}


def reads_data(program: Program) -> frozenset[str]:
    """The facts that compare the data of tensors, or depend on one that does."""
    facts = program.spec.facts
    found = {name for name, fact in facts.items() if any(function == "equal" for function, _, _ in fact.asked)}
    while more := {name for name, fact in facts.items() if name not in found and fact.names & found}:
        found |= more
    return frozenset(found)


def unfounded(program: Program, given: Mapping[str, object]) -> frozenset[str]:
    """The facts that depend, directly or through other facts, on an argument without a given value."""
    spec = program.spec
    loose: Set[str] = {n for n, a in spec.arguments.items() if n not in given and a.derive is None}
    loose |= reads_data(program)
    while more := {name for name, fact in spec.facts.items() if name not in loose and fact.names & loose}:
        loose |= more
    return frozenset(loose & spec.facts.keys())


def check_given(program: Program, names: Mapping[str, Any]) -> None:
    """Raises Refusal for a `--set` of a name that the spec does not have."""
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
