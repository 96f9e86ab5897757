"""Checks the RoPE scaling that a spec writes as a dictionary: keys that the kind of scaling lacks or needs.

Transformers reads these keys by name, ignores others, and takes a default for most that are absent. The dictionaries of
all branches are checked, also of those that no example takes. Source: `modeling_rope_utils.py` of transformers 4.57.6 and
5.24.0.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from compiler.diagnostics import Diagnostic, Span, listed, nearest
from compiler.language.expression import Expr
from compiler.program.program import Program
from compiler.target.config_dialects import FULL, ORIGINAL, SHARE, SLIDING, THETA

FIELDS = ("rope_scaling", "rope_parameters")
_KINDS = ("rope_type", "type")
_YARN = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
# Kind -> the keys that a spec must write, and those that it may.
KEYS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ("mrope_section",)),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), (ORIGINAL,)),
    "yarn": (("factor", ORIGINAL), _YARN),
    "longrope": (("short_factor", "long_factor"), ("attention_factor", "factor", ORIGINAL)),
    "llama3": (("factor", ORIGINAL, "low_freq_factor", "high_freq_factor"), ()),
}
_ANYWHERE = (*_KINDS, THETA[0], SHARE[0])


def scaling_faults(program: Program) -> Iterator[Diagnostic]:
    """Errors: `unknown-field`, `unfilled-field`, `wrong-type`. Kinds that are not in `KEYS` may have any keys."""
    for field in program.spec.config:
        if field.name not in FIELDS:
            continue
        if field.expr is None:
            if isinstance(field.constant, Mapping):
                yield from _faults(field.name, field.constant, {}, field.span)
            continue
        for expr, node in _dictionaries(program, field.expr, field.expr.tree, frozenset()):
            keys = [(key, value) for key, value in zip(node.keys, node.values, strict=True) if _is_text(key)]
            if len(keys) == len(node.keys):
                texts = [(ast.literal_eval(key), key, value) for key, value in keys if key is not None]
                known = {text: v.value if isinstance(v, ast.Constant) else v for text, _, v in texts}
                yield from _faults(field.name, known, {text: expr.at(key) for text, key, _ in texts}, expr.at(node))


def _is_text(key: ast.expr | None) -> bool:
    return isinstance(key, ast.Constant) and isinstance(key.value, str)


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
    every = {key for needed, others in KEYS.values() for key in (*needed, *others)}
    needed, others = KEYS.get(kind, ((), tuple(every))) if isinstance(kind, str) else ((), tuple(every))
    if isinstance(kind, str) and kind not in KEYS:
        return
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
        yield Diagnostic(whole, f"{field}: rope_type is {kind!r}, not a text", "wrong-type", f"one of {listed(KEYS)}")
    if missing := [key for key in needed if key not in known]:
        message = f"{field}: {kind} scaling needs {listed(missing)}"
        yield Diagnostic(whole, message, "unfilled-field", "set them, even where the default is right")
