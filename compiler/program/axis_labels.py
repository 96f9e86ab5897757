"""The labels of a spec's tensor axes: expressions over facts and arguments that give the length of each axis.

The proof computes them from the examples and the target class (`proof.shape_labels`). They are recorded, for the shipped
specs in a file of the package and for others in the cache folder, so that a run can compare every shape with them
without the class. The key is a digest of the spec: labels of another text are never used.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from compiler.language import document
from compiler.language.name_pattern import Hole, Pattern
from compiler.language.spec import Spec
from compiler.resources import axis_labels_path
from compiler.target.signature_cache import cache_folder
from compiler.tensor_names import NUMBER

# For each axis the expressions that give its length, all of which fit every example; empty if there is none.
Shape = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class AxisLabels:
    """Name form -> axes, for the tensors of either side. A form is a name whose indices are written `{}`."""

    source: Mapping[str, Shape]
    target: Mapping[str, Shape]


def name_form(pattern: Pattern | None, name: str) -> str | None:
    """The form of a name that `pattern` matches; of a name without a pattern (`keep: all`), all its numbers are indices.

    None for a pattern with parts that no hole captures, whose names have no common form.
    """
    if pattern is None:
        return NUMBER.sub("{}", name)
    if pattern.free_parts:
        return None
    chosen = any(not hole.is_index for hole in pattern.holes.values())
    captures = (pattern.match(name) or {}) if chosen else {}
    parts = (
        part if isinstance(part, str) else "{}" if part.is_index else captures.get(part.name, "{}")
        for part in pattern.parts
        if isinstance(part, str | Hole)
    )
    return "".join(parts)


# ---------------------------------------------------------------------------------------------------------------------
# The record


def spec_digest(spec: Spec) -> str:
    """A digest of everything in a spec that labels depend on."""
    assert isinstance(spec.root, document.Mapping)
    plain = {key.text: document.plain(node) for key, node in spec.root.entries if key.text != "summary"}
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


def has_shipped_labels(spec: Spec) -> bool:
    """Whether the package has labels for this text of a spec."""
    return bool(_shipped().get(spec.name.value, {}).get("digest") == spec_digest(spec))


def recorded_labels(spec: Spec) -> AxisLabels | None:
    """The labels recorded for this text of a spec; None if there are none."""
    digest = spec_digest(spec)
    shipped = _shipped().get(spec.name.value)
    if shipped is not None and shipped["digest"] == digest:
        return _labels(shipped)
    try:
        return _labels(json.loads(_cached(digest).read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def record_labels(spec: Spec, labels: AxisLabels) -> None:
    """Record the labels of a spec in the cache folder; without one, or where it cannot be written, do nothing."""
    try:
        path = _cached(spec_digest(spec))
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            json.dump(asdict(labels), file)
        os.replace(file.name, path)
    except (OSError, LookupError):
        pass


def _cached(digest: str) -> Path:
    folder = cache_folder()
    if folder is None:
        raise LookupError("there is no cache folder")
    return folder / f"axes_{digest}.json"


@cache
def _shipped() -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = json.loads(axis_labels_path().read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError):
        return {}


def _labels(content: Mapping[str, Any]) -> AxisLabels:
    def side(name: str) -> Mapping[str, Shape]:
        return {form: tuple(tuple(axis) for axis in axes) for form, axes in content[name].items()}

    return AxisLabels(side("source"), side("target"))
