"""Which module departs first from the source model, and which rule wrote what is wrong there.

Modules of two models are paired by what lies below them: the same tensors of the checkpoint. A rule is found guilty by
experiment: with its tensors replaced by values that its fault cannot spoil (`neutral`), the models agree. Takes what
`forward` recorded; returns names and rules, or nothing where no single rule explains it, as with a wrong config.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from compiler.plan.plan import Plan
from compiler.program.program import Rule
from compiler.verify.neutral_weights import LEVELS
from compiler.verify.run_model import Trial

CLOSE = 1e-4  # of the largest value: float32 sums in another order differ by a hundredth of it


@dataclass(frozen=True)
class Suspect:
    """A trial and the rules whose tensors it replaces."""

    rules: tuple[Rule, ...]
    trial: Trial


def suspects(plan: Plan) -> list[Suspect]:
    """The trials that tell the rules of a plan apart: each alone, and each two that may have been exchanged."""
    names: dict[Rule, list[str]] = {}
    shapes: dict[Rule, set[tuple[int, ...]]] = {}
    for group in plan.groups:
        names.setdefault(group.rule, []).extend(group.source_names)
        shapes.setdefault(group.rule, set()).update(target.shape for target in group.target_list)
    names = {rule: found for rule, found in names.items() if found}
    pairs = [(a, b) for a, b in combinations(names, 2) if shapes[a] & shapes[b]]

    def suspect(rules: tuple[Rule, ...], level: str) -> Suspect:
        return Suspect(rules, Trial(tuple(dict.fromkeys(n for rule in rules for n in names[rule])), level))

    found = [suspect((rule,), level) for level in LEVELS for rule in names]
    return found + [suspect(pair, level) for level in LEVELS[:2] for pair in pairs]


@dataclass(frozen=True)
class ModelSide:
    """One model: the outputs of its modules in the order in which they finish, their inputs where those are floats,
    and for each of its tensors the tensors of the checkpoint that it comes from."""

    outputs: Mapping[str, Any]
    inputs: Mapping[str, Any]
    origins: Mapping[str, frozenset[str]]

    def below(self, module: str) -> frozenset[str]:
        """The tensors of the checkpoint that end in a module."""
        inside = (found for name, found in self.origins.items() if name.startswith(module + "."))
        return frozenset[str]().union(*inside)


@dataclass(frozen=True)
class Trace:
    """`module`: the first of the converted model whose output is not the source's, `largest` its difference, `alone`
    whether its input still was.
    `cleared`: the rules whose modules came before it and agree, but for those beside it, which it may be the first to
    use: a key projection is right only if what attention makes of it is."""

    module: str
    largest: float
    alone: bool
    cleared: frozenset[Rule]
    order: Sequence[str]


def trace(plan: Plan, source: ModelSide, target: ModelSide) -> Trace:
    """Walk through the converted model in the order in which its modules finish."""
    counterparts: dict[frozenset[str], list[str]] = {}
    for name in source.outputs:
        counterparts.setdefault(source.below(name), []).append(name)
    writers = _writers(plan)
    agree: dict[str, set[Rule]] = {}
    doubted: set[Rule] = set()
    first, largest, alone = "", 0.0, False
    for name, output in target.outputs.items():
        below = target.below(name)
        like = [n for n in counterparts.get(below, ()) if below and source.outputs[n].shape == output.shape]
        others = [source.outputs[n] for n in like]
        rules = {rule for written, rule in writers.items() if written.startswith(name + ".")}
        if not others:
            continue
        apart = min(largest_difference(other, output) for other in others)
        if any(_close(other, output) for other in others):
            agree[name] = rules if len(rules) == 1 else set()
        elif any(_same_in_another_order(other, output) for other in others):
            doubted |= rules
        else:
            first, largest = name, apart
            given = target.inputs.get(name)
            alone = given is not None and any(_close(source.inputs.get(n), given) for n in like)
            break
    elsewhere = [rules for name, rules in agree.items() if _owner(name) != _owner(first)]
    return Trace(first, largest, alone, frozenset(set[Rule]().union(*elsewhere) - doubted), list(target.outputs))


def guilty(plan: Plan, traced: Trace, found: Sequence[Suspect]) -> tuple[Rule, ...]:
    """The most likely of the suspects whose trial made the models agree; else the writer of the
    first wrong module, where what comes into it is right."""
    writers = _writers(plan)
    last = {rule: n for n, module in enumerate(traced.order) for w, rule in writers.items() if _owner(w) == module}
    # Modules are paired by the names that the plan gives, so that agreement does not clear a rule of exchanged names.
    likely = [s for s in found if s.trial.level == LEVELS[0] or traced.cleared.isdisjoint(s.rules)]
    if likely:
        return min(likely, key=lambda s: (_taken(s), -max(last.get(r, -1) for r in s.rules))).rules
    if not traced.alone:
        return ()
    inside = dict.fromkeys(rule for w, rule in writers.items() if w.startswith(traced.module + "."))
    suspected = [rule for rule in inside if rule not in traced.cleared]
    return tuple(suspected) if len(suspected) == 1 else ()


def _taken(suspect: Suspect) -> tuple[bool, int, int]:
    """How much a trial takes from a model: the less, the more its success says."""
    level = LEVELS.index(suspect.trial.level)
    return level > 0 and len(suspect.rules) > 1, level, len(suspect.rules)


def largest_difference(a: Any, b: Any) -> float:
    """Of two tensors of one shape; infinite where a NaN stands in either."""
    apart = (a.double() - b.double()).abs()
    return float("inf") if apart.isnan().any() else float(apart.max()) if apart.numel() else 0.0


def _close(a: Any, b: Any) -> bool:
    return a is not None and a.shape == b.shape and largest_difference(a, b) <= CLOSE * float(b.abs().max())


def _same_in_another_order(a: Any, b: Any) -> bool:
    """Whether the last axis holds the same values, as behind a projection whose heads are laid out otherwise."""
    return _close(a.sort(-1).values, b.sort(-1).values)


def _writers(plan: Plan) -> dict[str, Rule]:
    return {target.name: group.rule for group in plan.groups for target in group.target_list}


def _owner(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def origins(plan: Plan) -> Iterator[tuple[str, frozenset[str]]]:
    """Each target and what it is made of."""
    for group in plan.groups:
        for target in group.target_list:
            yield target.name, frozenset(group.source_names)
