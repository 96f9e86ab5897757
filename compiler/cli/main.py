"""The command line: run the command that the first word names, and turn a Refusal into text and an exit status.

A command `x` is the functions `x_parser` and `x` of a module of this package, which is imported when it is called.
Exit status: 0 done; 1 the spec, the checkpoint or the check failed, with diagnostics; 2 wrong usage.
"""

from __future__ import annotations

import io
import os
import sys
from importlib import import_module

from compiler import packages
from compiler.cli.compile import USAGE
from compiler.console.problems import format_of, report
from compiler.diagnostics import Diagnostic, Refusal, Span, nearest
from compiler.resources import find_spec

# Command -> module. A first word that is not a command is a spec.
COMMANDS = {
    "compile": "compile",
    "run": "run",
    "plan": "plan",
    "verify": "verify",
    "adapter": "adapter",
    "detect": "detect",
    "draft": "draft",
    "routes": "routes",
    "schema": "explain",
    "explain": "explain",
    "new": "new",
    "sample": "sample",
    "completion": "completion",
    "lsp": "explain",
}


def main(arguments: list[str] | None = None) -> None:
    """The console script. Ends the process with the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be Unicode
    try:
        sys.exit(dispatch(words))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        print(f"interrupted; {interrupt or 'nothing was written under the final name'}", file=sys.stderr)
        sys.exit(getattr(interrupt, "status", 130))


def dispatch(words: list[str]) -> int:
    """Run one command and return the exit status. Problems that it raises are printed here."""
    if not words:
        print(f"usage: {USAGE}", file=sys.stderr)
        return 2
    command = words[0] if words[0] in COMMANDS else "compile"
    meant = nearest(words[0], COMMANDS) if words[0] not in COMMANDS and not words[0].startswith("-") else ""
    if meant and not find_spec(words[0]).exists():
        problem = Diagnostic(Span(words[0]), "there is no such command and no such spec", "wrong-usage", meant)
        report([problem], format_of(words))
        return 2
    module = import_module(f"compiler.cli.{COMMANDS[command]}")
    try:
        options = getattr(module, f"{command}_parser")().parse(words[words[:1] == [command] :])
        status: int = getattr(module, command)(options)
        return status
    except Refusal as refusal:
        report(refusal.diagnostics, format_of(words))
        return 2 if all(d.kind == "wrong-usage" for d in refusal.diagnostics) else 1
    except BrokenPipeError:
        raise
    except ModuleNotFoundError as error:
        if error.name not in packages.PROOF:
            raise
        report(packages.absence(f"mapspec {command}", [error.name]).diagnostics, format_of(words))
        return 1
    except OSError as error:  # not handled where it was raised
        span = Span(str(error.filename or command))
        report(
            [Diagnostic(span, f"operating system error: {error.strerror or error}", "unreadable-file")],
            format_of(words),
        )
        return 1
