"""Expressions: the arithmetic of specs, as data.

A whitelisted Python syntax tree: names, numbers, strings, lists and dicts of them, arithmetic, comparison, `and or
not in is`, `a if c else b`, a constant subscript, and the functions of `FUNCTIONS`. We evaluate it ourselves; the same
tree is printed as Python into generated code. Sizes of text, of numbers and of results are bounded.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from compiler.diagnostics import Span, nearest, refuse
from compiler.language.expression_value import ASKING, BINARY, COMPARE, MAX_BITS, UNARY, ExpressionEvaluator, Shapes

MAX_TEXT = 2_000
MAX_DEPTH = 40
_BARE_NAME = re.compile(r"\b(?:dim|count|exists)\(\s*([A-Za-z_{][\w.{}|:]*\.[\w.{}|:]*)")
_ASSIGNED = re.compile(r"(?<![=<>!])=(?!=)")

# What a function takes: positions that must be written as constants, since names are checked at compile time.
FUNCTIONS = {"round_up": 2, "ceil": 1, "min": None, "max": None, "int": 1, "len": 1, "dim": 2, "count": 1, "exists": 1}
_USES = {
    "dim": 'as in dim("layers.0.norm.weight", 0), the length of axis 0',
    "count": 'as in count("layers.{i}.norm.weight")',
    "exists": 'as in exists("layers.0.norm.weight")',
    "round_up": "as in round_up(rows, 64)",
}


@dataclass(frozen=True)
class Expr:
    """A checked expression. Equal texts are equal expressions."""

    text: str
    span: Span

    @cached_property
    def tree(self) -> ast.expr:
        return _parse(self.text, self.span)

    @cached_property
    def names(self) -> frozenset[str]:
        """The free names: arguments and facts that it reads."""
        called = {id(n.func) for n in ast.walk(self.tree) if isinstance(n, ast.Call)}
        return frozenset(n.id for n in ast.walk(self.tree) if isinstance(n, ast.Name) and id(n) not in called)

    @cached_property
    def asked(self) -> tuple[tuple[str, str, Span], ...]:
        """(function, name or pattern, place) for each question to the checkpoint."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ASKING:
                text = node.args[0]
                assert isinstance(text, ast.Constant)
                found.append((node.func.id, str(text.value), self.at(text).within(1, len(str(text.value)))))
        return tuple(found)

    def at(self, node: ast.AST) -> Span:
        start = getattr(node, "col_offset", 1) - 1  # the text is parsed inside a parenthesis
        end = getattr(node, "end_col_offset", start + 2) - 1
        # Offsets count UTF-8 bytes; a caret counts characters.
        before = self.text.encode()[: max(0, start)].decode(errors="ignore")
        return self.span.within(len(before), max(1, end - start))

    def evaluate(self, names: Mapping[str, Any], shapes: Shapes) -> Any:
        """Its value. Raises Refusal with the place of the part that failed."""
        return ExpressionEvaluator(self.at, names, shapes).value(self.tree)

    def name_span(self, name: str) -> Span:
        """Where a free name stands."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Name) and node.id == name:
                return self.at(node)
        return self.span


def parse_expr(text: str, span: Span) -> Expr:
    """Check a text and return its expression. Raises Refusal."""
    expr = Expr(text, span)
    _check(expr, expr.tree, 0)
    return expr


def _parse(text: str, span: Span) -> ast.expr:
    if len(text) > MAX_TEXT:
        refuse(
            span, f"an expression of {len(text):,} characters; at most {MAX_TEXT:,} are read", "oversized-expression"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as `0 is None`: judged by _check, not by CPython's parser
            tree = ast.parse(f"({text}\n)", mode="eval").body
            ast.parse(f"[{text}\n]", mode="eval")  # what leaves one bracket, as in 1)+(1, does not leave the other
            return tree
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        where = span
        if isinstance(error, SyntaxError) and error.lineno == 1 and error.offset:
            where = span.within(max(0, min(error.offset - 2, len(text) - 1)))
        message = error.msg if isinstance(error, SyntaxError) else "nested too deeply"
        hint = "arithmetic, comparison and the functions dim, count, exists, round_up, ceil, min, max, int, len"
        if bare := _BARE_NAME.search(text):
            where, hint = (
                span.within(bare.start(1), len(bare[1])),
                f'the name of a tensor stands in quotes: "{bare[1]}"',
            )
        elif "instead of '='" in message and (sign := _ASSIGNED.search(text)):
            where, message, hint = span.within(sign.start()), "= compares nothing", "write =="
        refuse(where, f"not an expression: {message}", "expression-syntax", hint)


def _check(expr: Expr, node: ast.AST, depth: int) -> None:
    if depth > MAX_DEPTH:
        refuse(expr.span, "an expression nested too deeply", "oversized-expression")
    children: list[ast.AST] = []
    match node:
        case ast.Constant(value=value):
            if not isinstance(value, (bool, int, float, str, type(None))):
                refuse(expr.at(node), f"{value!r} is not a value of this language", "expression-syntax")
            if (isinstance(value, int) and value.bit_length() > MAX_BITS) or (
                isinstance(value, float) and not math.isfinite(value)
            ):
                refuse(expr.at(node), "a number out of range", "expression-value")
        case ast.Name():
            pass
        case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY:
            children = [left, right]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in UNARY:
            children = [operand]
        case ast.BoolOp(values=values):
            children = [*values]
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(o) in COMPARE for o in ops):
            children = [left, *others]
            for before, sign, after in zip(children, ops, others, strict=False):
                if isinstance(sign, ast.Is | ast.IsNot) and not (_is_word(before) or _is_word(after)):
                    hint = f"write {'==' if isinstance(sign, ast.Is) else '!='}"
                    refuse(expr.at(node), "'is' compares with None, True and False only", "expression-syntax", hint)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            children = [test, body, orelse]
        case ast.List(elts=items):
            children = [*items]
        case ast.Dict(keys=keys, values=values) if all(
            isinstance(k, ast.Constant) and isinstance(k.value, str) for k in keys
        ):
            children = [*values]
        case ast.Dict(keys=keys):
            key = next(k for k in keys if not (isinstance(k, ast.Constant) and isinstance(k.value, str)))
            hint = f'as in {{"{key.id if isinstance(key, ast.Name) else "key"}": value}}'
            refuse(expr.at(key or node), "a key of a dict is a text in quotes", "expression-syntax", hint)
        case ast.Subscript(value=value, slice=ast.Constant(value=str() | int())):
            children = [value]
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            children = _check_call(expr, node, name, args)
        case ast.Call(func=ast.Name(id=name)):
            refuse(expr.at(node), f"{name} takes no named arguments", "expression-syntax")
        case _:
            refuse(
                expr.at(node),
                f"{type(node).__name__.lower()} is not part of the expression language",
                "expression-syntax",
                "names, numbers, strings, lists, dicts, arithmetic, comparison, and/or/not, if-else, and calls of known functions",
            )
    for child in children:
        _check(expr, child, depth + 1)


def _is_word(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, bool))


def _check_call(expr: Expr, node: ast.AST, name: str, args: list[ast.expr]) -> list[ast.AST]:
    if name not in FUNCTIONS:
        refuse(
            expr.at(node),
            f"there is no function {name!r}",
            "unknown-function",
            nearest(name, FUNCTIONS) or f"the functions are {', '.join(sorted(FUNCTIONS))}",
        )
    wanted = FUNCTIONS[name]
    if (wanted is not None and len(args) != wanted) or not args:
        refuse(
            expr.at(node),
            f"{name} takes {wanted or 'at least one'} argument{'s' if wanted != 1 else ''}, not {len(args)}",
            "expression-syntax",
            _USES.get(name, ""),
        )
    if name in ASKING and not (isinstance(args[0], ast.Constant) and isinstance(args[0].value, str)):
        refuse(expr.at(args[0]), f"{name} takes a tensor name written as a string", "expression-syntax", _USES[name])
    return [*args]
