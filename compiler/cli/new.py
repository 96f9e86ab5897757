"""`compile new NAME`: write a spec to start from, with a comment at every part."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from compiler.cli.options import Parser, print_json


def new_parser() -> Parser:
    parser = Parser("new", "Write a spec to start from: every part of the language, with a comment at each.")
    parser.add_argument("name", metavar="NAME", help="an identifier; the file is NAME.yaml")
    parser.add_argument("--target", required=True, metavar="CLASS", help="a class of Transformers")
    parser.add_argument(
        "--out", type=Path, default=Path("specs"), metavar="DIR", help="the folder of the file (default: specs)"
    )
    parser.add_json()
    return parser


def new(options: argparse.Namespace) -> int:
    import os

    from compiler.diagnostics import refuse
    from compiler.resources import schema_path
    from compiler.templating import environment

    if not options.name.isidentifier() or not options.name.islower() or not options.target.isidentifier():
        near = re.sub(r"[^a-z0-9]+", "_", options.name.lower()).strip("_")
        hint = "use lower-case letters, digits and _" + f", as in {near}" * near.isidentifier()
        word = options.target if options.name.isidentifier() and options.name.islower() else options.name
        refuse("mapspec new", f"{word!r} is not a valid name here", "bad-name", hint)
    path = options.out / f"{options.name}.yaml"
    if path.exists():
        refuse(str(path), "the file exists", "output-exists", "choose another name")
    schema = os.path.relpath(schema_path(), options.out)
    text = (
        environment()
        .get_template("spec.yaml.jinja")
        .render(name=options.name, summary=options.name.replace("_", " "), target=options.target, schema=schema)
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        refuse(str(path), f"cannot be written: {error.strerror}", "output-unwritable")
    print_json({"wrote": str(path)}) if options.json else print(f"wrote {path}; compile it to see what is missing")
    return 0
