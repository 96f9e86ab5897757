"""Pairs the modules that words and roles leave over: by the shapes of all their tensors, and by their order.

A module is the tensors whose names differ in the last word only, such as weight and bias. `pair_modules` takes the name
families that are left on both sides and the pairs that are made already. A pair is `certain` where a target module has
no other candidate; modules of the same shapes are paired in their order, which a person has to check.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compiler.draft.name_similarity import similarity, words
from compiler.draft.reshape_steps import reshape
from compiler.draft.tensor_roles import NameFamily

# The last words of a name that say which tensor of a module it is -> the same for all frameworks.
LEAVES = {
    "weight": "weight", "bias": "bias", "weight_g": "weight_g", "weight_v": "weight_v", "running_mean": "running_mean",
    "running_var": "running_var", "num_batches_tracked": "num_batches_tracked", "gamma": "weight", "beta": "bias",
    "parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v",
}  # fmt: skip
_LEAF = re.compile(rf"\.({'|'.join(map(re.escape, sorted(LEAVES, key=len, reverse=True)))})$")
_FIRST, _LAST = re.compile(r"(^|_)(in|input|first)(_|$)"), re.compile(r"(^|_)(out|output|last|final)(_|$)")
RELATED = 0.3  # the similarity of names that have something in common


@dataclass(frozen=True)
class Module:
    """Tensors of one module: by the last word of their names."""

    text: str
    tensors: Mapping[str, NameFamily]

    @property
    def first(self) -> NameFamily:
        return next(iter(self.tensors.values()))


@dataclass(frozen=True)
class ModulePair:
    """A source and a target module; `certain` where no other pair is possible."""

    source: Module
    target: Module
    certain: bool

    def tensors(self) -> list[tuple[NameFamily, NameFamily]]:
        return [(self.source.tensors[leaf], self.target.tensors[leaf]) for leaf in self.target.tensors]


def module_of(text: str) -> tuple[str, str]:
    """The name of a tensor's module and the last word of its own; a tensor that is no usual part of one is its own."""
    leaf = _LEAF.search(text)
    return (text[: leaf.start()], LEAVES[leaf[1]]) if leaf else (text, "weight")


def modules(families: Sequence[NameFamily]) -> list[Module]:
    """The modules of these families, in the order of their names."""
    found: dict[str, dict[str, NameFamily]] = {}
    for family in families:
        name, leaf = module_of(family.text)
        found.setdefault(name, {})[leaf] = family
    return sorted((Module(name, tensors) for name, tensors in found.items()), key=lambda one: place(one.text))


