"""`compile routes [FROM [TO]]`: which layouts reach which with `run --to`, exactly or with what loss."""

from __future__ import annotations

import argparse

from compiler.cli.options import Parser, print_json


def routes_parser() -> Parser:
    parser = Parser("routes", "List which layouts convert into which with `run FROM SOURCE OUT --to TO`.")
    parser.add_argument("first", nargs="?", metavar="FROM", help="a spec: a YAML file, or the name of a shipped one")
    parser.add_argument("second", nargs="?", metavar="TO", help="a spec, or a family of specs such as gguf")
    parser.add_json("print the routes, or the problems, as JSON")
    return parser


def routes(options: argparse.Namespace) -> int:
    from compiler.jobs.compose import second_program, target_of
    from compiler.jobs.detect import known_specs
    from compiler.jobs.routes import NONE, route
    from compiler.jobs.routes import routes as all_routes
    from compiler.program.loading import load_program

    if options.first is None:
        found = all_routes(known_specs())
    else:
        first = load_program(options.first)
        if options.second is None:
            others = [other for other in known_specs() if target_of(other) == target_of(first)]
            found = [route(first, other) for other in others if other.spec.name.value != first.spec.name.value]
        else:
            found = [route(first, second_program(first, options.second))]
    if options.json:
        print_json({"routes": [one.as_json() for one in found]})
    elif options.first is None:
        for target in sorted({one.target for one in found}):
            here = [one for one in found if one.target == target]
            into = sorted({one.second for one in here if one.level != NONE})
            print(f"{target}\n    from {', '.join(sorted({one.first for one in here}))}\n    to   {', '.join(into)}")
    else:
        for one in found:
            print(f"{one.first} -> {one.target} -> {one.second}: {one.level if one.level != NONE else 'no route'}")
            for reason in one.reasons:
                print(f"    {reason}")
        if not found:
            print(f"{options.first} has the only layout of its class")
    return 1 if options.second is not None and found[0].level == NONE else 0
