"""Document to Spec: the checked form of what a person wrote, every text with its place.

This room alone knows jsonschema. Its findings are translated: an unknown key is shown where it stands, with the
nearest key that the language has.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from compiler import document
from compiler.diagnostics import Report, Span, listed, nearest, refuse
from compiler.document import Node, Scalar
from compiler.exprs import Expr

OP_WORDS = (
    "split",
    "concat",
    "stack",
    "unstack",
    "rearrange",
    "cast",
    "rope_to_half",
    "rope_to_interleaved",
    "transpose",
)


@dataclass(frozen=True)
class Text:
    value: str
    span: Span

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Argument:
    """A value that no shape can tell. `required` when it has no default."""

    name: str
    default: Any
    required: bool
    help: str
    span: Span


@dataclass(frozen=True)
class Entry:
    """A rename, a keep (`source is target`) or a tie."""

    source: Text
    target: Text
    when: Expr | None


@dataclass(frozen=True)
class Named:
    """A name pattern of a transform, and the size that may stand beside it."""

    pattern: Text
    size: Expr | None


@dataclass(frozen=True)
class Step:
    """One op as written: its word, the word's value and the values beside it."""

    word: str
    values: Mapping[str, Node]
    span: Span


@dataclass(frozen=True)
class Transform:
    name: Text
    sources: tuple[Named, ...]
    targets: tuple[Named, ...]
    steps: tuple[Step, ...]
    when: Expr | None
    span: Span


@dataclass(frozen=True)
class Field:
    """A field of the target's config: a constant (`expr is None`) or an expression."""

    name: str
    expr: Expr | None
    constant: Any
    span: Span

    @property
    def carried(self) -> str | None:
        """The argument or fact whose value the field holds unchanged."""
        return self.expr.text if self.expr is not None and self.expr.text.isidentifier() else None


@dataclass(frozen=True)
class Target:
    """Path A: `model`. Path B: `remote_code`, the classes and the blocks."""

    model: Text | None
    remote_code: Text | None
    config_class: Text | None
    model_class: Text | None
    blocks: Node | None
    span: Span


@dataclass(frozen=True)
class Spec:
    path: str
    name: Text
    summary: str
    weights: str
    source_config: str
    target: Target
    arguments: Mapping[str, Argument]
    facts: Mapping[str, Expr]
    require: tuple[tuple[Expr, str], ...]
    config: tuple[Field, ...]
    fields: Mapping[str, Node]
    keep_all: bool
    keep: tuple[Entry, ...]
    rename: tuple[Entry, ...]
    transform: tuple[Transform, ...]
    tie: tuple[Entry, ...]
    ignore: tuple[tuple[Text, str], ...]
    examples: tuple[Mapping[str, tuple[Any, Span]], ...]
    example_span: Span = field(compare=False, default=Span(""))


