"""Statements that do not fit on a line: laid out on few lines, and still the same code."""

from __future__ import annotations

import ast

import pytest

from compiler.render.long_lines import LINE, loop_over, packed, shortened

LONG = "a_rather_long_name_of_a_tensor_in_a_checkpoint"
STATEMENTS = {
    "requirement": (
        f'require(shapes["{LONG}.weight"][0] == f.heads, "the rows of the matrix do not fit the heads")',
        2,
    ),
    "operands": (
        f'require(not f.{LONG} or (f.{LONG}s > 3 and f.other) or f.{LONG}_ is None, "{LONG} does not fit")',
        4,
    ),
    "choice": (
        f'f.kind = "a" if "{LONG}.a.weight" in shapes else "b" if "{LONG}.b.weight" in shapes else (1 or None)',
        5,
    ),
    "yield": (
        f'yield f"model.layers.{{i}}.{LONG}.weight", stack([source.pop(f"{LONG}.{{e}}") for e in range(8)], 0)',
        2,
    ),
    "mapping": (
        f'config["{LONG}"] = {{"{LONG}": f.a, "second": f.b // 2, **(f.more or {{}}), "third": [1, 2], "fourth": None}}',
        3,
    ),
}


@pytest.mark.parametrize("kind", STATEMENTS)
def test_a_long_statement_is_laid_out(kind: str) -> None:
    statement, most = STATEMENTS[kind]
    text = f"def read(f):\n    {statement}\n"
    assert len(f"    {statement}") > LINE
    laid_out = shortened(text)
    assert ast.dump(ast.parse(laid_out)) == ast.dump(ast.parse(text))
    lines = laid_out.splitlines()[1:]
    assert 1 < len(lines) <= most
    assert max(map(len, lines[:-1])) <= LINE
    assert lines[-1].endswith("  # fmt: skip")


@pytest.mark.parametrize(
    "statement",
    [
        'require(short, "fits")',
        f'require({LONG!r} != {LONG!r}, "a comment would be lost")  # {LONG}{LONG}',
        f'found = "a" if ("{LONG}" if f.test else f.other) else "{LONG}" if f.{LONG} else "b"  # fmt: skip',
        f'print("{LONG}", "{LONG}", "a kind of statement that is left to ruff")',
    ],
)
def test_other_statements_stay(statement: str) -> None:
    text = f"def read(f):\n    {statement}\n"
    assert shortened(text) == text


def test_a_condition_with_the_other_operator_inside_is_not_torn() -> None:
    """The words of the outer operator stand in an operand too; what would be other code is left as it is."""
    statement = f'require(f.a or (f.b and [x for x in f.{LONG} if x or f.{LONG}]) or f.{LONG}_third, "no")'
    text = f"def read(f):\n    {statement}\n"
    assert ast.dump(ast.parse(shortened(text))) == ast.dump(ast.parse(text))


def test_tables_outside_functions_stay() -> None:
    text = f'TABLE["{LONG}"] = {{"{LONG}": "{LONG}", "other": "{LONG}"}}\n'
    assert shortened(text) == text


def test_loops_over_names() -> None:
    assert loop_over([]) == ""
    assert loop_over(["a"]) == 'for name in ("a",):'
    assert loop_over(["a", "b"]) == 'for name in ("a", "b"):'
    many = loop_over([f"{LONG}_{n}" for n in range(5)])
    assert max(map(len, many.splitlines())) <= LINE
    tree = ast.parse(f"{many}\n    pass")
    assert isinstance(tree.body[0], ast.For)
    assert ast.literal_eval(tree.body[0].iter) == tuple(f"{LONG}_{n}" for n in range(5))


def test_packed_lines_are_full() -> None:
    lines = packed([f'"{n}": {n}' for n in range(40)], 50)
    assert all(len(line) <= 50 for line in lines)
    assert ast.literal_eval("{" + "".join(lines) + "}") == {str(n): n for n in range(40)}
    assert all(len(line) + len('"99": 99,') + 1 > 50 for line in lines[:-1])
