"""Prints problems in one of the output formats: text on stderr; JSON, or annotations of GitHub's workflows, on stdout.

Source of the annotations: "Workflow commands for GitHub Actions" in GitHub's documentation.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from compiler.console.terminal import linked, painter, width
from compiler.diagnostics import MAX_SHOWN, Diagnostic, printable
from compiler.resources import spec_label

FORMATS = ("text", "json", "github")


def format_of(words: Sequence[str]) -> str:
    """The output format that a command line asks for, whether or not the rest of it can be parsed."""
    chosen = "text"
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word == "--json":
            chosen = "json"
        elif word == "--output-format" and after in FORMATS:
            chosen = after
        elif word.startswith("--output-format=") and word.partition("=")[2] in FORMATS:
            chosen = word.partition("=")[2]
    return chosen


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def report(diagnostics: Sequence[Diagnostic], output_format: str) -> None:
    """Print problems."""
    if output_format == "json":
        print_json({"diagnostics": [d.as_json() for d in diagnostics]})
        return
    if output_format == "github":
        print("\n".join(map(annotation, diagnostics)))
        return
    columns = width(sys.stderr)
    for diagnostic in diagnostics[:MAX_SHOWN]:
        print(coloured_text(diagnostic, columns), file=sys.stderr)
    if len(diagnostics) > 1:
        first = f", of which the first {MAX_SHOWN} are shown" * (len(diagnostics) > MAX_SHOWN)
        print(f"{len(diagnostics)} problems{first}", file=sys.stderr)


def coloured_text(diagnostic: Diagnostic, columns: int | None) -> str:
    """The text of a problem for stderr: in colour, cut to the columns of the terminal, with a link to its file."""
    paint = painter(sys.stderr)

    def painted(role: str, text: str) -> str:
        return linked(sys.stderr, diagnostic.span.path, paint(role, text)) if role == "place" else paint(role, text)

    return diagnostic.text(columns, painted) if columns else diagnostic.text(paint=painted)


def annotation(diagnostic: Diagnostic) -> str:
    """A problem as a workflow command: `::error file=...,line=...,col=...,title=kind::message`."""
    span = diagnostic.span
    inside = os.path.relpath(span.path) if os.path.exists(span.path) else span.path
    properties = {"file": spec_label(span.path) if inside.startswith("..") else inside}
    if span.line:
        properties |= {"line": str(span.line), "col": str(span.column), "endColumn": str(span.column + span.length)}
    properties["title"] = diagnostic.kind
    listed = ",".join(f"{name}={_escaped(value, ':,')}" for name, value in properties.items())
    text = diagnostic.message + (f"\nhint: {diagnostic.hint}" if diagnostic.hint else "")
    data = "%0A".join(_escaped(printable(line)) for line in text.split("\n"))
    return f"::{'warning' if diagnostic.warning else 'error'} {listed}::{data}"


def _escaped(text: str, more: str = "") -> str:
    """Text with the characters that end a workflow command, or a property of one, in percent form."""
    return "".join(f"%{ord(c):02X}" if c in "%\r\n" + more else c for c in text)