def load_spec(path: str | Path, text: str | None = None) -> Spec:
    """Read and check the YAML spec at `path` (or `text`, reported under that path). Raises Refusal."""
    return read_spec(document.read_document(path, text))


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the language."""
    loaded: dict[str, Any] = json.loads(resources.files("compiler").joinpath("schema.json").read_text())
    return loaded


def read_spec(root: Node) -> Spec:
    """The Spec of a Document. Raises Refusal with everything that the schema has against it."""
    if not isinstance(root, document.Mapping):
        refuse(root.span, "a spec is a mapping of keys", "wrong-type", "it begins with 'spec: 1'")
    report = Report()
    _validate(root, report)
    report.settle()
    target = _target(root, report)
    spec = Spec(
        path=root.span.path,
        name=_text(root, "name"),
        summary=_text(root, "summary").value,
        weights=_string(root.get("source"), "weights"),
        source_config=_string(root.get("source"), "config"),
        target=target,
        arguments={key.text: _argument(key, node) for key, node in _entries(root, "arguments")},
        facts={key.text: _expr(node) for key, node in _entries(root, "facts")},
        require=tuple((_expr(key), document.plain(node)) for key, node in _entries(root, "require")),  # type: ignore[misc]
        config=tuple(_config(root, report)),
        fields={key.text: node for key, node in _entries(root.get("config"), "fields")},
        keep_all=isinstance(root.get("keep"), Scalar),
        keep=tuple(_keep(root)),
        rename=tuple(_entry(key, node) for key, node in _entries(root, "rename")),
        transform=tuple(_transform(node, report) for node in _items(root, "transform")),
        tie=tuple(_entry(key, node) for key, node in _entries(root, "tie")),
        ignore=tuple((Text(key.text, key.span), str(document.plain(node))) for key, node in _entries(root, "ignore")),
        examples=tuple(_examples(root)),
        example_span=key.span if (key := root.key("example")) else root.span,
    )
    stem = Path(spec.path).stem
    if spec.path.endswith((".yaml", ".yml")) and spec.name.value != stem:
        report.add(
            spec.name.span,
            f"the spec is called {spec.name.value!r} but its file {stem!r}",
            "name-mismatch",
            "name and file name are one",
        )
    report.settle()
    return spec


# ---------------------------------------------------------------------------------------------------------------------
# The schema's findings in words


def _validate(root: document.Mapping, report: Report) -> None:
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


# ---------------------------------------------------------------------------------------------------------------------
# Its parts


def _entries(node: Node | None, key: str) -> tuple[tuple[Scalar, Node], ...]:
    found = node.get(key) if isinstance(node, document.Mapping) else None
    return found.entries if isinstance(found, document.Mapping) else ()


def _items(node: document.Mapping, key: str) -> tuple[Node, ...]:
    found = node.get(key)
    return found.items if isinstance(found, document.Sequence) else ()


def _text(node: Node | None, key: str) -> Text:
    found = node.get(key) if isinstance(node, document.Mapping) else None
    return Text(found.text, found.span) if isinstance(found, Scalar) else Text("", node.span if node else Span(""))


def _string(node: Node | None, key: str) -> str:
    return _text(node, key).value


def _expr(node: Node) -> Expr:
    assert isinstance(node, Scalar)
    # YAML's words for truth and nothing are not Python's.
    words = {True: "True", False: "False", None: "None"}
    text = words[node.value] if node.value is None or isinstance(node.value, bool) else node.text.strip()
    return Expr(text, node.span)


def _argument(key: Scalar, node: Node) -> Argument:
    if isinstance(node, document.Mapping):
        default = node.get("default")
        return Argument(
            key.text, document.plain(default) if default else None, default is None, _string(node, "help"), key.span
        )
    return Argument(key.text, document.plain(node), False, "", key.span)


def _target(root: document.Mapping, report: Report) -> Target:
    node = root.get("target")
    assert isinstance(node, document.Mapping)
    optional = {k: _text(node, k) if node.get(k) else None for k in ("model", "remote_code")}
    classes = node.get("classes")
    if (optional["model"] is None) == (optional["remote_code"] is None):
        report.add(
            node.span, "the target is either a 'model' of Transformers or 'remote_code' of its own", "missing-key"
        )
    if optional["remote_code"] and (classes is None or node.get("blocks") is None):
        report.add(node.span, "a target of remote code needs 'classes' and 'blocks'", "missing-key")
    if optional["model"] and (extra := node.key("classes") or node.key("blocks")):
        report.add(
            extra.span,
            f"{extra.text!r} belongs to remote code; the target here is a class of Transformers",
            "unknown-key",
        )
    return Target(
        model=optional["model"],
        remote_code=optional["remote_code"],
        config_class=_text(classes, "config") if classes else None,
        model_class=_text(classes, "model") if classes else None,
        blocks=node.get("blocks"),
        span=node.span,
    )


def _config(root: document.Mapping, report: Report) -> Iterator[Field]:
    table = root.get("config")
    seen: dict[str, Span] = {}

    def field_(name: Scalar, expr: Expr | None, constant: Any = None) -> Field:
        if name.text in seen:
            report.add(
                name.span,
                f"the config field {name.text!r} is given twice",
                "duplicate-field",
                f"it was first given at line {seen[name.text].line}",
            )
        seen.setdefault(name.text, name.span)
        return Field(name.text, expr, constant, name.span)

    if isinstance(table, document.Mapping) and isinstance(copied := table.get("copy"), document.Sequence):
        for item in copied.items:
            assert isinstance(item, Scalar)
            yield field_(item, Expr(item.text, item.span))
    for key, node in _entries(table, "rename"):
        yield field_(key, Expr(str(document.plain(node)), node.span))
    for key, node in _entries(table, "derive"):
        yield field_(key, _expr(node))
    for key, node in _entries(table, "set"):
        yield field_(key, None, document.plain(node))


def _when(node: Node) -> Expr | None:
    found = node.get("when") if isinstance(node, document.Mapping) else None
    return _expr(found) if found else None


def _entry(key: Scalar, node: Node) -> Entry:
    target = _text(node, "to") if isinstance(node, document.Mapping) else Text(str(document.plain(node)), node.span)
    return Entry(Text(key.text, key.span), target, _when(node))


def _keep(root: document.Mapping) -> Iterator[Entry]:
    for item in _items(root, "keep"):
        name = _text(item, "name") if isinstance(item, document.Mapping) else Text(str(document.plain(item)), item.span)
        yield Entry(name, name, _when(item))


def _names(node: Node) -> tuple[Named, ...]:
    match node:
        case Scalar():
            return (Named(Text(node.text, node.span), None),)
        case document.Sequence():
            return tuple(Named(Text(i.text, i.span), None) for i in node.items if isinstance(i, Scalar))
    return tuple(Named(Text(key.text, key.span), _expr(value)) for key, value in node.entries)


def _transform(node: Node, report: Report) -> Transform:
    assert isinstance(node, document.Mapping)
    source, target = node.get("from"), node.get("to")
    assert source is not None
    assert target is not None
    steps = node.get("steps")
    if isinstance(steps, document.Sequence):
        if extra := next((k for k, _ in node.entries if k.text in OP_WORDS), None):
            report.add(extra.span, f"{extra.text!r} beside 'steps'", "ambiguous-step", "put it into the list")
        found = tuple(_step(step, report) for step in steps.items)
    else:
        found = (_step(node, report),)
    return Transform(_text(node, "name"), _names(source), _names(target), found, _when(node), node.span)


def _step(node: Node, report: Report) -> Step:
    assert isinstance(node, document.Mapping)
    values = {key.text: value for key, value in node.entries}
    words = [key for key, _ in node.entries if key.text in OP_WORDS]
    if len(words) != 1:
        report.add(
            words[1].span if words else node.span,
            f"a step is one op, here {'are ' + listed(w.text for w in words) if words else 'is none'}",
            "ambiguous-step",
            f"the ops are {', '.join(OP_WORDS)}; a chain of them is a list under 'steps'",
        )
        return Step("", values, node.span)
    return Step(words[0].text, values, words[0].span)


def _examples(root: document.Mapping) -> Iterator[Mapping[str, tuple[Any, Span]]]:
    node = root.get("example")
    for one in node.items if isinstance(node, document.Sequence) else (node,):
        if isinstance(one, document.Mapping):
            yield {key.text: (document.plain(value), key.span) for key, value in one.entries}
