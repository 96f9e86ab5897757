"""Reads the nodes of a document: what is under a key, where it may be missing."""

from __future__ import annotations

from compiler.diagnostics import Span
from compiler.language import document
from compiler.language.document import Node, Scalar
from compiler.language.expression import Expr
from compiler.language.spec import Text


def entries_of(node: Node | None, key: str) -> tuple[tuple[Scalar, Node], ...]:
    """The entries of the mapping under `key`; none where there is no mapping."""
    found = node.get(key) if isinstance(node, document.Mapping) else None
    return found.entries if isinstance(found, document.Mapping) else ()


def items_of(node: Node | None, key: str) -> tuple[Node, ...]:
    """The items of the list under `key`; none where there is no list."""
    found = node.get(key) if isinstance(node, document.Mapping) else None
    return found.items if isinstance(found, document.Sequence) else ()


def text_of(node: Node | None, key: str) -> Text:
    """The text under `key`; an empty one at the place of the node where there is none."""
    found = node.get(key) if isinstance(node, document.Mapping) else None
    return Text(found.text, found.span) if isinstance(found, Scalar) else Text("", node.span if node else Span(""))


def string_of(node: Node | None, key: str) -> str:
    """The text under `key`, or ""."""
    return text_of(node, key).value


def expr_of(node: Node) -> Expr:
    """A scalar as an expression."""
    assert isinstance(node, Scalar)
    # YAML spells true, false and null differently from Python.
    words = {True: "True", False: "False", None: "None"}
    text = words[node.value] if node.value is None or isinstance(node.value, bool) else node.text.strip()
    return Expr(text, node.span)
