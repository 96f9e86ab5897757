"""Name patterns: how a spec names the tensors of a checkpoint.

`layers.{i}.{p:q|k}.weight` and `/^layers\\.(?P<i>\\d+)\\.(?P<p>q|k)\\.weight$/` are two spellings of one regular
expression; both become the same small tree. A hole is a named group: it captures when a name is read and is filled
in when a name is written, so a pattern reads and writes. `{i+1}` reads and writes the index shifted by one.
A pattern always matches the whole name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from re import _constants as _c  # type: ignore[attr-defined]
from typing import assert_never

from compiler.diagnostics import Span

ALPHABET = 128  # names are ASCII; what lies outside is one class that no literal of a spec names
ALL_CHARS = (1 << ALPHABET) - 1


def mask_of(chars: str) -> int:
    return sum(1 << ord(c) for c in set(chars) if ord(c) < ALPHABET)


CATEGORIES = {
    _c.CATEGORY_DIGIT: mask_of("0123456789"),
    _c.CATEGORY_SPACE: mask_of(" \t\n\r\f\v"),
    _c.CATEGORY_WORD: mask_of("".join(chr(c) for c in range(ALPHABET) if chr(c).isalnum()) + "_"),
}
CATEGORIES |= {
    _c.CATEGORY_NOT_DIGIT: ALL_CHARS ^ CATEGORIES[_c.CATEGORY_DIGIT],
    _c.CATEGORY_NOT_SPACE: ALL_CHARS ^ CATEGORIES[_c.CATEGORY_SPACE],
    _c.CATEGORY_NOT_WORD: ALL_CHARS ^ CATEGORIES[_c.CATEGORY_WORD],
}


_SHORTHANDS = {
    CATEGORIES[_c.CATEGORY_DIGIT]: r"\d",
    CATEGORIES[_c.CATEGORY_WORD]: r"\w",
    CATEGORIES[_c.CATEGORY_SPACE]: r"\s",
    ALL_CHARS ^ CATEGORIES[_c.CATEGORY_DIGIT]: r"\D",
    ALL_CHARS ^ CATEGORIES[_c.CATEGORY_WORD]: r"\W",
    ALL_CHARS ^ mask_of("\n"): ".",
}
_QUANTIFIERS = {(0, None): "*", (1, None): "+", (0, 1): "?"}


@dataclass(frozen=True)
class Chars:
    """One character out of a set (a bit mask over ASCII)."""

    mask: int


@dataclass(frozen=True)
class Repeat:
    body: tuple[Part, ...]
    least: int
    most: int | None


@dataclass(frozen=True)
class Choice:
    options: tuple[tuple[Part, ...], ...]


@dataclass(frozen=True)
class Hole:
    """A named group. `regex` is its text in Python's syntax; `shift` what `{i+1}` adds when writing."""

    name: str
    body: tuple[Part, ...]
    regex: str
    shift: int = 0

    @property
    def is_index(self) -> bool:
        return self.regex == r"\d+"


Part = str | Chars | Repeat | Choice | Hole
INDEX_BODY: tuple[Part, ...] = (Repeat((Chars(CATEGORIES[_c.CATEGORY_DIGIT]),), 1, None),)


@dataclass(frozen=True)
class Pattern:
    """A set of names, and a way to write each of them."""

    text: str
    parts: tuple[Part, ...]
    span: Span

    @cached_property
    def holes(self) -> Mapping[str, Hole]:
        return {part.name: part for part in self.parts if isinstance(part, Hole)}

    @cached_property
    def regex(self) -> str:
        """Python regular expression, to be used with `fullmatch`."""
        return "".join(regex_of(part) for part in self.parts)

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.regex, re.ASCII)

    @property
    def is_name(self) -> bool:
        """Whether it matches exactly one name."""
        return all(isinstance(part, str) for part in self.parts)

    @property
    def free_parts(self) -> bool:
        """Whether it matches texts that no hole captures, so that a name cannot be restored exactly."""
        return any(not isinstance(part, (str, Hole)) for part in self.parts)

    def match(self, name: str) -> dict[str, str] | None:
        """What each hole captures in `name`, shifts undone; None if the name does not match."""
        found = self._compiled.fullmatch(name)
        if found is None:
            return None
        captures = found.groupdict()
        for hole in self.holes.values():
            if hole.shift:
                index = int(captures[hole.name]) - hole.shift
                if index < 0:
                    return None
                captures[hole.name] = str(index)
        return captures

    def fill(self, captures: Mapping[str, str]) -> str:
        """The name for these captures. Parts outside holes are written in their shortest form."""
        return "".join(_fill(part, captures) for part in self.parts)

    def with_holes(self, holes: Mapping[str, Hole]) -> Pattern:
        """The same pattern, with the index holes of `holes` in place of its own of the same name."""

        def swap(part: Part) -> Part:
            if isinstance(part, Hole) and part.is_index and part.name in holes:
                return replace(holes[part.name], shift=part.shift)
            return part

        return replace(self, parts=tuple(swap(part) for part in self.parts))

    def __str__(self) -> str:
        return self.text


