"""What the commands share: the argument parser, the options of a conversion, notes, progress, and printed problems.

Imports only light modules, so that `--help` is fast; a command imports the rest when it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from compiler.cli.notes import sentences
from compiler.diagnostics import MAX_SHOWN, Diagnostic, printable, refuse
from compiler.jobs.request import DEFAULTS, Request
from compiler.plan.notes import GuessedArgument, Note

SPEC_HELP = "a spec: a YAML file, or the name of a shipped one"
AUTO_HELP = SPEC_HELP + "; auto picks the one that fits SOURCE"


class Parser(argparse.ArgumentParser):
    """An argument parser that reports wrong usage as a diagnostic if `--json` is given, else as argparse does.

    Options are not abbreviated: `--to` is not read as `--tokenizer`.
    """

    def __init__(self, command: str, description: str, **rest: Any) -> None:
        super().__init__(prog=f"compile {command}".strip(), description=description, allow_abbrev=False, **rest)
        self.words: Sequence[str] = ()

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse the command's words. On wrong usage, raises Refusal or ends the process with status 2."""
        self.words = words
        return self.parse_args(words)

    def error(self, message: str) -> NoReturn:
        if "--json" in self.words:
            refuse(self.prog, message, "wrong-usage", " ".join(self.format_usage().split()))
        super().error(message)

    def add_field(self, name: str, help: str, flag: str = "", **rest: Any) -> None:
        """Add the option for a field of `Request`, with the default of the field; a flag for a bool."""
        default = DEFAULTS[name]
        flag = flag or "--" + name.replace("_", "-")
        if isinstance(default, bool):
            rest["action"] = "store_false" if default else "store_true"
        elif isinstance(default, int):
            rest["type"] = int
        self.add_argument(flag, dest=name, default=default, help=help, **rest)

    def add_spec(self) -> None:
        self.add_argument("spec", metavar="SPEC", help=AUTO_HELP)

    def add_source(self) -> None:
        self.add_argument(
            "source", type=Path, nargs="+", metavar="SOURCE", help="the checkpoint: a file, a folder, or several files"
        )

    def add_json(self, what: str = "print the result, or the problems, as JSON") -> None:
        self.add_argument("--json", action="store_true", help=what)

    def add_settings(self) -> None:
        """Add the options that give values to the spec's arguments."""
        self.add_field("config", "the source's config: JSON, YAML, Meta's params.json", type=Path, metavar="FILE")
        self.add_field("weights", "which weights of a torch file: ema, model, or a dotted path of keys", metavar="KEY")
        self.add_argument(
            "--set", action="append", default=[], metavar="NAME=VALUE", help="set one argument of the spec (repeatable)"
        )
        self.add_field("model", "the released model that SOURCE is, if the spec knows its arguments", metavar="NAME")
        self.add_field("strict", "reject arguments that would be guessed")
        self.add_field("any_model_type", "accept a config that names another architecture", flag="--ignore-model-type")

    def add_to(self) -> None:
        self.add_field("to", "write the layout of this spec or family, such as gguf, in one pass", metavar="SPEC")

    def add_conversion(self) -> None:
        """Add the options that `run` and `plan` share."""
        self.add_settings()
        self.add_field("dtype", "cast every floating tensor to this type", choices=["float32", "float16", "bfloat16"])
        self.add_field(
            "reverse",
            "convert back: SOURCE is a Transformers folder; OUT becomes the source's own folder, or one file if it ends in .pth or .safetensors",
        )
        self.add_json()


def request(options: argparse.Namespace) -> Request:
    """The request that a command's options make. Fields without an option keep their defaults. Raises Refusal."""
    from compiler.checkpoints.config_file import parse_assignments

    values = vars(options)
    if values.get("reverse") and values.get("to"):
        message = (
            "--reverse and --to exclude each other: --reverse starts from a Transformers folder, --to from a source"
        )
        refuse("compile", message, "wrong-usage", "leave one out")
    given = {field.name: values[field.name] for field in fields(Request) if field.name in values}
    return Request(**given, assigned=parse_assignments(options.set))


def person(options: argparse.Namespace) -> Callable[[str], str] | None:
    """A function that asks the person at the terminal; None if there is no terminal, or with `--json`."""
    return ask_on_stderr if sys.stdin.isatty() and sys.stderr.isatty() and not options.json else None


def ask_on_stderr(question: str) -> str:
    """The line that a person types. Raises Refusal at the end of the input."""
    print(question, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        refuse("auto", "no spec was chosen", "ambiguous-spec", "run one by its name")
    return line


class Notes:
    """Collects the notes of a command; prints each on stderr unless `silent` (they are then part of the JSON result)."""

    def __init__(self, silent: bool) -> None:
        self.silent = silent
        self.notes: list[Note] = []

    def __call__(self, note: Note) -> None:
        self.notes.append(note)
        kind = "warning" if isinstance(note, GuessedArgument) else "note"
        for line in () if self.silent else sentences(note):
            print(f"{kind}: {printable(line)}", file=sys.stderr)

    def lines(self) -> list[str]:
        """All notes so far as sentences."""
        return [line for note in self.notes for line in sentences(note)]


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def report(diagnostics: Sequence[Diagnostic], as_json: bool) -> None:
    """Print problems: as text on stderr, or as JSON on stdout."""
    if as_json:
        print_json({"diagnostics": [d.as_json() for d in diagnostics]})
        return
    for diagnostic in diagnostics[:MAX_SHOWN]:
        print(diagnostic, file=sys.stderr)
    if len(diagnostics) > 1:
        first = f", of which the first {MAX_SHOWN} are shown" * (len(diagnostics) > MAX_SHOWN)
        print(f"{len(diagnostics)} problems{first}", file=sys.stderr)


class Meter:
    """A progress bar on stderr; nothing if stderr is not a terminal."""

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
