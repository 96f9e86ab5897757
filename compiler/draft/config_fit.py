"""Finds values of a target class's config that give the shapes of a checkpoint, by building the class.

A field is probed: the class is built on the meta device with one other value, and the axes whose length changes depend
on the field. `fit_config` solves for the value that gives the length of the most similar source tensor and keeps it if
more tensors then agree. `probe` returns which axes each field gives; a field without any is not revealed by shapes.
Fields of nested configs and elements of lists are fields like any other. A class that rejects a value is no error here.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from compiler.diagnostics import Refusal
from compiler.draft.family_shapes import Pair, agreement, comparable, each_shape, lengths, odd_layers, resized, unfused
from compiler.draft.name_similarity import similarity
from compiler.draft.tensor_roles import NameFamily

Path = tuple[str | int, ...]  # of a field: keys of nested configs, and the place in a list
Build = Callable[[Mapping[str, Any]], list[NameFamily]]  # the tensors of the class for a config; raises Refusal
Complete = Callable[[Mapping[str, Any]], Mapping[str, Any]]  # every field of the config; raises Refusal
MOST_BUILDS, MOST_SECONDS = 400, 90.0  # of this process, until the search stops
MOST_PARTNERS = 16  # sources that a target tensor is compared with
MOST_CANDIDATES = 5  # values of a field that are compared
STAGES = 2  # a list with one element for each stage is made longer or shorter by so many
INFLUENTIAL = 2  # fields that are fitted for each number of stages
ROUNDS = 3
FEW = 0.1  # of the source tensors, that a class may leave unread
_DIVISOR = re.compile(r"heads|groups")  # in the names of numbers that divide a width
_RATIO = re.compile(r"ratio|factor|mult")  # in the names of numbers that are no integers and give lengths


@dataclass(frozen=True)
class Axis:
    """An axis of a target family: of the tensor's shape, or, behind them, the number of values of an index."""

    text: str
    number: int
    length: int
    indexed: bool  # whether it counts the values of an index
    slope: float  # how much longer the axis gets when the field grows by one

    def solve(self, value: float, length: int) -> Iterator[float]:
        """Values of the field that may give the axis this length: where it grows in proportion, or with the square, as
        the number of patches of an image does, with or without one more for a class token."""
        yield value + (length - self.length) / self.slope
        for more in (0, 1):
            if self.length > more < length and self.slope > 0:
                side = round(value * math.sqrt((length - more) / (self.length - more)), 9)
                yield from (side, math.floor(side))  # an image may be larger than its patches
        if self.slope < 0 < length:  # inversely, as the channels of a group with the number of groups
            yield value * self.length / length


@dataclass(frozen=True)
class Probe:
    """What happened when one field changed: the axes that got another length, or whether other tensors appeared."""

    axes: tuple[Axis, ...] = ()
    renamed: bool = False

    @property
    def revealed(self) -> bool:
        return bool(self.axes) or self.renamed


