"""Checks the RoPE scaling that a spec writes as a dictionary: keys that the kind of scaling lacks or needs.

Transformers reads these keys by name, ignores others, and takes a default for most that are absent. The dictionaries of
all branches are checked, also of those that no example takes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from compiler.diagnostics import Diagnostic, Span, listed, nearest
from compiler.language.expression import Expr
from compiler.program.program import Program
from compiler.target.config_dialects import FULL, ORIGINAL, SHARE, SLIDING, THETA
from compiler.target.rope_keys import rope_keys

FIELDS = ("rope_scaling", "rope_parameters")
_KINDS = ("rope_type", "type")
_ELSEWHERE = (*_KINDS, THETA[0])  # checked or given on their own
# Keys that any kind may have.
_ANYWHERE = (*_ELSEWHERE, ORIGINAL, SHARE[0], "mrope_section")


def scaling_faults(program: Program) -> Iterator[Diagnostic]:
    """Errors: `unknown-field`, `unfilled-field`, `wrong-type`, `wrong-value`. An unknown kind may have any keys."""
    for field in program.spec.config:
        if field.name not in FIELDS:
            continue
        if field.expr is None:
            if isinstance(field.constant, Mapping):
                yield from _faults(field.name, field.constant, {}, field.span)
            continue
        for expr, node in _dictionaries(program, field.expr, field.expr.tree, frozenset()):
            known: dict[str, Any] = {}
            places: dict[str, Span] = {}
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    known[key.value] = value.value if isinstance(value, ast.Constant) else value
                    places[key.value] = expr.at(key)
            if len(known) == len(node.keys):
                yield from _faults(field.name, known, places, expr.at(node))


def _dictionaries(
    program: Program, expr: Expr, node: ast.expr, seen: frozenset[str]
) -> Iterator[tuple[Expr, ast.Dict]]:
    """The dictionaries that an expression may have as its value, each with the expression that it is written in."""
    match node:
        case ast.Dict():
            names = [key.value for key in node.keys if isinstance(key, ast.Constant)]
            if {*names} & {FULL, SLIDING}:
                for value in node.values:
                    yield from _dictionaries(program, expr, value, seen)
            else:
                yield expr, node
        case ast.IfExp(body=body, orelse=other):
            yield from _dictionaries(program, expr, body, seen)
            yield from _dictionaries(program, expr, other, seen)
        case ast.BoolOp(values=values):
            for value in values:
                yield from _dictionaries(program, expr, value, seen)
        case ast.Name(id=name) if name in program.spec.facts and name not in seen:
            fact = program.spec.facts[name]
            yield from _dictionaries(program, fact, fact.tree, seen | {name})


def _faults(field: str, known: Mapping[str, Any], places: Mapping[str, Span], whole: Span) -> Iterator[Diagnostic]:
    """The faults of one dictionary; `known` has an expression where a value is not written out."""
    kind = next((known[word] for word in _KINDS if word in known), None)
    kinds = rope_keys()
    if not kinds or (isinstance(kind, str) and kind not in kinds):
        return
    every = {key for needed, others in kinds.values() for key in (*needed, *others)}
    needed, others = kinds[kind] if isinstance(kind, str) else ((), tuple(every))
    needed = tuple(key for key in needed if key not in _ELSEWHERE)
    for key in known:
        if key not in (*_ANYWHERE, *needed, *others):
            message = f"{field}: {kind if isinstance(kind, str) else 'no kind of'} scaling has no key {key!r}"
            hint = nearest(key, {*_ANYWHERE, *needed, *others} - known.keys())
            yield Diagnostic(places.get(key, whole), message, "unknown-field", hint)
        elif key not in _KINDS and isinstance(known[key], str):
            yield Diagnostic(places.get(key, whole), f"{field}: {key} is a text, not a number", "wrong-type")
    if kind is None:
        yield Diagnostic(whole, f"{field} has no rope_type, so it would be ignored", "unfilled-field", "name its kind")
    elif not isinstance(kind, str | ast.expr):
        yield Diagnostic(whole, f"{field}: rope_type is {kind!r}, not a text", "wrong-type", f"one of {listed(kinds)}")
    for least, most in (("beta_slow", "beta_fast"), ("low_freq_factor", "high_freq_factor")):
        one, other = known.get(least), known.get(most)
        if (least in known) != (most in known) and {least, most} <= {*needed, *others}:
            message = f"{field} sets only one of {least} and {most}"
            yield Diagnostic(whole, message, "unfilled-field", "set both, even where the default is right")
        if isinstance(one, int | float) and isinstance(other, int | float) and one >= other:
            message = f"{field}: {least} is {one}, which is not below {most} = {other}"
            yield Diagnostic(places.get(least, whole), message, "wrong-value", "are they exchanged?")
    if missing := [key for key in needed if key not in known]:
        message = f"{field}: {kind} scaling needs {listed(missing)}"
        yield Diagnostic(whole, message, "unfilled-field", "set them, even where the default is right")
