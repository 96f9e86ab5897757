"""`compile SPEC...`: proves specs and renders what is generated from them, or compares it."""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path

from compiler import __version__
from compiler.cli.options import SPEC_HELP, Parser, print_json, report
from compiler.diagnostics import Diagnostic, Refusal

PAUSE = 0.3  # seconds between two looks at the files
USAGE = """\
compile SPEC [SPEC ...]                render the converter of each spec into generated/
compile run SPEC SOURCE OUT            convert a checkpoint into a folder that Transformers loads
compile plan SPEC SOURCE               say what would become what, from headers alone
compile verify SPEC SOURCE OUT         hold a converted folder to the model that it was made from
compile adapter SPEC BASE ADAPTER OUT  carry a LoRA over to what its base model becomes, or back
compile detect SOURCE                  say which specs fit a checkpoint
compile draft SOURCE --target CLASS    propose a spec for a checkpoint that none fits
compile new NAME --target CLASS        start a spec
compile explain KIND                   tell what a kind of problem means
compile schema                         print the JSON Schema of the spec language
compile completion SHELL               print a script that completes these words

'compile run --help' and so on tell the options of each."""


def compile_parser() -> Parser:
    parser = Parser("", USAGE, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specs", nargs="+", metavar="SPEC", help=SPEC_HELP)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("generated"),
        metavar="DIR",
        help="where the converters go (default: generated)",
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; print a diff and exit 1 where the files differ"
    )
    parser.add_argument(
        "--no-proof", action="store_true", help="skip the proof against the target class, which imports Transformers"
    )
    parser.add_argument("--watch", action="store_true", help="compile anew whenever a spec is saved, until interrupted")
    parser.add_argument("--strict", action="store_true", help="warnings fail, and nothing is written")
    parser.add_json()
    parser.add_argument("--version", action="version", version=f"mapspec {__version__}")
    return parser


def compile(options: argparse.Namespace) -> int:
    return _watch(options) if options.watch else _compile(options)


def _watch(options: argparse.Namespace) -> int:
    """Compile what has changed since it was last looked at, until the user has enough."""
    import time

    from compiler.resources import find_spec

    seen: dict[str, float] = {}
    given = list(options.specs)
    while True:
        for text in given:
            path = find_spec(text)
            saved = path.stat().st_mtime if path.is_file() else 0.0
            if seen.get(text) == saved:
                continue
            seen[text] = saved
            options.specs = [text]
            try:
                _compile(options)
            except Refusal as refusal:
                report(refusal.diagnostics, options.json)
            sys.stdout.flush()
        try:
            time.sleep(PAUSE)
        except KeyboardInterrupt:
            return 0


def _compile(options: argparse.Namespace) -> int:
    """Every spec is tried, whatever becomes of the one before."""
    from compiler.jobs.compile import build

    problems: list[Diagnostic] = []
    warnings: list[Diagnostic] = []
    settled: dict[str, str] = {}
    for text in options.specs:
        heard = len(warnings)
        try:
            files = build(text, prove=not options.no_proof, warn=warnings.append)
        except Refusal as refusal:
            problems += refusal.diagnostics
            continue
        if options.strict and len(warnings) > heard:
            continue
        for name, content in files.items():
            settled[str(options.out / name)] = _settle(options.out / name, content, options)
    if problems or (warnings and options.strict):
        raise Refusal(problems + warnings)
    if options.json:
        print_json({"diagnostics": [d.as_json() for d in sorted(warnings)], "files": settled})
    else:
        report(sorted(warnings), False)
    return 1 if "differs" in settled.values() else 0


def _settle(path: Path, content: str, options: argparse.Namespace) -> str:
    """Write a generated file, or compare it; what came of it."""
    from compiler.templating import write_if_changed

    if not options.check:
        done = "wrote" if write_if_changed(path, content) else "unchanged"
        if not options.json:
            print(f"{done} {path}")
        return done
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    if old == content:
        return "unchanged"
    if not options.json:
        new = f"{path} (compiled anew)"
        sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), content.splitlines(True), str(path), new))
    return "differs"
