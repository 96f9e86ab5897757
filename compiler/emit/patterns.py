"""The regular expressions of a mapping in the form of Transformers, checked against the names of all rows.

Such a mapping is a list of renamings, each of which is tried on every name in order, and of converters, of which the first
that matches is used. Saving reverses the list. A short pattern reads best, but might match other names; so every row
begins with its shortest form, all sample names go through the list in both directions, and the form of an entry that
matches a name that is not its own is made longer. Source: transformers 5.24.0, core_model_loading.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from compiler.diagnostics import Refusal
from compiler.emit.rows import FOLDED, INDEX, SAMPLE, Row, inexpressible, sample
from compiler.ops.algebra import Op

_NUMBER = r"(\d+)"
LEVELS = 3  # forms of a row: without what both sides end with, the end of the name, the complete name


@dataclass(frozen=True)
class Renaming:
    source: str
    target: str


@dataclass(frozen=True)
class Converter:
    """`sources` and `targets` are parts of names that are also regular expressions. `steps` are the ops of `row` as values
    that compare equal for the same code."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    steps: tuple[Op, ...]
    row: Row = field(compare=False)


@dataclass(frozen=True)
class Patterns:
    """The entries of a mapping, in order: renamings of `stems`, other renamings, converters."""

    renamings: tuple[Renaming, ...]
    converters: tuple[Converter, ...]


def patterns(rows: Sequence[Row]) -> Patterns:
    """The patterns of a program's rows. Raises Refusal: `inexpressible-rule`, where no form tells two names apart."""
    stems = stems_of(rows)
    levels = dict.fromkeys(rows, 0)
    for _ in range(LEVELS * len(rows) + 1):
        entries = _Entries(rows, stems, levels)
        wrong = entries.wrong()
        if wrong is None:
            break
        raised = [row for row in wrong if levels[row] < entries.highest(row)]
        if not raised:
            row = next(iter(wrong))
            message = f"no pattern tells {sample(row.sources[0])} from the other names"
            raise Refusal([inexpressible(row.rule.span, message)])
        for row in raised:
            levels[row] += 1
    return Patterns((*entries.stem_renamings, *entries.renamings), tuple(entries.converters))


def stem_of(name: str) -> str:
    """The text before the first index; empty for a name without one."""
    before, index, _ = name.partition(INDEX)
    return before if index else ""


def stems_of(rows: Sequence[Row]) -> dict[str, str]:
    """Text before the first index in sources -> in targets, where it is always the same and no two become one."""
    found: dict[str, set[str]] = {}
    for row in rows:
        for name in row.sources:
            if stem := stem_of(name):
                found.setdefault(stem, set()).update(map(stem_of, row.targets))
    single = {stem: next(iter(targets)) for stem, targets in found.items() if len(targets) == 1}
    used = [target for targets in found.values() for target in targets]
    return {
        stem: target
        for stem, target in single.items()
        if stem != target and stem.endswith(".") and target.endswith(".") and used.count(target) == 1
    }


