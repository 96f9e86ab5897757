"""The command line: reads words, calls one function, prints what comes back. Nothing heavy is imported here.

Exit status: 0 done; 1 the spec, the checkpoint or the check failed, with diagnostics; 2 wrong usage.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compiler import __version__
from compiler.diagnostics import Diagnostic, Refusal

USAGE = """\
compile SPEC [SPEC ...]              render the converter of each spec into generated/
compile run SPEC SOURCE OUT          convert a checkpoint into a folder that Transformers loads
compile plan SPEC SOURCE             say what would become what, from headers alone
compile schema                       print the JSON Schema of the spec language

'compile run --help' and so on tell the options of each."""


def main(arguments: list[str] | None = None) -> None:
    """The console script; ends the process with the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        sys.exit(_dispatch(words))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; nothing was written under the final name", file=sys.stderr)
        sys.exit(130)


def _dispatch(words: list[str]) -> int:
    command = words[0] if words and words[0] in _COMMANDS else "compile"
    parser, run = _COMMANDS[command]
    options = parser().parse_args(words[1:] if command != "compile" else words)
    try:
        return run(options)
    except Refusal as refusal:
        report(refusal.diagnostics, getattr(options, "json", False))
        return 2 if all(d.kind == "wrong-usage" for d in refusal.diagnostics) else 1


def report(diagnostics: tuple[Diagnostic, ...], as_json: bool) -> None:
    """Print problems: for people on stderr, for tools as JSON on stdout."""
    if as_json:
        print(json.dumps({"diagnostics": [d.as_json() for d in diagnostics]}, indent=2))
        return
    for diagnostic in diagnostics:
        print(diagnostic, file=sys.stderr)
    if len(diagnostics) > 1:
        print(f"{len(diagnostics)} problems", file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------------------


def _compile_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="compile", description=USAGE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("specs", nargs="+", metavar="SPEC", help="a spec: a YAML file, or the name of a shipped one")
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
    parser.add_argument("--json", action="store_true", help="print problems as JSON")
    parser.add_argument("--version", action="version", version=f"mapspec {__version__}")
    return parser


def _compile(options: argparse.Namespace) -> int:
    from compiler.build import build

    problems: list[Diagnostic] = []
    drift = False
    for text in options.specs:
        try:
            files = build(text, prove=not options.no_proof)
        except Refusal as refusal:
            problems += refusal.diagnostics
            continue
        for name, content in files.items():
            drift |= _settle(options.out / name, content, options.check)
    if problems:
        raise Refusal(problems)
    return 1 if drift else 0


def _settle(path: Path, content: str, check: bool) -> bool:
    """Write a generated file, or compare it. Returns whether it drifted."""
    from compiler.render import write_if_changed

    if not check:
        print(f"{'wrote' if write_if_changed(path, content) else 'unchanged'} {path}")
        return False
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    if old == content:
        return False
    lines = difflib.unified_diff(old.splitlines(True), content.splitlines(True), str(path), f"{path} (compiled anew)")
    sys.stdout.writelines(lines)
    return True


# ---------------------------------------------------------------------------------------------------------------------


def _source_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="the source's config: JSON, YAML, Meta's params.json"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="set one argument of the spec (repeatable)"
    )
    parser.add_argument(
        "--dtype", choices=["float32", "float16", "bfloat16"], help="cast every floating tensor to this type"
    )
    parser.add_argument(
        "--reverse", action="store_true", help="the other way: SOURCE is a Transformers folder, OUT a .pth"
    )
    parser.add_argument("--json", action="store_true", help="print the result, or the problems, as JSON")


def _run_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="compile run", description="Convert a checkpoint into a folder that Transformers loads."
    )
    parser.add_argument("spec", metavar="SPEC", help="a spec: a YAML file, or the name of a shipped one")
    parser.add_argument(
        "source", type=Path, nargs="+", metavar="SOURCE", help="the checkpoint: a file, a folder, or several files"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write (with --reverse: the file)")
    _source_options(parser)
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="a folder whose tokenizer files travel along")
    parser.add_argument("--device", default="cpu", help="where the tensors are computed: cpu or cuda")
    parser.add_argument("--no-checksums", action="store_true", help="do not compare a .pth with its own checksums")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="how many threads move bytes (default: 2)")
    parser.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="the size of one file of weights (default: 5GB)"
    )
    parser.add_argument("--force", action="store_true", help="write into a folder that is not empty")
    return parser


