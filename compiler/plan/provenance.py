"""Where each field of the written config gets its value.

Takes a spec and the environment in which its config was evaluated. An expression is evaluated once more, and the names and
tensors that it reads are recorded; so of `a if c else b` only the branch that was taken counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from compiler.language.expression import Expr, Shapes
from compiler.program.environment import Environment, Origin


@dataclass(frozen=True)
class Provenance:
    """One place that a value comes from: its kind, and what a person calls it (`params.json`, `shape of wte.weight`)."""

    kind: Origin
    text: str


@dataclass
class _AskedShapes:
    """Passes questions on to the checkpoint, and records them as text."""

    shapes: Shapes
    measured: list[str] = field(default_factory=list)
    looked_up: list[str] = field(default_factory=list)

    def dim(self, name: str, axis: int) -> int:
        self.measured.append(f"shape of {name}")
        return self.shapes.dim(name, axis)

    def count(self, pattern: str) -> int:
        self.measured.append(f"number of {pattern}")
        return self.shapes.count(pattern)

    def exists(self, pattern: str) -> bool:
        self.looked_up.append(f"presence of {pattern}")
        return self.shapes.exists(pattern)

    def equal(self, one: str, other: str) -> bool:
        self.looked_up.append(f"comparison of {one} and {other}")
        return self.shapes.equal(one, other)


class _ReadNames(Mapping[str, Any]):
    """Passes names on to the environment, and records them."""

    def __init__(self, env: Environment) -> None:
        self.env = env
        self.names: dict[str, None] = {}

    def __getitem__(self, name: str) -> Any:
        self.names[name] = None
        return self.env[name]

    def __contains__(self, name: object) -> bool:
        return name in self.env

    def __iter__(self) -> Iterator[str]:
        return iter(self.env)

    def __len__(self) -> int:
        return len(self.env)


STATED = Provenance(Origin.SPEC, "spec")


def config_origins(env: Environment) -> dict[str, tuple[Provenance, ...]]:
    """Config field of the spec -> the places that its value comes from, in the order in which they are read."""
    return {
        one.name: tuple(dict.fromkeys(_of_expression(env, one.expr, frozenset()))) if one.expr else (STATED,)
        for one in env.spec.config
    }


def _of_expression(env: Environment, expr: Expr, open_facts: frozenset[str]) -> list[Provenance]:
    """The places of an expression; `open_facts`: those whose own expressions are being looked at."""
    names, shapes = _ReadNames(env), _AskedShapes(env.shapes)
    expr.evaluate(names, shapes)
    read = [name for name in names.names if not _is_absent(env, name)] or [*names.names]
    found = [one for name in read for one in _of_name(env, name, open_facts)]
    # Whether a tensor exists matters only where nothing of it is measured.
    asked = shapes.measured or ([] if names.names else shapes.looked_up)
    return [*(Provenance(Origin.SHAPE, text) for text in asked), *found] or [STATED]


def _is_absent(env: Environment, name: str) -> bool:
    """Whether it is an argument that nothing gives and whose default is null: it decides nothing beside others."""
    argument = env.spec.arguments.get(name)
    return argument is not None and name not in env.given and argument.default is None and argument.derive is None


def _of_name(env: Environment, name: str, open_facts: frozenset[str]) -> list[Provenance]:
    """The places of an argument or a fact."""
    given = env.given.get(name)
    fact = env.spec.facts.get(name)
    if fact is not None and name not in open_facts:
        trusted = given is not None and given.value is not None and name in env.trusted
        if not trusted:
            return _of_expression(env, fact, open_facts | {name})
    if given is not None:
        return [Provenance(given.origin, given.place.rstrip(","))]
    argument = env.spec.arguments.get(name)
    if argument is not None and argument.derive is not None:
        return _of_expression(env, argument.derive, open_facts | {name})
    if argument is not None:
        return [Provenance(Origin.GUESS, "guess") if argument.guess else Provenance(Origin.DEFAULT, "default")]
    return [STATED]
