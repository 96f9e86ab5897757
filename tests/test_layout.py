"""The layout algebra against torch: whatever a chain of ops does to a tensor, the moves do to its bytes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler import layout
from compiler.layout import Array
from compiler.moves import SHORT_RUN, Extent, Move, extents, lower, tiles

MAX_AXES = 4


def stored(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: t.contiguous().numpy().tobytes() for name, t in tensors.items()}


def elements(move_pieces: tuple[layout.Piece, ...]) -> dict[int, tuple[str, int]]:
    """position: (source, byte), counted out one by one: the meaning of pieces, by another road than the lowering's."""
    found: dict[int, tuple[str, int]] = {}
    for piece in move_pieces:
        origin, atoms = piece.axes[0]
        places = [(origin, piece.offset)]
        for atom in atoms:
            places = [(p + n * atom.step, b + n * atom.stride) for p, b in places for n in range(atom.length)]
        for position, byte in places:
            assert position not in found, "two pieces claim one position"
            found[position] = (piece.source, byte)
    return found


def by_extents(moves: list[Move], files: dict[str, bytes], size: int) -> bytes:
    out = bytearray(size)
    covered = 0
    for move in moves:
        assert move.target == covered
        for e in extents(move):
            assert e.target_offset == covered
            out[covered : covered + e.length] = files[e.source][e.source_offset : e.source_offset + e.length]
            covered += e.length
    assert covered == size
    return bytes(out)


def by_tiles(moves: list[Move], files: dict[str, bytes], size: int, item: int, block: int) -> bytes:
    out = bytearray(size)
    for move in moves:
        written = 0
        for tile in tiles(move, block):
            found = elements(tile.pieces)
            assert sorted(found) == list(range(tile.rows * tile.width // item))
            for position, (name, byte) in found.items():
                row, column = divmod(position * item, tile.width)
                at = tile.target + row * tile.pitch + column
                out[at : at + item] = files[name][byte : byte + item]
            written += tile.rows * tile.width
        assert written == move.length
    return bytes(out)


def check(tensor: torch.Tensor, array: Array, files: dict[str, bytes], block: int = 64) -> None:
    assert tuple(tensor.shape) == array.shape
    moves = lower(array)
    expected = tensor.contiguous().numpy().tobytes()
    assert by_extents(moves, files, len(expected)) == expected
    assert by_tiles(moves, files, len(expected), tensor.element_size(), block) == expected


# Random programs -----------------------------------------------------------------------------------------------------

Pair = tuple[torch.Tensor, Array]


def factored(draw: Callable, number: int) -> list[int]:
    """A random shape of `number` elements."""
    shape = []
    while number > 1 and len(shape) < MAX_AXES - 1:
        factor = draw(st.sampled_from([n for n in range(1, number + 1) if number % n == 0]))
        shape.append(factor)
        number //= factor
    return [*shape, number]


@st.composite
def programs(draw: Callable) -> tuple[Pair, dict[str, bytes]]:
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    count = draw(st.integers(1, 3))
    offset = draw(st.integers(0, 3))
    pool: list[Pair] = []
    files: dict[str, bytes] = {}
    for n in range(count):
        tensor = torch.arange(math.prod(shape), dtype=torch.int16).reshape(shape) + 1000 * n
        array = layout.source(f"s{n}", "int16", shape, offset)
        files[f"s{n}"] = bytes(offset) + tensor.numpy().tobytes()
        if draw(st.booleans()):  # a transposed view, as a pickle may hold one
            tensor = tensor.permute(*range(len(shape) - 1, -1, -1))
            array = layout.source(f"s{n}", "int16", tensor.shape, offset, tensor.stride())
        pool.append((tensor, array))
    for _ in range(draw(st.integers(0, 7))):
        tensor, array = draw(st.sampled_from(pool))
        word = draw(st.sampled_from(["split", "concat", "stack", "unstack", "rearrange", "permute", "reshape", "expand"]))
        rank = tensor.dim()
        axis = draw(st.integers(0, rank - 1)) if rank else 0
        if word == "split" and rank and tensor.shape[axis] > 1:
            cut = draw(st.integers(1, tensor.shape[axis] - 1))
            sizes = [cut, tensor.shape[axis] - cut]
            pool += zip(tensor.split(sizes, axis), layout.split(array, axis, sizes), strict=True)
        elif word == "concat" and rank:
            fits = [p for p in pool if p[0].dim() == rank and all(
                a == b for k, (a, b) in enumerate(zip(p[0].shape, tensor.shape, strict=True)) if k != axis)]  # fmt: skip
            parts = draw(st.lists(st.sampled_from(fits), min_size=1, max_size=3))
            pool.append((torch.cat([t for t, _ in parts], axis), layout.concat([a for _, a in parts], axis)))
        elif word == "stack" and rank < MAX_AXES:
            fits = [p for p in pool if p[0].shape == tensor.shape]
            parts = draw(st.lists(st.sampled_from(fits), min_size=1, max_size=3))
            axis = draw(st.integers(0, rank))
            pool.append((torch.stack([t for t, _ in parts], axis), layout.stack([a for _, a in parts], axis)))
        elif word == "unstack" and rank:
            pool += zip(tensor.unbind(axis), layout.unstack(array, axis), strict=True)
        elif word == "rearrange":
            inner = factored(draw, tensor.numel())
            order = draw(st.permutations(range(len(inner))))
            outer = factored(draw, tensor.numel())
            result = tensor.reshape(inner).permute(order).reshape(outer)
            pool.append((result, layout.rearrange(array, inner, order, outer)))
        elif word == "permute" and rank:
            order = draw(st.permutations(range(rank)))
            pool.append((tensor.permute(order), layout.permute(array, order)))
        elif word == "reshape":
            target = factored(draw, tensor.numel())
            pool.append((tensor.reshape(target), layout.reshape(array, target)))
        elif word == "expand":
            repeated = layout.source("s0", "int16", (3, 2), offset, (0, 0))
            pool.append((torch.zeros(3, 2, dtype=torch.int16), repeated))
    return draw(st.sampled_from(pool)), files


@settings(max_examples=400, deadline=None)
@given(programs(), st.sampled_from([2, 8, 64, 4096]))
def test_random_programs_move_the_bytes_that_torch_moves(program: tuple[Pair, dict[str, bytes]], block: int) -> None:
    (tensor, array), files = program
    if tensor.numel() <= 4096:
        check(tensor, array, files, block)
