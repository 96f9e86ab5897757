"""Strict JSON: no duplicate keys, only finite numbers, bounded size and depth. Takes bytes; returns plain data.

Source of the grammar: RFC 8259. Python's own reader keeps the last of two equal keys and accepts NaN and 1e999.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

MOST_VALUES = 8_000_000  # a value takes about 60 bytes of memory


class JsonError(ValueError):
    """A text is not strict JSON.

    `kind` is the kind of problem (docs/errors.md); `line` and `column` count from 1, or are 0 where no place is known.
    The message includes the place, `reason` does not.
    """

    def __init__(self, reason: str, kind: str = "json-syntax", line: int = 0, column: int = 0) -> None:
        super().__init__(f"{reason}: line {line} column {column}" if line else reason)
        self.reason, self.kind, self.line, self.column = reason, kind, line, column


def parse(data: bytes, most_values: int = MOST_VALUES, most_depth: int | None = None) -> Any:
    """The value of a UTF-8 JSON text of at most so many values, nested at most so deeply.

    Raises JsonError: `duplicate-key`, `not-finite`, `too-deep`, or `json-syntax` for all else.
    """
    if sum(map(data.count, (b",", b"[", b"{"))) > most_values:
        raise JsonError(f"more than {most_values:,} values")
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=_unique, parse_constant=_not_finite, parse_float=_finite_float
        )
    except JsonError:
        raise
    except json.JSONDecodeError as error:
        raise JsonError(error.msg, line=error.lineno, column=error.colno) from None
    except RecursionError:
        raise JsonError("nested too deeply") from None
    except ValueError as error:  # not UTF-8, or a number of thousands of digits
        raise JsonError(str(error)) from None
    if most_depth is not None and not _is_shallow(value, most_depth):
        raise JsonError(f"nested deeper than {most_depth} levels", "too-deep")
    return value


def _not_finite(text: str) -> NoReturn:
    raise JsonError(f"{text[:80]} is not a number that JSON has", "not-finite")


def _finite_float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _not_finite(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise JsonError(f"the key {key[:80]!r} occurs twice", "duplicate-key")
        mapping[key] = value
    return mapping


def _is_shallow(value: Any, most_depth: int) -> bool:
    level = [value]
    for _ in range(most_depth):
        level = [
            item
            for outer in level
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return not level
