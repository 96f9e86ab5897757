"""`compile plan`: what a conversion would do, as text, JSON or an HTML page, from headers alone."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.cli.options import Parser, notes, print_json, program_of, request
from compiler.plan_report.text import text

if TYPE_CHECKING:
    pass


def plan_parser() -> Parser:
    parser = Parser("plan", "Say what would become what, from headers alone.")
    parser.add_spec()
    parser.add_source()
    parser.add_conversion()
    parser.add_argument("--full", action="store_true", help="a line for every tensor; without it layers are folded")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page that shows it")
    parser.add_argument(
        "--compare",
        action="store_true",
        help="read what a run would compare first: tensors that are tied, or left behind",
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="threads, for the estimate of memory")
    return parser


def plan(options: argparse.Namespace) -> int:
    from compiler.jobs.prepare import prepare
    from compiler.plan import arguments as settings
    from compiler.plan_report.overview import overview

    kept, say = notes(options)
    say = say if options.html is None else kept.append
    program, asked = program_of(options, say), request(options)
    found, checkpoint = prepare(program, asked, say)
    defaults: dict[str, Any] = {}
    if not options.reverse:
        told = settings.gather(
            program, asked.source[0], checkpoint.objects, asked.config, asked.assigned, asked.any_model_type
        )
        arguments = program.spec.arguments
        defaults = {
            n: a.default for n, a in arguments.items() if n not in told.given and not a.required and not a.derive
        }
    others = [line for line in kept if not line.startswith("left at their defaults")]  # which have a place of their own
    view = overview(
        found,
        checkpoint,
        defaults=defaults,
        notes=others,
        jobs=options.jobs,
        full=options.full,
        compared=options.compare,
    )
    if options.html is not None:
        from compiler.plan_report.html_page import write_page

        write_page(view, options.html)
        if not options.json:
            print(f"wrote {options.html}")
    if options.json:
        print_json(view.as_json())
    elif options.html is None:
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print("\n".join(text(view, colour)))
    return 0
