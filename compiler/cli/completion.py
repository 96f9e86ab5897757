"""`mapspec completion SHELL`: print a script that completes what fits at each place.

Commands first; the options of the command after a dash; for SPEC the shipped specs and YAML files; for an option its
choices, or files. eval "$(mapspec completion bash)"  # or zsh; mapspec completion fish | source
"""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from compiler.cli.options import PROGRAM, Parser
from compiler.console.usage import CHOSEN

_NAMES = (PROGRAM, "compile")  # of the program
_BASH = """\
_mapspec() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" command="${{COMP_WORDS[1]}}"
    local options="" valued="" places="" words="" kind="" start=2 place=0 at=0
    COMPREPLY=()
    case "$command" in
        {commands}) ;;
        *) command=compile; start=1 ;;
    esac
    case "$command" in
{options}
    esac
    case "$command" in
{valued}
    esac
    case "$command" in
{places}
    esac
    for ((at = start; at < COMP_CWORD; at++)); do
        case "${{COMP_WORDS[at]}}" in
            -*) case "$valued" in *" ${{COMP_WORDS[at]}} "*) at=$((at + 1)) ;; esac ;;
            *) place=$((place + 1)) ;;
        esac
    done
    if [[ $COMP_CWORD -eq 1 && $word != -* ]]; then
        COMPREPLY=($(compgen -W {first} -- "$word") $(compgen -f -X '!*.yaml' -- "$word"))
        if [[ -n $word ]]; then COMPREPLY+=($(compgen -W {specs} -- "$word")); fi
        return
    fi
    case "$command $before" in
{values}
    esac
    if [[ -z $kind && $word == -* ]]; then COMPREPLY=($(compgen -W "$options" -- "$word")); return; fi
    if [[ -z $kind ]]; then
        case "$places" in
            *+) kind="${{places%+}}" ;;
            *) case "$place" in 0) kind="${{places%% *}}" ;; *) kind="${{places#* }}" ;; esac ;;
        esac
    fi
    case "$kind" in
        spec) COMPREPLY=($(compgen -W {specs} -- "$word") $(compgen -f -X '!*.yaml' -- "$word") $(compgen -d -- "$word")) ;;
        auto) COMPREPLY=($(compgen -W {auto} -- "$word") $(compgen -f -X '!*.yaml' -- "$word") $(compgen -d -- "$word")) ;;
        file) COMPREPLY=($(compgen -f -- "$word")) ;;
        words) COMPREPLY=($(compgen -W "$words" -- "$word")) ;;
        kind) COMPREPLY=($(compgen -W {kinds} -- "$word")) ;;
    esac
}}
complete -o filenames -F _mapspec {names}
"""


@dataclass(frozen=True)
class _Word:
    """A positional argument or the value of an option: its `kind` (spec, auto, file, kind, words, none), and its choices."""

    kind: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Command:
    """`options`: flag -> what it takes, None for nothing; `helps`: flag -> help; `places`: what the positionals are;
    `many`: whether the last of them repeats."""

    options: dict[str, _Word | None]
    helps: dict[str, str]
    places: list[_Word]
    many: bool


def completion_parser() -> Parser:
    parser = Parser("completion", "Print a script for a shell that completes commands, options, specs and files.")
    parser.add_argument("shell", choices=["bash", "zsh", "fish"])
    parser.add_json("print problems as JSON")
    return parser


def completion(options: argparse.Namespace) -> int:
    commands = _commands()
    print(_fish(commands) if options.shell == "fish" else _bash(commands, options.shell == "zsh"), end="")
    return 0


def _commands() -> dict[str, _Command]:
    """Each command with what can follow it."""
    from compiler.cli.main import COMMANDS

    found: dict[str, _Command] = {}
    for command, module in COMMANDS.items():
        parser: Parser = getattr(import_module(f"compiler.cli.{module}"), f"{command}_parser")()
        actions = [action for action in parser._actions if action.help is not argparse.SUPPRESS]
        flags = [(flag, a) for a in actions for flag in a.option_strings if flag.startswith("--")]
        places = [action for action in actions if not action.option_strings]
        found[command] = _Command(
            {flag: None if action.nargs == 0 else _word(action) for flag, action in flags},
            {
                flag: str(action.help).partition(";")[0].replace("%(default)s", str(action.default))
                for flag, action in flags
            },
            [_word(action) for action in places],
            bool(places) and places[-1].nargs == "+",
        )
    return found


