"""Lays out statements that do not fit on a line, where ruff would take a line for each part of them.

A requirement takes a line for its condition, or for each operand of it, and one for its reason; a choice one for each case.
ruff leaves them as they are: `# fmt: skip`.
"""

from __future__ import annotations

import ast
import re
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
    """The code, with each statement of a function that is longer than a line laid out, if this module knows how."""
    lines = text.splitlines()
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    nodes = [node for function in functions for node in ast.walk(function)]
    for node in sorted(
        (node for node in nodes if isinstance(node, ast.Assign | ast.Expr)), key=lambda node: node.lineno, reverse=True
    ):
        place = slice(node.lineno - 1, node.end_lineno)
        code = _on_one_line(lines[place])
        if len(" " * node.col_offset + code) > LINE and "#" not in code:
            laid_out = [" " * node.col_offset + line for line in _laid_out(code)]
            if laid_out and max(map(len, laid_out)) <= LINE and _same("\n".join(laid_out).strip(), ast.unparse(node)):
                lines[place] = [*laid_out[:-1], laid_out[-1] + "  # fmt: skip"]
    return "\n".join(lines) + "\n"


def _on_one_line(lines: list[str]) -> str:
    code = " ".join(line.strip() for line in lines)
    return re.sub(r",? ([)}\]])", r"\1", re.sub(r"([({\[]) ", r"\1", code))


def _same(one: str, other: str) -> bool:
    """Whether two texts are the same code. The text of an operand lacks its parentheses, which may matter."""
    try:
        return ast.dump(ast.parse(one)) == ast.dump(ast.parse(other))
    except SyntaxError:
        return False


def _laid_out(code: str) -> Iterator[str]:
    """The lines of a statement; none for a kind that is left to ruff."""

    def text(part: ast.expr) -> str:
        return ast.get_source_segment(code, part) or ""

    def table(part: ast.expr, room: int = LINE - 12) -> list[str]:
        """An expression on one line, a mapping on several where it is longer than `room`."""
        if len(text(part)) < room or not isinstance(part, ast.Dict):
            return [text(part)]
        pairs = zip(part.keys, part.values, strict=True)
        entries = packed(
            (f"{text(key)}: {text(value)}" if key else f"**({text(value)})" for key, value in pairs), room - 1
        )
        first, *others = [*entries[:-1], entries[-1].rstrip(",") + "}"]
        return ["{" + first, *(f" {line}" for line in others)]

    match ast.parse(code).body[0]:
        case ast.Expr(ast.Call(ast.Name("require"), [condition, reason])):
            whole = code.removeprefix("require(")[
                : -len(text(reason)) - 1
            ].rstrip()  # with its parentheses and the comma
            word = "and" if isinstance(condition, ast.BoolOp) and isinstance(condition.op, ast.And) else "or"
            first, *others = whole.split(f" {word} ") if len(whole) > LINE - 12 else [whole]
            yield f"require({first}"
            yield from (f"        {word} {other}" for other in others)
            yield f"        {text(reason)})"
        case ast.Expr(ast.Yield(ast.Tuple([name, tensor]))):
            yield f"yield ({text(name)},"
            yield f"       {text(tensor)})"
        case ast.Assign([target], ast.Call(ast.Name("len"), [ast.Call(matches, [names, pattern])])):
            yield f"{text(target)} = len({text(matches)}({text(names)},"
            yield f"{' ' * len(text(target))}       {text(pattern)}))"
        case ast.Assign([target], ast.IfExp() as choice):
            yield f"{text(target)} = ("
            rest: ast.expr = choice
            while isinstance(rest, ast.IfExp):
                *lines, last = table(rest.body)
                yield from (f"    {line}" for line in (*lines, f"{last} if {text(rest.test)} else"))
                rest = rest.orelse
            yield from (f"    {line}" for line in table(rest))
            yield ")"
        case ast.Assign([ast.Subscript() as target], ast.Dict() as mapping):
            first, *others = table(mapping, LINE - len(f"    {text(target)} = "))
            yield f"{text(target)} = {first}"
            yield from (f"   {line}" for line in others)


def aligned(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The rows, padded so that their columns are aligned."""
    widths = [max(map(len, column), default=0) for column in zip(*rows, strict=True)]
    return [(row[0], *(" " * (w - len(a)) + b for a, b, w in zip(row, row[1:], widths, strict=False))) for row in rows]