def _request(options: argparse.Namespace) -> Any:
    from compiler.convert import Request
    from compiler.settings import parse_assignments

    return Request(
        source=options.source,
        config=options.config,
        assigned=parse_assignments(options.set),
        dtype=options.dtype,
        reverse=options.reverse,
        tokenizer=getattr(options, "tokenizer", None),
        device=getattr(options, "device", "cpu"),
        jobs=getattr(options, "jobs", 2),
        checksums=not getattr(options, "no_checksums", True),
        max_shard_size=getattr(options, "max_shard_size", "5GB"),
        force=getattr(options, "force", False),
    )


def _run(options: argparse.Namespace) -> int:
    from compiler.build import load_program
    from compiler.convert import convert

    program = load_program(options.spec)
    notes: list[str] = []
    say: Callable[[str], None] = notes.append if options.json else lambda line: print(f"note: {line}", file=sys.stderr)
    with Meter() as meter:
        plan = convert(program, _request(options), options.out, say, meter)
    total = sum(target.nbytes for target in plan.targets)
    if options.json:
        result = {
            "out": str(options.out),
            "spec": program.spec.name.value,
            "tensors": len(plan.targets),
            "bytes": total,
            "notes": notes,
        }
        print(json.dumps(result, indent=2))
    else:
        print(f"{options.out}: {len(plan.targets)} tensors, {total:,} bytes")
    return 0


class Meter:
    """Progress on stderr, which disappears where that is no terminal."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.shown = sys.stderr.isatty()

    def __call__(self, size: int) -> None:
        if self.shown and self.bar is None:
            from tqdm import tqdm  # type: ignore[import-untyped]

            self.bar = tqdm(unit="B", unit_scale=True, leave=False)
        if self.bar is not None:
            self.bar.update(size)

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()


def _plan_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="compile plan", description="Say what would become what, from headers alone.")
    parser.add_argument("spec", metavar="SPEC")
    parser.add_argument("source", type=Path, nargs="+", metavar="SOURCE")
    _source_options(parser)
    return parser


def _plan(options: argparse.Namespace) -> int:
    from compiler.build import load_program
    from compiler.convert import prepare

    plan, checkpoint = prepare(
        load_program(options.spec), _request(options), lambda line: print(f"note: {line}", file=sys.stderr)
    )
    rows: list[dict[str, Any]] = [
        {
            "targets": [t.name for t in g.target_list],
            "shapes": [list(t.shape) for t in g.target_list],
            "dtype": g.target_list[0].dtype,
            "sources": g.source_names,
            "rule": g.rule.name or g.rule.kind,
            "at": str(g.rule.span),
        }
        for g in plan.groups
    ]
    total = sum(target.nbytes for target in plan.targets)
    if options.json:
        print(
            json.dumps(
                {"groups": rows, "tensors": len(plan.targets), "bytes": total, "config": dict(plan.config)}, indent=2
            )
        )
        return 0
    for row in rows:
        shapes = " ".join(f"{name} {shape}" for name, shape in zip(row["targets"], row["shapes"], strict=True))
        print(f"{', '.join(row['sources'])} -> {shapes} {row['dtype']}  ({row['rule']}, {row['at']})")
    print(f"{len(checkpoint.tensors)} source tensors, {len(plan.targets)} targets, {total:,} bytes")
    return 0


def _schema(options: argparse.Namespace) -> int:
    from compiler.grammar import schema

    print(json.dumps(schema(), indent=2))
    return 0


def _schema_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog="compile schema", description="Print the JSON Schema of the spec language.")


_COMMANDS: dict[str, tuple[Callable[[], argparse.ArgumentParser], Callable[[argparse.Namespace], int]]] = {
    "compile": (_compile_parser, _compile),
    "run": (_run_parser, _run),
    "plan": (_plan_parser, _plan),
    "schema": (_schema_parser, _schema),
}
