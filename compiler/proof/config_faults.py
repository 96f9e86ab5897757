"""Values that a target class does not take, and fields that nobody fills: where in the spec they come from.

Takes a Program and what was said; returns diagnostics at the argument, the example or the config field that is at fault.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from compiler.diagnostics import Diagnostic, Span
from compiler.program.program import Program

_NUMERIC = re.compile(r"[-+]?[\d.,_]+([eE][-+]?\d+)?")
_FIELD = re.compile(r"[Ff]ield '(\w+)'")


def blamed(program: Program, example: Mapping[str, Any], config: Mapping[str, Any], found: Diagnostic) -> Diagnostic:
    """The class's refusal of a config at the value that it is about, where one can be told; else as it is."""
    if found.kind != "unbuildable-target":
        return found
    spec = program.spec
    name = spec.target.class_name
    for field in spec.config:
        value, word = config.get(field.name), field.carried
        if isinstance(value, str) and word and _NUMERIC.fullmatch(value):
            message = f"{name} takes no {field.name} of {value!r}, which is a text and no number"
            return replace(
                found,
                span=_origin(program, example, word),
                message=message,
                hint="write it without quotes, as in 12 or 1.0e-6",
            )
    for field in spec.config:
        value, word = config.get(field.name), field.carried
        expr = spec.facts.get(word) if word else field.expr
        if isinstance(value, float) and value.is_integer() and expr is not None and _divides(expr.tree):
            message = f"{name} takes no {field.name} of {value!r}, which is no whole number"
            return replace(found, span=expr.span, message=message, hint="// divides into whole numbers, / does not")
    named = _FIELD.search(found.message)
    at = next((field.span for field in spec.config if named and field.name == named[1]), None)
    return replace(found, span=at) if at else found


def _divides(tree: ast.AST) -> bool:
    return any(isinstance(node, ast.Div) for node in ast.walk(tree))


def _origin(program: Program, example: Mapping[str, Any], word: str) -> Span:
    """Where a word has its value from."""
    spec = program.spec
    for one in spec.examples:
        if word in one and one[word][0] == example.get(word):
            return one[word][1]
    return spec.arguments[word].span if word in spec.arguments else spec.facts[word].span


def unwritten(program: Program, fields: Collection[str]) -> Iterator[Diagnostic]:
    """Arguments that are fields of the target, that no config field carries and no requirement holds to a value: the
    class would take its default in silence."""
    spec = program.spec
    filled = {field.name for field in spec.config} | {field.carried for field in spec.config}
    required = {name for expr, _ in spec.require for name in expr.names}
    for name, argument in spec.arguments.items():
        if name in fields and name not in filled and name not in required:
            message = f"{spec.target.class_name} has a field {name!r}, and nothing fills it from the argument"
            hint = "put it under config: copy, or require the one value that the class's default has"
            yield Diagnostic(argument.span, message, "unfilled-field", hint, warning=True)
