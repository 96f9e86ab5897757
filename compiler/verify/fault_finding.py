"""Finds the first module whose output differs from the source model's, and the rule that wrote what is wrong there.

Modules of the two models are paired by the checkpoint's tensors in them. A rule is at fault if the models agree once its
tensors are replaced by values that its fault cannot change (`neutral_weights`). Takes what `run_model` recorded; returns
names and rules, or nothing where no single rule explains the difference.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from compiler.plan.plan import Plan
from compiler.program.program import Rule
from compiler.verify.job import Trial
from compiler.verify.neutral_weights import LEVELS
from compiler.verify.outputs import CLOSE, largest_difference


@dataclass(frozen=True)
class Suspect:
    """A trial and the rules whose tensors it replaces."""

    rules: tuple[Rule, ...]
    trial: Trial


def suspects(plan: Plan) -> list[Suspect]:
    """The trials that tell the rules of a plan apart: each rule alone, each two that may have been exchanged, and each
    two that write projections of one module, such as queries and keys."""
    names: dict[Rule, list[str]] = {}
    shapes: dict[Rule, set[tuple[int, ...]]] = {}
    modules: dict[Rule, set[str]] = {}
    for group in plan.groups:
        names.setdefault(group.rule, []).extend(group.source_names)
        shapes.setdefault(group.rule, set()).update(target.shape for target in group.target_list)
        written = (re.sub(r"\d+", "{}", target.name) for target in group.target_list)
        modules.setdefault(group.rule, set()).update(_owner(_owner(name)) for name in written)
    names = {rule: sources for rule, sources in names.items() if sources}
    exchanged = [(a, b) for a, b in combinations(names, 2) if shapes[a] & shapes[b]]
    beside = [(a, b) for a, b in combinations(names, 2) if modules[a] & modules[b] and (a, b) not in exchanged]

    def suspect(rules: tuple[Rule, ...], level: str) -> Suspect:
        return Suspect(rules, Trial(tuple(dict.fromkeys(n for rule in rules for n in names[rule])), level))

    found = [suspect((rule,), level) for level in LEVELS for rule in names]
    found += [suspect(pair, level) for level in LEVELS[:2] for pair in exchanged]
    return found + [suspect(pair, LEVELS[1]) for pair in beside]


@dataclass(frozen=True)
class ModelSide:
    """One model: the (output, input or None) of its modules in the order in which they finish, and for each of its
    tensors the checkpoint's tensors that it is made of."""

    modules: Mapping[str, tuple[Any, Any]]
    origins: Mapping[str, frozenset[str]]

    def below(self, module: str) -> frozenset[str]:
        """The tensors of the checkpoint that are used in a module."""
        inside = (sources for name, sources in self.origins.items() if name.startswith(module + "."))
        return frozenset[str]().union(*inside)


@dataclass(frozen=True)
class Trace:
    """`module`: the first module of the converted model whose output differs from the source's, by `difference`;
    `alone`: its input does not differ.

    `cleared`: the rules whose modules finish before it and agree. Those with the same parent are not cleared, because
    it may be the first to use them: a key projection is right only if the attention that reads it is."""

    module: str
    difference: float
    alone: bool
    cleared: frozenset[Rule]
    order: Sequence[str]
    writers: Mapping[str, Rule]
    matrix: bool  # the module multiplies by a matrix that a rule writes


