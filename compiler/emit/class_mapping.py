"""The renamings and conversions with which Transformers 5 itself loads the checkpoints of a model type.

Source: transformers 5.24.0, conversion_mapping.py. Transformers 4 has none of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Conversion:
    """One entry: patterns of names, and the operations as (class name, attributes); a renaming has none."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    operations: tuple[tuple[str, dict[str, Any]], ...]
    kind: str  # the name of its class


def class_mapping(name: str) -> list[Conversion] | None:
    """The entries for a model type or a class, in order; None if Transformers states none. Imports Transformers, and
    raises ModuleNotFoundError for generation 4."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    entries = get_checkpoint_conversion_mapping(name)
    if entries is None:
        return None
    return [
        Conversion(
            tuple(entry.source_patterns),
            tuple(entry.target_patterns),
            tuple((type(op).__name__, dict(vars(op))) for op in getattr(entry, "operations", ())),
            type(entry).__name__,
        )
        for entry in entries
    ]
