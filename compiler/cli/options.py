"""What the commands share: the options that name a source, the meter of long work, and how problems are printed.

Nothing heavy is imported here; a command's own module imports what it needs once it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from compiler.diagnostics import MAX_SHOWN, Diagnostic, printable, refuse

SPEC_HELP = "a spec: a YAML file, or the name of a shipped one"
AUTO_HELP = SPEC_HELP + "; auto takes the one that fits"


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are diagnostics where the words ask for JSON, and argparse's own text elsewhere."""

    def __init__(self, command: str, description: str, **rest: Any) -> None:
        super().__init__(prog=f"compile {command}".strip(), description=description, **rest)
        self.words: Sequence[str] = ()

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """The options that the words give. Raises Refusal or ends the process with status 2."""
        self.words = words
        return self.parse_args(words)

    def error(self, message: str) -> NoReturn:
        if "--json" in self.words:
            refuse(self.prog, message, "wrong-usage", " ".join(self.format_usage().split()))
        super().error(message)

    def add_spec(self) -> None:
        self.add_argument("spec", metavar="SPEC", help=AUTO_HELP)

    def add_source(self) -> None:
        self.add_argument(
            "source", type=Path, nargs="+", metavar="SOURCE", help="the checkpoint: a file, a folder, or several files"
        )

    def add_json(self, what: str = "print the result, or the problems, as JSON") -> None:
        self.add_argument("--json", action="store_true", help=what)

    def add_settings(self) -> None:
        """What tells a source's arguments."""
        self.add_argument(
            "--config", type=Path, metavar="FILE", help="the source's config: JSON, YAML, Meta's params.json"
        )
        self.add_argument(
            "--weights", metavar="KEY", help="which weights of a torch file: ema, model, or a dotted path of keys"
        )
        self.add_argument(
            "--set", action="append", default=[], metavar="NAME=VALUE", help="set one argument of the spec (repeatable)"
        )
        self.add_argument(
            "--model", metavar="NAME", help="the released model that this is, where the spec knows its arguments"
        )
        self.add_argument("--strict", action="store_true", help="reject arguments that would be guessed")
        self.add_argument(
            "--ignore-model-type", action="store_true", help="accept a config that names another architecture"
        )

    def add_conversion(self) -> None:
        """What `run` and `plan` share."""
        self.add_settings()
        self.add_argument(
            "--dtype", choices=["float32", "float16", "bfloat16"], help="cast every floating tensor to this type"
        )
        self.add_argument(
            "--reverse", action="store_true", help="the other way: SOURCE is a Transformers folder, OUT a .pth"
        )
        self.add_json()


def request(options: argparse.Namespace) -> Any:
    """The `convert.Request` of `run` or `plan`. Raises Refusal."""
    from compiler.checkpoints.config_file import parse_assignments
    from compiler.jobs.prepare import Request

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
        compare=getattr(options, "compare", True),
        max_shard_size=getattr(options, "max_shard_size", "5GB"),
        force=getattr(options, "force", False),
        resume=getattr(options, "resume", False),
        check_values=getattr(options, "check_values", False),
        weights=options.weights,
        model=options.model,
        strict=options.strict,
        any_model_type=options.ignore_model_type,
        digests=getattr(options, "digests", False),
        parts=getattr(options, "parts", 1),
    )


def program_of(options: argparse.Namespace, say: Callable[[str], None]) -> Any:
    """The `Program` of the spec that the words name; for `auto` the one that fits the source. Raises Refusal."""
    from compiler.program.loading import load_program

    if options.spec != "auto":
        return load_program(options.spec)
    from compiler.checkpoints.config_file import parse_assignments
    from compiler.jobs.detect import detect, known_specs, unique

    if options.reverse:
        refuse("auto", "the way back needs the name of a spec", "wrong-usage", "a source is told from what it holds")
    programs = known_specs()
    fit = unique(detect(options.source, programs, options.config, parse_assignments(options.set)), options.source[0])
    say(f"took the spec {fit.spec}: {fit.summary}")
    return next(program for program in programs if program.spec.path == fit.path)


def note(line: str) -> None:
    """Print a line that is no result: a warning, or a note."""
    print(printable(line) if line.startswith("warning: ") else f"note: {printable(line)}", file=sys.stderr)


def notes(options: argparse.Namespace) -> tuple[list[str], Callable[[str], None]]:
    """Where notes go: into a list where they become part of a JSON result, else to stderr."""
    kept: list[str] = []
    return kept, kept.append if options.json else note


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def report(diagnostics: Sequence[Diagnostic], as_json: bool) -> None:
    """Print problems: for people on stderr, for tools as JSON on stdout."""
    if as_json:
        print_json({"diagnostics": [d.as_json() for d in diagnostics]})
        return
    for diagnostic in diagnostics[:MAX_SHOWN]:
        print(diagnostic, file=sys.stderr)
    if len(diagnostics) > 1:
        first = f", of which the first {MAX_SHOWN} are shown" * (len(diagnostics) > MAX_SHOWN)
        print(f"{len(diagnostics)} problems{first}", file=sys.stderr)


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
