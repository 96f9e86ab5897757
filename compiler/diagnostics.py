"""What the compiler says to a person: one line per problem, all problems at once.

A phase collects its problems in a `Report` and raises one `Refusal` that carries all of them; only the
command line catches it. A problem is printed as `path:line:col: message [kind]`, the source line with a
caret, and at most one hint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn


@dataclass(frozen=True, order=True)
class Span:
    """A place in a text file. `line` and `column` count from 1; a `line` of 0 means the file as a whole."""

    path: str
    line: int = 0
    column: int = 0
    length: int = field(default=1, compare=False)
    text: str = field(default="", compare=False, repr=False)

    def within(self, start: int, length: int = 1) -> Span:
        """The part of this span that starts `start` characters in; the span itself where that leaves its line."""
        if self.line == 0 or self.column + start > len(self.text):
            return self
        return Span(self.path, self.line, self.column + start, max(1, length), self.text)

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}" if self.line else self.path


MAX_SHOWN = 50  # problems that people are shown
_LONGEST, _WIDEST = 2000, 240  # of a message, and of a line of a source that is shown


def printable(text: str) -> str:
    """A text as a terminal may have it: short, on one line, and what it would obey or hide as Python writes it, for a
    name out of a file may hold anything."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 300]} ... {text[-300:]}"
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in text)


@dataclass(frozen=True, order=True)
class Diagnostic:
    """One problem. `kind` is a kebab-case noun phrase that `docs/errors.md` explains. A `warning` does not fail."""

    span: Span
    message: str
    kind: str
    hint: str = ""
    warning: bool = False

    def __str__(self) -> str:
        lines = [f"{self.span}: {'warning: ' * self.warning}{self.message} [{self.kind}]"]
        if self.span.line and self.span.text:
            # Of a line that fills the screen, what stands around the place.
            first = max(0, self.span.column - 1 - _WIDEST // 2) if len(self.span.text) > _WIDEST else 0
            text, before = self.span.text[first : first + _WIDEST], self.span.text[first : self.span.column - 1]
            # A tab stays a tab, so that the caret stands under its token whatever the terminal's tab width.
            indent = "".join(c if c == "\t" else " " for c in before)
            room = max(1, len(text) - len(before))
            lines += ["  " + text, "  " + indent + "^" + "~" * (min(self.span.length, room) - 1)]
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(map(printable, lines))

    def as_json(self) -> dict[str, Any]:
        """The same facts for tools."""
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
    """Raised by a phase that cannot go on; carries every problem that the phase found, sorted."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics = tuple(sorted(set(diagnostics)))
        super().__init__("\n".join(str(d) for d in self.diagnostics[:MAX_SHOWN]))


def refuse(span: Span | str, message: str, kind: str, hint: str = "") -> NoReturn:
    """Raise a Refusal of one problem. A `span` given as text is the path of a whole file."""
    raise Refusal([Diagnostic(Span(span) if isinstance(span, str) else span, message, kind, hint)])


@contextmanager
def located(span: Span) -> Iterator[None]:
    """Problems found inside that know no line are reported at `span`."""
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
        """Raise everything collected so far; do nothing where nothing was."""
        if self.diagnostics:
            raise Refusal(self.diagnostics)


def nearest(word: str, words: Iterable[str], count: int = 1) -> str:
    """A hint that names what was probably meant, or the empty string."""
    import difflib  # only where something is wrong

    found = difflib.get_close_matches(word, list(words), n=count, cutoff=0.6)
    return f"did you mean {' or '.join(repr(w) for w in found)}?" if found else ""


def listed(words: Iterable[object], limit: int = 8) -> str:
    """`a, b, c and 12 more`: a list that stays readable however long it is."""
    items = [str(w) for w in words]
    if len(items) <= limit:
        return ", ".join(items)
    return ", ".join(items[:limit]) + f" and {len(items) - limit} more"
