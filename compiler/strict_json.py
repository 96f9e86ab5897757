"""JSON as a header or an index must be: every key once, and no NaN. Takes bytes; returns plain data; raises ValueError."""

from __future__ import annotations

import json
from typing import Any, NoReturn

MOST_VALUES = 8_000_000  # a value takes some 60 bytes of memory


def parse(text: bytes, most: int = MOST_VALUES) -> Any:
    """The value of a UTF-8 JSON text of at most so many values.

    Raises ValueError: not UTF-8, not JSON, nested too deeply, too many values, a key twice, or a number that JSON lacks.
    """
    if sum(map(text.count, (b",", b"[", b"{"))) > most:
        raise ValueError(f"more than {most:,} values")
    try:
        return json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name[:80]!r} occurs twice")
        found[name] = value
    return found
