"""Config values that a target class rejects, and config fields that are not filled, located in the spec.

Takes a Program and a config; returns diagnostics at the argument, the example or the config field at fault.
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


def config_fault(
    program: Program, example: Mapping[str, Any], config: Mapping[str, Any], found: Diagnostic
) -> Diagnostic:
    """The class's rejection of a config, moved to the place of the value at fault where that can be determined."""
    if found.kind != "unbuildable-target":
        return found
    spec = program.spec
    name = spec.target.class_name
    for field in spec.config:
        value, word = config.get(field.name), field.carried
        if isinstance(value, str) and word and _NUMERIC.fullmatch(value):
            message = f"{name} rejects {field.name} = {value!r}: a string, not a number"
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
            message = f"{name} rejects {field.name} = {value!r}: not an integer"
            return replace(found, span=expr.span, message=message, hint="use // for integer division")
    named = _FIELD.search(found.message)
    at = next((field.span for field in spec.config if named and field.name == named[1]), None)
    return replace(found, span=at) if at else found


def _divides(tree: ast.AST) -> bool:
    return any(isinstance(node, ast.Div) for node in ast.walk(tree))


def _origin(program: Program, example: Mapping[str, Any], word: str) -> Span:
    """The place of a name's value: in the example, or where the name is defined."""
    spec = program.spec
    for one in spec.examples:
        if word in one and one[word][0] == example.get(word):
            return one[word][1]
    return spec.arguments[word].span if word in spec.arguments else spec.facts[word].span


def unfilled_fields(program: Program, fields: Collection[str]) -> Iterator[Diagnostic]:
    """Warns about an argument with the name of a target config field that neither `config` nor `require` uses: the class
    would silently use its own default."""
    spec = program.spec
    filled = {field.name for field in spec.config} | {field.carried for field in spec.config}
    required = {name for expr, _ in spec.require for name in expr.names}
    for name, argument in spec.arguments.items():
        if name in fields and name not in filled and name not in required:
            message = f"{spec.target.class_name} has a config field {name!r}, but the argument does not fill it"
            hint = "add it under config: copy, or require the value that is the class's default"
            yield Diagnostic(argument.span, message, "unfilled-field", hint, warning=True)
