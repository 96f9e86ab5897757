"""Reading the two spellings of a name pattern, `layers.{i}.w` and `/^layers\\.(?P<i>\\d+)\\.w$/`, into one tree.

Takes a text and its place; returns a `name_pattern.Pattern`. Raises Refusal for constructs that cannot be inverted,
compared or bounded: lookarounds, back references, unnamed groups, nested repetitions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from re import _constants as _c  # type: ignore[attr-defined]
from re import _parser as _regex_parser  # type: ignore[attr-defined]
from typing import Any, NoReturn

from compiler.diagnostics import Span, refuse
from compiler.language.name_pattern import (
    ALL_CHARS,
    ALPHABET,
    CATEGORIES,
    INDEX_BODY,
    Chars,
    Choice,
    Hole,
    Part,
    Pattern,
    Repeat,
    mask_of,
    regex_of,
)

MAX_TEXT = 500


def parse_pattern(text: str, span: Span) -> Pattern:
    """Read a name pattern in either spelling. Raises Refusal."""
    if not text:
        refuse(span, "an empty name", "name-syntax")
    if len(text) > MAX_TEXT:
        refuse(span, f"a name pattern of {len(text)} characters; at most {MAX_TEXT} are read", "name-syntax")
    if len(text) > 1 and text.startswith("/") and text.endswith("/"):
        body = text[1:-1].removeprefix("^")
        if body.endswith("$") and not re.search(r"(?<!\\)(?:\\\\)*\\\$$", body):  # a `$` that no backslash escapes
            body = body[:-1]
        parts = _parse_regex(body, span, named=True)
    else:
        parts = tuple(_parse_readable(text, span))
    names = [part.name for part in parts if isinstance(part, Hole)]
    for name in names:
        if names.count(name) > 1:
            refuse(
                span,
                f"the index {name!r} occurs twice in one name",
                "repeated-index",
                "rename the second one",
            )
    return Pattern(text, parts, span)


_SHIFT = re.compile(r"([A-Za-z_]\w*)([+-]\d{1,6})")


def _parse_readable(text: str, span: Span) -> Iterator[Part]:
    literal, at = "", 0
    while at < len(text):
        char = text[at]
        if char == "}":
            refuse(span.within(at), "unmatched '}'", "name-syntax", "write an index as {i}, a choice as {p:q|k}")
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
        hint = f"give the choice a name: {{p:{name}}}" if "|" in name else "use an identifier, as in {i} or {expert}"
        refuse(span, f"{name!r} is not a valid index name", "name-syntax", hint)
    if not colon:
        return Hole(name, INDEX_BODY, r"\d+", shift)
    if not regex:
        refuse(span, f"the choice {name!r} is empty", "name-syntax", "write it as {p:q|k|v}")
    body = _parse_regex(regex, span, named=False)
    if _has_any(body):
        hint = r"write \. for a literal dot"
        refuse(span, f"the '.' of the choice {name!r} matches any character", "name-syntax", hint)
    return Hole(name, body, regex)


def _has_any(parts: tuple[Part, ...]) -> bool:
    """Whether some character may be anything: usually an unescaped dot."""
    for part in parts:
        if part == Chars(ALL_CHARS & ~mask_of("\n")):
            return True
        if isinstance(part, Choice) and any(map(_has_any, part.options)):
            return True
    return False


def _parse_regex(text: str, span: Span, named: bool) -> tuple[Part, ...]:
    try:
        tree = _regex_parser.parse(text, re.ASCII)
    except (re.error, RecursionError, OverflowError) as error:
        refuse(span, f"not a regular expression: {error}", "name-syntax")
    groups = tree.state.groupdict
    if groups and not named:
        refuse(span, "a choice cannot contain a named group", "name-syntax")
    reader = _RegexReader(text, span, {number: name for name, number in groups.items()})
    if tree.state.flags != re.ASCII:
        reader.no("an inline flag")
    parts = reader.sequence(tree, 0)
    if len(groups) != sum(isinstance(part, Hole) for part in parts):
        reader.no(
            "a named group within a repetition, an alternative or another group", "every name must have each group once"
        )
    return parts


class _RegexReader:
    """The parse tree of `re` as `Part`s. Raises Refusal for constructs that cannot be inverted, compared or bounded."""

    def __init__(self, text: str, span: Span, names: Mapping[int, str]) -> None:
        self.text, self.span, self.names = text, span, names

    def no(self, what: str, hint: str = "") -> NoReturn:
        refuse(self.span, f"{what} is not allowed in a name pattern", "name-syntax", hint)

    def sequence(self, items: Any, stars: int) -> tuple[Part, ...]:
        parts: list[Part] = []
        for op, value in items:
            part = self.part(op, value, stars)
            if isinstance(part, str) and parts and isinstance(parts[-1], str):
                parts[-1] += part
            else:
                parts.append(part)
        return tuple(parts)

    def part(self, op: object, value: Any, stars: int) -> Part:
        match op:
            case _c.LITERAL:
                return chr(value)
            case _c.NOT_LITERAL:
                return Chars(ALL_CHARS & ~mask_of(chr(value)))
            case _c.ANY:
                return Chars(ALL_CHARS & ~mask_of("\n"))
            case _c.IN:
                return Chars(self.char_class(value))
            case _c.BRANCH:
                return Choice(tuple(self.sequence(option, stars) for option in value[1]))
            case _c.SUBPATTERN:
                group, add, drop, body = value
                return self.group(group, add or drop, body, stars)
            case _c.MAX_REPEAT | _c.MIN_REPEAT | _c.POSSESSIVE_REPEAT:
                least, most, body = value
                unbounded = most == _c.MAXREPEAT
                if unbounded and stars:
                    refuse(
                        self.span,
                        "a nested repetition can take exponential time",
                        "regex-blow-up",
                        "repeat a character class instead of a group",
                    )
                return Repeat(self.sequence(body, stars + unbounded), least, None if unbounded else most)
            case _c.AT:
                self.no("an anchor inside the pattern", "a pattern always matches the whole name")
            case _c.ASSERT | _c.ASSERT_NOT:
                self.no("a lookaround", "a pattern always matches the whole name")
            case _c.GROUPREF:
                self.no("a back reference")
        return self.no(f"the construct {str(op).lower()}")

    def group(self, group: int | None, flags: int, body: Any, stars: int) -> Part:
        if flags:
            self.no("an inline flag")
        if group is None or group not in self.names:
            self.no("an unnamed group", "name it, (?P<i>...), or make it non-capturing, (?:...)")
        name = self.names[group]
        parts = self.sequence(body, stars)
        return Hole(name, parts, "".join(regex_of(part) for part in parts) if parts != INDEX_BODY else r"\d+")

    def char_class(self, items: Any) -> int:
        mask, negate = 0, False
        for op, value in items:
            if op is _c.NEGATE:
                negate = True
            elif op is _c.LITERAL:
                mask |= mask_of(chr(value))
            elif op is _c.RANGE:
                mask |= mask_of("".join(chr(c) for c in range(value[0], min(value[1], ALPHABET - 1) + 1)))
            else:
                mask |= CATEGORIES[value]
        return ALL_CHARS & ~mask if negate else mask
