"""`mapspec lsp`: start a language server for spec files on standard input and output."""

from __future__ import annotations

import argparse

from compiler import packages
from compiler.cli.options import Parser


def lsp_parser() -> Parser:
    parser = Parser(
        "lsp",
        "Start a language server for spec files; an editor starts it, and talks to it on standard input and output.",
    )
    parser.add_json("print problems as JSON")
    return parser


def lsp(options: argparse.Namespace) -> int:
    packages.need("mapspec lsp", *packages.LSP)
    from compiler.lsp.server import serve

    serve()
    return 0
