"""Name patterns: what a spec calls the tensors of a checkpoint.

`layers.{i}.{p:q|k}.weight` and `/^layers\\.(?P<i>\\d+)\\.(?P<p>q|k)\\.weight$/` are two spellings of one regular
expression; both become the same small tree. A hole is a named group: it captures when a name is read and is filled
in when a name is written, so a pattern reads and writes. `{i+1}` reads and writes the index shifted by one.
The whole name must match, always.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from compiler.diagnostics import Span, refuse

try:
    from re import _constants as _c  # type: ignore[attr-defined]
    from re import _parser as _regex_parser  # type: ignore[attr-defined]
except ImportError as error:  # pragma: no cover - both have been there since Python 3.11
    raise ImportError("mapspec needs CPython 3.11 or newer") from error

MAX_TEXT = 500
MAX_NAME = 4_000
ALPHABET = 128  # names are ASCII; what lies outside is one class that no literal of a spec names
_ALL = (1 << ALPHABET) - 1


def _mask(chars: str) -> int:
    return sum(1 << ord(c) for c in set(chars) if ord(c) < ALPHABET)


_CATEGORIES = {
    _c.CATEGORY_DIGIT: _mask("0123456789"),
    _c.CATEGORY_SPACE: _mask(" \t\n\r\f\v"),
    _c.CATEGORY_WORD: _mask("".join(chr(c) for c in range(ALPHABET) if chr(c).isalnum()) + "_"),
}
_CATEGORIES |= {
    _c.CATEGORY_NOT_DIGIT: _ALL ^ _CATEGORIES[_c.CATEGORY_DIGIT],
    _c.CATEGORY_NOT_SPACE: _ALL ^ _CATEGORIES[_c.CATEGORY_SPACE],
    _c.CATEGORY_NOT_WORD: _ALL ^ _CATEGORIES[_c.CATEGORY_WORD],
}


_SHORTHANDS = {
    _CATEGORIES[_c.CATEGORY_DIGIT]: r"\d",
    _CATEGORIES[_c.CATEGORY_WORD]: r"\w",
    _CATEGORIES[_c.CATEGORY_SPACE]: r"\s",
    _ALL ^ _CATEGORIES[_c.CATEGORY_DIGIT]: r"\D",
    _ALL ^ _CATEGORIES[_c.CATEGORY_WORD]: r"\W",
    _ALL ^ _mask("\n"): ".",
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
_INDEX_BODY: tuple[Part, ...] = (Repeat((Chars(_CATEGORIES[_c.CATEGORY_DIGIT]),), 1, None),)


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
        return "".join(_regex(part) for part in self.parts)

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.regex, re.ASCII)

    @property
    def is_name(self) -> bool:
        """Whether it stands for exactly one name."""
        return all(isinstance(part, str) for part in self.parts)

    @property
    def free_parts(self) -> bool:
        """Whether it matches texts that no hole captures, so that a name cannot be written back exactly."""
        return any(not isinstance(part, (str, Hole)) for part in self.parts)

    def match(self, name: str) -> dict[str, str] | None:
        """What each hole captures in `name`, shifts undone; None where the name is not one of the set."""
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
        """The name for these captures. What no hole captures is written in its shortest form."""
        return "".join(_fill(part, captures) for part in self.parts)

    def with_holes(self, holes: Mapping[str, Hole]) -> Pattern:
        """The same pattern, its index holes reading what the holes of the same name elsewhere read."""

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
    raise TypeError(part)


def _regex(part: Part) -> str:
    match part:
        case str():
            return re.escape(part)
        case Hole(name=name, regex=regex):
            return f"(?P<{name}>{regex})"
        case Repeat(body=body, least=least, most=most):
            inner = "".join(_regex(p) for p in body)
            inner = inner if len(body) == 1 and isinstance(body[0], Chars) else f"(?:{inner})"
            return inner + _QUANTIFIERS.get((least, most), f"{{{least},{'' if most is None else most}}}")
        case Choice(options=options):
            return "(?:" + "|".join("".join(_regex(p) for p in option) for option in options) + ")"
        case Chars(mask=mask):
            return _SHORTHANDS.get(mask) or _char_class(mask)
    raise TypeError(part)


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


def options(part: Part) -> tuple[str, ...] | None:
    """All texts that a part matches, sorted; None where they are too many to list."""
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


# ---------------------------------------------------------------------------------------------------------------------
# Reading the two spellings


def parse_pattern(text: str, span: Span) -> Pattern:
    """Read a name pattern in either spelling. Raises Refusal."""
    if not text:
        refuse(span, "an empty name", "name-syntax")
    if len(text) > MAX_TEXT:
        refuse(span, f"a name pattern of {len(text)} characters; at most {MAX_TEXT} are read", "name-syntax")
    if len(text) > 1 and text.startswith("/") and text.endswith("/"):
        body = text[1:-1].removeprefix("^")
        if body.endswith("$") and not body.endswith("\\$"):
            body = body[:-1]
        parts = _parse_regex(body, span, named=True)
    else:
        parts = tuple(_parse_readable(text, span))
    names = [part.name for part in parts if isinstance(part, Hole)]
    for name in names:
        if names.count(name) > 1:
            refuse(
                span,
                f"the index {name!r} stands twice in one name",
                "repeated-index",
                "give the second one another letter",
            )
    return Pattern(text, parts, span)


_SHIFT = re.compile(r"([A-Za-z_]\w*)([+-]\d{1,6})")


def _parse_readable(text: str, span: Span) -> Iterator[Part]:
    literal, at = "", 0
    while at < len(text):
        char = text[at]
        if char == "}":
            refuse(
                span.within(at), "a '}' that nothing opens", "name-syntax", "write an index as {i}, a choice as {p:q|k}"
            )
        if char != "{":
            literal += char
            at += 1
            continue
        end = _closing(text, at)
        if end < 0:
            refuse(
                span.within(at), "this '{' is not closed", "name-syntax", "write an index as {i}, a choice as {p:q|k}"
            )
        if literal:
            yield literal
            literal = ""
        yield _parse_hole(text[at + 1 : end], span.within(at, end - at + 1))
        at = end + 1
    if literal:
        yield literal


def _closing(text: str, start: int) -> int:
    depth = 0
    for at in range(start, len(text)):
        if text[at] == "\\":
            continue
        depth += (text[at] == "{") - (text[at] == "}")
        if depth == 0:
            return at
    return -1


def _parse_hole(text: str, span: Span) -> Hole:
    name, colon, regex = text.partition(":")
    shift = 0
    if shifted := _SHIFT.fullmatch(name):
        name, shift = shifted[1], int(shifted[2])
        if colon:
            refuse(span, "only a plain index can be shifted", "name-syntax", "write {i+1}")
    if not name.isidentifier() or not name.isascii():
        refuse(span, f"{name!r} cannot name an index", "name-syntax", "use a letter or a word, as in {i} or {expert}")
    if not colon:
        return Hole(name, _INDEX_BODY, r"\d+", shift)
    if not regex:
        refuse(span, f"the choice {name!r} offers nothing", "name-syntax", "write it as {p:q|k|v}")
    return Hole(name, _parse_regex(regex, span, named=False), regex)


def _parse_regex(text: str, span: Span, named: bool) -> tuple[Part, ...]:
    try:
        tree = _regex_parser.parse(text, re.ASCII)
    except (re.error, RecursionError, OverflowError) as error:
        refuse(span, f"not a regular expression: {error}", "name-syntax")
    reader = _RegexReader(text, span, {number: name for name, number in tree.state.groupdict.items()} if named else {})
    parts = reader.sequence(tree, 0)
    if not named and tree.state.groupdict:
        refuse(span, "a choice cannot hold a named group", "name-syntax")
    return parts


class _RegexReader:
    """From the parse tree of `re` to ours; refuses what we could not write back, compare or bound."""

    def __init__(self, text: str, span: Span, names: Mapping[int, str]) -> None:
        self.text, self.span, self.names = text, span, names

    def no(self, what: str, hint: str = "") -> None:
        refuse(self.span, f"{what} has no place in a name pattern", "name-syntax", hint)

    def sequence(self, items: object, stars: int) -> tuple[Part, ...]:
        parts: list[Part] = []
        for op, value in items:  # type: ignore[attr-defined]
            part = self.part(op, value, stars)
            if isinstance(part, str) and parts and isinstance(parts[-1], str):
                parts[-1] += part
            elif part != "":
                parts.append(part)
        return tuple(parts)

    def part(self, op: object, value: object, stars: int) -> Part:
        match op:
            case _c.LITERAL:
                return chr(value)  # type: ignore[arg-type]
            case _c.NOT_LITERAL:
                return Chars(_ALL & ~_mask(chr(value)))  # type: ignore[arg-type]
            case _c.ANY:
                return Chars(_ALL & ~_mask("\n"))
            case _c.IN:
                return Chars(self.char_class(value))
            case _c.BRANCH:
                return Choice(tuple(self.sequence(option, stars) for option in value[1]))  # type: ignore[index]
            case _c.SUBPATTERN:
                group, add, drop, body = value  # type: ignore[misc]
                return self.group(group, add or drop, body, stars)
            case _c.MAX_REPEAT | _c.MIN_REPEAT | _c.POSSESSIVE_REPEAT:
                least, most, body = value  # type: ignore[misc]
                unbounded = most == _c.MAXREPEAT
                if unbounded and stars:
                    refuse(
                        self.span,
                        "a repetition within a repetition could take exponential time",
                        "regex-blow-up",
                        "repeat a character class, not a group that repeats",
                    )
                return Repeat(self.sequence(body, stars + unbounded), least, None if unbounded else most)
            case _c.AT:
                self.no("an anchor inside the pattern", "the whole name must match anyway")
            case _c.ASSERT | _c.ASSERT_NOT:
                self.no("a lookaround", "the whole name must match anyway, so that no look beyond it is needed")
            case _c.GROUPREF:
                self.no("a back reference")
        self.no(f"the construct {str(op).lower()}")
        raise AssertionError

    def group(self, group: int | None, flags: int, body: object, stars: int) -> Part:
        if flags:
            self.no("an inline flag")
        if group is None:
            inner = self.sequence(body, stars)
            return inner[0] if len(inner) == 1 else Choice((inner,))
        if group not in self.names:
            self.no("an unnamed group", "name it, (?P<i>...), or do not capture, (?:...)")
        if stars:
            self.no("a named group that repeats")
        name = self.names[group]
        parts = self.sequence(body, stars)
        return Hole(name, parts, "".join(_regex(part) for part in parts) if parts != _INDEX_BODY else r"\d+")

    def char_class(self, items: object) -> int:
        mask, negate = 0, False
        for op, value in items:  # type: ignore[attr-defined]
            if op is _c.NEGATE:
                negate = True
            elif op is _c.LITERAL:
                mask |= _mask(chr(value))
            elif op is _c.RANGE:
                mask |= _mask("".join(chr(c) for c in range(value[0], min(value[1], ALPHABET - 1) + 1)))
            elif op is _c.CATEGORY:
                mask |= _CATEGORIES[value]
        return _ALL & ~mask if negate else mask
