"""Expressions and ops as Python text, for generated code.

Everything from a spec enters code here: names as checked attributes, constants by `repr`, regular expressions as raw
literals. Nothing is pasted.
"""

from __future__ import annotations

import ast
import copy
import keyword
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from compiler import ops
from compiler.diagnostics import Span
from compiler.exprs import Expr
from compiler.names import Hole, Pattern, parse_pattern
from compiler.ops import Op, Size
from compiler.program import Rule


def raw(text: str) -> str:
    """A literal for a regular expression: r"..." where that spells it, else its repr."""
    literal = f'r"{text}"'
    try:
        return literal if "\\" in text and ast.literal_eval(literal) == text else quoted(text)
    except (SyntaxError, ValueError):
        return quoted(text)


def quoted(text: str) -> str:
    """A string literal in double quotes where that needs no more escapes."""
    literal = repr(text)
    return f'"{literal[1:-1]}"' if literal[0] == "'" and '"' not in literal else literal


def expansion(pattern: Pattern) -> str:
    """The text for `re.Match.expand` that writes a name; only for patterns whose indices are not shifted."""
    return "".join(
        f"\\g<{p.name}>" if isinstance(p, Hole) else p.replace("\\", "\\\\")
        for p in pattern.parts
        if isinstance(p, (str, Hole))
    )


def shifted(pattern: Pattern) -> bool:
    return any(hole.shift for hole in pattern.holes.values())


def f_string(pattern: Pattern, hole: Callable[[Hole], str]) -> str:
    """An f-string that writes a name; `hole` gives the expression of each index."""
    parts = []
    for part in pattern.parts:
        if isinstance(part, Hole):
            parts.append("{" + hole(part) + "}")
        elif isinstance(part, str):
            parts.append(quoted(part)[1:-1].replace("{", "{{").replace("}", "}}"))
        else:
            parts.append(pattern.fill({}))
    return 'f"' + "".join(parts) + '"' if any("{" in p for p in parts) else '"' + "".join(parts) + '"'


# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class ExprPrinter:
    """Prints expressions with their names as attributes of `holder`; notes which helpers the text needs."""

    holder: str
    helpers: set[str] = field(default_factory=set)

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

    def visit_Name(self, node: ast.Name) -> ast.AST:
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
        if name in ("dim", "count", "exists"):
            text = node.args[0]
            assert isinstance(text, ast.Constant)
            return self.asked(name, str(text.value), node.args[1:])
        node.args = [self.visit(arg) for arg in node.args]
        if name == "ceil":
            self.printer.helpers.add("math")
            node.func = ast.Attribute(ast.Name("math", ast.Load()), "ceil", ast.Load())
        elif name == "round_up":
            self.printer.helpers.add("round_up")
        return node

    def asked(self, name: str, text: str, rest: list[ast.expr]) -> ast.AST:
        shapes, constant = ast.Name("shapes", ast.Load()), ast.Constant(text)
        pattern = parse_pattern(text, Span(""))
        if name == "dim":
            return ast.Subscript(ast.Subscript(shapes, constant, ast.Load()), self.visit(rest[0]), ast.Load())
        if name == "exists" and pattern.is_name:
            return ast.Compare(constant, [ast.In()], [shapes])
        self.printer.helpers.add("count")
        regex = ast.Name(raw(pattern.regex), ast.Load())  # a name is printed as it stands: a raw literal stays one
        call = ast.Call(ast.Name("count", ast.Load()), [shapes, regex], [])
        return call if name == "count" else ast.Compare(call, [ast.Gt()], [ast.Constant(0)])


# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Function:
    """A rule's ops as a function of the converter. `results` name what it returns, in the order of the targets."""

    name: str
    parameters: tuple[tuple[str, str], ...]  # name, annotation
    sizes: tuple[tuple[str, str], ...]  # parameter, the expression that the caller passes
    comments: tuple[str, ...]
    body: tuple[str, ...]
    results: tuple[str, ...]
    returns: str


def print_rule(rule: Rule, printer: ExprPrinter) -> Function:
    """The function that does what `rule` does to its tensors."""
    return _RulePrinter(rule, printer).function()