def trace(plan: Plan, source: ModelSide, target: ModelSide, writers: Mapping[str, Rule]) -> Trace:
    """Compare the modules of the converted model in the order in which they finish. `writers`: each of its tensors and
    the rule that writes it."""
    counterparts: dict[frozenset[str], list[str]] = {}
    for name in source.modules:
        counterparts.setdefault(source.below(name), []).append(name)
    agree: dict[str, set[Rule]] = {}
    reordered: set[Rule] = set()
    first, difference, alone = "", 0.0, False
    for name, (output, given) in target.modules.items():
        below = target.below(name)
        paired = [n for n in counterparts.get(below, ()) if below and source.modules[n][0].shape == output.shape]
        others = [source.modules[n][0] for n in paired]
        rules = {rule for tensor, rule in writers.items() if tensor.startswith(name + ".")}
        if not others:
            continue
        if any(_close(other, output) for other in others):
            agree[name] = rules if len(rules) == 1 else set()
        elif any(_same_in_another_order(other, output) for other in others):
            reordered |= rules
        else:
            first, difference = name, min(largest_difference(other, output) for other in others)
            alone = given is not None and any(_close(source.modules[n][1], given) for n in paired)
            break
    elsewhere = [rules for name, rules in agree.items() if _owner(name) != _owner(first)]
    cleared = frozenset(set[Rule]().union(*elsewhere) - reordered)
    shapes = {t.shape for g in plan.groups for t in g.target_list if g.rule in {writers.get(f"{first}.weight")}}
    matrix = bool(shapes) and all(len(shape) == 2 for shape in shapes)
    return Trace(first, difference, alone, cleared, list(target.modules), writers, matrix)


MOST_ALIKE = 3  # rules among which trials cannot decide and that are still worth naming


def rules_at_fault(traced: Trace, agreeing: Sequence[Suspect]) -> tuple[tuple[Rule, ...], bool]:
    """The most likely of the suspects whose trial made the models agree; else the writer of the first wrong module, if
    the module's input is right. True if one of the rules is at fault and the trials do not decide which."""
    writers, place = traced.writers, {module: n for n, module in enumerate(traced.order)}
    used: dict[Rule, list[int]] = {}
    for tensor, rule in writers.items():
        used.setdefault(rule, []).append(place.get(_owner(tensor), -1))
    # Weights that are first used after the first wrong output, or in that module on a wrong input, did not cause it;
    # they only hide it, as behind a norm that removes what is the same in all channels.
    first = place.get(traced.module, len(place)) + traced.alone
    late = {rule for rule, places in used.items() if min(places) >= first}
    # Modules are paired by the names that the plan gives, so that agreement does not clear a rule of exchanged names.
    likely = [s for s in agreeing if s.trial.level == LEVELS[0] or traced.cleared.isdisjoint(s.rules)]

    def rank(suspect: Suspect) -> tuple[bool, tuple[bool, int, int], int]:
        hides = suspect.trial.level != LEVELS[0] and late.issuperset(suspect.rules)
        return hides, _strength(suspect), -max(max(used.get(rule, [-1])) for rule in suspect.rules)

    if likely:
        best = sorted(likely, key=rank)
        alike = [s.rules[0] for s in best if len(s.rules) == 1 and rank(s)[:2] == rank(best[0])[:2]]
        undecided = 1 < len(alike) <= MOST_ALIKE
        return (tuple(alike), True) if undecided else (best[0].rules, False)
    if not traced.alone:
        return (), False
    inside = dict.fromkeys(rule for w, rule in writers.items() if w.startswith(traced.module + "."))
    suspected = [rule for rule in inside if rule not in traced.cleared]
    return (tuple(suspected) if len(suspected) == 1 else ()), False


def _strength(suspect: Suspect) -> tuple[bool, int, int]:
    """How much of a model a trial replaces: the less, the more its agreement shows."""
    level = LEVELS.index(suspect.trial.level)
    return level > 0 and len(suspect.rules) > 1, level, len(suspect.rules)


def _close(a: Any, b: Any) -> bool:
    if a is None or a.shape != b.shape:
        return False
    return not b.numel() or largest_difference(a, b) <= CLOSE * float(b.abs().max())


def _same_in_another_order(a: Any, b: Any) -> bool:
    """Whether the last axis holds the same values, as after a projection whose heads have another layout."""
    return _close(a.sort(-1).values, b.sort(-1).values)


def _owner(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def origins(plan: Plan) -> Iterator[tuple[str, frozenset[str]]]:
    """Each target tensor and the tensors of the checkpoint that it is made of."""
    for group in plan.groups:
        for target in group.target_list:
            yield target.name, frozenset(group.source_names)