def place(text: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts names in the order of their modules: by numbers, and first what is called `in`, last `out`."""
    key: list[tuple[int, int, str]] = []
    for part in text.split("."):
        for word in re.findall(r"\d+|\D+", part):
            rank = -1 if _FIRST.search(word) else 1 if _LAST.search(word) else 0
            key.append((rank, int(word), "") if word.isdecimal() else (rank, 0, word if not rank else ""))
    return tuple(key)


def pair_modules(sources: Sequence[NameFamily], targets: Sequence[NameFamily]) -> list[ModulePair]:
    """Pairs of these modules, each used once."""
    ours, theirs = modules(sources), modules(targets)
    candidates = {n: [m for m, source in enumerate(ours) if _fits(source, target)] for n, target in enumerate(theirs)}
    pairs: list[ModulePair] = []
    taken: set[int] = set()

    def take(n: int, m: int, certain: bool) -> None:
        pairs.append(ModulePair(ours[m], theirs[n], certain))
        taken.add(m)
        del candidates[n]

    def sole() -> bool:
        """Take the pairs without an alternative."""
        found = False
        for n in [*candidates]:
            left = [m for m in candidates.get(n, ()) if m not in taken]
            if len(left) == 1 and not any(
                left[0] in ms
                for other, ms in candidates.items()
                if other != n and len([m for m in ms if m not in taken]) == 1
            ):
                take(n, left[0], similarity(ours[left[0]].first, theirs[n].first) >= RELATED)
                found = True
        return found

    while sole():
        pass
    alike = [(similarity(ours[m].first, theirs[n].first), n, m) for n, some in candidates.items() for m in some
             if _own_words(ours[m].text) == _own_words(theirs[n].text) != []]  # fmt: skip
    for value, n, m in sorted(alike, key=lambda pair: (-pair[0], pair[1:])):
        if n in candidates and m not in taken:
            rivals = [one for one in alike if one[0] > value - 1e-9 and (one[1] == n) != (one[2] == m)]
            take(n, m, not rivals)
    for group in _groups(theirs, candidates):
        members = sorted({m for n in group for m in candidates[n] if m not in taken})
        for some, others in _in_order([(n, theirs[n]) for n in group], [(m, ours[m]) for m in members]):
            for n, m in zip(some, others, strict=True):
                if m in candidates.get(n, ()) and m not in taken:
                    take(n, m, False)
    return pairs


def _own_words(text: str) -> list[str]:
    """The words of a module's own name; none if it is a number."""
    own = text.rpartition(".")[2]
    return [] if own.isdecimal() else words(own)


def _fits(source: Module, target: Module) -> bool:
    """Whether every tensor of the target has one of the same shape in the source, and the source no more."""
    return source.tensors.keys() == target.tensors.keys() and all(
        (steps := reshape(source.tensors[leaf], tensor)) is not None and not steps.steps
        for leaf, tensor in target.tensors.items()
    )


def _groups(theirs: Sequence[Module], candidates: Mapping[int, Sequence[int]]) -> list[list[int]]:
    """Targets with the same candidates."""
    found: dict[tuple[int, ...], list[int]] = {}
    for n, some in candidates.items():
        found.setdefault(tuple(some), []).append(n)
    return [group for some, group in found.items() if some]


def _in_order(
    targets: Sequence[tuple[int, Module]], sources: Sequence[tuple[int, Module]]
) -> list[tuple[list[int], list[int]]]:
    """Places of targets and of as many sources: of the parents with the most similar names, each in its order."""
    theirs, ours = _by_parent(targets), _by_parent(sources)
    ranked = sorted(
        (
            (-max(similarity(a.first, b.first) for _, a in some for _, b in others), n, m)
            for n, some in enumerate(theirs)
            for m, others in enumerate(ours)
            if len(some) == len(others)
        ),
    )
    found = []
    for _, n, m in ranked:
        some, others = theirs[n], ours[m]
        if some and others:
            found.append(([place for place, _ in some], [place for place, _ in others]))
            theirs[n], ours[m] = [], []
    left = [[pair for group in groups for pair in group] for groups in (theirs, ours)]
    pairs = sorted(((-similarity(a.first, b.first), n, m) for n, a in left[0] for m, b in left[1]))
    for _, n, m in pairs:
        found.append(([n], [m]))
    return found


def _by_parent(some: Sequence[tuple[int, Module]]) -> list[list[tuple[int, Module]]]:
    """Modules with a common parent, in order. Where one parent is within another, they are one group."""
    groups: dict[str, list[tuple[int, Module]]] = {}
    for number, module in some:
        parent = _parent(module.text)
        within = next(
            (
                other
                for other in groups
                if parent == other or parent.startswith(f"{other}.") or other.startswith(f"{parent}.")
            ),
            parent,
        )
        groups.setdefault(within, []).append((number, module))
    return [sorted(group, key=lambda pair: place(pair[1].text[len(parent) :])) for parent, group in groups.items()]


def _parent(text: str) -> str:
    """The module that contains this one and its siblings: without a number, or without the last word."""
    stripped = re.sub(r"\.?\d+$", "", text)
    return stripped if re.search(r"\.\d+$", text) else text.rpartition(".")[0]
