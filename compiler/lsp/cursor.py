"""Where a cursor is in a text that may not be YAML yet: the keys above it, by indentation and open brackets."""

from __future__ import annotations

import re
from dataclasses import dataclass

# `key:` at the start of a line, behind any dashes.
_ENTRY = re.compile(r"""((?:[ ]|- )*)("[^"]*"|'[^']*'|[^\s#'"\[{-][^#]*?):(?:\s+|$)""")
_START = re.compile(r"(?:[ ]|- )*")
_COMMENT = re.compile(r"""(?:^|\s)#[^'"]*$""")
_CLOSES = {"}": "{", "]": "["}


@dataclass(frozen=True)
class Place:
    """`keys`: those whose values the cursor is in, the outermost first; list items have none. `text`: what is written of the
    key or value before the cursor. `key`, `value`: which of them can be written here."""

    keys: tuple[str, ...]
    text: str
    key: bool
    value: bool


def place_of(text: str, line: int, character: int) -> Place:
    """The place of a cursor; `line` and `character` count from 0."""
    lines = text.split("\n")
    before = lines[line][:character] if line < len(lines) else ""
    if _COMMENT.search(before):
        return Place((), "", key=False, value=False)
    start = _START.match(before)
    assert start is not None
    keys, above = _above(lines[:line], start.end())
    own = _ENTRY.match(before)
    if _frames(above):
        rest = f"{above}\n{before}"
    elif own:
        keys, rest = (*keys, _unquoted(own[2])), before[own.end() :]
    else:
        rest = before[start.end() :]
    frames = _frames(rest)
    if not frames:
        return Place(keys, rest, key=own is None, value=own is not None or "-" in start[0])
    last = Place(keys, rest, key=False, value=False)
    for bracket, content in frames:
        name, colon, value = content.partition(": ")
        keys = (*keys, _unquoted(name)) if colon else keys
        key = bracket == "{" and not colon
        last = Place(keys, (value if colon else content).lstrip(), key=key, value=not key)
    return last


def _above(lines: list[str], column: int) -> tuple[tuple[str, ...], str]:
    """The keys above a line that begins at `column`, and the text behind the innermost of them."""
    keys: list[str] = []
    inner = ""
    for n in reversed(range(len(lines))):
        entry = _ENTRY.match(lines[n])
        if entry and len(entry[1]) < column:
            column = len(entry[1])
            inner = inner if keys else "\n".join([lines[n][entry.end() :], *lines[n + 1 :]])
            keys.insert(0, _unquoted(entry[2]))
    return tuple(keys), inner


def _unquoted(text: str) -> str:
    return text.strip().strip("'\"")


def _frames(text: str) -> list[tuple[str, str]]:
    """The brackets of YAML's flow style that are open at the end of a text, each with what follows its last comma. A bracket
    within a word, such as that of an index, is not one."""
    found: list[tuple[str, str]] = []
    before, quote, within = " ", "", 0
    for char in text:
        begins = before.isspace() or before in "{[,"
        content = char
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"" and begins:
            quote = char
        elif char in "{[" and not begins:
            within += 1
        elif char in "{[":
            found.append((char, ""))
            content = ""
        elif char in "}]" and within:
            within -= 1
        elif char in "}]":
            if found and found[-1][0] == _CLOSES[char]:
                found.pop()
            content = ""
        elif char == "," and found and not within:
            found[-1] = (found[-1][0], "")
            content = ""
        if found and content:
            found[-1] = (found[-1][0], found[-1][1] + content)
        before = char
    return found
