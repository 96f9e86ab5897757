"""Diagnostics: a place, a message, a kind, a hint; all problems of a phase at once.

A phase collects its problems in a `Report` and raises one `Refusal` with all of them; only the command line catches it.
A diagnostic prints as `path:line:col: message [kind]`, then the source line with a caret, then at most one hint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from compiler.resources import spec_label

MAX_SHOWN = 50  # diagnostics printed at most
_LONGEST, _WIDEST = 2000, 240  # characters of a message, and of a source line


@dataclass(frozen=True, order=True)
class Span:
    """A place in a text file. `line` and `column` count from 1; a `line` of 0 means the complete file."""

    path: str
    line: int = 0
    column: int = 0
    length: int = field(default=1, compare=False)
    text: str = field(default="", compare=False, repr=False)

    def within(self, start: int, length: int = 1) -> Span:
        """The part of this span from character `start`; the span itself if that is beyond its line."""
        if self.line == 0 or self.column + start > len(self.text):
            return self
        return Span(self.path, self.line, self.column + start, max(1, length), self.text)

    def excerpt(self, width: int) -> tuple[str, str]:
        """The line of text, and a line with a caret below the place; of a line with more than `width` characters, the part
        around the place, with … where it is cut."""
        text, column = self.text, self.column - 1
        if len(text) > width:
            # From the start if the place is seen so, else with the place at one third.
            end = min(column + max(1, self.length), column + width // 2)
            first = 0 if end < width else min(column - width // 3, len(text) - width)
            part = text[first : first + width]
            column -= first
            text = ("…" + part[1:]) if first else part
            text = (text[:-1] + "…") if first + width < len(self.text) else text
        # A tab stays a tab, so that the caret is under its token at any tab width.
        indent = "".join(c if c == "\t" else " " for c in text[:column])
        room = max(1, len(text) - column)
        return text, indent + "^" + "~" * (min(self.length, room) - 1)

    def __str__(self) -> str:
        label = spec_label(self.path)
        return f"{label}:{self.line}:{self.column}" if self.line else label


def printable(text: str) -> str:
    """Text that is safe to print: short, on one line, with control and invisible characters escaped, because names from
    files may contain anything."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 300]} ... {text[-300:]}"
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in text)


@dataclass(frozen=True, order=True)
class Diagnostic:
    """One problem. `kind` is a kebab-case noun phrase explained in `docs/errors.md`. A `warning` does not fail the run.
    `subject`: the name that the problem is about, for callers that act on it."""

    span: Span
    message: str
    kind: str
    hint: str = ""
    warning: bool = False
    subject: str = field(default="", compare=False)

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int = _WIDEST, paint: Callable[[str, str], str] = lambda role, text: text) -> str:
        """The diagnostic as lines; the source line has at most `width` columns, of a longer one the part around the place.
        `paint` colours a part by its role: place, error, warning, caret or hint."""
        level = "warning" if self.warning else "error"
        label = paint(level, "warning:") + " " if self.warning else ""
        place, kind = paint("place", printable(f"{self.span}:")), paint(level, f"[{self.kind}]")
        lines = [f"{place} {label}{printable(self.message)} {kind}"]
        if self.span.line and self.span.text:
            line, caret = self.span.excerpt(max(20, width - 2))
            lines += ["  " + printable(line), "  " + paint("caret", caret)]
        if self.hint:
            lines.append(f"  {paint('hint', 'hint:')} {printable(self.hint)}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """The diagnostic as a JSON object."""
        return {
            "file": self.span.path,
            "line": self.span.line,
            "column": self.span.column,
            "length": self.span.length,
            "kind": self.kind,
            "message": self.message,
            "hint": self.hint,
            "severity": "warning" if self.warning else "error",
        }


class Refusal(Exception):
    """Raised by a phase that cannot continue; has every problem that the phase found, sorted."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics = tuple(sorted(set(diagnostics)))
        super().__init__("\n".join(str(d) for d in self.diagnostics[:MAX_SHOWN]))


def refuse(span: Span | str, message: str, kind: str, hint: str = "") -> NoReturn:
    """Raise a Refusal with one problem. A `span` given as text is the path of a file."""
    raise Refusal([Diagnostic(Span(span) if isinstance(span, str) else span, message, kind, hint)])


@contextmanager
def located(span: Span) -> Iterator[None]:
    """Problems raised inside that have no line get the place `span`."""
    try:
        yield
    except Refusal as refusal:
        raise Refusal(d if d.span.line else replace(d, span=span) for d in refusal.diagnostics) from None


class Report:
    """Collects the problems of one phase."""

    def __init__(self) -> None:
        self.diagnostics: list[Diagnostic] = []

    def add(self, span: Span, message: str, kind: str, hint: str = "") -> None:
        self.diagnostics.append(Diagnostic(span, message, kind, hint))

    def absorb(self, refusal: Refusal) -> None:
        self.diagnostics.extend(refusal.diagnostics)

    def settle(self) -> None:
        """Raise everything collected so far; do nothing if that is nothing."""
        if self.diagnostics:
            raise Refusal(self.diagnostics)


def nearest(word: str, words: Iterable[str], count: int = 1) -> str:
    """A hint that names the nearest of `words`, or the empty string."""
    import difflib  # only where something is wrong

    found = difflib.get_close_matches(word, list(words), n=count, cutoff=0.6)
    return f"did you mean {' or '.join(repr(w) for w in found)}?" if found else ""


def listed(words: Iterable[object], limit: int = 8) -> str:
    """`a, b, c and 12 more`: at most `limit` of the words."""
    items = [str(w) for w in words]
    if len(items) <= limit:
        return ", ".join(items)
    return ", ".join(items[:limit]) + f" and {len(items) - limit} more"
