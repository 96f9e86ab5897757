"""`compile SPEC...`: prove specs and write the generated files, or compare them with the files on disk."""

from __future__ import annotations

import argparse
import difflib
import shlex
import sys
from pathlib import Path

from compiler import __version__
from compiler.cli.options import SPEC_HELP, Parser, print_json, report
from compiler.console import usage
from compiler.console.terminal import painter
from compiler.diagnostics import Diagnostic, Refusal, refuse
from compiler.emit.forms import FORMS

PAUSE = 0.3  # seconds between two looks at the files
USAGE = """\
mapspec SPEC [SPEC ...]                compile: render the converter of each spec into generated/
mapspec SPEC --to SPEC                 render one converter from the first layout into the second
mapspec run SPEC SOURCE OUT            convert a checkpoint into a folder that Transformers loads
mapspec plan SPEC SOURCE               show what a conversion would do, from file headers alone
mapspec verify SPEC SOURCE OUT         compare a converted folder with its source
mapspec adapter SPEC BASE ADAPTER OUT  convert a LoRA of the source to a PEFT adapter, or back
mapspec detect SOURCE                  list the specs that fit a checkpoint
mapspec routes [FROM [TO]]             list which layouts `run --to` converts into which
mapspec draft SOURCE --target CLASS    write a first version of a spec for an unknown checkpoint
mapspec new NAME --target CLASS        write an empty spec to start from
mapspec sample DIR                     write a small checkpoint to try the commands on
mapspec explain KIND                   explain a kind of problem
mapspec schema                         print the JSON Schema of the spec language
mapspec completion SHELL               print a completion script for a shell
mapspec lsp                            start a language server for editors, on standard input and output

'mapspec run --help' and so on print the options of a command. `compile` is the same program."""


def compile_parser() -> Parser:
    parser = Parser("", USAGE, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specs", nargs="+", metavar="SPEC", help=SPEC_HELP)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("generated"),
        metavar="DIR",
        help="the folder to write into (default: generated)",
    )
    parser.add_argument(
        "--to", metavar="SPEC", help="render one converter into the layout of this spec or family, as `run --to` does"
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; print a diff and exit 1 if the files differ"
    )
    parser.add_argument(
        "--emit",
        choices=FORMS,
        metavar="FORM",
        help="write a mapping in the form of another program in place of the converter, to DIR/emit/FORM: "
        + "; ".join(f"{form}: {what}" for form, what in FORMS.items()),
    )
    parser.add_argument(
        "--no-proof", action="store_true", help="skip the proof against the target class, which imports Transformers"
    )
    parser.add_argument(
        "--watch", action="store_true", help="compile again whenever a spec is saved, until interrupted"
    )
    parser.add_argument("--strict", action="store_true", help="treat warnings as errors")
    parser.add_json()
    parser.add_argument("--version", action="version", version=f"mapspec {__version__}")
    return parser


def compile(options: argparse.Namespace) -> int:
    return _watch(options) if options.watch else _compile(options)


def _watch(options: argparse.Namespace) -> int:
    """Compile every spec whose file has changed, until interrupted."""
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
                report(refusal.diagnostics, options.output_format)
            sys.stdout.flush()
        try:
            time.sleep(PAUSE)
        except KeyboardInterrupt:
            return 0


def _compile(options: argparse.Namespace) -> int:
    """Compile every spec, also after one that fails."""
    from compiler.jobs.compile import build
    from compiler.jobs.emit import emit
    from compiler.language.parser import load_spec
    from compiler.resources import find_spec

    usage.check_specs(options.specs)
    if options.emit and options.to:
        refuse("mapspec compile", "--emit and --to are two outputs", "wrong-usage", "give one of the two")
    problems: list[Diagnostic] = []
    warnings: list[Diagnostic] = []
    outcomes: dict[str, str] = {}
    for text in options.specs:
        before = len(warnings)
        try:
            prove = not options.no_proof
            if options.emit:
                files = emit(text, options.emit, prove=prove, warn=warnings.append)
            else:
                files = build(text, prove=prove, warn=warnings.append, to=options.to)
        except Refusal as refusal:
            problems += refusal.diagnostics
            continue
        if options.strict and len(warnings) > before:
            continue
        for name, content in files.items():
            outcomes[str(options.out / name)] = _write_or_compare(options.out / name, content, options)
    if problems or (warnings and options.strict):
        raise Refusal(problems + warnings)
    if options.json:
        print_json({"diagnostics": [d.as_json() for d in sorted(warnings)], "files": outcomes})
    elif warnings:
        report(sorted(warnings), options.output_format)
    quiet = options.json or options.quiet or options.check or options.watch
    if len(options.specs) == 1 and not (options.to or options.emit or quiet):
        words = load_spec(find_spec(options.specs[0])).source_words
        command = f"mapspec run {shlex.quote(options.specs[0])} {words} OUT"
        print(painter(sys.stdout)("command", f"next: {command}"))
    return 1 if "differs" in outcomes.values() else 0


def _write_or_compare(path: Path, content: str, options: argparse.Namespace) -> str:
    """Write a generated file, or with `--check` compare it. Returns "wrote", "unchanged" or "differs"."""
    from compiler.templating import write_if_changed

    if not options.check:
        done = "wrote" if write_if_changed(path, content) else "unchanged"
        if not options.json and options.quiet < 2:
            print(f"{done} {path}")
        return done
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    if old == content:
        return "unchanged"
    if not options.json:
        new = f"{path} (as compiled now)"
        sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), content.splitlines(True), str(path), new))
    return "differs"
