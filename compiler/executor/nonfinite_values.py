"""Finds NaN and infinity: in the source, and where a cast to a narrower type made them.

Takes tensors of a checkpoint, or a plan and what it wrote; returns sentences to print. Of a tensor, 64 KiB in every 4 MiB
are read, about a sixty-fourth of a large checkpoint, or all of it; if a sample has such a value, all are counted. Raises
Refusal for a file that cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint
from compiler.checkpoints.folder import METADATA
from compiler.checkpoints.formats.stored_tensor import Tensor, read_bytes, span
from compiler.diagnostics import listed, refuse
from compiler.dtypes import ITEM_SIZES
from compiler.plan.plan import Group, Plan
from compiler.source.source_files import open_source
from compiler.transfer.files import InputFile

SAMPLE = 64 << 10  # bytes
STRIDE = 4 << 20  # bytes from one sample to the next
_BLOCK = 1 << 20
_PIECE = 64 << 20  # bytes of a tensor that are counted at a time


class FloatFormat(NamedTuple):
    """A floating-point type: its bits without the sign, the largest finite value of them, its exponent's width in bits."""

    mask: int
    largest: int
    exponent: int


# IEEE 754 and https://arxiv.org/abs/2209.05433; e4m3fn has no infinity, e8m0fnu (a scale) is not checked.
FORMATS = {
    "float16": FloatFormat(0x7FFF, 0x7BFF, 5),
    "bfloat16": FloatFormat(0x7FFF, 0x7F7F, 8),
    "float32": FloatFormat(0x7FFFFFFF, 0x7F7FFFFF, 8),
    "float64": FloatFormat(0x7FFFFFFFFFFFFFFF, 0x7FEFFFFFFFFFFFFF, 11),
    "float8_e4m3fn": FloatFormat(0x7F, 0x7E, 4),
    "float8_e5m2": FloatFormat(0x7F, 0x7B, 5),
}
_WITH_INFINITY = FORMATS.keys() - {"float8_e4m3fn"}


@dataclass(frozen=True)
class Count:
    """How many values of a tensor are NaN, how many infinite."""

    nan: int = 0
    infinite: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.nan + other.nan, self.infinite + other.infinite)

    def __mul__(self, times: int) -> Count:
        return Count(self.nan * times, self.infinite * times)

    def __bool__(self) -> bool:
        return bool(self.nan or self.infinite)

    def __str__(self) -> str:
        return " and ".join(f"{n:,} {word}" for n, word in ((self.nan, "NaN"), (self.infinite, "infinite")) if n)


def count(data: bytes | bytearray | memoryview, dtype: str) -> Count:
    """Count NaN and infinity in the bytes of a tensor."""
    form, counts = FORMATS[dtype], Count()
    bits = np.frombuffer(data, f"<u{ITEM_SIZES[dtype]}")
    for start in range(0, len(bits), _BLOCK):
        block = bits[start : start + _BLOCK] & bits.dtype.type(form.mask)
        if block.max(initial=0) > form.largest:
            over = int(np.count_nonzero(block > form.largest))
            infinite = int(np.count_nonzero(block == form.largest + 1)) if dtype in _WITH_INFINITY else 0
            counts += Count(over - infinite, infinite)
    return counts


def survey(checkpoint: Checkpoint, names: Iterable[str], whole: bool) -> dict[str, Count]:
    """The counts of the named tensors that have NaN or infinity in a sample, or with `whole` anywhere."""
    tensors = {name: checkpoint.tensors[name] for name in names if checkpoint.tensors[name].dtype in FORMATS}
    counts: dict[str, Count] = {}
    for name, tensor in tensors.items():
        parts = [
            part for part in tensor.parts if part.dtype in FORMATS
        ]  # quantized numbers have no NaN, their scales may
        seen = sum((_count_samples(part, whole) for part in parts), Count())
        if seen:
            exact = whole and all(part.contiguous for part in parts)
            seen = seen if exact else sum((_count_all(part) for part in parts), Count())
        if seen:
            counts[name] = seen
    return counts