class _RulePrinter:
    def __init__(self, rule: Rule, printer: ExprPrinter) -> None:
        self.rule, self.printer = rule, printer
        self.passed: dict[str, str] = {}
        self.body: list[str] = []

    def function(self) -> Function:
        rule = self.rule
        names = short_names(rule.sources)
        many = bool(rule.folded)
        parameters = tuple((name, "list[Tensor]" if many else "Tensor") for name in names)
        comments = tuple(f"# {op}" for op, _ in rule.steps if isinstance(op, ops.Rearrange))
        slots = list(names)
        for op, _ in rule.steps:
            slots, many = self.step(op, slots, many)
        one = "list[Tensor]" if many else "Tensor"
        returns = one if len(slots) == 1 else f"tuple[{', '.join([one] * len(slots))}]"
        return Function(
            rule.name, parameters, tuple(self.passed.items()), comments, tuple(self.body), tuple(slots), returns
        )

    def size(self, size: Size) -> str:
        """A literal, or a parameter that carries the value of an expression."""
        if isinstance(size, int):
            return repr(size)
        text = self.printer(size)
        for name, passed in self.passed.items():
            if passed == text:
                return name
        name = size.text if size.text.isidentifier() else f"size_{len(self.passed) + 1}"
        self.passed[name] = text
        return name

    def step(self, op: Op, slots: list[str], many: bool) -> tuple[list[str], bool]:
        match op:
            case ops.Rearrange():
                code = self.rearranged(op)
                for slot in slots:
                    self.body.append(f"{slot} = [t{code} for t in {slot}]" if many else f"{slot} = {slot}{code}")
                return slots, many
            case ops.Cast(dtype=dtype):
                for slot in slots:
                    self.body.append(
                        f"{slot} = [t.to(torch.{dtype}) for t in {slot}]"
                        if many
                        else f"{slot} = {slot}.to(torch.{dtype})"
                    )
                return slots, many
            case ops.Split(axis=axis, parts=parts, sizes=sizes):
                cut = (
                    f".split([{', '.join(map(self.size, sizes))}], dim={axis})"
                    if sizes
                    else f".chunk({parts}, dim={axis})"
                )
                results = (
                    short_names(self.rule.targets)
                    if len(self.rule.targets) == parts
                    else [f"part_{n}" for n in range(parts)]
                )
                value = f"zip(*(t{cut} for t in {slots[0]}), strict=True)" if many else f"{slots[0]}{cut}"
                self.body.append(f"{', '.join(results)} = {value}")
                return results, many
            case ops.Concat(axis=axis):
                joined = ", ".join(slots)
                code = (
                    f"[torch.cat(parts, dim={axis}) for parts in zip({joined}, strict=True)]"
                    if many
                    else f"torch.cat([{joined}], dim={axis})"
                )
                self.body.append(f"joined = {code}")
                return ["joined"], many
            case ops.Stack(axis=axis):
                for slot in slots:
                    self.body.append(f"{slot}_stack = torch.stack({slot}, dim={axis})")
                return [f"{slot}_stack" for slot in slots], False
            case ops.Unstack(axis=axis):
                for slot in slots:
                    self.body.append(f"{slot}_each = list({slot}.unbind({axis}))")
                return [f"{slot}_each" for slot in slots], True
        raise TypeError(op)

    def rearranged(self, op: ops.Rearrange) -> str:
        """`.unflatten(0, (n_heads, -1, 2)).transpose(1, 2).flatten(0, 2)` for the notation."""
        sizes = {name: self.size(size) for name, size in op.sizes}
        text, axis = "", 0
        for group in op.left:
            if len(group) > 1:
                text += f".unflatten({axis}, ({', '.join(sizes.get(name, '-1') for name in group)}))"
            elif not group:
                text += f".squeeze({axis})"
            axis += len(group)
        names = [name for group in op.left for name in group]
        order = [names.index(name) for group in op.right for name in group]
        moved = [n for n, at in enumerate(order) if n != at]
        if len(moved) == 2:
            text += f".transpose({moved[0]}, {moved[1]})"
        elif moved:
            text += f".movedim(({', '.join(str(order[n]) for n in moved)}), ({', '.join(map(str, moved))}))"
        axis = 0
        for group in op.right:
            if len(group) > 1:
                text += f".flatten({axis}, {axis + len(group) - 1})"
            elif not group:
                text += f".unsqueeze({axis})"
            axis += 1
        return text


def short_names(patterns: tuple[Pattern, ...]) -> list[str]:
    """A variable name for each pattern: its last telling component, `q_proj` of `...self_attn.q_proj.weight`."""
    found: list[str] = []
    for pattern in patterns:
        words = [w for w in re.split(r"\.", pattern.fill(dict.fromkeys(pattern.holes, "0"))) if not w.isdecimal()]
        words = [w for w in words if w not in ("weight", "bias")] or words or ["tensor"]
        name = re.sub(r"\W", "_", words[-1])
        name = name if name.isidentifier() and not _is_keyword(name) else f"t_{name}"
        while name in found:
            name += "_"
        found.append(name)
    return found


def _is_keyword(name: str) -> bool:
    return keyword.iskeyword(name) or name in ("torch", "zip", "list", "t", "joined", "math")
