"""The schema of the language, and what it has against a Document, in words.

This room alone knows jsonschema. Its findings are translated: an unknown key is shown where it stands, with the
nearest key that the language has.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

from compiler import document
from compiler.diagnostics import Report, listed, nearest
from compiler.document import Node, Scalar


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the language."""
    loaded: dict[str, Any] = json.loads(resources.files("compiler").joinpath("schema.json").read_text())
    return loaded


def validate(root: document.Mapping, report: Report) -> None:
    from jsonschema import Draft202012Validator

    for error in Draft202012Validator(schema()).iter_errors(document.plain(root)):
        node = _find(root, error.absolute_path)
        where = ".".join(str(p) for p in error.absolute_path if isinstance(p, str)) or "the spec"
        allowed = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
        match error.validator:
            case "additionalProperties" if isinstance(node, document.Mapping):
                for key, _ in node.entries:
                    if key.text not in allowed:
                        hint = nearest(key.text, allowed) or f"the keys here are {listed(allowed, 20)}"
                        report.add(key.span, f"{where} has no key {key.text!r}", "unknown-key", hint)
            case "required" if isinstance(node, document.Mapping):
                for name in error.validator_value:
                    if node.get(name) is None:
                        about = allowed.get(name, {}).get("description", "")
                        report.add(node.span, f"{where} lacks the key {name!r}", "missing-key", about)
            case "type":
                wanted = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
                report.add(
                    node.span,
                    f"{where} must be {' or '.join(_TYPE_WORDS[t] for t in wanted)}",
                    "wrong-type",
                    error.schema.get("description", ""),
                )
            case "enum" | "const":
                words = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
                report.add(
                    node.span,
                    f"{where} cannot be {error.instance!r}",
                    "unknown-word",
                    nearest(str(error.instance), map(str, words)) or f"it is one of {listed(words)}",
                )
            case "pattern":
                span = node.span
                if (error.parent is not None and error.parent.validator == "propertyNames") or not isinstance(
                    node, Scalar
                ):
                    span = next((k.span for k, _ in getattr(node, "entries", ()) if k.text == error.instance), span)
                report.add(
                    span,
                    f"{error.instance!r} is not a name that fits here",
                    "bad-name",
                    f"it must match {error.validator_value}",
                )
            case _:
                report.add(node.span, f"{where}: {error.message}", "wrong-value", error.schema.get("description", ""))


_TYPE_WORDS = {
    "object": "a mapping",
    "array": "a list",
    "string": "a text",
    "integer": "a whole number",
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
