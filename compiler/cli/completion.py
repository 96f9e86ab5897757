"""`compile completion SHELL`: print a script that completes commands, options, and the names of shipped specs.

eval "$(compile completion bash)"          # or zsh; compile completion fish | source
"""

from __future__ import annotations

import argparse
import shlex
from importlib import import_module

from compiler.cli.options import Parser

_BASH = """\
_mapspec() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" command="${{COMP_WORDS[1]}}" words=""
    if [[ $COMP_CWORD -eq 1 && $word != -* ]]; then words={first}; fi
    case "$command" in
{cases}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word") $(compgen -f -- "$word"))
}}
complete -o filenames -F _mapspec compile
"""


def completion_parser() -> Parser:
    parser = Parser("completion", "Print a script for a shell that completes commands, options and specs.")
    parser.add_argument("shell", choices=["bash", "zsh", "fish"])
    parser.add_json("print problems as JSON")
    return parser


def completion(options: argparse.Namespace) -> int:
    table = _table()
    print(_fish(table) if options.shell == "fish" else _bash(table, options.shell == "zsh"), end="")
    return 0


def _table() -> dict[str, list[str]]:
    """Command -> the words that can follow it."""
    from compiler.cli.explain import sections
    from compiler.cli.main import COMMANDS
    from compiler.resources import folder

    specs = sorted(path.stem for path in folder("specs").glob("*.yaml"))
    table: dict[str, list[str]] = {}
    for command, module in COMMANDS.items():
        parser: Parser = getattr(import_module(f"compiler.cli.{module}"), f"{command}_parser")()
        flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
        takes = {action.dest for action in parser._actions if action.metavar == "SPEC"}
        words = [str(word) for action in parser._actions for word in action.choices or ()]
        words += ["auto", "hf"] * ("spec" in takes) + specs * bool(takes)
        words += sorted(sections()) if command == "explain" else []
        table[command] = [*flags, *words]
    return table


def _bash(table: dict[str, list[str]], zsh: bool) -> str:
    commands = [command for command in table if command != "compile"]
    first = shlex.quote(" ".join([*commands, *table["compile"]]))
    cases = [f"        {name}) words={shlex.quote(' '.join(table[name]))} ;;" for name in commands]
    cases.append(f'        *) words="$words "{shlex.quote(" ".join(table["compile"]))} ;;')
    start = "autoload -U +X bashcompinit && bashcompinit\n" if zsh else ""
    return start + _BASH.format(first=first, cases="\n".join(cases))


def _fish(table: dict[str, list[str]]) -> str:
    commands = [command for command in table if command != "compile"]
    lines = [f"complete -c compile -n __fish_use_subcommand -a {shlex.quote(' '.join([*commands, *table['compile']]))}"]
    lines += [
        f"complete -c compile -n '__fish_seen_subcommand_from {name}' -a {shlex.quote(' '.join(table[name]))}"
        for name in commands
    ]
    return "\n".join(lines) + "\n"