def _word(action: argparse.Action) -> _Word:
    if action.choices:
        return _Word("words", tuple(map(str, action.choices)))
    if action.metavar == "SPEC":
        return _Word("auto" if action.dest == "spec" else "spec")
    if action.metavar == "KIND":
        return _Word("kind")
    return _Word("file" if action.type is Path else "none")


def _specs() -> list[str]:
    from compiler.resources import folder

    return sorted(path.stem for path in folder("specs").glob("*.yaml"))


def _kinds() -> list[str]:
    from compiler.cli.explain import sections

    return sorted(sections())


def _joined(words: list[str] | tuple[str, ...]) -> str:
    return shlex.quote(" ".join(words))


def _bash(commands: dict[str, _Command], zsh: bool) -> str:
    lines: dict[str, list[str]] = {"options": [], "valued": [], "places": [], "values": []}
    for name, command in commands.items():
        valued = {flag: word for flag, word in command.options.items() if word is not None}
        lines["options"].append(f"        {name}) options={_joined([*command.options])} ;;")
        lines["valued"].append(f"        {name}) valued={_joined(['', *valued, ''])} ;;")
        kinds = [word.kind for word in command.places]
        shown = f"{kinds[0]}+" if len(kinds) == 1 else f"{kinds[0]} file" if kinds else "none+"
        lines["places"].append(f"        {name}) places={shlex.quote(shown)} ;;")
        for word, flags in _by_word(valued).items():
            pattern = "|".join(f'"{name} {flag}"' for flag in flags)
            words = f" words={_joined(word.choices)}" if word.choices else ""
            lines["values"].append(f"        {pattern}) kind={word.kind}{words} ;;")
        if kinds and kinds[0] == "words":
            lines["places"][-1] = f"        {name}) places=words+ words={_joined(command.places[0].choices)} ;;"
    specs = _specs()
    start = "autoload -U +X bashcompinit && bashcompinit\n" if zsh else ""
    return start + _BASH.format(
        commands="|".join(commands),
        first=_joined([name for name in commands if name != "compile"]),
        specs=_joined(specs),
        auto=_joined([*CHOSEN, *specs]),
        kinds=_joined(_kinds()),
        names=" ".join(_NAMES),
        **{part: "\n".join(text) for part, text in lines.items()},
    )


def _by_word(valued: dict[str, _Word]) -> dict[_Word, list[str]]:
    """Flags that take the same."""
    found: dict[_Word, list[str]] = {}
    for flag, word in valued.items():
        found.setdefault(word, []).append(flag)
    return found


def _fish(commands: dict[str, _Command]) -> str:
    lines: list[str] = []
    for name in _NAMES:
        first = [command for command in commands if command != "compile"]
        lines.append(f"complete -c {name} -n __fish_use_subcommand -a {_joined([*first, *_specs()])}")
        for command, what in commands.items():
            when = "__fish_use_subcommand" if command == "compile" else f"'__fish_seen_subcommand_from {command}'"
            start = f"complete -c {name} -n {when}"
            for place in what.places[:1] if command != "compile" else ():
                words = {"spec": _specs, "auto": lambda: [*CHOSEN, *_specs()], "kind": _kinds}
                choices = words[place.kind]() if place.kind in words else list(place.choices)
                lines += [f"{start} -a {_joined(choices)}"] if choices else []
            for flag, word in what.options.items():
                takes = "" if word is None else " -r -F" if word.kind == "file" else " -x"
                takes += f" -a {_joined(word.choices)}" if word is not None and word.choices else ""
                lines.append(f"{start} -l {flag[2:]}{takes} -d {shlex.quote(what.helps[flag])}")
    return "\n".join(lines) + "\n"
