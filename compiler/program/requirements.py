"""Why a requirement of a spec fails: the values of what it names, and other values of an argument with which it would hold."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from compiler.diagnostics import Refusal, listed
from compiler.language.expression import Expr, Shapes, alternatives
from compiler.language.spec import Spec


class Placed(Protocol):
    """A value, and where it is from."""

    @property
    def place(self) -> str: ...


class Values(Protocol):
    """The environment in which a requirement was evaluated."""

    spec: Spec
    shapes: Shapes

    @property
    def arguments(self) -> Mapping[str, Placed]: ...
    def __getitem__(self, name: str) -> Any: ...
    def evaluate(self, expr: Expr) -> Any: ...
    def with_value(self, name: str, value: Any) -> Values: ...


_LARGEST = 256  # integers that are tried
_MOST = 6  # values that are shown


def explanation(env: Values, expr: Expr) -> str:
    """`required: width % n_heads == 0, where width = 64, n_heads = 3 (--set); it holds for n_heads = 2, 4 or 8`."""
    text = f"required: {expr.text}"
    if values := list(_values(env, expr)):
        text += f", where {listed(values, _MOST)}"
    if fitting := list(_alternatives(env, expr)):
        text += f"; it holds for {' or for '.join(fitting[:2])}"
    return text


def _values(env: Values, expr: Expr) -> Iterator[str]:
    """Each name of an expression with its value, and where an argument has it from; each size that it measures."""
    for name in sorted(expr.names, key=expr.text.index):
        try:
            value = env[name]
        except Refusal:
            continue
        known = env.arguments.get(name)
        yield f"{name} = {value!r}" + (f" ({known.place.rstrip(',')})" if known else "")
    for node in ast.walk(expr.tree):
        match node:
            case ast.Call(func=ast.Name(id="dim" | "count"), args=[ast.Constant(value=str()), *_]):
                try:
                    yield f"{_written(node)} = {env.evaluate(Expr(ast.unparse(node), expr.span))}"
                except Refusal:
                    continue
            case ast.Call(func=ast.Name(id="exists"), args=[ast.Constant(value=str(pattern))]):
                if found := [name for name in alternatives(pattern) if env.shapes.exists(name)]:
                    yield f"the checkpoint has {found[0]}"


def _written(node: ast.AST) -> str:
    """A call as specs write it, with double quotes."""
    return ast.unparse(node).replace("'", '"')


def _alternatives(env: Values, expr: Expr) -> Iterator[str]:
    """For each argument that the expression depends on: the values with which all requirements hold."""
    if getattr(env.shapes, "holds", None) is not None:  # the shapes of an example, which follow from its values
        return
    for name in _arguments(env, expr):
        fitting = [value for value in _candidates(expr, env[name]) if _holds(env, name, value)]
        if fitting and isinstance(env[name], int) and not isinstance(env[name], bool):
            fitting = sorted(sorted(fitting, key=lambda value: abs(value - env[name]))[:_MOST])
        if fitting:
            *first, last = map(repr, fitting[:_MOST])
            yield f"{name} = {' or '.join([', '.join(first), last] if first else [last])}"


def _arguments(env: Values, expr: Expr) -> list[str]:
    """The arguments that an expression reads, directly or through facts, as far as they have values."""
    found, waiting = [], sorted(expr.names, key=expr.text.index)
    for name in waiting:
        if name in env.spec.arguments and name in env.arguments:
            found.append(name)
        elif name in env.spec.facts:
            waiting += [other for other in sorted(env.spec.facts[name].names) if other not in waiting]
    return found


def _candidates(expr: Expr, value: Any) -> Iterable[Any]:
    """Values to try instead of `value`: the constants of the expression that have its type, and small integers."""
    if isinstance(value, bool):
        return [not value]
    constants = [node.value for node in ast.walk(expr.tree) if isinstance(node, ast.Constant)]
    if value is None:
        return []
    same = dict.fromkeys(c for c in constants if type(c) is type(value) and c != value)
    if isinstance(value, int):
        return [n for n in range(1, _LARGEST + 1) if n != value]
    return [*same, *([None] if None in constants else [])]


def _holds(env: Values, name: str, value: Any) -> bool:
    """Whether all requirements hold with another value of an argument."""
    other = env.with_value(name, value)
    try:
        return all(other.evaluate(expr) for expr, _ in env.spec.require)
    except Refusal:
        return False