def leaves(config: Mapping[str, Any], wanted: Callable[[str], bool], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The fields of a config whose names are wanted, those of nested configs included. A list is one field."""
    for name, value in config.items():
        if isinstance(value, Mapping) and name.endswith("_config"):
            yield from leaves(value, wanted, (*path, name))
        elif wanted(name) and not isinstance(value, Mapping):
            yield (*path, name), value


def get(config: Any, path: Path) -> Any:
    """The value at a path, or None."""
    for key in path:
        try:
            config = config[key]
        except (LookupError, TypeError):
            return None
    return config


def changed(config: Mapping[str, Any], complete: Mapping[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """The config with another value at a path; a list that it lacks is taken from the complete config."""
    result: dict[str, Any] = deepcopy(dict(config))
    here: Any = result
    for n, key in enumerate(path[:-1]):
        below = get(here, (key,))
        if below is None:
            below = deepcopy(get(complete, path[: n + 1])) if isinstance(path[n + 1], int) else {}
        here[key] = list(below) if isinstance(below, tuple) else below
        here = here[key]
    here[path[-1]] = value
    return result


@dataclass
class ConfigFit:
    """A search for a config. `config` holds the fields that are set, `families` the tensors of the class for it."""

    sources: Sequence[NameFamily]
    build: Build
    complete: Complete
    config: dict[str, Any]
    fixed: frozenset[Path]  # fields that are known
    wanted: Callable[[str], bool]
    families: list[NameFamily] = field(default_factory=list)
    odd_leaves: frozenset[str] = frozenset()
    odd_layers: list[tuple[int, ...]] = field(default_factory=list)
    counts: set[int] = field(default_factory=set)  # of layers whose shapes differ
    builds: int = 0
    begun: float = field(default_factory=time.process_time)
    influence: dict[Path, set[tuple[str, int]]] = field(default_factory=dict)  # the axes that a field changes
    lengths_only: bool = False  # leave fields alone that change which tensors there are
    silent: set[Path] = field(default_factory=set)  # fields that changed nothing
    _alike: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    _built: dict[str, list[NameFamily] | None] = field(default_factory=dict)  # by the config as JSON
    _completed: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.odd_layers = self.odd_layers or odd_layers(self.sources)
        mixed = [family for family in self.sources if family.mixed]
        self.counts = self.counts or {len(numbers) for family in mixed for numbers in family.numbers}
        self.odd_leaves |= {family.text.rsplit(".", 1)[-1] for family in self.sources if family.mixed}
        self.families = self.built(self.config) or []
        self.sources = each_shape(unfused(self.sources, {family.role for family in self.families}))

    def built(self, config: Mapping[str, Any]) -> list[NameFamily] | None:
        """The tensors of the class, or None where it rejects the config."""
        key = _key(config)
        if key not in self._built:
            self.builds += 1
            try:
                self._built[key] = each_shape(self.build(config))
            except Refusal:
                self._built[key] = None
        return self._built[key]

    def completed(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Every field of the config; none where the class rejects it."""
        key = _key(config)
        if key not in self._completed:
            try:
                self._completed[key] = self.complete(config)
            except Refusal:
                self._completed[key] = {}
        return self._completed[key]

    def fit(self) -> None:
        """Change one field after another while more tensors agree."""
        for number in range(ROUNDS):
            self.lengths_only = number == 0
            before = self.score(self.families)
            for path, value in self.numbers():
                if self.spent():
                    return
                if self.complete_match():
                    break
                self._fit_number(path, value)
            self._fit_index_lists()
            if not self.mostly_matched():
                self._fit_stages()
            if self.complete_match() or (number and self.score(self.families) <= before):
                return

    def complete_match(self) -> bool:
        """Whether every tensor of the class has the shape of a source tensor of its own, and no source tensor is left."""
        pairs = self.pairs(self.families)
        return len(self._settled(pairs)) == len(pairs) == len(self.families) == len(self.sources)

    def _settled(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The pairs of equal shapes, without those where another source is more alike, and more than to its own partner."""
        of_source = {one.source: one.similar for one in pairs}
        return [
            one
            for one in pairs
            if one.agreement >= 1
            and not any(
                similar > max(one.similar, of_source.get(m, 0.0))
                and comparable(self.sources[m], self.families[one.target])
                for similar, m in self.alike(self.families[one.target])
            )
        ]

    def mostly_matched(self) -> bool:
        """Whether every tensor of the class has a source tensor, and few source tensors are left."""
        pairs = [one for one in self.pairs(self.families) if one.agreement >= 1]
        return len(pairs) == len(self.families) and len(self.sources) - len(pairs) <= FEW * len(self.sources)

    def spent(self) -> bool:
        """Whether the search has taken as long as it may."""
        return self.builds > MOST_BUILDS or time.process_time() - self.begun > MOST_SECONDS

    def numbers(self) -> list[tuple[Path, Any]]:
        """Every numeric field that is not known, lists by element, truth values last."""
        found: list[tuple[Path, Any]] = []
        fields = list(leaves(self.completed(self.config), self.wanted))
        stages = {(path[:-1], len(value)) for path, value in fields if isinstance(value, list | tuple)}
        for path, value in fields:
            if path in self.fixed or (type(value) is int and value > 2 and (path[:-1], value) in stages):
                continue
            if isinstance(value, list | tuple):
                found += [((*path, n), one) for n, one in enumerate(value) if type(one) is int]
            elif isinstance(value, bool | int) or (isinstance(value, float) and _RATIO.search(str(path[-1]))):
                found.append((path, value))
        return sorted(found, key=lambda pair: isinstance(pair[1], bool))

    # -----------------------------------------------------------------------------------------------------------------

    def probe(self, path: Path, value: Any) -> Probe:
        """Build the class with another value of one field and compare its tensors with those of `config`."""
        others = [not value] if isinstance(value, bool) else [2 * value, value + 1, 3 * value, value + 3, value // 2]
        complete = self.completed(self.config)
        built = False
        for other in dict.fromkeys(n for n in others if n != value):
            families = None if built else self.built(changed(self.config, complete, path, other))
            if families is None:
                continue
            built = True
            new = {family.text: lengths(family) for family in families}
            old = {family.text: lengths(family) for family in self.families}
            if new == old:
                continue
            ranks = {family.text: len(family.shape) for family in self.families}
            axes = tuple(
                Axis(text, n, a, n >= ranks[text], (b - a) / (other - value))
                for text in (old.keys() & new.keys() if not isinstance(value, bool) else ())
                if len(old[text]) == len(new[text])
                for n, (a, b) in enumerate(zip(old[text], new[text], strict=True))
                if a != b
            )
            return Probe(
                tuple(sorted(axes, key=lambda axis: (axis.text, axis.number))), old.keys() != new.keys() or not axes
            )
        return Probe()

    def _fit_number(self, path: Path, value: Any, ahead: bool = True) -> None:
        """Give one field the value with which more tensors agree; with `ahead` also a value that only fits together with
        another one of a field that changes the same axes."""
        if path in self.silent or (self.influence.get(path) and self._agree(self.influence[path])):
            return
        found = self.probe(path, value)
        if not found.revealed:
            self.silent.add(path)
        self.influence[path] = {(axis.text, axis.number) for axis in found.axes}
        if not found.revealed or (found.axes and self._agree(self.influence[path])):
            return
        votes: dict[Any, float] = {}
        for axis in found.axes:
            alike = list(self._lengths_like(axis))
            if alike and alike[0][1] == axis.length:
                continue
            for weight, length in alike:
                for solved in axis.solve(value, length):
                    if solved > 0 and (isinstance(value, float) or solved == int(solved)):
                        number = solved if isinstance(value, float) else int(solved)
                        votes[number] = votes.get(number, 0.0) + weight
        votes.pop(value, None)
        if not votes and (found.renamed or any(axis.indexed for axis in found.axes)):
            others = [not value] if isinstance(value, bool) else self._counts(value)
            if isinstance(path[-1], int):  # a stage of nothing is none
                others = [other for other in others if other]
            if not self.lengths_only:
                self._try([changed(self.config, self.completed(self.config), path, other) for other in others])
            return
        best = sorted(votes, key=lambda number: (-votes[number], number))[:MOST_CANDIDATES]
        scores = {number: self.score(self._predicted(found.axes, number - value)) for number in best}
        complete = self.completed(self.config)
        for number in sorted(best, key=lambda number: -scores[number])[:2]:
            config = changed(self.config, complete, path, number)
            if self._try([config, *self._with_other_heads(config, complete, path, number)]):
                return
        for number in sorted(best, key=lambda number: -votes[number])[:1] if ahead else ():
            axes = {(axis.text, axis.number) for axis in found.axes}
            together = {other: len(changes & axes) for other, changes in self.influence.items() if other != path}
            for other in sorted(together, key=lambda other: -together[other])[:INFLUENTIAL]:
                if together[other]:
                    self._take(self._with(changed(self.config, complete, path, number), [other]))

    def _agree(self, axes: Collection[tuple[str, int]]) -> bool:
        """Whether all tensors with these axes have the shapes of source tensors already."""
        agreeing = {self.families[one.target].text for one in self._settled(self.pairs(self.families))}
        return all(text in agreeing for text, _ in axes)

    def _counts(self, value: int) -> list[int]:
        """Other numbers of something that the class has: near the value, and those of the checkpoint."""
        counts = {len(numbers) for family in self.sources for numbers in family.numbers}
        near = range(max(0, int(value) - 3), int(value) + 4)
        return sorted(({*near} | counts) - {value})

    def _lengths_like(self, axis: Axis) -> Iterator[tuple[float, int]]:
        """Lengths of the same axis in the most similar source tensors, with their similarity."""
        target = next(family for family in self.families if family.text == axis.text)
        alike = [(weight, self.sources[m]) for weight, m in self.alike(target)]
        for weight, source in [(w, s) for w, s in alike if comparable(s, target)][:4]:
            yield weight, lengths(source)[axis.number]
            if len(target.shape) == 2 and axis.number < 2:
                yield weight / 2, source.shape[1 - axis.number]

    def _predicted(self, axes: Sequence[Axis], growth: float) -> list[NameFamily]:
        """The tensors of the class when one field grows, as far as its axes grow in proportion."""
        by_text: dict[str, dict[int, int]] = {}
        for axis in axes:
            by_text.setdefault(axis.text, {})[axis.number] = round(axis.length + growth * axis.slope)
        return [resized(family, by_text.get(family.text, {})) for family in self.families]

    def _with_other_heads(
        self, config: dict[str, Any], complete: Mapping[str, Any], path: Path, width: Any
    ) -> Iterator[dict[str, Any]]:
        """A class may reject a width that its number of heads or groups does not divide."""
        numbers = []
        for other, value in leaves(complete, self.wanted):
            if isinstance(path[-1], int) and isinstance(value, list | tuple) and path[-1] < len(value):
                field, number, parent = (*other, path[-1]), value[path[-1]], path[:-2]  # of the same stage
            else:
                field, number, parent = other, value, path[:-1]
            same = other[:-1] == parent and _DIVISOR.search(str(other[-1]))
            if same and type(number) is type(width) is int:
                numbers.append((field, number))
        for other, value in numbers:
            yield changed(config, complete, other, math.gcd(value, width))
        if len(numbers) > 1:
            for other, value in numbers:
                config = changed(config, complete, other, math.gcd(value, width))
            yield config

    def _fit_stages(self) -> None:
        """Lists with one element for each stage get as many as the checkpoint has; they change together."""
        complete = self.completed(self.config)
        groups: dict[tuple[Path, int], list[Path]] = {}
        for path, value in leaves(complete, self.wanted):
            if isinstance(value, list | tuple) and value and type(value[0]) in (int, float) and path not in self.fixed:
                groups.setdefault((path[:-1], len(value)), []).append(path)
        for (parent, count), paths in groups.items():
            if self.spent():
                return
            variants: list[ConfigFit] = []
            for stages in sorted({*range(max(1, count - STAGES), count + STAGES + 1)} | self.counts):
                if stages == count or self.spent():
                    continue
                config = self._with_stages(complete, parent, count, paths, stages)
                most = sorted(self.influence, key=lambda path: -len(self.influence[path]))[:INFLUENTIAL]
                variants.append(self._with(config, most))
            for variant in variants:
                self._take(variant)

    def _with_stages(
        self, complete: Mapping[str, Any], parent: Path, count: int, lists: Sequence[Path], stages: int
    ) -> dict[str, Any]:
        config = self.config
        for path in lists:
            value = [*get(complete, path)]
            config = changed(config, complete, path, (value + value[-1:] * stages)[:stages])
        for path, value in leaves(complete, self.wanted):
            if path[:-1] == parent and type(value) is int and value == count and path not in self.fixed:
                config = changed(config, complete, path, stages)
        return config

    def _fit_index_lists(self) -> None:
        """A list may hold the layers of another kind, whose tensors have other shapes."""
        complete = self.completed(self.config)
        for path, value in leaves(complete, self.wanted):
            if isinstance(value, list | tuple) and path not in self.fixed and all(type(n) is int for n in value):
                others = [changed(self.config, complete, path, [*one]) for one in self.odd_layers if [*one] != [*value]]
                if not self._try(others):
                    for config in others:  # the sizes of these layers may have been fitted to the wrong ones
                        self._take(self._with(config, self._influencing(self.odd_leaves)))

    def _with(self, config: dict[str, Any], paths: Sequence[Path]) -> ConfigFit:
        """The search from another config, after the fields at some paths were fitted to it."""
        other = replace(self, families=[], config=config, builds=0)
        for path in paths:
            value = get(self.completed(other.config), path)
            if value is not None and other.families:
                other._fit_number(path, value, ahead=False)
        self.builds += other.builds
        return other

    def _take(self, other: ConfigFit) -> None:
        """Continue from another search if its score is better."""
        if other.families and other.score(other.families) > self.score(self.families) + 1e-9:
            self.config, self.families = other.config, other.families

    def _influencing(self, leaves: frozenset[str]) -> list[Path]:
        """The fields that change tensors whose names end so."""
        return [path for path, axes in self.influence.items() if any(text.endswith((*leaves,)) for text, _ in axes)]

    def _try(self, configs: Sequence[dict[str, Any]]) -> bool:
        """Take the config with the best score if it is better than the present one."""
        best = self.score(self.families)
        better = False
        for config in configs:
            families = self.built(config)
            if families is not None and (score := self.score(families)) > best + 1e-9:
                best, self.config, self.families, better = score, config, families, True
        return better

    # -----------------------------------------------------------------------------------------------------------------

    def alike(self, target: NameFamily) -> list[tuple[float, int]]:
        """The sources with the most similar names: similarity and place, best first."""
        if target.text not in self._alike:
            found = []
            for m, source in enumerate(self.sources):
                same_role = 0.5 * (source.role == target.role != "other" and source.part == target.part)
                found.append((similarity(source, target) + same_role, m))
            self._alike[target.text] = sorted(found, key=lambda pair: (-pair[0], pair[1]))[:MOST_PARTNERS]
        return self._alike[target.text]

    def score(self, families: Sequence[NameFamily]) -> float:
        """How well the tensors of the class agree with the checkpoint, 0 to 1."""
        return 2 * sum(one.value for one in self.pairs(families)) / max(1, len(families) + len(self.sources))

    def pairs(self, families: Sequence[NameFamily]) -> list[Pair]:
        """The tensors of the class that agree with a source tensor, each with one, the best pairs first."""
        pairs: list[Pair] = []
        for n, target in enumerate(families):
            for similar, m in self.alike(target):
                agrees = agreement(self.sources[m], target)
                if agrees > 0:
                    value = agrees * (0.6 + 0.4 * min(1.0, similar / 1.2))
                    pairs.append(Pair(value, agrees, similar, n, m))
        pairs.sort(key=lambda one: (one.value, one.target, one.source), reverse=True)
        targets: set[int] = set()
        sources: set[int] = set()
        chosen: list[Pair] = []
        for one in pairs:
            if one.target not in targets and one.source not in sources:
                targets.add(one.target)
                sources.add(one.source)
                chosen.append(one)
        return chosen


def _key(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True, default=str)
