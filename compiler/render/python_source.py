"""Names, constants and expressions of a spec as Python text.

Every value from a spec enters generated code through this module: names as checked attributes, constants by `repr`,
regular expressions as raw literals. No text of a spec is copied into code as it is.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from compiler.diagnostics import Span
from compiler.language.expression import ASKING, Expr, alternatives
from compiler.language.name_pattern import Hole, Pattern, regex_of
from compiler.language.name_pattern_parser import parse_pattern
from compiler.ops.algebra import Size


def raw(text: str) -> str:
    """A literal for a regular expression: r"..." where that is possible, else an ordinary string literal."""
    literal = f'r"{text}"'
    try:
        plain = "\\" in text and text.isprintable()  # some unprintable characters end a line
        return literal if plain and ast.literal_eval(literal) == text else quoted(text)
    except (SyntaxError, ValueError):
        return quoted(text)


def quoted(text: str) -> str:
    """A string literal in double quotes where that needs no more escapes."""
    literal = repr(text)
    return f'"{literal[1:-1]}"' if literal[0] == "'" and '"' not in literal else literal


def inside(text: str) -> str:
    """The text as it is written between the double quotes of a literal that is not raw."""
    literal = repr(text)
    return literal[1:-1] if literal[0] == '"' else literal[1:-1].replace('"', '\\"')


def in_f_string(text: str) -> str:
    """The text as it is written between the double quotes of an f-string."""
    return inside(text).replace("{", "{{").replace("}", "}}")


def names_regex(pattern: Pattern, captured: Collection[str] = ()) -> str:
    """The regular expression of a pattern, with a named group only for the holes in `captured`."""
    return "".join(
        regex_of(part)
        if not isinstance(part, Hole) or part.name in captured
        else part.regex
        if part.is_index
        else f"(?:{part.regex})"
        for part in pattern.parts
    )


def opposite(condition: str, other: str) -> bool:
    """Whether `other` is `not condition`."""
    tree = ast.parse(other or "0", mode="eval").body
    if not isinstance(tree, ast.UnaryOp) or not isinstance(tree.op, ast.Not) or not condition:
        return False
    return ast.dump(tree.operand) == ast.dump(ast.parse(condition, mode="eval").body)


def comment(text: str) -> str:
    """The text as a one-line comment."""
    return f"# {inside(' '.join(text.split()))}"


def literal(value: Any) -> str:
    """A constant of a spec as Python. Raises TypeError for a type that YAML does not have."""
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
    """The code that writes a name. `hole` returns the expression of each hole."""
    parts = []
    for part in pattern.parts:
        if isinstance(part, Hole):
            parts.append("{" + hole(part) + "}")
        elif isinstance(part, str):
            parts.append(in_f_string(part))
        else:
            parts.append(pattern.fill({}))
    return 'f"' + "".join(parts) + '"' if any("{" in p for p in parts) else '"' + "".join(parts) + '"'


# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class ExprPrinter:
    """Prints expressions. Names become attributes of `holder`, or stay bare where that is empty. `helpers` collects the
    helper functions that the printed code calls."""

    holder: str
    helpers: set[str] = field(default_factory=set)
    index: str = ""  # the name of an index; it is printed as `variable`
    variable: str = ""

    def __call__(self, expr: Expr) -> str:
        return self.code(expr.tree)

    def code(self, tree: ast.expr) -> str:
        """A part of an expression as text."""
        return ast.unparse(ast.fix_missing_locations(_Rewriter(self).visit(copy.deepcopy(tree))))

    def size(self, size: Size) -> str:
        return self(size) if isinstance(size, Expr) else repr(size)


class _Rewriter(ast.NodeTransformer):
    def __init__(self, printer: ExprPrinter) -> None:
        self.printer = printer
        self.element = ""  # the index of the list that is being printed

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id == self.element:
            return node
        if node.id == self.printer.index:
            return ast.Name(self.printer.variable, ast.Load())
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
            texts = [str(a.value) for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            return self.asked(name, texts, node.args[1:])
        node.args = [self.visit(arg) for arg in node.args]
        if name in ("ceil", "log2"):
            node.func = ast.Attribute(ast.Name("math", ast.Load()), name, ast.Load())
        elif name == "round_up":  # -(-value // multiple) * multiple
            value, multiple = node.args
            floor = ast.BinOp(ast.UnaryOp(ast.USub(), value), ast.FloorDiv(), multiple)
            return ast.BinOp(ast.UnaryOp(ast.USub(), floor), ast.Mult(), copy.deepcopy(multiple))
        return node

    def visit_ListComp(self, node: ast.ListComp) -> ast.AST:
        """The index of a list stays a bare name; `range` stays Python's."""
        one = node.generators[0]
        assert isinstance(one.target, ast.Name)
        match one.iter:
            case ast.Call(func=ast.Name(id="range") as function, args=bounds):
                one.iter = ast.Call(function, [self.visit(bound) for bound in bounds], [])
            case _:
                one.iter = self.visit(one.iter)
        self.element = one.target.id
        one.ifs, node.elt = [self.visit(condition) for condition in one.ifs], self.visit(node.elt)
        self.element = ""
        return node

    def asked(self, name: str, texts: list[str], rest: list[ast.expr]) -> ast.expr:
        shapes = ast.Name("shapes", ast.Load())
        if name == "equal":
            return self.equal(*map(self.named, texts))
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

    def equal(self, one: ast.expr, other: ast.expr) -> ast.expr:
        """Whether both tensors are there and have the same bits; `source` must be in reach of the code."""
        self.printer.helpers |= {"same", "equal"}
        source = ast.Name("source", ast.Load())
        there: list[ast.expr] = [ast.Compare(name, [ast.In()], [source]) for name in (one, other)]
        tensors: list[ast.expr] = [ast.Subscript(source, name, ast.Load()) for name in (one, other)]
        return ast.BoolOp(ast.And(), [*there, ast.Call(ast.Name("same", ast.Load()), tensors, [])])

    def named(self, text: str) -> ast.expr:
        """The name of a tensor: a literal, or an f-string over the index of a list."""
        pattern = parse_pattern(text, Span(""))
        if pattern.is_name:
            return ast.Constant(text)

        def number(hole: Hole) -> str:
            return f"{hole.name}{hole.shift:+d}" if hole.shift else hole.name

        return ast.parse(f_string(pattern, number), mode="eval").body

    def counted(self, name: str, text: str) -> ast.expr:
        """One alternative of `exists` or `count`."""
        shapes, pattern = ast.Name("shapes", ast.Load()), parse_pattern(text, Span(""))
        if name == "exists" and (pattern.is_name or self.element in pattern.holes):
            return ast.Compare(self.named(text), [ast.In()], [shapes])
        self.printer.helpers.add("matches")
        regex = ast.Name(raw(names_regex(pattern)), ast.Load())  # a name is printed as it is: a raw literal stays one
        call = ast.Call(ast.Name("matches", ast.Load()), [shapes, regex], [])
        return ast.Call(ast.Name("len" if name == "count" else "bool", ast.Load()), [call], [])
