"""The small commands: `schema`, `explain`."""

from __future__ import annotations

import argparse

from compiler.options import Parser, print_json


def schema_parser() -> Parser:
    parser = Parser("schema", "Print the JSON Schema of the spec language.")
    parser.add_json("print problems as JSON; the schema is JSON anyway")
    return parser


def schema(options: argparse.Namespace) -> int:
    from compiler.grammar import schema as read

    print_json(read())
    return 0


def explain_parser() -> Parser:
    parser = Parser("explain", "Tell what a kind of problem means, what causes it and how it is mended.")
    parser.add_argument("kind", metavar="KIND", nargs="?", help="the word in brackets; without it, all are listed")
    parser.add_json()
    return parser


def explain(options: argparse.Namespace) -> int:
    from compiler.kinds import section, sections

    if options.kind is None:
        print_json(sorted(sections())) if options.json else print("\n".join(sorted(sections())))
        return 0
    text = section(options.kind.strip("[]"))
    print_json({"kind": options.kind.strip("[]"), "text": text}) if options.json else print(text, end="")
    return 0
