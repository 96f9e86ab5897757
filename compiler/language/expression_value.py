"""The value of a checked expression: our own evaluator, bounded in numbers, texts and lists.

Nothing of Python is called but what the tables below name.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol

from compiler.diagnostics import Refusal, Span, nearest, refuse

MAX_BITS = 256
MAX_LENGTH = 100_000
ASKING = frozenset(["dim", "count", "exists"])


class Shapes(Protocol):
    """What an expression may ask of a checkpoint: names and shapes, never data."""

    def dim(self, name: str, axis: int) -> int: ...
    def count(self, pattern: str) -> int: ...
    def exists(self, pattern: str) -> bool: ...


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `value`."""
    return -(-value // multiple) * multiple


BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
PURE: dict[str, Callable[..., Any]] = {
    "round_up": round_up,
    "ceil": math.ceil,
    "min": min,
    "max": max,
    "int": int,
    "len": len,
}


class ExpressionEvaluator:
    """The value of a checked tree; `at` tells the place of a node."""

    def __init__(self, at: Callable[[ast.AST], Span], names: Mapping[str, Any], shapes: Shapes) -> None:
        self.at, self.names, self.shapes = at, names, shapes

    def fail(self, node: ast.AST, message: str, kind: str = "expression-value", hint: str = "") -> NoReturn:
        refuse(self.at(node), message, kind, hint)

    def value(self, node: ast.AST) -> Any:
        try:
            result = self.compute(node)
        except Refusal:
            raise
        except (ArithmeticError, TypeError, ValueError, LookupError) as error:
            self.fail(node, f"{ast.unparse(node)}: {error}")
        if (
            isinstance(result, complex)  # the root of a negative number
            or (isinstance(result, int) and result.bit_length() > MAX_BITS)
            or (isinstance(result, float) and not math.isfinite(result))
        ):
            self.fail(node, f"{ast.unparse(node)} is out of range")
        if isinstance(result, (str, list, dict)) and len(result) > MAX_LENGTH:
            self.fail(node, f"{ast.unparse(node)} is too long")
        return result

    def compute(self, node: ast.AST) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                if name not in self.names:
                    self.fail(node, f"nothing is called {name!r} here", "unknown-name", nearest(name, self.names))
                return self.names[name]
            case ast.BinOp(left=left, op=op, right=right):
                return self.binary(node, op, self.value(left), self.value(right))
            case ast.UnaryOp(op=op, operand=operand):
                return UNARY[type(op)](self.value(operand))
            case ast.BoolOp(op=op, values=values):
                result = self.value(values[0])
                for other in values[1:]:
                    if bool(result) == isinstance(op, ast.Or):
                        break
                    result = self.value(other)
                return result
            case ast.Compare(left=left, ops=ops, comparators=others):
                a = self.value(left)
                for comparison, other in zip(ops, others, strict=True):
                    b = self.value(other)
                    if not COMPARE[type(comparison)](a, b):
                        return False
                    a = b
                return True
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self.value(body if self.value(test) else orelse)
            case ast.List(elts=items):
                return [self.value(item) for item in items]
            case ast.Dict(keys=keys, values=values):
                return {
                    k.value: self.value(v) for k, v in zip(keys, values, strict=True) if isinstance(k, ast.Constant)
                }
            case ast.Subscript(value=value, slice=ast.Constant(value=key)):
                return self.value(value)[key]
            case ast.Call(func=ast.Name(id=name), args=args):
                function = getattr(self.shapes, name) if name in ASKING else PURE[name]
                values_ = [self.value(arg) for arg in args]
                try:
                    return function(*values_)
                except LookupError as error:
                    self.fail(node, str(error.args[0]), "missing-tensor")
        raise TypeError(f"unchecked node {node!r}")

    def binary(self, node: ast.AST, op: ast.operator, a: Any, b: Any) -> Any:
        if (
            isinstance(op, ast.Pow)
            and isinstance(a, int)
            and isinstance(b, int)
            and abs(a).bit_length() * abs(b) > MAX_BITS
        ):
            self.fail(node, f"{ast.unparse(node)} is out of range")
        if isinstance(op, ast.Mult):
            for thing, times in ((a, b), (b, a)):
                if isinstance(thing, (str, list)) and isinstance(times, int) and len(thing) * times > MAX_LENGTH:
                    self.fail(node, f"{ast.unparse(node)} is too long")
        if isinstance(op, (ast.LShift,)) or (isinstance(op, ast.Mod) and isinstance(a, str)):
            self.fail(node, "text formatting is not part of the expression language")
        return BINARY[type(op)](a, b)
