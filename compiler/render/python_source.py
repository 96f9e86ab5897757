"""Expressions and ops as Python text, for generated code.

Everything from a spec enters code here: names as checked attributes, constants by `repr`, regular expressions as raw
literals. Nothing is pasted.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from compiler.diagnostics import Span
from compiler.language.expression import ASKING, Expr, alternatives
from compiler.language.name_pattern import Hole, Pattern
from compiler.language.name_pattern_parser import parse_pattern
from compiler.ops.algebra import Size


def raw(text: str) -> str:
    """A literal for a regular expression: r"..." where that spells it, else its repr."""
    literal = f'r"{text}"'
    try:
        plain = "\\" in text and text.isprintable()  # what is not printable may be taken for the end of a line
        return literal if plain and ast.literal_eval(literal) == text else quoted(text)
    except (SyntaxError, ValueError):
        return quoted(text)


def quoted(text: str) -> str:
    """A string literal in double quotes where that needs no more escapes."""
    literal = repr(text)
    return f'"{literal[1:-1]}"' if literal[0] == "'" and '"' not in literal else literal


def inside(text: str) -> str:
    """A text as it stands between the double quotes of a literal that is not raw."""
    literal = repr(text)
    return literal[1:-1] if literal[0] == '"' else literal[1:-1].replace('"', '\\"')


def expansion(pattern: Pattern) -> str:
    """The text for `re.Match.expand` that writes a name; only for patterns whose indices are not shifted."""
    return "".join(
        f"\\g<{p.name}>" if isinstance(p, Hole) else p.replace("\\", "\\\\")
        for p in pattern.parts
        if isinstance(p, (str, Hole))
    )


def literal(value: Any) -> str:
    """A constant of a spec as Python; only what YAML can hold comes here."""
    match value:
        case str():
            return quoted(value)
        case list():
            return f"[{', '.join(map(literal, value))}]"
        case dict():
            return "{" + ", ".join(f"{quoted(str(k))}: {literal(v)}" for k, v in value.items()) + "}"
        case None | bool() | int() | float():
            return repr(value)
    raise TypeError(value)


def f_string(pattern: Pattern, hole: Callable[[Hole], str]) -> str:
    """An f-string that writes a name; `hole` gives the expression of each index."""
    parts = []
    for part in pattern.parts:
        if isinstance(part, Hole):
            parts.append("{" + hole(part) + "}")
        elif isinstance(part, str):
            parts.append(inside(part).replace("{", "{{").replace("}", "}}"))
        else:
            parts.append(pattern.fill({}))
    return 'f"' + "".join(parts) + '"' if any("{" in p for p in parts) else '"' + "".join(parts) + '"'


# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class ExprPrinter:
    """Prints expressions with their names as attributes of `holder` (bare where that is empty); notes the helpers."""

    holder: str
    helpers: set[str] = field(default_factory=set)
    number: str = ""  # the name that is an index, and stands as `n`

    def __call__(self, expr: Expr) -> str:
        return ast.unparse(_Rewriter(self).visit(copy.deepcopy(expr.tree)))

    def refusal(self, expr: Expr) -> str:
        """The condition under which a requirement is broken."""
        tree = copy.deepcopy(expr.tree)
        negated = (
            tree.operand
            if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.Not)
            else ast.UnaryOp(ast.Not(), tree)
        )
        if isinstance(tree, ast.Compare) and len(tree.ops) == 1 and type(tree.ops[0]) in _OPPOSITE:
            negated = ast.Compare(tree.left, [_OPPOSITE[type(tree.ops[0])]()], tree.comparators)
        return ast.unparse(_Rewriter(self).visit(ast.fix_missing_locations(negated)))

    def size(self, size: Size) -> str:
        return self(size) if isinstance(size, Expr) else repr(size)


_OPPOSITE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}


class _Rewriter(ast.NodeTransformer):
    def __init__(self, printer: ExprPrinter) -> None:
        self.printer = printer
        self.index = ""  # of the list that is being printed

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id == self.index:
            return node
        if node.id == self.printer.number:
            return ast.Name("n", ast.Load())
        if not self.printer.holder:
            return node
        return ast.Attribute(ast.Name(self.printer.holder, ast.Load()), node.id, ast.Load())

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        visited = self.generic_visit(node)
        assert isinstance(visited, ast.UnaryOp)
        inner = visited.operand
        if (
            isinstance(visited.op, ast.Not)
            and isinstance(inner, ast.Compare)
            and isinstance(inner.ops[0], ast.In)
            and len(inner.ops) == 1
        ):
            return ast.Compare(inner.left, [ast.NotIn()], inner.comparators)
        return visited

    def visit_Call(self, node: ast.Call) -> ast.AST:
        assert isinstance(node.func, ast.Name)
        name = node.func.id
        if name in ASKING:
            texts = [
                str(arg.value) for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
            ]
            return self.asked(name, texts, [] if name == "equal" else node.args[1:])
        node.args = [self.visit(arg) for arg in node.args]
        if name in ("ceil", "log2"):
            self.printer.helpers.add("math")
            node.func = ast.Attribute(ast.Name("math", ast.Load()), name, ast.Load())
        elif name == "round_up":
            self.printer.helpers.add("round_up")
        return node

    def visit_ListComp(self, node: ast.ListComp) -> ast.AST:
        """The index of a list stays a bare name; `range` stays Python's."""
        one = node.generators[0]
        assert isinstance(one.target, ast.Name)
        over = one.iter
        if isinstance(over, ast.Call) and isinstance(over.func, ast.Name) and over.func.id == "range":
            one.iter = ast.Call(over.func, [self.visit(arg) for arg in over.args], [])
        else:
            one.iter = self.visit(over)
        self.index = one.target.id
        one.ifs, node.elt = [self.visit(condition) for condition in one.ifs], self.visit(node.elt)
        self.index = ""
        return node

    def asked(self, name: str, texts: list[str], rest: list[ast.expr]) -> ast.expr:
        shapes = ast.Name("shapes", ast.Load())
        if name == "equal":
            self.printer.helpers.add("equal")
            source = ast.Name("source", ast.Load())
            return ast.Call(ast.Name("equal", ast.Load()), [source, *map(self.named, texts)], [])
        names = alternatives(texts[0])
        if name == "dim":
            tensor = self.named(names[-1])
            for other in reversed(names[:-1]):
                tensor = ast.IfExp(ast.Compare(self.named(other), [ast.In()], [shapes]), self.named(other), tensor)
            return ast.Subscript(ast.Subscript(shapes, tensor, ast.Load()), self.visit(rest[0]), ast.Load())
        found = [self.counted(name, text) for text in names]
        if name == "exists":
            return found[0] if len(found) == 1 else ast.BoolOp(ast.Or(), found)
        total = found[0]
        for more in found[1:]:
            total = ast.BinOp(total, ast.Add(), more)
        return total

    def named(self, text: str) -> ast.expr:
        """The name of a tensor: a literal, or an f-string over the index of a list."""
        pattern = parse_pattern(text, Span(""))
        if pattern.is_name:
            return ast.Constant(text)

        def index(hole: Hole) -> str:
            return f"{hole.name}{hole.shift:+d}" if hole.shift else hole.name

        return ast.parse(f_string(pattern, index), mode="eval").body

    def counted(self, name: str, text: str) -> ast.expr:
        """One alternative of `exists` or `count`."""
        shapes, pattern = ast.Name("shapes", ast.Load()), parse_pattern(text, Span(""))
        if name == "exists" and (pattern.is_name or self.index in pattern.holes):
            return ast.Compare(self.named(text), [ast.In()], [shapes])
        self.printer.helpers.add("count")
        regex = ast.Name(raw(pattern.regex), ast.Load())  # a name is printed as it stands: a raw literal stays one
        call = ast.Call(ast.Name("count", ast.Load()), [shapes, regex], [])
        return call if name == "count" else ast.Compare(call, [ast.Gt()], [ast.Constant(0)])
