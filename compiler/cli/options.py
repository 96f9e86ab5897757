"""What the commands share: the argument parser, the options of a conversion, notes, progress, and printed problems.

Imports only light modules, so that `--help` is fast; a command imports the rest when it runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from compiler.cli.notes import brief, sentences
from compiler.console import usage
from compiler.console.problems import FORMATS, print_json, report
from compiler.console.terminal import Meter, painter
from compiler.diagnostics import Refusal, printable, refuse
from compiler.jobs.request import DEFAULTS, Request
from compiler.plan.notes import GuessedArgument, Note

SPEC_HELP = "a spec: a YAML file, or the name of a shipped one"
AUTO_HELP = SPEC_HELP + "; auto picks the one that fits SOURCE, hf takes names of the class in config.json"
PROGRAM = "mapspec"

__all__ = ["Meter", "Notes", "Parser", "notes_for", "person", "print_json", "report", "request"]


class Parser(argparse.ArgumentParser):
    """An argument parser that reports wrong usage as one diagnostic, with what was probably meant.

    Options are not abbreviated: `--to` is not read as `--tokenizer`.
    """

    def __init__(self, command: str, description: str, **rest: Any) -> None:
        super().__init__(prog=f"{PROGRAM} {command}".strip(), description=description, allow_abbrev=False, **rest)
        self.words: Sequence[str] = ()

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse the command's words. Raises Refusal: `wrong-usage`. `--help` ends the process."""
        self.words = words
        options = self.parse_args(words)
        options.json = options.output_format == "json"
        if "source" in options:
            options.names, options.source = usage.named_sources(self.prog, options.source)
        return options

    def error(self, message: str) -> NoReturn:
        raise Refusal([usage.fault(self, message, self.words)])

    def add_field(self, name: str, help: str, flag: str = "", **rest: Any) -> None:
        """Add the option for a field of `Request`, with the default of the field; a flag for a bool."""
        default = DEFAULTS[name]
        flag = flag or "--" + name.replace("_", "-")
        if isinstance(default, bool):
            rest["action"] = "store_false" if default else "store_true"
        elif isinstance(default, int):
            rest["type"] = usage.positive
        self.add_argument(flag, dest=name, default=default, help=help, **rest)

    def add_spec(self) -> None:
        self.add_argument("spec", metavar="SPEC", help=AUTO_HELP)

    def add_source(self) -> None:
        self.add_argument(
            "source",
            type=Path,
            nargs="+",
            metavar="SOURCE",
            help="the checkpoint: a file, a folder, or several files; where the spec has several sources, NAME=PATH for each",
        )

    def add_json(self, what: str = "print the result, or the problems, as JSON") -> None:
        """Add the options about what is printed."""
        self.add_argument(
            "--output-format",
            choices=FORMATS,
            default=FORMATS[0],
            help="how to print problems: text, json, or annotations of GitHub's workflows (default: %(default)s)",
        )
        self.add_argument("--json", dest="output_format", action="store_const", const="json", help=what)
        self.add_argument(
            "-q", "--quiet", action="count", default=0, help="print problems and the result only; -qq: problems only"
        )
        self.add_argument("-v", "--verbose", action="store_true", help="print all notes in full")

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

    def add_conversion(self, *blocks: str) -> None:
        """Add the options that `run` and `plan` share. `blocks`: types that only a file to write has."""
        self.add_settings()
        choices = ["float32", "float16", "bfloat16", *blocks]
        self.add_field(
            "dtype", "cast every floating tensor to this type" + "; q8_0 for GGUF" * bool(blocks), choices=choices
        )
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
    """Collects the notes of a command, and prints each on stderr: in short, or all of it if `verbose`. Nothing is printed if
    `silent`; notes are then part of the JSON result; notes of the kind `without` are not printed. Where `meter` shows a bar,
    it is removed first."""

    def __init__(
        self, silent: bool, verbose: bool = False, meter: Meter | None = None, without: type | tuple[()] = ()
    ) -> None:
        self.silent, self.verbose, self.meter, self.without = silent, verbose, meter, without
        self.notes: list[Note] = []

    def __call__(self, note: Note) -> None:
        self.notes.append(note)
        kind = "warning" if isinstance(note, GuessedArgument) else "note"
        paint = painter(sys.stderr)
        if self.silent or isinstance(note, self.without):
            return
        if self.meter:
            self.meter.end()
        for line in sentences(note) if self.verbose else brief(note):
            print(f"{paint(kind, kind + ':')} {printable(line)}", file=sys.stderr)

    def lines(self) -> list[str]:
        """All notes so far as sentences."""
        return [line for note in self.notes for line in sentences(note)]


def notes_for(options: argparse.Namespace, meter: Meter | None = None) -> Notes:
    """The notes of a command, printed as its options ask for."""
    return Notes(silent=options.json or options.quiet > 0, verbose=options.verbose, meter=meter)
