"""The arguments that make a spec write a given config: its `config` section read backwards.

The value of a field is compared with the form of its expression: a constant must be equal, a name takes the value, a mapping and a list are compared part by
part, and of `A if test else B` the side that can have the value decides the test. What cannot be read backwards is left
open; whoever uses the result evaluates the expressions forward again and compares.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from compiler.program.program import Program

Values = dict[str, Any]


def arguments_of(
    program: Program,
    config: Mapping[str, Any],
    known: Mapping[str, Any],
    recorded: Mapping[str, Any] = MappingProxyType({}),
) -> Values:
    """Values of arguments and facts by name, as far as the expressions of the fields of `config` decide them.

    `known`: values that are not to be changed. `recorded`: values that are kept for a field that can have its value with
    them, since another set of arguments may give the same.
    """
    solver = _Solver({name: argument.default for name, argument in program.spec.arguments.items()})
    found: Values = {}
    for field in program.spec.config:
        if field.expr is not None and field.name in config:
            tree, value, decided = field.expr.tree, config[field.name], {**found, **known}
            solved = solver.solve(tree, value, {**recorded, **decided}) if recorded else None
            found |= solver.solve(tree, value, decided) or {} if solved is None else solved
    return {name: value for name, value in found.items() if name not in known}


def arguments_of_facts(program: Program, facts: Mapping[str, Any], known: Mapping[str, Any]) -> Values:
    """Values of arguments by name under which the expressions of `facts` have their values, as far as those decide them."""
    solver = _Solver({name: argument.default for name, argument in program.spec.arguments.items()})
    found: Values = {}
    for name, value in facts.items():
        found |= solver.solve(program.spec.facts[name].tree, value, {**found, **known}) or {}
    return {name: value for name, value in found.items() if name in program.spec.arguments and name not in known}


class _Solver:
    """Names' values under which an expression has a value; None where it cannot. `defaults`: those of arguments."""

    def __init__(self, defaults: Mapping[str, Any]) -> None:
        self.defaults = defaults

    def solve(self, node: ast.expr, value: Any, known: Values) -> Values | None:
        match node:
            case ast.Constant(value=constant):
                return {} if constant == value and (constant is None) == (value is None) else None
            case ast.Name(id=name):
                return {name: value} if known.get(name, value) == value else None
            case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=str(key))):
                held = known.get(name, {})
                fits = isinstance(held, Mapping) and held.get(key, value) == value
                return {name: {**held, key: value}} if fits else None
            case ast.Dict(keys=keys, values=parts):
                names = [key.value if isinstance(key, ast.Constant) else None for key in keys]
                if not isinstance(value, Mapping) or {*names} != value.keys():
                    return None
                return self.all_of(parts, [value[name] for name in names], known)
            case ast.List(elts=parts):
                fits = isinstance(value, list) and len(parts) == len(value)
                return self.all_of(parts, value, known) if fits else None
            case (
                ast.BinOp(left=inner, op=ast.Mult(), right=ast.Constant(value=1.0))
                | ast.Call(func=ast.Name(id="int"), args=[inner])
            ):
                return self.solve(inner, value, known)
            case ast.BoolOp(op=ast.Or(), values=[first, *_]) if value:
                return self.solve(first, value, known)
            case ast.BoolOp(op=ast.Or(), values=[*others, last]):
                return self.joined(self.outcomes(others, False, known), self.solve(last, value, known))
            case ast.IfExp(test=test, body=body, orelse=orelse):
                for side, outcome in ((body, True), (orelse, False)):
                    solved = self.solve(side, value, known)
                    if solved is not None:
                        decided = self.decide(test, outcome, {**known, **solved})
                        if decided is not None:
                            return {**decided, **solved}
        return None

    def all_of(self, parts: Sequence[ast.expr], values: Sequence[Any], known: Values) -> Values | None:
        found: Values = {}
        for part, value in zip(parts, values, strict=True):
            solved = self.solve(part, value, {**known, **found})
            if solved is None:
                return None
            found |= solved
        return found

    def decide(self, test: ast.expr, outcome: bool, known: Values) -> Values | None:
        """The names' values under which a test has this outcome; None where what is known contradicts it."""
        match test:
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return self.decide(operand, not outcome, known)
            case ast.BoolOp(op=op, values=parts):
                if isinstance(op, ast.And) == outcome:
                    return self.outcomes(parts, outcome, known)
                found = (self.decide(part, outcome, known) for part in parts)
                return next((solved for solved in found if solved is not None), None)
            case ast.Name(id=name):
                if name in known:
                    return {} if bool(known[name]) == outcome else None
                default = self.defaults.get(name)
                return {name: default if bool(default) == outcome else outcome}
            case ast.Compare(left=ast.Name(id=name), ops=[op], comparators=[ast.Constant(value=constant)]):
                equal = isinstance(op, ast.Eq | ast.Is)
                if not equal and not isinstance(op, ast.NotEq | ast.IsNot):
                    return None
                if name in known:
                    return {} if (known[name] == constant) == (equal == outcome) else None
                if equal == outcome:
                    return {name: constant}
                return {name: False} if constant is None else {}  # some value that is not null
        return None

    def outcomes(self, parts: Sequence[ast.expr], outcome: bool, known: Values) -> Values | None:
        found: Values = {}
        for part in parts:
            decided = self.decide(part, outcome, {**known, **found})
            if decided is None:
                return None
            found |= decided
        return found

    def joined(self, one: Values | None, other: Values | None) -> Values | None:
        return None if one is None or other is None else {**one, **other}
