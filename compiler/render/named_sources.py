"""What a converter knows of several sources: a table of them, and the words of its command line."""

from __future__ import annotations

from typing import Any

from compiler.language.spec import Spec
from compiler.render.python_source import literal, quoted


def values(spec: Spec) -> dict[str, Any]:
    """The template variables about several sources; a source that completes another one comes after it."""
    ordered = sorted(spec.sources, key=lambda source: bool(source.joins))
    optional = "".join(f" [{source.name}=PATH]" for source in ordered if source.optional)
    left_out = {source.name.value for source in ordered if source.optional}
    filling = {source.name.value for source in ordered if source.fills}
    return {
        "named_sources": [
            (quoted(s.name.value), f"({quoted(s.config)}, {quoted(s.part)}, {literal([*s.model_types])})")
            for s in ordered
        ],
        "source_words": quoted(spec.source_words + optional),
        "left_out": _set(left_out),
        "owners": literal({source.name.value: source.joins for source in ordered if source.joins}),
        "filling": _set(filling),
    }


def _set(names: set[str]) -> str:
    return f"{{{', '.join(map(quoted, sorted(names)))}}}" if names else ""
