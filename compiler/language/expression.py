"""Expressions: a whitelisted Python syntax tree, its checks and its evaluator.

Allowed are names, numbers, strings, lists and dicts of them, arithmetic, comparison, `and or not in is`, `a if c else
b`, subscripts, and the functions of `FUNCTIONS`. mapspec evaluates the tree itself and prints the same tree as Python
into generated code. The sizes of texts, numbers and results are bounded. Raises Refusal at the part at fault.
"""

from __future__ import annotations

import ast
import math
import operator
import re
import warnings
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn, Protocol

from compiler.diagnostics import Refusal, Span, nearest, refuse

MAX_TEXT = 2_000
MAX_DEPTH = 40
MAX_BITS = 256
MAX_LENGTH = 100_000
# Functions that read the checkpoint: names and shapes, and `equal` the data of two tensors.
ASKING = frozenset(["dim", "count", "exists", "equal"])
_BARE_NAME = re.compile(r"\b(?:dim|count|exists|equal)\(\s*([A-Za-z_{][\w.{}|:]*\.[\w.{}|:]*)")
_ASSIGNED = re.compile(r"(?<![=<>!])=(?!=)")

# Function -> number of arguments; None: one or more.
FUNCTIONS = {
    "round_up": 2, "ceil": 1, "log2": 1, "min": None, "max": None, "int": 1, "len": 1, "dim": 2, "count": 1, "exists": 1,
    "equal": 2,
}  # fmt: skip
_USES = {
    "dim": 'as in dim("layers.0.norm.weight", 0), the length of axis 0',
    "count": 'as in count("layers.{i}.norm.weight")',
    "exists": 'as in exists("layers.0.norm.weight")',
    "round_up": "as in round_up(rows, 64)",
    "equal": 'as in equal("output.weight", "tok_embeddings.weight")',
}


class Shapes(Protocol):
    """What `dim`, `count`, `exists` and `equal` ask of a checkpoint. Raises LookupError for what it cannot answer."""

    def dim(self, name: str, axis: int) -> int: ...
    def count(self, pattern: str) -> int: ...
    def exists(self, pattern: str) -> bool: ...
    def equal(self, one: str, other: str) -> bool: ...


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
    "log2": math.log2,
    "min": min,
    "max": max,
    "int": int,
    "len": len,
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
        found = (n.id for n in ast.walk(self.tree) if isinstance(n, ast.Name) and id(n) not in called)
        return frozenset(found) - self.indices

    @cached_property
    def indices(self) -> frozenset[str]:
        """The indices that its lists run over: `i` of `[i * 2 for i in range(n)]`."""
        return frozenset(
            n.target.id
            for n in ast.walk(self.tree)
            if isinstance(n, ast.comprehension) and isinstance(n.target, ast.Name)
        )

    @cached_property
    def asked(self) -> tuple[tuple[str, str, Span], ...]:
        """(function, name or pattern, place) of each call of `ASKING`, once for each alternative."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ASKING:
                for text in (arg for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)):
                    span = self.at(text).within(1, len(str(text.value)))
                    found += [(node.func.id, name, span) for name in alternatives(str(text.value))]
        return tuple(found)

    def at(self, node: ast.AST) -> Span:
        start = getattr(node, "col_offset", 1) - 1  # the text is parsed inside a parenthesis
        end = getattr(node, "end_col_offset", start + 2) - 1
        # Offsets count UTF-8 bytes; a caret counts characters.
        before = self.text.encode()[: max(0, start)].decode(errors="ignore")
        return self.span.within(len(before), max(1, end - start))

    def evaluate(self, names: Mapping[str, Any], shapes: Shapes) -> Any:
        """The value. Raises Refusal at the part that fails."""
        return ExpressionEvaluator(self.at, names, shapes).value(self.tree)

    def name_span(self, name: str) -> Span:
        """The place of a free name."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Name) and node.id == name:
                return self.at(node)
        return self.span


def parse_expr(text: str, span: Span) -> Expr:
    """Check a text and return its expression. Raises Refusal."""
    expr = Expr(text, span)
    _check(expr, expr.tree, 0)
    return expr


def alternatives(text: str) -> list[str]:
    """The names that `conv.weight_g|conv.weight` stands for; a `|` within braces or in a regular expression is theirs."""
    if len(text) > 1 and text.startswith("/") and text.endswith("/"):
        return [text]
    found, depth = [""], 0
    for char in text:
        depth += (char == "{") - (char == "}")
        if char == "|" and depth == 0:
            found.append("")
        else:
            found[-1] += char
    return found