class _Entries:
    """The entries for some forms of the rows."""

    def __init__(self, rows: Sequence[Row], stems: Mapping[str, str], levels: Mapping[Row, int]) -> None:
        self.rows, self.stems, self.levels = rows, stems, levels
        self.owners: dict[Renaming | Converter, set[Row]] = {}
        self.stem_renamings = [Renaming(f"^{re.escape(s)}", t) for s, t in stems.items()]
        for row in rows:
            entry = self.entry(row)
            if entry is not None:
                self.owners.setdefault(entry, set()).add(row)
        self.renamings = [entry for entry in self.owners if isinstance(entry, Renaming)]
        self.converters = [entry for entry in self.owners if isinstance(entry, Converter)]

    def staged(self, name: str) -> str:
        """A source's name after the renamings of stems."""
        for stem, target in self.stems.items():
            if name.startswith(stem):
                name = target + name.removeprefix(stem)
        return name

    def highest(self, row: Row) -> int:
        return 0 if row.ops else LEVELS - 1

    def entry(self, row: Row) -> Renaming | Converter | None:
        """The entry of a row in its present form; None if the renamings of stems do all."""
        sources, targets = [self.staged(name) for name in row.sources], row.targets
        stem = stem_of(targets[0])
        if row.ops:
            return self.converter(row, sources, stem)
        source, target = sources[0], targets[0]
        if source == target:
            return None
        if stem_of(source) != stem or not stem or self.levels[row] == LEVELS - 1:
            if not stem and self.levels[row] == 0:
                source, target = trimmed(source, target)
            return Renaming(f"^{_regex(source)}", _with_groups(target))
        source, target = source.removeprefix(stem + INDEX), target.removeprefix(stem + INDEX)
        if self.levels[row] == 0:
            source, target = trimmed(source, target)
        return Renaming(_regex(source), _with_groups(target))

    def converter(self, row: Row, sources: Sequence[str], stem: str) -> Converter:
        place = row.rule.span
        names = [*sources, *row.targets]
        if any(stem_of(name) != stem for name in names):
            message = f"{row.rule.name} joins or splits tensors whose names differ before their first index"
            raise Refusal([inexpressible(place, message)])
        if stem:
            names = [name.removeprefix(stem + INDEX) for name in names]
        if any(INDEX in name for name in names):
            message = f"{row.rule.name} works on tensors with two indices, of which a pattern with a step has one"
            raise Refusal([inexpressible(place, message)])
        start = "" if stem else "^"
        patterns = tuple(start + name for name in names[: len(sources)])
        return Converter(patterns, tuple(names[len(sources) :]), row.steps, row)

    # -----------------------------------------------------------------------------------------------------------------
    # What the entries do to names

    def wrong(self) -> set[Row] | None:
        """The rows of an entry that matches a name that is not its own; None if every name is treated as it should be."""
        forward = self.forward()
        for row in self.rows:
            for name in row.sources:
                found = self.guilty(sample(name), row, sample(row.targets[0]), forward)
                if found is not None:
                    return found
            alternatives = {other for other in self.rows if {*other.targets} & {*row.targets}} - {row}
            for target in row.targets:
                first = row.sources[0].replace(INDEX, SAMPLE)  # the operation fills in the numbers that it opens
                found = self.guilty(sample(target), row, first, self.backward(alternatives))
                if found is not None:
                    return found
        return None

    def forward(self) -> list[tuple[re.Pattern[str], str, Renaming | Converter]]:
        found = [(_compiled([e.source]), e.target, e) for e in (*self.stem_renamings, *self.renamings)]
        return [*found, *((_compiled(e.sources), e.targets[0], e) for e in self.converters)]

    def backward(self, unused: set[Row]) -> list[tuple[re.Pattern[str], str, Renaming | Converter]]:
        """The reversed entries, converters first, without those that only alternatives of a rule use."""
        used = [e for e, owners in self.owners.items() if not owners <= unused or not owners]
        found: list[tuple[re.Pattern[str], str, Renaming | Converter]] = []
        for e in reversed([e for e in used if isinstance(e, Converter)]):
            start = "^" if len(e.sources) == len(e.targets) and e.sources[0].startswith("^") else ""
            found.append((_compiled([start + t for t in e.targets]), e.sources[0].removeprefix("^"), e))
        for r in reversed([*self.stem_renamings, *(e for e in used if isinstance(e, Renaming))]):
            source, target = reverse(r)
            found.append((_compiled([source]), target, r))
        return found

    def guilty(
        self,
        name: str,
        row: Row,
        wanted: str,
        entries: Sequence[tuple[re.Pattern[str], str, Renaming | Converter]],
    ) -> set[Row] | None:
        """The rows of the first entry that should leave `name`, a name of `row`, alone; else of the entry of the row, if
        the name does not become `wanted`."""
        own = next((entry for entry, owners in self.owners.items() if row in owners), None)
        converted = False
        for regex, target, entry in entries:
            if isinstance(entry, Converter) and converted:
                continue
            match = regex.search(name)
            if match is None:
                continue
            if entry != own and entry not in self.stem_renamings:
                return self.owners[entry]
            group = next((g for g in match.groups() if g is not None), "")
            name = name.replace(match[0], target.replace(r"\1", group), 1)
            converted = converted or isinstance(entry, Converter)
        if name != wanted:
            return {row}
        return None


def reverse(renaming: Renaming) -> tuple[str, str]:
    """The pattern and the replacement with which saving undoes a renaming."""
    target = renaming.source.removeprefix("^").replace(_NUMBER, r"\1", 1).replace("\\.", ".")
    start = "^" if renaming.source.startswith("^") else ""
    return start + renaming.target.replace(r"\1", _NUMBER, 1), target


def _compiled(sources: Sequence[str]) -> re.Pattern[str]:
    """The pattern that a transform makes of its sources: the longest first, and each up to the end of a word."""
    branches: Iterator[str] = iter(sorted(sources, key=len, reverse=True))
    ended = (b.replace(f"{FOLDED}.", r".*\.") for b in branches)
    return re.compile("|".join(b + (r"(?!\w)" if re.search(r"[a-zA-Z0-9]$", b) else "") for b in ended))


def trimmed(source: str, target: str) -> tuple[str, str]:
    """Both names without the components that both end with."""
    one, other = source.split("."), target.split(".")
    same = 0
    while same < min(len(one), len(other)) - 1 and one[-1 - same] == other[-1 - same]:
        same += 1
    if not same or "." not in "." + ".".join(one[:-same]):
        return source, target
    return ".".join(one[:-same]) + ".", ".".join(other[:-same]) + "."


def _regex(name: str) -> str:
    """The regular expression of a name; its first index is a group."""
    return re.escape(name).replace(re.escape(INDEX), _NUMBER, 1).replace(re.escape(INDEX), r"\d+")


def _with_groups(name: str) -> str:
    return name.replace(INDEX, r"\1", 1)
