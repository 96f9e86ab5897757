"""`compile detect SOURCE`: list the specs that fit a checkpoint, and why others do not."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.cli.options import Parser, print_json, request
from compiler.console import usage
from compiler.console.terminal import painter, width
from compiler.diagnostics import printable

if TYPE_CHECKING:
    from compiler.jobs.detect import Fit

NEAREST = 4  # specs that do not fit and are shown
REASONS = 3  # for each of them
_HEADS = {
    "fits": "fits",
    "asks": "fits, but needs arguments",
}


def detect_parser() -> Parser:
    parser = Parser("detect", "List the specs that fit a checkpoint, by tensor names, shapes and container.")
    parser.add_source()
    parser.add_settings()
    parser.add_argument(
        "--specs", type=Path, action="append", default=[], metavar="DIR", help="a folder with more specs (repeatable)"
    )
    parser.add_argument("--all", action="store_true", help="list every spec with every reason")
    parser.add_json()
    return parser


def detect(options: argparse.Namespace) -> int:
    """Exit status 0 if a spec fits, else 1."""
    from compiler.jobs.detect import detect as fits_of
    from compiler.jobs.detect import known_specs
    from compiler.jobs.identity import named_class

    usage.check_places("mapspec detect", None, options.source, {options.config: "unreadable-file"})
    paint, columns = painter(sys.stdout), min(100, width(sys.stdout) or 100)
    asked = request(options)
    fits = fits_of(asked, known_specs(options.specs))
    source = shlex.join(usage.source_words(options))
    good = [fit for fit in fits if fit.status in ("fits", "asks")]
    near = [fit for fit in fits if fit.status == "near"]
    shown = fits if options.all else [*good, *near[: NEAREST - min(len(good), 2)]]
    if options.json:
        print_json({"fits": [fit.as_json() for fit in shown]})
    for fit in shown if not options.json else ():
        paint_status = "good" if fit.status == "fits" else "doubt" if fit.status == "asks" else "dim"
        print(f"{paint('heading', fit.spec)}: {paint(paint_status, _heading(fit))}")
        print(textwrap.fill(fit.summary, columns, initial_indent="    ", subsequent_indent="    "))
        if fit.asks:
            print("    needs " + " ".join(f"--set {name}=VALUE" for name in fit.asks) + ", or --config FILE")
        if fit.doubt:
            print(f"    file names mention another model: {fit.doubt}")
        reasons = fit.reasons if options.all else fit.reasons[:REASONS]
        for reason in reasons:
            print(
                "\n".join(
                    textwrap.wrap(printable(reason), columns - 4, initial_indent="    - ", subsequent_indent="      ")
                )
            )
        if len(reasons) < len(fit.reasons):
            print(f"    - and {len(fit.reasons) - len(reasons)} more")
        if not fit.container:
            print("    the spec expects another file name")
    words = ["--config", str(options.config)] if options.config else []
    given = shlex.join([*words, *(word for one in options.set for word in ("--set", one))])
    if not options.json and not good:
        named = named_class(asked)
        command = f"mapspec draft {source} --target {named.name if named else 'CLASS'} -o mine.yaml"
        print("no spec fits; next: " + paint("command", f"{command} {given}".rstrip()))
        if not named:
            command = f"mapspec run hf {source} OUT --config CONFIG_JSON"
            print("for the names of a Transformers class: " + paint("command", command))
    elif not options.json and not options.quiet:
        first, *others = next_command(good, source, given).splitlines()
        print("\n".join([paint("command", first), *others]))
    return 0 if good else 1


def _heading(fit: Fit) -> str:
    """The status of a fit, and the share of names that match."""
    names = "all names match" if fit.share == 1 else f"{math.floor(100 * fit.share)}% of the names match"
    return f"{_HEADS.get(fit.status, 'does not fit')} ({names})"


def next_command(good: Sequence[Fit], source: str, given: str = "") -> str:
    """The command that converts with the best spec, with the options that were `given`, and the names of the others that
    fit as well."""
    best = good[0]
    settings = f" {given}" * bool(given) + "".join(f" --set {name}=VALUE" for name in best.asks)
    others = [fit.spec for fit in good[1:] if fit.status == best.status]
    lines = [f"next: mapspec run {best.spec} {source} OUT{settings}"]
    lines += [f"if this is another model, use its spec instead: {', '.join(others)}"] if others else []
    return "\n".join(lines)
