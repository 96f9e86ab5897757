"""Casts against torch: every 16-bit value there is, and 32- and 64-bit values of every kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.transfer.casts import BLOCK, STORAGE, convert

TORCH = {name: getattr(torch, name) for name in STORAGE}
BITS = {2: (np.uint16, torch.int16), 4: (np.uint32, torch.int32), 8: (np.uint64, torch.int64)}
PAIRS = [(a, b) for a in STORAGE for b in STORAGE if a != b]


def check(bits: np.ndarray, before: str, after: str) -> None:
    """Ours and torch's results: a NaN in the same places, and everywhere else the same bits."""
    out = np.empty(len(bits), STORAGE[after])
    convert(bits.view(STORAGE[before]), (before, after), out)
    kind, signed = BITS[STORAGE[after].itemsize]
    ours = torch.from_numpy(out.view(kind).view(f"i{STORAGE[after].itemsize}")).view(TORCH[after])
    theirs = torch.from_numpy(bits.copy().view(f"i{bits.itemsize}")).view(TORCH[before]).to(TORCH[after])
    nan = theirs.isnan()
    assert torch.equal(ours.isnan(), nan)
    assert torch.equal(ours.view(signed)[~nan], theirs.view(signed)[~nan])


@pytest.mark.parametrize(("before", "after"), [pair for pair in PAIRS if STORAGE[pair[0]].itemsize == 2])
def test_every_16_bit_value(before: str, after: str) -> None:
    check(np.arange(1 << 16, dtype=np.uint16), before, after)


# Around every boundary where rounding could go wrong: the last bits kept, the first ones dropped, and each exponent.
LOW_HALVES = (0, 1, 0x0FFF, 0x1000, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF)
EDGES = np.array([high << 16 | low for high in range(0, 1 << 16, 8) for low in LOW_HALVES], dtype=np.uint32)


@pytest.mark.parametrize("after", ["float16", "bfloat16", "float64"])
def test_32_bit_values_at_the_edges(after: str) -> None:
    check(EDGES, "float32", after)
    check(EDGES | 0x10000, "float32", after)  # odd where the others are even


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=300), st.sampled_from(["float16", "bfloat16", "float64"])
)
def test_any_32_bit_value(values: list[int], after: str) -> None:
    check(np.array(values, np.uint32), "float32", after)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(width=64) | st.floats(-70_000, 70_000) | st.floats(-1e-38, 1e-38), min_size=1, max_size=300),
    st.sampled_from(["float16", "bfloat16", "float32"]),
)
def test_any_64_bit_value(values: list[float], after: str) -> None:
    check(np.array(values, np.float64).view(np.uint64), "float64", after)


def test_double_rounding_is_torchs() -> None:
    """Just above the middle of two float16: by way of float32 it falls onto the middle, and then to the even side."""
    values = np.array([1 + 2.0**-11 + 2.0**-40, 1 + 2.0**-8 + 2.0**-40])
    check(values.view(np.uint64), "float64", "float16")
    check(values.view(np.uint64), "float64", "bfloat16")
    assert values[:1].astype(np.float16) != values[:1].astype(np.float32).astype(np.float16)


def test_arrays_longer_than_a_block() -> None:
    values = np.random.default_rng(0).standard_normal(2 * BLOCK + 7).astype(np.float32)
    for after in ("float16", "bfloat16"):
        check(values.view(np.uint32), "float32", after)
    check(np.tile(np.arange(1 << 16, dtype=np.uint16), 2)[: 3 * BLOCK + 1], "bfloat16", "float16")


def test_a_chain_passes_through_every_type() -> None:
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    out = np.empty(1000, np.float32)
    convert(values, ("float32", "float16", "bfloat16", "float32"), out)
    assert np.array_equal(out, torch.from_numpy(values).half().bfloat16().float().numpy())
    assert not np.array_equal(out, torch.from_numpy(values).bfloat16().float().numpy())


def test_every_bfloat16_among_ordinary_ones() -> None:
    """Where few values of a block are odd, only those are looked up."""
    rng = np.random.default_rng(0)
    ordinary = (rng.standard_normal(1 << 20) * 0.02).astype(np.float32).view(np.uint32) >> 16
    bits = ordinary.astype(np.uint16)
    bits[::16] = np.arange(1 << 16, dtype=np.uint16)
    check(bits, "bfloat16", "float16")
    check(bits[: BLOCK + 7], "bfloat16", "float16")
