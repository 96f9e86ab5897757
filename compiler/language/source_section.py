"""The sections `source` and `sources` of a spec as values: what they say of a config, of files in parts, of the reverse."""

from __future__ import annotations

from typing import Any

from compiler.diagnostics import Report
from compiler.language import document
from compiler.language.document import Node, Scalar
from compiler.language.nodes import entries_of, expr_of, items_of, string_of, text_of
from compiler.language.spec import Field, FixedField, Merge, NamedSource, Ranks, SourceLayout, Text


def about_config(source: Node | None, report: Report) -> dict[str, Any]:
    """What a source says of its config."""
    unread = entries_of(source, "unread")
    return {
        "model_types": tuple(str(document.plain(node)) for node in items_of(source, "model_types")),
        "fixed": {key.text: _fixed(key, node, report) for key, node in entries_of(source, "fixed")},
        "unread": tuple((Text(key.text, key.span), str(document.plain(node))) for key, node in unread),
    }


def _fixed(key: Scalar, node: Node, report: Report) -> FixedField:
    if isinstance(node, document.Mapping):
        if (node.get("value") is None) == (node.get("values") is None):
            message = f"{key.text} needs either 'value' or 'values'"
            report.add(key.span, message, "missing-key", "write the value itself, or {value: ..., reason: ...}")
        one, several = node.get("value"), items_of(node, "values")
        values = tuple(document.plain(item) for item in several) if several else (one and document.plain(one),)
        return FixedField(key.text, values, string_of(node, "reason"), key.span)
    return FixedField(key.text, (document.plain(node),), "", key.span)


def named_source(key: Scalar, node: Node, report: Report) -> NamedSource:
    """One entry of `sources`."""
    values: dict[str, Any] = {
        word: string_of(node, word) for word in ("weights", "config", "part", "overlays", "fills")
    }
    values |= {word: string_of(node, word) == "true" for word in ("nested", "optional")}
    return NamedSource(Text(key.text, key.span), **values, **about_config(node, report))


def layout(source: Node | None) -> SourceLayout:
    """How `--reverse` writes the source."""
    node = source.get("reverse") if isinstance(source, document.Mapping) else None
    if not isinstance(node, document.Mapping):
        return SourceLayout()
    omit = node.get("omit")
    return SourceLayout(
        file=string_of(node, "file"),
        state_dict=tuple(string_of(node, "state_dict").split(".")) if node.get("state_dict") else (),
        arguments=string_of(node, "arguments") or string_of(node, "namespace"),
        namespace=node.get("namespace") is not None,
        holder=string_of(node, "holder"),
        omit=tuple(Text(i.text, i.span) for i in items_of(node, "omit") if isinstance(i, Scalar)),
        omit_all=isinstance(omit, Scalar),
        fields=tuple(Field(key.text, expr_of(value), None, key.span) for key, value in entries_of(node, "fields")),
        constants=tuple(
            Field(key.text, expr_of(value), None, key.span) for key, value in entries_of(node, "constants")
        ),
        folder=string_of(node, "folder"),
        objects=tuple(Field(key.text, expr_of(value), None, key.span) for key, value in entries_of(node, "objects")),
        dictionaries=tuple(item.text for item in items_of(node, "dictionaries") if isinstance(item, Scalar)),
        common=string_of(node, "common"),
        texts=tuple((key.text, str(document.plain(value))) for key, value in entries_of(node, "texts")),
    )


def merge(key: Scalar, node: Node) -> Merge:
    """One entry of `source: merge`."""
    pattern = Text(key.text, key.span)
    if not isinstance(node, document.Mapping):
        return Merge(pattern, expr_of(node), 1, (), Text("", key.span))
    axis, blocks = node.get("axis"), node.get("blocks")
    lengths = tuple(map(expr_of, blocks.items)) if isinstance(blocks, document.Sequence) else ()
    count = len(lengths) or (document.plain(blocks) if blocks else 1)
    return Merge(pattern, expr_of(axis) if axis else None, count, lengths, text_of(node, "by"))  # type: ignore[arg-type]


def ranks(source: Node | None) -> Ranks | None:
    """The section `source: ranks`."""
    node = source.get("ranks") if isinstance(source, document.Mapping) else None
    if node is None:
        return None
    copies = tuple(
        (Text(key.text, key.span), Text(str(document.plain(value)), value.span))
        for key, value in entries_of(node, "copies")
    )
    first = tuple(Text(item.text, item.span) for item in items_of(node, "first") if isinstance(item, Scalar))
    numbers = tuple(str(document.plain(item)) for item in items_of(node, "numbers"))
    return Ranks(text_of(node, "pipeline"), text_of(node, "expert"), first, copies, numbers)
