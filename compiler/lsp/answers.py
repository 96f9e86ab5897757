"""Completion, hover and definitions: (text, position, answers of the target class) to what an editor shows.

Positions count lines and characters from 0. A text that is no spec has no answers. A spec need not compile; of one that is not YAML, all lines but the cursor's
are read.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compiler.diagnostics import Refusal, Span, listed
from compiler.language import document
from compiler.language.document import Node, Scalar
from compiler.language.expression import FUNCTIONS
from compiler.language.name_pattern_parser import parse_pattern
from compiler.language.schema import schema
from compiler.lsp.analysis import Definition, TargetAnswers, definitions, is_spec, read_tree
from compiler.lsp.cursor import Place, place_of
from compiler.program.axis_labels import Shape, name_form
from compiler.tensor_names import NUMBER

_NAME_BEFORE = re.compile(r"(?:[\w.]|\{[^{}\s]*\})*$")
_INDICES = string.ascii_lowercase[8:]  # i, j, ...
_FIELD_TABLES = ("copy", "rename", "derive", "set", "fields")


@dataclass(frozen=True)
class Completion:
    """`kind`: key, word, tensor, field, argument, fact, config field or function; it replaces the `length` characters before
    the cursor."""

    label: str
    kind: str
    detail: str
    length: int


def complete(path: str, text: str, line: int, character: int, target: TargetAnswers | None = None) -> list[Completion]:
    """What can be written at a cursor: keys and words of the schema, names of expressions, and of the target class its
    tensors and config fields."""
    if not is_spec(text):
        return []
    place = place_of(text, line, character)
    found = [*_of_schema(place)]
    if _is_expression(place):
        found += _of_expressions(definitions(read_tree(path, text, line)), place)
    if target is not None and _is_field(place):
        found += [(name, "field", target.class_name) for name in sorted(target.fields)]
    if target is not None and _is_target_name(place):
        found += [(name, "tensor", str(list(shape))) for name, shape in name_forms(target.shapes).items()]
    completions: dict[str, Completion] = {}
    for label, kind, detail in found:
        typed = _typed(place, kind)
        if label.startswith(typed):
            completions.setdefault(label, Completion(label, kind, detail, len(typed)))
    return [*completions.values()]


def _typed(place: Place, kind: str) -> str:
    """The part of a word that is written before the cursor."""
    match = _NAME_BEFORE.search(place.text) if kind == "tensor" else re.search(r"\w*$", place.text)
    assert match is not None
    return match[0]


def _schema_at(keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """The parts of the schema for the value of the last of `keys`, and for the items of that value."""
    nodes = [schema()]
    for key in keys:
        below = [node.get("properties", {}).get(key, node.get("additionalProperties")) for node in nodes]
        nodes = [part for node in below if isinstance(node, dict) for part in _with_items(node)]
    return nodes


def _with_items(node: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    found: Any = node
    if "$ref" in node:
        found = schema()
        for step in node["$ref"].removeprefix("#/").split("/"):
            found = found[step]
    yield found
    if isinstance(found.get("items"), dict):
        yield from _with_items(found["items"])


def _of_schema(place: Place) -> Iterator[tuple[str, str, str]]:
    for node in _schema_at(place.keys):
        if place.key:
            yield from ((key, "key", _description(value)) for key, value in node.get("properties", {}).items())
        if place.value:
            yield from ((str(word), "word", "") for word in node.get("enum", ()))


def _description(node: Mapping[str, Any]) -> str:
    return str(next(_with_items(node)).get("description", node.get("description", "")))


def _is_expression(place: Place) -> bool:
    """Whether names of arguments and facts can be written here."""
    match place.keys:
        case ("require",) | ("example",) | ("models", _, "when" | "set"):
            return place.key
        case ("indices", _) | ("config", "copy") | ("config", "rename", _):
            return place.value
        case ("arguments", _) | ("arguments", _, "default" | "guess"):
            return False
    types = [node.get("type") for node in _schema_at(place.keys)]
    scalars = {"integer", "number", "boolean"}
    return place.value and any(isinstance(t, list) and "string" in t and scalars & {*t} for t in types)


def _of_expressions(names: Mapping[str, Definition], place: Place) -> Iterator[tuple[str, str, str]]:
    if _in_string(place):
        return
    yield from ((name, one.kind, one.text) for name, one in names.items())
    if place.keys != ("config", "copy") and place.keys[:1] not in (("example",), ("models",)):
        yield from ((name, "function", "") for name in FUNCTIONS)


def _is_field(place: Place) -> bool:
    match place.keys:
        case ("config", "copy"):
            return place.value
        case ("config", table):
            return place.key and table in _FIELD_TABLES
    return False


def _is_target_name(place: Place) -> bool:
    match place.keys:
        case ("keep",) | ("keep", "name") | ("rename", _) | ("rename", _, "to"):
            return place.value
        case ("transform", "to"):
            return True
        case ("create",):
            return place.key
    return False


def name_forms(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Names of tensors as patterns, their numbers as indices `{i}`, `{j}`, each with the shape of the first that has it."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        letters = iter(_INDICES)
        found.setdefault(NUMBER.sub(lambda number, letters=letters: f"{{{next(letters)}}}", name), shape)  # type: ignore[misc]
    return found


# ---------------------------------------------------------------------------------------------------------------------


def hover(path: str, text: str, line: int, character: int, target: TargetAnswers | None = None) -> str:
    """Markdown about the name under a cursor: of a tensor of the target class its shape, of an argument or a fact its
    expression and its value in the first example, of a key its description; empty if there is nothing to show."""
    if not is_spec(text):
        return ""
    root = read_tree(path, text, line)
    place, scalar = place_of(text, line, character), _scalar_at(root, line, character)
    if definition := _definition_at(root, text, line, character):
        return _about_name(definition, target)
    if scalar is None:
        return ""
    if target is not None and _is_target_name(place) and (shapes := _about_tensor(scalar, target)):
        return shapes
    keys = place.keys[:-1] if place.keys[-1:] == (scalar.text,) else place.keys
    parts = [node["properties"][scalar.text] for node in _schema_at(keys) if scalar.text in node.get("properties", {})]
    return _description(parts[0]) if place.key and parts else ""


def _about_name(definition: Definition, target: TargetAnswers | None) -> str:
    lines = [f"{definition.kind} `{definition.name}`" + f": `{definition.text}`" * bool(definition.text)]
    lines += [definition.help] if definition.help else []
    if target is not None and definition.name in target.values:
        lines.append(f"`{target.values[definition.name]!r}` in the first example")
    return "\n\n".join(lines)


def _about_tensor(scalar: Scalar, target: TargetAnswers) -> str:
    try:
        pattern = target.patterns.get(scalar.text) or parse_pattern(scalar.text, scalar.span)
    except Refusal:
        return ""
    names = [name for name in target.shapes if pattern.match(name) is not None]
    if not names:
        return ""
    found: dict[str, None] = {}
    for name in names:
        labels = target.labels.get(name_form(pattern, name) or "")
        found.setdefault(_shape(target.shapes[name], labels))
    count = f"{len(names)} tensors" if len(names) > 1 else "1 tensor"
    return "\n\n".join([f"`{scalar.text}`: {count} of {target.class_name}", f"shape {listed(found, 4)}"])


def _shape(shape: tuple[int, ...], labels: Shape | None) -> str:
    """`[vocab_size, hidden_size] = [128, 64]`; an axis without a label is its length."""
    named = [axis[0] if axis else str(length) for axis, length in zip(labels or (), shape, strict=False)]
    symbolic = f"`[{', '.join(named)}]` = " if named and len(named) == len(shape) else ""
    return f"{symbolic}`{list(shape)}`"


def definition(path: str, text: str, line: int, character: int) -> Span | None:
    """The place where the argument, fact or config field under a cursor is defined."""
    found = _definition_at(read_tree(path, text, line), text, line, character) if is_spec(text) else None
    return found.span if found else None


def _definition_at(root: Node | None, text: str, line: int, character: int) -> Definition | None:
    lines = text.split("\n")
    content = lines[line] if line < len(lines) else ""
    names = definitions(root)
    for word in re.finditer(r"[A-Za-z_]\w*", content):
        if word.start() <= character <= word.end() and word[0] in names:
            known = names[word[0]]
            here = (known.span.line, known.span.column) == (line + 1, word.start() + 1)
            place = place_of(text, line, word.start())
            return known if here or (_is_expression(place) and not _in_string(place)) else None
    return None


def _in_string(place: Place) -> bool:
    """Whether the cursor is within a string of an expression, the name of a tensor; a first quote is YAML's."""
    return place.text.lstrip("'\"").count('"') % 2 == 1


def _scalar_at(node: Node | None, line: int, character: int) -> Scalar | None:
    if isinstance(node, Scalar):
        column = node.span.column - 1
        return node if node.span.line == line + 1 and column <= character <= column + node.span.length else None
    children: Iterator[Node] = iter(())
    if isinstance(node, document.Sequence):
        children = iter(node.items)
    elif isinstance(node, document.Mapping):
        children = (part for entry in node.entries for part in entry)
    return next((found for child in children if (found := _scalar_at(child, line, character))), None)
