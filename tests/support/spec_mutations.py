"""Spoils specs in every way a hand slips: a key deleted, renamed, doubled, a value retyped, a name or a size changed.

For each spoiled spec one of four things must happen: it is refused, it is warned about, the change shows in what is
generated, or it stands where nothing is generated from (`QUIET`). An exception that is no refusal, and a change that
vanishes, are wrong. As a program it tries as often as asked and prints the counts:

    python tests/support/spec_mutations.py 5000
"""

from __future__ import annotations

import json
import random
import re
import sys
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.diagnostics import Diagnostic, Refusal
from compiler.jobs.compile import build
from compiler.language import document

ROOT = Path(__file__).parent.parent.parent
SPECS = sorted((ROOT / "specs").glob("*.yaml"))
# What a spec says to a run, to a reader or to the proof, and no generated text repeats.
QUIET = re.compile(r"example\b|require/|ignore/|tokenizer/|source\b|summary|arguments/[^/]+/help|transform/[0-9]+/name")

Path_ = tuple[object, ...]


@dataclass
class Pairs:
    """A mapping in which a key may stand twice."""

    items: list[list[Any]]


def tree(node: document.Node) -> Any:
    match node:
        case document.Scalar():
            return node.value
        case document.Sequence():
            return [tree(item) for item in node.items]
    return Pairs([[key.text, tree(value)] for key, value in node.entries])


def text(value: Any) -> str:
    """The tree as JSON, which is YAML."""
    match value:
        case Pairs():
            return "{" + ",\n".join(f"{json.dumps(k)}: {text(v)}" for k, v in value.items) + "}"
        case list():
            return "[" + ", ".join(map(text, value)) + "]"
    return json.dumps(value)


def places(value: Any, path: Path_ = ()) -> list[tuple[Path_, Any, int]]:
    """Every entry of a tree: its path, what holds it, its number there."""
    found: list[tuple[Path_, Any, int]] = []
    pairs = value.items if isinstance(value, Pairs) else list(enumerate(value)) if isinstance(value, list) else []
    for number, (key, inner) in enumerate(pairs):
        found.append(((*path, key), value, number))
        found += places(inner, (*path, key))
    return found


def spoil(root: Pairs, dice: random.Random) -> tuple[str, Path_]:
    """Change one thing in place; what was done and where."""
    path, holder, number = dice.choice(places(root))
    keyed = isinstance(holder, Pairs)
    deeds = ["delete", "double", "retype", "change"] + ["rename"] * 2 * keyed
    deed = dice.choice(deeds)
    entry: list[Any] = holder.items if keyed else holder
    value = entry[number][1] if keyed else entry[number]
    match deed:
        case "delete":
            del entry[number]
            return deed, path
        case "double":
            entry.insert(number, entry[number])
            return deed, path
        case "rename":
            entry[number] = [slip(str(entry[number][0]), dice), value]
            return deed, path
        case "retype":
            new = dice.choice([w for w in (7, 1.5, "word", True, None, [], Pairs([])) if w != value])
        case _:
            new = changed(value, dice)
    if keyed and isinstance(value, Pairs) and isinstance(new, Pairs) and path[0] == "arguments":
        path = (*path, "help")  # all that such a mapping says
    if keyed:
        entry[number] = [entry[number][0], new]
    else:
        entry[number] = new
    return deed, path


def slip(word: str, dice: random.Random) -> str:
    """A word as a slipping hand writes it."""
    at = dice.randrange(len(word)) if word else 0
    letter = dice.choice("abcxyz012_.")
    return dice.choice(
        [word[:at] + word[at + 1 :], word[:at] + letter + word[at:], word[:at] + letter + word[at + 1 :]]
    )


def changed(value: Any, dice: random.Random) -> Any:
    match value:
        case None:
            return 1
        case bool():
            return not value
        case int() | float():
            return dice.choice([value + 1, value * 2, 0, -value or 1])
        case str():
            return slip(value, dice)
        case list() | Pairs():
            items = value.items if isinstance(value, Pairs) else value
            if isinstance(value, Pairs) or len(items) < 2:  # the order of a mapping means nothing
                return 1
            items.insert(0, items.pop())
            return value
    return 1


def reordered(one: str, other: str) -> bool:
    return sorted(one) == sorted(other)


@dataclass
class Outcome:
    """`how` it ended: refused, warned, shows, quiet, same (the text means what it meant), or one that is wrong:
    silent, traceback."""

    how: str
    spec: str
    deed: str
    path: str
    said: str = ""


class Fuzzer:
    """Tries one spoiled spec at a time. The same seed gives the same tries."""

    def __init__(self, seed: int, folder: Path, specs: list[Path] = SPECS) -> None:
        self.dice = random.Random(seed)
        self.folder = folder
        self.specs = specs
        self.sound: dict[Path, tuple[str, dict[str, str]]] = {}

    def compiled(self, name: str, words: str) -> tuple[dict[str, str], list[Diagnostic]]:
        place = self.folder / name
        place.write_text(words)
        warnings: list[Diagnostic] = []
        return build(str(place), prove=True, warn=warnings.append), warnings

    def attempt(self) -> Outcome:
        spec = self.dice.choice(self.specs)
        if spec not in self.sound:
            words = text(tree(document.read_document(spec)))
            self.sound[spec] = words, self.compiled(spec.name, words)[0]
        before, files = self.sound[spec]
        root = tree(document.read_document(spec))
        deed, path = spoil(root, self.dice)
        words, where = text(root), "/".join(map(str, path))
        outcome = Outcome("", spec.stem, deed, where)
        if words.replace(" ", "") == before.replace(" ", ""):  # blanks in an expression mean nothing
            outcome.how = "same"
            return outcome
        try:
            made, warnings = self.compiled(spec.name, words)
        except Refusal as refusal:
            outcome.how, outcome.said = "refused", str(refusal)
        except Exception as error:
            outcome.how, outcome.said = "traceback", f"{error!r} {traceback.format_exc().splitlines()[-4:-1]}"
        else:
            if made != files:
                outcome.how = "shows"
            elif warnings:
                outcome.how = "warned"
            else:
                moved = deed == "change" and path[0] in ("keep", "transform", "create")  # order never decides
                outcome.how = (
                    "quiet" if QUIET.match(where) else "same" if moved and reordered(before, words) else "silent"
                )
        return outcome


def main(tries: int, seed: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(seed, Path(folder))
        counts: Counter[str] = Counter()
        for number in range(tries):
            outcome = fuzzer.attempt()
            counts[outcome.how] += 1
            if outcome.how in ("silent", "traceback"):
                print(number, outcome, flush=True)
    print(dict(counts))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