def _fill(part: Part, captures: Mapping[str, str]) -> str:
    match part:
        case str():
            return part
        case Hole(name=name) if name in captures:
            return str(int(captures[name]) + part.shift) if part.shift else captures[name]
        case Hole(body=body):
            return "".join(_fill(p, captures) for p in body)
        case Repeat(body=body, least=least):
            return "".join(_fill(p, captures) for p in body) * least
        case Choice(options=options):
            return "".join(_fill(p, captures) for p in options[0])
        case Chars(mask=mask):
            preferred = (c for c in "0aA_." if mask >> ord(c) & 1)
            return next(preferred, chr((mask & -mask).bit_length() - 1))
    assert_never(part)


def regex_of(part: Part) -> str:
    match part:
        case str():
            return re.escape(part)
        case Hole(name=name, regex=regex):
            return f"(?P<{name}>{regex})"
        case Repeat(body=body, least=least, most=most):
            inner = "".join(regex_of(p) for p in body)
            inner = inner if len(body) == 1 and isinstance(body[0], Chars) else f"(?:{inner})"
            return inner + _QUANTIFIERS.get((least, most), f"{{{least},{'' if most is None else most}}}")
        case Choice(options=options):
            return "(?:" + "|".join("".join(regex_of(p) for p in option) for option in options) + ")"
        case Chars(mask=mask):
            return _SHORTHANDS.get(mask) or _char_class(mask)
    assert_never(part)


def _char_class(mask: int) -> str:
    negate = mask >> (ALPHABET - 1) & 1  # a set that holds the last character was written as a complement
    chars = [c for c in range(ALPHABET) if (mask >> c & 1) != negate]
    runs: list[list[int]] = []
    for char in chars:
        if runs and char == runs[-1][-1] + 1:
            runs[-1].append(char)
        else:
            runs.append([char])
    text = "".join(
        re.escape(chr(run[0]))
        + (f"-{re.escape(chr(run[-1]))}" if len(run) > 2 else "".join(re.escape(chr(c)) for c in run[1:]))
        for run in runs
    )
    return f"[{'^' if negate else ''}{text}]"


MAX_OPTIONS = 64
MOST_DIGITS = 9  # of an index; a model has no billion layers


def options(part: Part) -> tuple[str, ...] | None:
    """All texts that a part matches, sorted; None if there are too many."""
    found = _language(part)
    return None if found is None else tuple(sorted(found))


def _language(part: Part) -> set[str] | None:
    match part:
        case str():
            return {part}
        case Hole(body=body):
            return _sequence_language(body)
        case Chars(mask=mask):
            return {chr(c) for c in range(ALPHABET) if mask >> c & 1} if mask.bit_count() <= MAX_OPTIONS else None
        case Choice(options=found):
            languages = [_sequence_language(option) for option in found]
            return None if None in languages else set().union(*(x for x in languages if x))
        case Repeat(body=body, least=least, most=most) if most is not None and most <= 4:
            once = [_sequence_language(body * n) for n in range(least, most + 1)]
            return None if None in once else set().union(*(x for x in once if x))
    return None


def _sequence_language(parts: tuple[Part, ...]) -> set[str] | None:
    words = {""}
    for part in parts:
        found = _language(part)
        if found is None or len(found) * len(words) > MAX_OPTIONS:
            return None
        words = {word + more for word in words for more in found}
    return words
