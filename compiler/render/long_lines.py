"""Lays out statements that do not fit on a line, where ruff would take a line for each part of them.

A requirement takes a line for its condition, or for each operand of it, and one for its reason; a choice one for each case.
ruff leaves them as they are: `# fmt: skip`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

LINE = 120  # columns
WIDEST = 320  # the longest line that ruff formats


def packed(entries: Iterable[str], columns: int) -> list[str]:
    """The entries, each with a comma, as many on each line as fit."""
    lines = [""]
    for entry in entries:
        if lines[-1] and len(lines[-1]) + len(entry) + 1 > columns:
            lines.append("")
        lines[-1] += f"{entry}, "
    return [line.rstrip() for line in lines]


def loop_over(names: Iterable[str]) -> str:
    """The header of a loop over some names; none where there are no names."""
    first, *others = packed((f'"{name}"' for name in names), LINE - 20)
    if not first:
        return ""
    lines = [f"for name in ({first}", *(f"                 {line}" for line in others)]
    lines[-1] = f"{lines[-1] if len(lines) == 1 and first.count(',') == 1 else lines[-1].rstrip(',')}):"
    return "\n".join(lines) + ("  # fmt: skip" if others else "")


def shortened(text: str) -> str:
    """The code, with each statement that is one long line on several, if this module knows how."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.stmt) and len(line := lines[node.lineno - 1]) > LINE and node.lineno == node.end_lineno:
            laid_out = [" " * node.col_offset + part for part in _laid_out(node, line.strip())]
            if laid_out and max(map(len, laid_out)) <= LINE and _same("\n".join(laid_out), line):
                lines[node.lineno - 1] = "\n".join(laid_out) + "  # fmt: skip"
    return "\n".join(lines) + "\n"


def _same(one: str, other: str) -> bool:
    """Whether two texts are the same code; false for a line with a comment, which would be lost."""
    return "#" not in other and ast.dump(ast.parse(one.strip())) == ast.dump(ast.parse(other.strip()))


def _laid_out(node: ast.stmt, code: str) -> Iterator[str]:
    """The lines of a statement, without its indentation; none for a kind that is left to ruff."""

    def text(start: ast.expr, end: ast.expr | None = None) -> str:
        first, last = start.col_offset, (end or start).end_col_offset or 0
        return code.encode()[first - node.col_offset : last - node.col_offset].decode()

    match node:
        case ast.Expr(ast.Call(ast.Name("require"), [condition, reason])):
            whole = text(condition, reason).rpartition(text(reason))[0].rstrip()  # with parentheses and the comma
            word = " and " if isinstance(condition, ast.BoolOp) and isinstance(condition.op, ast.And) else " or "
            long = isinstance(condition, ast.BoolOp) and node.col_offset + len("require(") + len(whole) > LINE
            first, *others = whole.split(word) if long else [whole]
            yield f"require({first}"
            for other in others:
                yield f"        {word.strip()} {other}"
            yield f"        {text(reason)})"
        case ast.Expr(ast.Yield(ast.Tuple([name, tensor]))):
            yield f"yield ({text(name)},"
            yield f"       {text(tensor)})"
        case ast.Assign([target], ast.IfExp() as choice):
            yield f"{text(target)} = ("
            rest: ast.expr = choice
            while isinstance(rest, ast.IfExp):
                yield f"    {text(rest.body)} if {text(rest.test)} else"
                rest = rest.orelse
            yield f"    {text(rest)}"
            yield ")"
