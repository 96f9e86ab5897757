"""Computes where each target's bytes go: safetensors files with their exact headers, before a byte is copied.

Format: an 8-byte little-endian length, a JSON header, the data (safetensors 0.6, README `Format`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.diagnostics import refuse
from compiler.dtypes import ITEM_SIZES, SAFETENSORS_CODES
from compiler.layout.array import Array
from compiler.plan.plan import TargetTensor

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


@dataclass(frozen=True)
class OutFile:
    """One file: its name (with folders, where it is in one), its first bytes, the absolute offset of each target's data, its
    size, the (start, length) of gaps between them, what writes into these once the data is there, given the file's path, and
    the part that it has of a target, given its name; without `cut`, all of it."""

    name: str
    header: bytes
    offsets: Mapping[str, int]
    size: int
    gaps: tuple[tuple[int, int], ...] = ()
    finish: Callable[[Path], None] | None = None
    cut: Callable[[str, Array], Array] | None = None


def parse_size(text: str) -> int:
    """`5GB`, `300MiB` or a number of bytes. Raises Refusal."""
    digits = text.strip().rstrip("BbKkMmGgTtIi")
    unit = text.strip()[len(digits) :].upper()
    try:
        size = int(float(digits) * _UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        size = 0
    if size < 1:
        refuse("--max-shard-size", f"{text!r} is not a size", "wrong-usage", "write 5GB, 300MB or a number of bytes")
    return size


def lay_out(targets: Sequence[TargetTensor], limit: int) -> list[OutFile]:
    """Files of at most `limit` data bytes each, filled in the order of the targets."""
    parts = in_parts(targets, limit)
    names = ["model.safetensors"]
    if len(parts) > 1:
        names = [f"model-{n:05d}-of-{len(parts):05d}.safetensors" for n in range(1, len(parts) + 1)]
    return [_lay_out_one(name, part) for name, part in zip(names, parts, strict=True)]


def in_parts(targets: Sequence[TargetTensor], limit: int) -> list[list[TargetTensor]]:
    """The targets in their order, in parts of at most `limit` bytes; a larger tensor is a part of its own."""
    parts: list[list[TargetTensor]] = [[]]
    filled = 0
    for target in targets:
        if parts[-1] and filled + target.nbytes > limit:
            parts.append([])
            filled = 0
        parts[-1].append(target)
        filled += target.nbytes
    return parts


def _lay_out_one(name: str, targets: Sequence[TargetTensor]) -> OutFile:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset, places = 0, {}
    # Widest elements first, as the format's own writer does, so that every tensor is aligned to its type.
    for target in sorted(targets, key=lambda t: -ITEM_SIZES[t.dtype]):
        places[target.name] = offset
        header[target.name] = {
            "dtype": SAFETENSORS_CODES[target.dtype],
            "shape": list(target.shape),
            "data_offsets": [offset, offset + target.nbytes],
        }
        offset += target.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    first = len(text).to_bytes(8, "little") + text
    return OutFile(name, first, {n: len(first) + at for n, at in places.items()}, len(first) + offset)


def is_divided(files: Sequence[OutFile]) -> bool:
    """Whether these are safetensors files that need an index."""
    return len(files) > 1 and all(file.name.endswith(".safetensors") for file in files)


def index_json(files: Sequence[OutFile], targets: Sequence[TargetTensor]) -> str:
    """The text of the index that lists which file holds which tensor."""
    weight_map = {name: file.name for file in files for name in file.offsets}
    content = {
        "metadata": {"total_size": sum(t.nbytes for t in targets)},
        "weight_map": dict(sorted(weight_map.items())),
    }
    return json.dumps(content, indent=2) + "\n"
