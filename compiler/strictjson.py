"""JSON as a header or an index must be: every key once. Takes bytes; returns plain data; raises ValueError."""

from __future__ import annotations

import json
from typing import Any


def parse(text: bytes) -> Any:
    """The value of a UTF-8 JSON text. Raises ValueError: not UTF-8, not JSON, nested too deeply, or a key twice."""
    try:
        return json.loads(text.decode(), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name[:80]!r} stands there twice")
        found[name] = value
    return found
