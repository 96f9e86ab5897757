"""What helps to write a spec: `mapspec explain` explains a kind of problem, `mapspec schema` prints the JSON Schema of the
language, `mapspec lsp` is a language server for editors."""

from __future__ import annotations

import argparse
from functools import cache

from compiler import packages
from compiler.cli.options import Parser, print_json
from compiler.diagnostics import nearest, refuse
from compiler.resources import folder


def schema_parser() -> Parser:
    parser = Parser("schema", "Print the JSON Schema of the spec language.")
    parser.add_json("print problems as JSON (the schema always is)")
    return parser


def schema(options: argparse.Namespace) -> int:
    from compiler.language.schema import schema as read

    print_json(read())
    return 0


def lsp_parser() -> Parser:
    what = "Start a language server for spec files. An editor starts it and uses its standard input and output."
    parser = Parser("lsp", what)
    parser.add_json("print problems as JSON")
    return parser


def lsp(options: argparse.Namespace) -> int:
    packages.need("mapspec lsp", *packages.LSP)
    from compiler.lsp.server import serve

    serve()
    return 0


def explain_parser() -> Parser:
    parser = Parser("explain", "Explain a kind of problem: what it means, what causes it and how to fix it.")
    parser.add_argument(
        "kind", metavar="KIND", nargs="?", help="the word in brackets; without it, all kinds are listed"
    )
    parser.add_json()
    return parser


def explain(options: argparse.Namespace) -> int:
    if options.kind is None:
        print_json(sorted(sections())) if options.json else print("\n".join(sorted(sections())))
        return 0
    text = section(options.kind.strip("[]"))
    print_json({"kind": options.kind.strip("[]"), "text": text}) if options.json else print(text, end="")
    return 0


_HEADING = "### "


@cache
def sections() -> dict[str, str]:
    """Kind -> the text below its heading in docs/errors.md. Raises Refusal if the page is missing."""
    path = folder("docs") / "errors.md"
    if not path.is_file():
        refuse(
            str(path), "the page of problem kinds is missing", "unreadable-file", "write it: python docs/make_errors.py"
        )
    sections_by_kind: dict[str, str] = {}
    for part in path.read_text(encoding="utf-8").split(f"\n{_HEADING}")[1:]:
        kind, _, text = part.partition("\n")
        sections_by_kind[kind] = text.split("\n## ")[0].strip() + "\n"
    return sections_by_kind


def section(kind: str) -> str:
    """The section of docs/errors.md about a kind. Raises Refusal: `unknown-kind`."""
    if kind not in sections():
        hint = nearest(kind, sections()) or "`mapspec explain` without a kind lists all"
        refuse("explain", f"there is no kind {kind!r}", "unknown-kind", hint)
    return f"{kind}\n\n{sections()[kind]}"
