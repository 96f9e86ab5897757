"""Wrong usage in one line: what is wrong with the words, and what was probably meant.

`fault` turns a message of argparse into a diagnostic. `check_places` looks at the words themselves: whether SPEC and SOURCE
are exchanged, and whether the files exist.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from compiler.diagnostics import Diagnostic, Refusal, Span, listed, nearest, refuse
from compiler.resources import find_spec, folder

NOTHING: Mapping[Path | None, str] = {}
CHOSEN = ("auto", "hf")  # words for a spec that is chosen by the source
_SPECS = (".yaml", ".yml")
_NAMED = re.compile(r"([a-z][a-z0-9_]*)=(.+)", re.DOTALL)
_CHECKPOINTS = (".pth", ".pt", ".bin", ".safetensors", ".ckpt", ".gguf", ".npz", ".nemo", ".msgpack", ".tar")


def fault(parser: argparse.ArgumentParser, message: str, words: Sequence[str]) -> Diagnostic:
    """The diagnostic for an error message of argparse."""
    usage = one_line(parser)
    flags = [flag for action in parser._actions for flag in action.option_strings]
    unknown = re.fullmatch(r"unrecognized arguments: (.*)", message, re.DOTALL)
    missing = re.fullmatch(r"the following arguments are required: (.*)", message)
    if unknown or missing:
        names = [word.partition("=")[0] for word in words if word.startswith("-" if unknown else "--")]
        if name := next((name for name in names if name not in flags), ""):
            near = _longer(name, flags) or nearest(name, flags)
            return _wrong(parser, f"there is no option {name}", near or f"`{parser.prog} --help` lists the options")
    if unknown:
        return _wrong(parser, f"unexpected words: {unknown[1]}", usage)
    if missing:
        what = f"{missing[1]} is missing" if "," not in missing[1] else f"{missing[1]} are missing"
        return _wrong(parser, what, _with_spec(parser, words) or usage)
    choice = re.fullmatch(r"argument ([^:]*): invalid choice: '?(.*?)'? \(choose from (.*)\)", message)
    if choice:
        choices = [word.strip().strip("'") for word in choice[3].split(",")]
        flag, word = choice[1].split("/")[0], choice[2]
        return _wrong(parser, f"{flag} cannot be {word!r}", nearest(word, choices) or f"it is {_either(choices)}")
    needs = re.fullmatch(r"argument ([^:]*): expected (.*)", message)
    if needs:
        flag = needs[1].split("/")[0]
        named = next((a for a in parser._actions if flag in a.option_strings or flag == a.metavar), None)
        shown = f"{flag} {named.metavar or named.dest.upper()}" if named else usage
        return _wrong(parser, f"{flag} needs a value", f"write {shown}")
    value = re.fullmatch(r"argument ([^:]*): (.*)", message)
    return _wrong(parser, f"{value[1].split('/')[0]} {value[2]}" if value else message, usage)


def positive(text: str) -> int:
    """The number that an option takes. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def _with_spec(parser: argparse.ArgumentParser, words: Sequence[str]) -> str:
    """A hint for words that begin with a checkpoint where SPEC is expected; "" for others."""
    if "spec" not in {action.dest for action in parser._actions} or not words or not _is_checkpoint(words[0]):
        return ""
    return f"{words[0]!r} is a checkpoint; name a spec before it, or auto: {parser.prog} auto {shlex.join(words)}"


def one_line(parser: argparse.ArgumentParser) -> str:
    """The usage with what is required only: `mapspec run SPEC SOURCE OUT [options]`."""
    places = [a for a in parser._actions if not a.option_strings]
    words = [f"{a.metavar or a.dest}{' ...' * (a.nargs == '+')}" for a in places]
    needed = [a for a in parser._actions if a.required and a.option_strings]
    words += [f"{a.option_strings[0]} {a.metavar or a.dest.upper()}" for a in needed]
    return f"usage: {' '.join([parser.prog, *words])} [options]; `{parser.prog} --help` lists the options"


def _wrong(parser: argparse.ArgumentParser, message: str, hint: str) -> Diagnostic:
    return Diagnostic(Span(parser.prog), message, "wrong-usage", hint)


def _longer(name: str, flags: Sequence[str]) -> str:
    """A hint for an option that is written only in part: `--tok`."""
    meant = [flag for flag in flags if len(name) > 3 and flag.startswith(name)]
    return f"did you mean {_either([repr(m) for m in meant])}?" if meant else ""


