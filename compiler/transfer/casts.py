"""Conversions between floating element types on numpy arrays, with the values that torch's `.to()` gives.

Every conversion goes through float32, as torch's does; one from a 16-bit type is looked up in a table, as there are
but 65,536 values. Rounding is to nearest even; an overflow becomes infinity;
subnormals are kept. A NaN stays a NaN; its payload is not promised (torch's own depends on the processor: bfloat16
NaNs are 0x7fc0 in its scalar code, https://github.com/pytorch/pytorch/blob/main/c10/util/BFloat16.h, as they are here,
and 0xffff in its vector code). Works in blocks, so that the memory that it needs does not depend on the size of an array.
Takes the types that STORAGE names.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 16  # elements: operands and scratch of a block together stay within a core's private cache

Values = NDArray[Any]

# bfloat16 is a stranger to numpy: its bits travel as uint16.
STORAGE: dict[str, np.dtype[Any]] = {
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
}


def convert(values: Values, types: Sequence[str], out: Values) -> None:
    """Write `values`, stored as `types[0]`, into `out` as `types[-1]`, by way of the types between.

    Both are flat, contiguous, equally long, and of the types that STORAGE names. They must not overlap.
    """
    types = tuple(types)
    with np.errstate(all="ignore"):
        if STORAGE[types[0]].itemsize > 2 or types == ("bfloat16", "float32"):
            _walk(values, _by_way_of_float32(types), out)
            return
        table, places = _table(types), values.view(np.uint16)
        for start in range(0, len(values), BLOCK):
            block, made = places[start : start + BLOCK], out[start : start + BLOCK]
            if types != ("bfloat16", "float16") or not _moved_to_half(block, table, made):
                index = _scratch("index", np.intp)[: len(block)]
                np.copyto(index, block)
                np.take(table, index, out=made, mode="clip")


def _by_way_of_float32(types: Sequence[str]) -> list[str]:
    """With float32 between every two types that are not converted directly."""
    path = [types[0]]
    for name in types[1:]:
        path += [name] if name == path[-1] or "float32" in (name, path[-1]) else ["float32", name]
    return path


def _walk(values: Values, path: Sequence[str], out: Values) -> None:
    """Block by block from type to type. The path has two types at least."""
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        for before, after in pairwise(path[:-1]):
            block = _converted(block, before, after, np.empty(len(block), STORAGE[after]))
        _converted(block, path[-2], path[-1], out[start : start + BLOCK])


def _converted(values: Values, before: str, after: str, out: Values) -> Values:
    if (before, after) == ("bfloat16", "float32"):
        np.left_shift(values, np.uint32(16), out=out.view(np.uint32), dtype=np.uint32)
    elif (before, after) == ("float32", "bfloat16"):
        _round_to_bfloat16(values, out)
    else:
        np.copyto(out, values, casting="same_kind")
    return out


def _round_to_bfloat16(values: Values, out: Values) -> None:
    bits, rounded = values.view(np.uint32), _scratch("rounded", np.uint32)[: len(values)]
    np.right_shift(bits, 16, out=rounded)
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits  # half of the last place kept, less one where that place is even
    rounded >>= 16
    np.copyto(out, rounded, casting="unsafe")
    if np.isnan(values.max(initial=0)):  # one quick look: NaNs are rare, and max() hands them on
        out[np.isnan(values)] = 0x7FC0


def _moved_to_half(bits: Values, table: Values, out: Values) -> bool:
    """bfloat16 to float16 by moving the exponent: exact for all that is normal in both, which weights mostly are.

    What is not is looked up; False where that would be much.
    """
    size = len(bits)
    moved, place, odd = (
        _scratch(use, dtype)[:size] for use, dtype in (("moved", np.uint16), ("place", np.uint16), ("odd", np.bool_))
    )
    np.bitwise_and(bits, 0x7FFF, out=moved)
    moved -= 112 << 7  # the difference of the exponents' biases
    np.subtract(moved, 1 << 7, out=place)
    np.greater_equal(place, 30 << 7, out=odd)  # subnormal in float16, or beyond it; below either, it has wrapped around
    others = np.flatnonzero(odd)
    if len(others) > size // 8:
        return False
    half = out.view(np.uint16)
    np.left_shift(moved, 3, out=half)
    np.bitwise_and(bits, 0x8000, out=moved)
    half |= moved
    out[others] = table[bits[others]]
    return True


@cache
def _table(types: tuple[str, ...]) -> Values:
    """All 65,536 values of a 16-bit type after their way through the types, by their bits."""
    values = np.arange(1 << 16, dtype=np.uint16).view(STORAGE[types[0]])
    out = np.empty(1 << 16, STORAGE[types[-1]])
    _walk(values, _by_way_of_float32(types), out)
    return out


def _scratch(use: str, dtype: type) -> Values:
    """A block that its thread keeps: fresh memory costs more than the arithmetic."""
    kept: Values | None = getattr(_kept, use, None)
    if kept is None:
        kept = np.empty(BLOCK, dtype)
        setattr(_kept, use, kept)
    return kept


_kept = threading.local()
