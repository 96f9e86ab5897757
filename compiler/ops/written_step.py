"""A step as a spec writes it, such as `split: 0` with its sizes. The ops read themselves from it.

The schema has checked its form. Raises Refusal if a size does not parse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from compiler.diagnostics import Span
from compiler.language import document
from compiler.language.expression import parse_expr
from compiler.language.spec import Named, Step
from compiler.ops.algebra import Op, Size


@dataclass(frozen=True)
class WrittenStep:
    """A step of a transform, the names on both sides of the transform, and how many tensors the step takes."""

    step: Step
    sources: tuple[Named, ...]
    targets: tuple[Named, ...]
    slots: int

    @property
    def node(self) -> document.Node:
        """The value of the op's word."""
        return self.step.values[self.step.word]

    @property
    def span(self) -> Span:
        return self.step.span

    @property
    def value(self) -> Any:
        """The value of the op's word as plain data."""
        return document.plain(self.node)

    def modifier(self, key: str, default: Any = None) -> Any:
        """The value of another key of the step, as plain data."""
        node = self.step.values.get(key)
        return default if node is None else document.plain(node)

    def size(self) -> Size:
        """The value of the op's word as a size."""
        return size_of(self.node)

    def sizes(self, names: tuple[Named, ...]) -> tuple[Size, ...] | None:
        """The list under `sizes`, or else the sizes given with the names."""
        node = self.step.values.get("sizes")
        if isinstance(node, document.Sequence):
            return tuple(size_of(item) for item in node.items)
        sizes = [named.size for named in names if named.size is not None]
        return tuple(int(e.text) if e.text.isdecimal() else parse_expr(e.text, e.span) for e in sizes) or None

    def axis_sizes(self) -> Mapping[document.Scalar, Size]:
        """The mapping under `sizes`: axis -> size."""
        node = self.step.values.get("sizes")
        return {key: size_of(value) for key, value in node.entries} if isinstance(node, document.Mapping) else {}

    # For an op whose value is a mapping.

    def field(self, key: str) -> document.Node | None:
        assert isinstance(self.node, document.Mapping)
        return self.node.get(key)

    def plain_field(self, key: str, default: Any = None) -> Any:
        node = self.field(key)
        return default if node is None else document.plain(node)

    def size_field(self, key: str) -> Size:
        node = self.field(key)
        assert node is not None, f"the schema requires {key}"
        return size_of(node)

    def real_field(self, key: str, default: float) -> Size | float:
        """A number that need not be whole, or an expression."""
        node = self.field(key)
        if node is None:
            return default
        assert isinstance(node, document.Scalar)
        return float(node.value) if isinstance(node.value, int | float) else parse_expr(node.text.strip(), node.span)


@dataclass(frozen=True)
class StepReader:
    """Reads the op of a word of the language. `modifiers`: the other keys that such a step may have."""

    read: Callable[[WrittenStep], Op]
    modifiers: tuple[str, ...] = ()


def size_of(node: document.Node) -> Size:
    """A size as written: an integer or an expression. Raises Refusal."""
    assert isinstance(node, document.Scalar)
    return node.value if isinstance(node.value, int) else parse_expr(node.text.strip(), node.span)
