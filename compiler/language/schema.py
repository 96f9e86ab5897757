"""The JSON Schema of the language, and its errors as diagnostics.

The only module that imports jsonschema. An unknown key is reported at its place, with the most similar known key.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

from compiler.diagnostics import Report, listed, nearest
from compiler.language import document
from compiler.language.document import Node, Scalar
from compiler.language.spec import STEP_MODIFIERS


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the language."""
    loaded: dict[str, Any] = json.loads(resources.files("compiler").joinpath("schema.json").read_text())
    return loaded


@cache
def op_words() -> tuple[str, ...]:
    """The words of the ops: the keys of a step that are not modifiers."""
    return tuple(word for word in schema()["$defs"]["step"]["properties"] if word not in STEP_MODIFIERS)


def validate(root: document.Mapping, report: Report) -> None:
    """Add the schema errors of a document to the report, each at its place."""
    from jsonschema import Draft202012Validator

    for error in Draft202012Validator(schema()).iter_errors(document.plain(root)):
        _translate(root, _nearest_error(error), report)


def _nearest_error(error: Any) -> Any:
    """Where no alternative fits: the error of the nearest alternative, which is the one that fails deepest inside."""
    while error.context:
        error = max(error.context, key=lambda e: (len(e.absolute_path), e.validator not in ("type", "enum", "const")))
    return error


def _translate(root: document.Mapping, error: Any, report: Report) -> None:
    node = _find(root, error.absolute_path)
    where = ".".join(str(p) for p in error.absolute_path if isinstance(p, str)) or "the spec"
    allowed = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
    about = error.schema.get("description", "") if isinstance(error.schema, dict) else ""
    match error.validator:
        case "additionalProperties" if isinstance(node, document.Mapping):
            for key, _ in node.entries:
                if key.text not in allowed:
                    hint = nearest(key.text, allowed) or f"the keys here are {listed(allowed, 20)}"
                    report.add(key.span, f"{where} has no key {key.text!r}", "unknown-key", hint)
        case "required" if isinstance(node, document.Mapping):
            for name in error.validator_value:
                if node.get(name) is None:
                    hint = f"add '{name}: ...'. {allowed.get(name, {}).get('description', '')}".strip()
                    report.add(node.span, f"{where} lacks the key {name!r}", "missing-key", hint)
        case "type":
            wanted = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
            kinds = " or ".join(_TYPE_WORDS[t] for t in wanted)
            report.add(node.span, f"{where} must be {kinds}", "wrong-type", about)
        case "enum" | "const":
            words = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
            shown = [word if isinstance(word, str) else json.dumps(word) for word in words]
            hint = nearest(str(error.instance), shown) or f"it is {'one of ' * (len(shown) > 1)}{listed(shown)}"
            report.add(node.span, f"{where} cannot be {error.instance!r}", "unknown-word", hint)
        case "pattern":
            span = node.span
            if (error.parent is not None and error.parent.validator == "propertyNames") or not isinstance(node, Scalar):
                span = next((k.span for k, _ in getattr(node, "entries", ()) if k.text == error.instance), span)
            message = f"{error.instance!r} is not a valid name here"
            report.add(span, message, "bad-name", f"it must match {error.validator_value}")
        case word if word in _BOUND_WORDS:
            report.add(node.span, f"{where} {_BOUND_WORDS[word].format(error.validator_value)}", "wrong-value", about)
        case _:
            report.add(node.span, f"{where}: {error.message}", "wrong-value", about)


_BOUND_WORDS = {
    "minLength": "must not be empty",
    "minItems": "must have at least {}",
    "minProperties": "must have at least {}",
    "maxItems": "must have at most {}",
    "maxProperties": "must have at most {}",
    "minimum": "must be {} or more",
    "exclusiveMinimum": "must be more than {}",
    "uniqueItems": "must not contain duplicates",
}
_TYPE_WORDS = {
    "object": "a mapping",
    "array": "a list",
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}


def _find(node: Node, path: Any) -> Node:
    for step in path:
        if isinstance(node, document.Mapping):
            node = node.get(step) or node
        elif isinstance(node, document.Sequence):
            node = node.items[step]
    return node
