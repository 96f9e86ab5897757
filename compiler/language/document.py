"""Text to Document: YAML read as a tree in which every value remembers its place.

This room alone knows PyYAML, and only its event stream: no tag constructs anything, no alias expands, scalars
follow the YAML 1.2 core schema (`1e-5` is a number, `no` is a string; https://yaml.org/spec/1.2.2/#103-core-schema),
and a key written twice is refused. Sizes and depth are bounded, so a document from a stranger costs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from compiler.diagnostics import Report, Span, refuse

MAX_BYTES = 1 << 20
MAX_DEPTH = 40
MAX_NODES = 50_000
MAX_DIGITS = 30

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_HALVES = re.compile("[\ud800-\udfff]")  # of characters
_WORDS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NULLS = frozenset(["", "~", "null", "Null", "NULL"])

Plain = None | bool | int | float | str | list[Any] | dict[str, Any]


@dataclass(frozen=True)
class Scalar:
    """A leaf: its YAML 1.2 value, and the text as written."""

    value: bool | int | float | str | None
    text: str
    span: Span


@dataclass(frozen=True)
class Sequence:
    items: tuple[Node, ...]
    span: Span


@dataclass(frozen=True)
class Mapping:
    """Keys stay text whatever they look like, in the order of the file."""

    entries: tuple[tuple[Scalar, Node], ...]
    span: Span

    def get(self, key: str) -> Node | None:
        return next((node for name, node in self.entries if name.text == key), None)

    def key(self, key: str) -> Scalar | None:
        return next((name for name, _ in self.entries if name.text == key), None)


Node = Scalar | Sequence | Mapping


def read_document(path: str | Path, text: str | None = None) -> Node:
    """The tree of the YAML file at `path` (or of `text`, reported under that path). Raises Refusal."""
    name = str(path)
    if text is None:
        text = _read_text(name)
    if len(text) > MAX_BYTES:
        refuse(
            name, f"the document is {len(text):,} characters long; at most {MAX_BYTES:,} are read", "oversized-document"
        )
    if not text.isascii() and _HALVES.search(text):
        refuse(name, "not Unicode text", "yaml-syntax")
    reader = _Reader(name, text)
    try:
        node = reader.document()
    except yaml.MarkedYAMLError as error:
        refuse(*reader.fault(error))
    except yaml.YAMLError as error:
        refuse(name, f"not YAML: {str(error).splitlines()[0]}", "yaml-syntax")
    reader.report.settle()
    return node


def _read_text(name: str) -> str:
    try:
        if not Path(name).is_file() and Path(name).exists():  # a pipe would be waited for
            refuse(name, "not a regular file", "unreadable-file")
        with open(name, "rb") as file:
            data = file.read(MAX_BYTES * 4 + 1)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        refuse(name, f"not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}", "yaml-syntax")
    except OSError as error:
        refuse(name, f"cannot be read: {error.strerror}", "unreadable-file")


class _Reader:
    """Builds the tree from parse events, counting as it goes."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.lines = text.splitlines()
        self.report = Report()
        self.nodes = 0
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self.events: Iterator[Any] = yaml.parse(text, Loader=loader)

    def span(self, start: Any, end: Any, quoted: bool = False) -> Span:
        text = self.lines[start.line] if start.line < len(self.lines) else ""
        length = end.column - start.column if end.line == start.line else len(text) - start.column
        if quoted:  # the caret belongs under the content, so that positions inside the text add up
            return Span(self.path, start.line + 1, start.column + 2, max(1, length - 2), text)
        return Span(self.path, start.line + 1, start.column + 1, max(1, length), text)

    def fault(self, error: yaml.MarkedYAMLError) -> tuple[Span, str, str, str]:
        """A YAML syntax error, located at its cause rather than where the parser stopped."""
        problem, context = error.problem or error.context or "", error.context or ""
        hint = "quote a text that begins with { [ * & ! % @ ` or contains ': '"
        mark = error.problem_mark or error.context_mark
        if "quoted scalar" in context:
            mark, problem, hint = (
                error.context_mark,
                "this quote is not closed",
                "end the text with the quote it begins with",
            )
        elif "a tag" in context:
            mark, problem, hint = (
                error.context_mark,
                "a tag begins with !",
                "quote the text; in an expression, write 'not'",
            )
        elif "simple key" in context:
            mark, hint = error.context_mark, "write a key and its ': ' on one line"
        elif "flow" in context and "expected ','" in problem and mark and error.context_mark:
            at = f"line {mark.line + 1}, column {mark.column + 1}"
            mark, problem = error.context_mark, f"this bracket is not closed before {at}: {problem}"
            hint = "close it, or separate its values by commas; quote an expression that begins with a bracket"
            if "{" in self.span(mark, mark).text:
                hint += ', and inside [ ] each name with braces: ["layers.{i}.a", "layers.{i}.b"]'
        elif "flow node" in context:
            hint = "inside [ ] and { }, separate values by commas, without dashes"
        elif "mapping values" in problem:
            problem, hint = "a second ': ' in one value", "quote the value, or add the missing ':' to the line above"
        elif "expected key" in problem:
            hint = "a quote or a bracket above may not be closed"
        span = self.span(mark, mark) if mark else Span(self.path)
        if span.text[span.column - 1 : span.column] == "\t":
            problem, hint = "a tab, where YAML wants spaces", "indent with spaces"
        return span, f"not YAML: {problem}", "yaml-syntax", hint if mark else ""

    def document(self) -> Node:
        next(self.events)  # the start of the stream
        event = next(self.events)
        if isinstance(event, yaml.StreamEndEvent):
            refuse(self.path, "the document is empty", "empty-document")
        node = self.node(next(self.events), 0)
        next(self.events)  # the end of the document
        event = next(self.events)
        if not isinstance(event, yaml.StreamEndEvent):
            refuse(
                self.span(event.start_mark, event.start_mark),
                "a second document begins here",
                "second-document",
                "a file contains one document",
            )
        return node

    def node(self, event: Any, depth: int) -> Node:
        self.nodes += 1
        span = self.span(event.start_mark, event.end_mark)
        if self.nodes > MAX_NODES:
            refuse(span, f"the document has more than {MAX_NODES:,} values", "oversized-document")
        if depth > MAX_DEPTH:
            refuse(span, f"nested deeper than {MAX_DEPTH} levels", "oversized-document")
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            refuse(span, "anchors and aliases are not part of this language", "yaml-alias", "write the value out")
        if event.tag is not None and event.tag != "!":
            refuse(
                span,
                f"the tag {event.tag!r} is not part of this language",
                "yaml-tag",
                "write a plain value; in an expression, write 'not'",
            )
        if isinstance(event, yaml.ScalarEvent):
            return self.scalar(event)
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
                items.append(self.node(event, depth + 1))
            return Sequence(tuple(items), span)
        return self.mapping(span, depth)

    def mapping(self, span: Span, depth: int) -> Mapping:
        entries: list[tuple[Scalar, Node]] = []
        seen: dict[str, Scalar] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self.node(event, depth + 1)
            if not isinstance(key, Scalar):
                refuse(key.span, "a key must be a string", "yaml-syntax", "quote a name that begins with {")
            if key.text in seen:
                first = seen[key.text].span
                self.report.add(
                    key.span,
                    f"duplicate key {key.text!r}",
                    "duplicate-key",
                    f"the first is at line {first.line}, column {first.column}",
                )
            seen.setdefault(key.text, key)
            entries.append((key, self.node(next(self.events), depth + 1)))
        return Mapping(tuple(entries), span)

    def scalar(self, event: Any) -> Scalar:
        quoted = event.style in ("'", '"')
        span = self.span(event.start_mark, event.end_mark, quoted)
        if event.style in ("|", ">") and span.line < len(self.lines):  # the text begins below its sign
            line = self.lines[span.line]
            indent = len(line) - len(line.lstrip())
            span = Span(self.path, span.line + 1, indent + 1, max(1, len(line) - indent), line)
        value = event.value if event.style else self.resolve(event.value, span)  # plain is None or "" by parser
        return Scalar(value, event.value, span)

    def resolve(self, text: str, span: Span) -> bool | int | float | str | None:
        value = scalar_value(text)
        if (isinstance(value, float) and value in (float("inf"), float("-inf"))) or _NOT_FINITE.fullmatch(text):
            self.report.add(span, f"{text} is not a finite number", "not-finite", "null, or a number")
        if isinstance(value, str) and len(text) > MAX_DIGITS and _INT.fullmatch(text):
            self.report.add(
                span, f"a number of {len(text)} digits", "not-finite", f"at most {MAX_DIGITS} digits are read"
            )
        return value


def scalar_value(text: str) -> bool | int | float | str | None:
    """What a plain scalar means in YAML 1.2: `1e-5` a float, `0o17` an int, `no` and `1:30` texts."""
    if text in _NULLS:
        return None
    if text in _WORDS:
        return _WORDS[text]
    if len(text) <= MAX_DIGITS and _INT.fullmatch(text):
        return int(text, 0) if text.startswith(("0o", "0x")) else int(text)
    if _FLOAT.fullmatch(text) and not _INT.fullmatch(text):
        return float(text)
    return text


def plain(node: Node) -> Plain:
    """The tree as plain Python values, for a schema or for JSON."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Sequence):
        return [plain(item) for item in node.items]
    return {key.text: plain(value) for key, value in node.entries}


def as_yaml(value: Plain) -> str:
    """A plain value as YAML that 1.1 and 1.2 read alike, keys in their order."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)