def _count_all(tensor: Tensor) -> Count:
    """Count all values of a tensor, piece by piece; an axis of stride 0 is read once."""
    long = [axis for axis, size in enumerate(tensor.shape) if size > 1]
    for axis in long:
        if tensor.strides[axis] == 0:
            return _count_all(tensor.narrow(axis, 0, 1)) * tensor.shape[axis]
    if tensor.nbytes <= _PIECE:
        return count(read_bytes(tensor), tensor.dtype)
    axis, size = long[0], tensor.shape[long[0]]
    step = max(1, size * _PIECE // tensor.nbytes)
    return sum((_count_all(tensor.narrow(axis, n, min(step, size - n))) for n in range(0, size, step)), Count())


def _count_samples(tensor: Tensor, whole: bool) -> Count:
    """Count in samples of the bytes that the tensor spans, which of a strided one may include other tensors."""
    size = span(tensor.shape, tensor.strides) * ITEM_SIZES[tensor.dtype]
    counts = Count()
    try:
        with InputFile(tensor.path) as source:
            for start, stop in _ranges(size, whole):
                buffer = memoryview(bytearray(stop - start))
                source.read(tensor.offset + start, [buffer])
                counts += count(buffer, tensor.dtype)
    except OSError as error:
        refuse(str(tensor.path), f"cannot be read: {error.strerror or error}", "unreadable-file")
    return counts


def _ranges(size: int, whole: bool) -> Iterator[tuple[int, int]]:
    step, length = (_BLOCK, _BLOCK) if whole else (STRIDE, SAMPLE)
    for start in range(0, size, step):
        yield start, min(size, start + length)


def in_source(checkpoint: Checkpoint, plan: Plan, whole: bool) -> Iterator[str]:
    """Sentences about values of the source."""
    names = dict.fromkeys(name for group in plan.groups for name in group.source_names)
    counts = survey(checkpoint, names, whole)
    if counts:
        hint = "" if whole else "; --check-values checks all values"
        yield f"NaN or infinity in the source: {_listed_counts(counts)}{hint}"


# ---------------------------------------------------------------------------------------------------------------------
# After a cast


def narrowed(plan: Plan, checkpoint: Checkpoint) -> list[Group]:
    """The groups that write a type of smaller range than the types they read."""
    groups = []
    for group in plan.groups:
        before = [
            FORMATS[t.dtype].exponent for n in group.source_names if (t := checkpoint.tensors[n]).dtype in FORMATS
        ]
        after = [FORMATS[target.dtype].exponent for target in group.target_list if target.dtype in FORMATS]
        if before and after and min(after) < max(before):
            groups.append(group)
    return groups


def after_casts(checkpoint: Checkpoint, plan: Plan, place: Path) -> Iterator[str]:
    """Sentences about values that became infinite in a cast, read from what was written."""
    if groups := narrowed(plan, checkpoint):
        parts = plan.reverse and place.is_dir() and not (place / METADATA).exists()
        yield from overflowed(
            groups, checkpoint, open_source(plan.program, [place]) if parts else open_checkpoint(place)
        )


def overflowed(groups: Iterable[Group], before: Checkpoint, after: Checkpoint) -> Iterator[str]:
    """Sentences about values that became infinite; `after` is what was written."""
    counts: dict[str, Count] = {}
    dtypes: set[str] = set()
    for group in groups:
        infinite = survey(after, (target.name for target in group.target_list), whole=True)
        if not infinite:
            continue
        had = sum(survey(before, group.source_names, whole=True).values(), Count())
        if (more := sum(infinite.values(), Count()).infinite - had.infinite) > 0:
            counts[", ".join(infinite)] = Count(infinite=more)
            dtypes |= {target.dtype for target in group.target_list}
    if counts:
        yield f"values too large for {listed(sorted(dtypes))} became infinite: {_listed_counts(counts)}"


def _listed_counts(counts: Mapping[str, Count]) -> str:
    return listed(f"{name} ({counted})" for name, counted in counts.items())
