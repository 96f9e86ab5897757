"""Values that are no finite numbers: those that a checkpoint brings, and those that a narrower type has made.

Takes tensors of a checkpoint, or a plan and what was written by it; returns sentences, one for each thing that a
person should know, and changes nothing. A tensor is looked at in samples of 64 KiB for every 4 MiB, about a
sixty-fourth of a large checkpoint, or as a whole; where a sample shows something, the tensor is counted as a whole.
Raises Refusal for a file that cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint
from compiler.checkpoints.formats.stored_tensor import Tensor, read_bytes, span
from compiler.diagnostics import listed, refuse
from compiler.dtypes import ITEM_SIZES
from compiler.plan.plan import Group, Plan
from compiler.plan.source_files import open_source
from compiler.transfer.files import InputFile

SAMPLE = 64 << 10  # bytes
STRIDE = 4 << 20  # bytes from one sample to the next
_BLOCK = 1 << 20
_PIECE = 64 << 20  # bytes of a tensor that is counted as a whole


class FloatFormat(NamedTuple):
    """How a floating type is laid out: its bits without the sign, the largest finite value among them, its exponent."""

    mask: int
    largest: int
    exponent: int


# IEEE 754 and https://arxiv.org/abs/2209.05433; e4m3fn has no infinity, e8m0fnu (a scale) is left alone.
FORMS = {
    "float16": FloatFormat(0x7FFF, 0x7BFF, 5),
    "bfloat16": FloatFormat(0x7FFF, 0x7F7F, 8),
    "float32": FloatFormat(0x7FFFFFFF, 0x7F7FFFFF, 8),
    "float64": FloatFormat(0x7FFFFFFFFFFFFFFF, 0x7FEFFFFFFFFFFFFF, 11),
    "float8_e4m3fn": FloatFormat(0x7F, 0x7E, 4),
    "float8_e5m2": FloatFormat(0x7F, 0x7B, 5),
}
_ENDLESS = FORMS.keys() - {"float8_e4m3fn"}  # those that have an infinity


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
    """The values among the bytes of a tensor that are no finite numbers."""
    form, found = FORMS[dtype], Count()
    bits = np.frombuffer(data, f"<u{ITEM_SIZES[dtype]}")
    for start in range(0, len(bits), _BLOCK):
        block = bits[start : start + _BLOCK] & bits.dtype.type(form.mask)
        if block.max(initial=0) > form.largest:
            over = int(np.count_nonzero(block > form.largest))
            infinite = int(np.count_nonzero(block == form.largest + 1)) if dtype in _ENDLESS else 0
            found += Count(over - infinite, infinite)
    return found


def survey(checkpoint: Checkpoint, names: Iterable[str], whole: bool) -> dict[str, Count]:
    """The tensors of those names in which a sample, or with `whole` any value, is no finite number."""
    tensors = {name: checkpoint.tensors[name] for name in names if checkpoint.tensors[name].dtype in FORMS}
    found: dict[str, Count] = {}
    for name, tensor in tensors.items():
        seen = sum((_glance(part, whole) for part in tensor.parts), Count())
        if seen:
            exact = whole and all(part.contiguous for part in tensor.parts)
            seen = seen if exact else sum((_counted(part) for part in tensor.parts), Count())
        if seen:
            found[name] = seen
    return found


def _counted(tensor: Tensor) -> Count:
    """Every value of a tensor, piece by piece; what an axis repeats is read once."""
    long = [axis for axis, size in enumerate(tensor.shape) if size > 1]
    for axis in long:
        if tensor.strides[axis] == 0:
            return _counted(tensor.narrow(axis, 0, 1)) * tensor.shape[axis]
    if tensor.nbytes <= _PIECE:
        return count(read_bytes(tensor), tensor.dtype)
    axis, size = long[0], tensor.shape[long[0]]
    step = max(1, size * _PIECE // tensor.nbytes)
    return sum((_counted(tensor.narrow(axis, n, min(step, size - n))) for n in range(0, size, step)), Count())


def _glance(tensor: Tensor, whole: bool) -> Count:
    """Counted in samples of what the tensor spans; a strided one may also span what is not its own."""
    size = span(tensor.shape, tensor.strides) * ITEM_SIZES[tensor.dtype]
    found = Count()
    try:
        with InputFile(tensor.path) as source:
            for start, stop in _ranges(size, whole):
                buffer = memoryview(bytearray(stop - start))
                source.read(tensor.offset + start, [buffer])
                found += count(buffer, tensor.dtype)
    except OSError as error:
        refuse(str(tensor.path), f"cannot be read: {error.strerror or error}", "unreadable-file")
    return found


def _ranges(size: int, whole: bool) -> Iterator[tuple[int, int]]:
    step, length = (_BLOCK, _BLOCK) if whole else (STRIDE, SAMPLE)
    for start in range(0, size, step):
        yield start, min(size, start + length)


def brought(checkpoint: Checkpoint, plan: Plan, whole: bool) -> Iterator[str]:
    """What the source's own values give reason to say."""
    names = dict.fromkeys(name for group in plan.groups for name in group.source_names)
    found = survey(checkpoint, names, whole)
    if found:
        hint = "" if whole else "; --check-values reads every value of the other tensors, too"
        yield f"not all values are finite: {_told(found)}{hint}"


# ---------------------------------------------------------------------------------------------------------------------
# Made by a cast


def narrowed(plan: Plan, checkpoint: Checkpoint) -> list[Group]:
    """The groups that write a type whose range is smaller than that of what they read."""
    found = []
    for group in plan.groups:
        before = [FORMS[t.dtype].exponent for n in group.source_names if (t := checkpoint.tensors[n]).dtype in FORMS]
        after = [FORMS[target.dtype].exponent for target in group.target_list if target.dtype in FORMS]
        if before and after and min(after) < max(before):
            found.append(group)
    return found


def made(checkpoint: Checkpoint, plan: Plan, place: Path) -> Iterator[str]:
    """What casts to a narrower type have made infinite, read back from what was written."""
    if groups := narrowed(plan, checkpoint):
        parts = plan.reverse and place.is_dir()
        yield from overflowed(
            groups, checkpoint, open_source(plan.program, [place]) if parts else open_checkpoint(place)
        )


def overflowed(groups: Iterable[Group], before: Checkpoint, after: Checkpoint) -> Iterator[str]:
    """What casts have made infinite; `after` is what was written."""
    found: dict[str, Count] = {}
    dtypes: set[str] = set()
    for group in groups:
        made = survey(after, (target.name for target in group.target_list), whole=True)
        if not made:
            continue
        had = sum(survey(before, group.source_names, whole=True).values(), Count())
        if (more := sum(made.values(), Count()).infinite - had.infinite) > 0:
            found[", ".join(made)] = Count(infinite=more)
            dtypes |= {target.dtype for target in group.target_list}
    if found:
        yield f"too large for {listed(sorted(dtypes))}, so that they became infinite: {_told(found)}"


def _told(found: Mapping[str, Count]) -> str:
    return listed(f"{name} ({counted})" for name, counted in found.items())
