"""Whether two name patterns match a common name, with such a name as the witness.

Each pattern becomes a finite automaton (Thompson's construction); a breadth-first walk over pairs of states finds
the shortest name that both accept, or proves that there is none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import assert_never

from compiler.language.name_pattern import Chars, Choice, Hole, Part, Pattern, Repeat

_MAX_COPIES = 64  # of a counted repetition; above it the bound is dropped, which can only find more overlaps


@dataclass
class _Automaton:
    """State 0 starts, `end` accepts. `moves` go by a character of a mask, `skips` by none."""

    moves: list[list[tuple[int, int]]] = field(default_factory=lambda: [[]])
    skips: list[list[int]] = field(default_factory=lambda: [[]])
    end: int = 0

    def state(self) -> int:
        self.moves.append([])
        self.skips.append([])
        return len(self.moves) - 1

    def add(self, part: Part, start: int) -> int:
        match part:
            case str():
                for char in part:
                    after = self.state()
                    self.moves[start].append((1 << min(ord(char), 127), after))
                    start = after
                return start
            case Chars(mask=mask):
                after = self.state()
                self.moves[start].append((mask, after))
                return after
            case Hole(body=body):
                return self.sequence(body, start)
            case Choice(options=options):
                after = self.state()
                for option in options:
                    self.skips[self.sequence(option, start)].append(after)
                return after
            case Repeat(body=body, least=least, most=most):
                return self.repeat(body, least, most, start)
        assert_never(part)

    def sequence(self, parts: tuple[Part, ...], start: int) -> int:
        for part in parts:
            start = self.add(part, start)
        return start

    def repeat(self, body: tuple[Part, ...], least: int, most: int | None, start: int) -> int:
        for _ in range(min(least, _MAX_COPIES)):
            start = self.sequence(body, start)
        after = self.state()
        self.skips[start].append(after)
        if most is None or most > _MAX_COPIES:
            self.skips[self.sequence(body, after)].append(after)
            return after
        for _ in range(most - least):
            start = self.sequence(body, start)
            self.skips[start].append(after)
        return after

    def closure(self, states: frozenset[int]) -> frozenset[int]:
        seen, todo = set(states), list(states)
        while todo:
            for after in self.skips[todo.pop()]:
                if after not in seen:
                    seen.add(after)
                    todo.append(after)
        return frozenset(seen)


def _automaton(parts: tuple[Part, ...]) -> _Automaton:
    automaton = _Automaton()
    automaton.end = automaton.sequence(parts, 0)
    return automaton


def _character(mask: int) -> str:
    for char in "0abcdefghijklmnopqrstuvwxyz_.123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ":
        if mask >> ord(char) & 1:
            return char
    return chr((mask & -mask).bit_length() - 1)


def common_name(a: Pattern, b: Pattern) -> str | None:
    """A shortest name that both patterns match, or None when there can be none."""
    xs, ys = _components(a.parts), _components(b.parts)
    if xs is None or ys is None:
        return _common(a.parts, b.parts)
    # Nothing but a literal dot matches a dot: the names agree exactly when their components do, one by one.
    if len(xs) != len(ys):
        return None
    words = []
    for x, y in zip(xs, ys, strict=True):
        word = _common(x, y)
        if word is None:
            return None
        words.append(word)
    return ".".join(words)


def count_components(pattern: Pattern) -> int | None:
    """How many components between dots every name of a pattern has; None where that differs."""
    found = _components(pattern.parts)
    return None if found is None else len(found)


@lru_cache(maxsize=4096)
def _components(parts: tuple[Part, ...]) -> tuple[tuple[Part, ...], ...] | None:
    """The parts between literal dots; None where something else can match a dot."""
    found: list[list[Part]] = [[]]
    for part in parts:
        if isinstance(part, str):
            first, *others = part.split(".")
            found[-1] += [first] * (first != "")
            found += [[other] * (other != "") for other in others]
        elif _matches_dot(part):
            return None
        else:
            found[-1].append(part)
    return tuple(map(tuple, found))


def _matches_dot(part: Part) -> bool:
    match part:
        case str():
            return "." in part
        case Chars(mask=mask):
            return bool(mask >> ord(".") & 1)
        case Hole(body=body) | Repeat(body=body):
            return any(map(_matches_dot, body))
        case Choice(options=options):
            return any(_matches_dot(p) for option in options for p in option)
    assert_never(part)


@lru_cache(maxsize=4096)
def _common(a: tuple[Part, ...], b: tuple[Part, ...]) -> str | None:
    if all(isinstance(p, str) for p in (*a, *b)):
        return "".join(map(str, a)) if a == b else None
    left, right = _automaton(a), _automaton(b)
    start = (left.closure(frozenset([0])), right.closure(frozenset([0])))
    seen, todo = {start}, deque([(start, "")])
    while todo:
        (xs, ys), name = todo.popleft()
        if left.end in xs and right.end in ys:
            return name
        for pair, char in _steps(left, xs, right, ys):
            if pair not in seen:
                seen.add(pair)
                todo.append((pair, name + char))
    return None


_Pair = tuple[frozenset[int], frozenset[int]]


def _steps(left: _Automaton, xs: frozenset[int], right: _Automaton, ys: frozenset[int]) -> Iterator[tuple[_Pair, str]]:
    for x in xs:
        for mask, x_after in left.moves[x]:
            for y in ys:
                for other, y_after in right.moves[y]:
                    if common := mask & other:
                        pair = (left.closure(frozenset([x_after])), right.closure(frozenset([y_after])))
                        yield pair, _character(common)
