"""`compile plan`: show what a conversion would do, as text, JSON or an HTML page, from file headers alone."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.cli.notes import sentences
from compiler.cli.options import Notes, Parser, person, print_json, request
from compiler.console import usage
from compiler.console.terminal import painter, width
from compiler.plan.notes import ClassAgrees, DefaultArguments, IgnoredTensors, Listener, ignore_note
from compiler.plan_report.text import WIDTH, text

if TYPE_CHECKING:
    from compiler.jobs.prepare import Prepared
    from compiler.jobs.request import Request
    from compiler.plan_report.difference import Difference
    from compiler.program.program import Program


def plan_parser() -> Parser:
    parser = Parser("plan", "Show what a conversion would do, from file headers alone.")
    parser.add_spec()
    parser.add_source()
    parser.add_conversion()
    parser.add_to()
    parser.add_argument(
        "--full", action="store_true", help="one line for every tensor; by default equal layers share a line"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the plan as an HTML page")
    parser.add_argument(
        "--against",
        metavar="SPEC",
        help="show how the plan differs from that of another spec, or of an earlier version of this one",
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="also read the tensors that a run compares before it writes: tied and dropped ones",
    )
    parser.add_argument(
        "--check",
        dest="compare_class",
        action="store_true",
        help="compare the result with the target class built from its config.json",
    )
    parser.add_field("jobs", "number of threads, for the memory estimate", metavar="N")
    parser.set_defaults(checksums=False)
    return parser


def plan(options: argparse.Namespace) -> int:
    from compiler.jobs.detect import named_program
    from compiler.jobs.option_effects import check_effects
    from compiler.plan_report.overview import overview

    usage.check_places("mapspec plan", options.spec, options.source, {options.config: "unreadable-file"})
    # The view shows the defaults itself.
    notes = Notes(
        options.json or options.html is not None or options.quiet > 0, options.verbose, without=DefaultArguments
    )
    asked = request(options)
    check_effects(asked)
    program = named_program(options.spec, asked, notes, person(options))
    prepared = _prepared(program, asked, notes)
    found = _against(options.against, asked, prepared) if options.against else None
    if options.compare_class:
        from compiler.executor import preconditions
        from compiler.proof.class_check import ClassCheck

        with ClassCheck(prepared.plan.first or prepared.plan, prepared.checkpoint, prepared.folder_config) as check:
            preconditions.check_shared(prepared.checkpoint, check.settle(), program.spec.target.class_name)
        notes(ClassAgrees(program.spec.target.class_name))
    # The view has places of its own for defaults and dropped tensors, and notes on stderr are not repeated.
    others = [note for note in notes.notes if notes.silent and not isinstance(note, DefaultArguments | IgnoredTensors)]
    view = overview(
        prepared.plan,
        prepared.checkpoint,
        defaults=prepared.defaults,
        notes=[line for note in others for line in sentences(note)],
        jobs=options.jobs,
        full=options.full,
        compared=options.compare,
    )
    if options.html is not None:
        from compiler.plan_report.html_page import write_page

        write_page(view, options.html, found)
        if not options.json:
            print(f"wrote {options.html}")
    if options.json:
        print_json(view.as_json() | ({"against": found.as_json()} if found else {}))
    elif options.html is None:
        from compiler.plan_report.difference_text import difference_text

        columns = min(WIDTH, width(sys.stdout) or WIDTH)
        paint = painter(sys.stdout)
        print("\n".join(difference_text(found, paint, columns) if found else text(view, paint, columns)))
    return 0


def _prepared(program: Program, asked: Request, notes: Listener = ignore_note) -> Prepared:
    from compiler.jobs.compose import prepare_both, second_program
    from compiler.jobs.prepare import prepare

    if asked.to:
        return prepare_both(program, second_program(program, asked.to), asked, notes)
    return prepare(program, asked, notes)


def _against(spec: str, asked: Request, prepared: Prepared) -> Difference:
    """How the plan differs from that of `spec` for the same source. Arguments that `spec` does not have are left out."""
    from compiler.jobs.detect import named_program
    from compiler.plan_report.difference import difference

    other = named_program(spec, asked)
    known = {*other.spec.arguments, *other.spec.facts, *other.spec.fixed}
    assigned = {name: value for name, value in asked.assigned.items() if name in known}
    before = _prepared(other, replace(asked, assigned=assigned))
    return difference((before.plan, before.checkpoint), (prepared.plan, prepared.checkpoint))