def _either(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


# ---------------------------------------------------------------------------------------------------------------------
# Files


def named_sources(command: str, words: Sequence[Path]) -> tuple[tuple[str, ...], list[Path]]:
    """The names and paths of words such as `vision=PATH`; no names where none of the words has one. A file that exists is a
    path. Raises Refusal: `wrong-usage` where only some words have a name."""
    split = [None if os.path.lexists(word) else _NAMED.fullmatch(str(word)) for word in words]
    named = [match for match in split if match]
    if not named:
        return (), [*words]
    if bare := [word for word, match in zip(words, split, strict=True) if not match]:
        hint = "write NAME=PATH for each source"
        refuse(command, f"{str(bare[0])!r} has no name, and other sources do", "wrong-usage", hint)
    return tuple(match[1] for match in named), [Path(match[2]) for match in named]


def source_words(options: argparse.Namespace) -> list[str]:
    """The words of the sources, as they are written in a command."""
    named = zip(options.names, options.source, strict=True) if options.names else ()
    return [f"{name}={path}" for name, path in named] or [str(path) for path in options.source]


def check_places(
    command: str, spec: str | None, sources: Sequence[Path], others: Mapping[Path | None, str] = NOTHING
) -> None:
    """Raises Refusal if SPEC is a checkpoint, SOURCE a spec, or a file does not exist; the hint has the words in the right
    order, or the nearest existing name. `others`: a path that an option names -> the
    kind of problem if it does not exist."""
    sources = list(sources)
    if spec is not None and spec not in CHOSEN:
        exchanged = [path for path in sources if is_spec(str(path))]
        if exchanged and not is_spec(spec):
            right = [str(exchanged[0]), *(spec if path == exchanged[0] else str(path) for path in sources)]
            typed = f"{command} {shlex.join(right)}"
            refuse("SPEC", f"{spec!r} is not a spec, but {str(exchanged[0])!r} is", "wrong-usage",
                   f"SPEC is the first word: {typed} ...")  # fmt: skip
        if _is_checkpoint(spec):
            typed = f"{command} auto {shlex.join([spec, *map(str, sources)])}"
            refuse("SPEC", f"{spec!r} is a checkpoint, not a spec", "wrong-usage",
                   f"name a spec before it, or auto: {typed} ...")  # fmt: skip
        if not find_spec(spec).exists():
            raise Refusal([_no_spec(spec)])
    if spec is None and (specs := [path for path in sources if path.suffix in _SPECS and path.is_file()]):
        refuse(str(specs[0]), "this is a YAML file, not a checkpoint", "wrong-usage",
               f"{command} takes the file or the folder of the weights")  # fmt: skip
    paths = dict.fromkeys(sources, "unreadable-file") | {p: kind for p, kind in others.items() if p is not None}
    missing = [(path, kind) for path, kind in paths.items() if not os.path.lexists(path)]
    if missing:
        raise Refusal(_no_file(path, kind) for path, kind in missing)


def check_converted(command: str, spec: str, sources: Sequence[Path], out: Path) -> None:
    """Raises Refusal if SOURCE is a converted folder, and OUT a checkpoint."""
    if out.is_file() and len(sources) == 1 and (sources[0] / "config.json").is_file():
        typed = shlex.join([spec, str(out), str(sources[0])])
        refuse(str(out), "OUT is a file, and SOURCE a converted folder", "wrong-usage",
               f"the source comes first: {command} {typed}")  # fmt: skip


def _no_file(path: Path, kind: str) -> Diagnostic:
    absent = [parent for parent in path.parents if not os.path.lexists(parent)]
    text = f"there is no folder {str(absent[-1])!r}" if absent else "there is no such file or folder"
    return Diagnostic(Span(str(path)), text, kind, nearest_path(path))


def check_specs(words: Sequence[str]) -> None:
    """Raises Refusal for words that name no spec where only specs are expected: a mistyped one, a checkpoint, and those of
    another command whose name was left out."""
    given = [word for word in words if is_spec(word)]
    checkpoints = [word for word in words if word not in given and _is_checkpoint(word)]
    if checkpoints and len(words) > 1 and words[0] in given:
        refuse(checkpoints[0], "this is a checkpoint, and without a command specs are compiled", "wrong-usage",
               f"to convert it: mapspec run {shlex.join(words)}{' OUT' * (len(words) == 2)}")  # fmt: skip
    if checkpoints:
        refuse(checkpoints[0], "this is a checkpoint, not a spec", "wrong-usage",
               f"see which specs fit: mapspec detect {shlex.quote(checkpoints[0])}")  # fmt: skip
    if missing := [word for word in words if not find_spec(word).exists()]:
        raise Refusal(map(_no_spec, missing))


def is_spec(word: str) -> bool:
    """Whether a word names a spec that exists."""
    path = find_spec(word)
    return path.is_file() and path.suffix in _SPECS


def _is_checkpoint(word: str) -> bool:
    path = Path(word)
    return path.is_dir() or (path.is_file() and path.suffix not in _SPECS) or path.suffix in _CHECKPOINTS


def _no_spec(word: str) -> Diagnostic:
    """The problem about a word that names no spec."""
    shipped = [path.stem for path in folder("specs").glob("*.yaml")]
    stem = Path(word).stem if word.endswith(_SPECS) else word
    hint = nearest(stem, shipped) or (nearest_path(Path(word)) if word.endswith(_SPECS) or os.sep in word else "")
    message = f"there is no spec {word!r}, neither as a file nor among the shipped ones"
    hint = hint or "`mapspec detect SOURCE` lists the shipped specs that fit a checkpoint"
    return Diagnostic(Span(word), message, "unreadable-file", hint)


def nearest_path(path: Path) -> str:
    """A hint that names the nearest existing file or folder: for `modle.pth` the `model.pth` beside it."""
    whole = Path(os.path.abspath(path))
    existing = next(parent for parent in whole.parents if parent.is_dir())
    wanted = whole.relative_to(existing).parts[0]
    try:
        names = sorted(os.listdir(existing))
    except OSError:
        return ""
    inside = existing == whole.parent
    near = nearest(wanted, names) or ("" if inside else nearest(whole.name, names))
    if near:
        name = next(name for name in names if repr(name) in near)
        return f"did you mean {str((path.parent if inside else Path(os.path.relpath(existing))) / name)!r}?"
    same = [name for name in names if whole.suffix and Path(name).suffix == whole.suffix]
    same = same or [f"{name}/" for name in names if not whole.suffix and (existing / name).is_dir()]
    shown = "this folder" if existing == Path.cwd() else repr(str(existing))
    return f"{shown} has {listed(same or names, 4)}" if names else f"{shown} is empty"