def filled(text: str, indices: Mapping[str, Any]) -> str:
    """A name pattern with numbers for the indices of a list: `{i}`, and `{i+1}` for a shifted one."""
    for name, value in indices.items():
        if isinstance(value, int):
            shifted = re.compile(rf"\{{{name}(?:([+-]\d{{1,6}}))?\}}")
            text = shifted.sub(lambda at, value=value: str(value + int(at[1] or 0)), text)  # type: ignore[misc]
    return text


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
        hint = f"arithmetic, comparison, lists and the functions {', '.join(FUNCTIONS)}"
        if bare := _BARE_NAME.search(text):
            where, hint = (
                span.within(bare.start(1), len(bare[1])),
                f'put the name of a tensor in quotes: "{bare[1]}"',
            )
        elif "instead of '='" in message and (sign := _ASSIGNED.search(text)):
            where, message, hint = span.within(sign.start()), "'=' does not compare", "write =="
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
            refuse(expr.at(key or node), "the key of a dict must be a quoted string", "expression-syntax", hint)
        case ast.Subscript(value=value, slice=ast.Slice(lower=lower, upper=upper, step=None)):
            children = [value, *(bound for bound in (lower, upper) if bound is not None)]
        case ast.Subscript(value=value, slice=key) if not isinstance(key, ast.Slice | ast.Tuple):
            children = [value, key]
        case ast.ListComp(elt=element, generators=[one]):
            children = _check_list(expr, node, element, one, depth)
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


def _check_list(expr: Expr, node: ast.AST, element: ast.expr, one: ast.comprehension, depth: int) -> list[ast.AST]:
    """`[element for i in range(n) if condition]`: one index, over a range or a list, without another list in it."""
    use = "as in [2 * i for i in range(n_layers)]"
    if not isinstance(one.target, ast.Name) or one.is_async or len(one.ifs) > 1:
        refuse(expr.at(node), "a list is built over one index, with at most one condition", "expression-syntax", use)
    inner = [element, *one.ifs]
    if any(isinstance(n, ast.ListComp) for part in inner for n in ast.walk(part)):
        refuse(expr.at(node), "a list that is built inside another", "expression-syntax", "make the inner list a fact")
    match one.iter:
        case ast.Call(func=ast.Name(id="range"), args=[_] | [_, _] as bounds, keywords=[]):
            return [*inner, *bounds]
        case ast.Call(func=ast.Name(id="range")):
            refuse(expr.at(one.iter), "range takes one or two bounds", "expression-syntax", use)
    return [*inner, one.iter]


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
    for arg in (args if name == "equal" else args[:1]) if name in ASKING else ():
        if not (isinstance(arg, ast.Constant) and isinstance(arg.value, str)):
            refuse(expr.at(arg), f"{name} takes a tensor name written as a string", "expression-syntax", _USES[name])
    return [*args]


# ---------------------------------------------------------------------------------------------------------------------
# The value


class ExpressionEvaluator:
    """Evaluates a checked tree; `at` gives the place of a node."""

    def __init__(self, at: Callable[[ast.AST], Span], names: Mapping[str, Any], shapes: Shapes) -> None:
        self.at, self.names, self.shapes = at, names, shapes
        self.indices: dict[str, Any] = {}  # of the list that is being built

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
                    self.fail(node, f"unknown name {name!r}", "unknown-name", nearest(name, self.names))
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
            case ast.Subscript(value=value, slice=ast.Slice(lower=lower, upper=upper)):
                bounds = [None if bound is None else self.value(bound) for bound in (lower, upper)]
                return self.value(value)[bounds[0] : bounds[1]]
            case ast.Subscript(value=value, slice=key):
                return self.value(value)[self.value(key)]
            case ast.ListComp(elt=element, generators=[one]):
                return self.each(node, element, one)
            case ast.Call(func=ast.Name(id=name), args=args):
                values_ = [self.value(arg) for arg in args]
                if name not in ASKING:
                    return PURE[name](*values_)
                try:
                    return self.asked(name, [filled(v, self.indices) if isinstance(v, str) else v for v in values_])
                except LookupError as error:
                    self.fail(node, str(error.args[0]), "missing-tensor")
        raise TypeError(f"unchecked node {node!r}")

    def asked(self, name: str, values: list[Any]) -> Any:
        """The answer of the checkpoint: of `dim` for the first alternative that exists. Raises LookupError."""
        names = alternatives(values[0])
        if name == "equal":
            return self.shapes.equal(*values)
        if name == "dim":
            return self.shapes.dim(
                next((n for n in names if len(names) > 1 and self.shapes.exists(n)), names[0]), values[1]
            )
        found = (getattr(self.shapes, name)(one) for one in names)
        return any(found) if name == "exists" else sum(found)

    def each(self, node: ast.AST, element: ast.expr, one: ast.comprehension) -> list[Any]:
        """The list that runs over an index."""
        assert isinstance(one.target, ast.Name)
        match one.iter:
            case ast.Call(func=ast.Name(id="range"), args=bounds):
                over: Any = range(*(self.value(bound) for bound in bounds))
            case _:
                over = self.value(one.iter)
        if not isinstance(over, range | list) or len(over) > MAX_LENGTH:
            self.fail(node, f"{ast.unparse(one.iter)} is not a list, or too long")
        found = []
        outer = self.names
        try:
            for value in over:
                self.indices = {one.target.id: value}
                self.names = ChainMap(self.indices, outer)  # type: ignore[arg-type]
                if all(self.value(condition) for condition in one.ifs):
                    found.append(self.value(element))
        finally:
            self.names, self.indices = outer, {}
        return found

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
