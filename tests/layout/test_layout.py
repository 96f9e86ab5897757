"""The layout algebra against torch: whatever a chain of ops does to a tensor, the moves do to its bytes."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.array_programs import Pair, programs

from compiler.layout import array as layout
from compiler.layout.array import Array
from compiler.layout.moves import SHORT_RUN, Extent, Move, extents, lower, strip, tiles

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


def by_strips(moves: list[Move], files: dict[str, bytes], expected: bytes) -> int:
    """How many moves are strips, each of whose rows holds what the move writes there."""
    count = 0
    for move in moves:
        if (one := strip(move)) is not None:
            count += 1
            rows = (one.offset + row * one.pitch for row in range(one.rows))
            found = b"".join(files[one.source][at : at + one.width] for at in rows)
            assert found == expected[one.target : one.target + move.length]
            assert one.pitch >= one.width
    return count


def check(tensor: torch.Tensor, array: Array, files: dict[str, bytes], block: int = 64) -> None:
    assert tuple(tensor.shape) == array.shape
    moves = lower(array)
    expected = tensor.contiguous().numpy().tobytes()
    assert by_extents(moves, files, len(expected)) == expected
    assert by_tiles(moves, files, len(expected), tensor.element_size(), block) == expected
    by_strips(moves, files, expected)


@settings(max_examples=400, deadline=None)
@given(programs(), st.sampled_from([2, 8, 64, 4096]))
def test_random_programs_move_the_bytes_that_torch_moves(program: tuple[Pair, dict[str, bytes]], block: int) -> None:
    (tensor, array), files = program
    if tensor.numel() <= 4096:
        check(tensor, array, files, block)


def test_random_programs_have_strips() -> None:
    """So that the test above says something about them: columns of rows, and what only looks like them."""
    found: list[int] = []

    @settings(max_examples=300, deadline=None, database=None, derandomize=True)
    @given(programs())
    def count(program: tuple[Pair, dict[str, bytes]]) -> None:
        (tensor, array), files = program
        found.append(by_strips(lower(array), files, tensor.contiguous().numpy().tobytes()))

    count()
    assert sum(n > 0 for n in found) > 3


@pytest.mark.parametrize(
    ("shape", "strides", "fits"),
    [
        ((4, 3), (5, 1), True),  # three columns of five
        ((4, 3), (2, 1), False),  # rows that overlap
        ((4, 3), (10, 2), False),  # every second column
        ((4, 3), (0, 1), False),  # one row again and again
        ((3, 4), (1, 5), False),  # a transpose
        ((2, 4, 3), (40, 5, 1), False),  # three counters
    ],
)
def test_what_counts_as_a_strip(shape: tuple[int, ...], strides: tuple[int, ...], fits: bool) -> None:
    array = layout.source("s", "int16", shape, 6, strides)
    data = torch.arange(100, dtype=torch.int16)
    (move,) = lower(array)
    assert (strip(move) is not None) == fits
    check(data.as_strided(shape, strides, 3), array, {"s": data.numpy().tobytes()})
    assert strip(lower(layout.cast(layout.source("s", "float32", (4, 3), 0, (5, 1)), "float16"))[0]) is None


# Casts ride along; zero-sized and scalar tensors ---------------------------------------------------------------------


def test_a_cast_is_remembered_with_every_type_between() -> None:
    array = layout.cast(layout.cast(layout.source("s", "float32", (4,)), "bfloat16"), "float32")
    (move,) = lower(array, 100)
    assert move.pieces[0].types == ("float32", "bfloat16", "float32")
    assert (move.target, move.length, move.run, move.plain) == (100, 16, 0, False)
    assert layout.cast(array, "float32") is array


def test_types_do_not_mix_without_a_cast() -> None:
    parts = [layout.source("a", "float32", (2,)), layout.source("b", "float16", (2,))]
    with pytest.raises(ValueError, match="float16 and float32 without a cast"):
        layout.concat(parts, 0)
    joined = layout.concat([parts[0], layout.cast(parts[1], "float32")], 0)
    assert [m.plain for m in lower(joined)] == [True, False]


def test_empty_and_scalar_tensors() -> None:
    assert lower(layout.source("s", "float32", (3, 0, 2))) == []
    assert layout.stack(layout.unstack(layout.source("s", "float32", (2, 0)), 0), 0).shape == (2, 0)
    (move,) = lower(layout.source("s", "float32", (), 8))
    assert list(extents(move)) == [Extent("s", 8, 0, 4)]


# Nothing larger than it must be --------------------------------------------------------------------------------------

ROWS, COLUMNS = 4096, 2048
ROW = COLUMNS * 2


def matrix(name: str = "w", offset: int = 0) -> Array:
    return layout.source(name, "bfloat16", (ROWS, COLUMNS), offset)


def every_extent(array: Array) -> list[Extent]:
    return [e for move in lower(array) for e in extents(move)]


def test_a_rename_is_one_extent() -> None:
    assert every_extent(matrix(offset=77)) == [Extent("w", 77, 0, ROWS * ROW)]


def test_a_split_of_rows_is_one_extent_each() -> None:
    parts = layout.split(matrix(), 0, [2048, 1024, 1024])
    assert [every_extent(p) for p in parts] == [
        [Extent("w", 0, 0, 2048 * ROW)],
        [Extent("w", 2048 * ROW, 0, 1024 * ROW)],
        [Extent("w", 3072 * ROW, 0, 1024 * ROW)],
    ]


def test_a_split_joined_again_is_one_extent() -> None:
    assert every_extent(layout.concat(layout.split(matrix(), 0, [1000, 3096]), 0)) == every_extent(matrix())
    assert every_extent(layout.stack(layout.unstack(matrix(), 0), 0)) == every_extent(matrix())
    columns = layout.concat(layout.split(matrix(), 1, [48, 2000]), 1)
    assert every_extent(columns) == every_extent(matrix())


def test_fused_experts_are_two_extents_each() -> None:
    gates = layout.stack([matrix(f"gate{e}") for e in range(8)], 0)
    ups = layout.stack([matrix(f"up{e}") for e in range(8)], 0)
    found = every_extent(layout.concat([gates, ups], 1))
    assert [(e.source, e.length) for e in found] == [(f"{p}{e}", ROWS * ROW) for e in range(8) for p in ("gate", "up")]


def test_rotary_halves_are_rows() -> None:
    halves = layout.rearrange(matrix(), (32, 64, 2, COLUMNS), (0, 2, 1, 3), (ROWS, COLUMNS))
    (move,) = lower(halves)
    assert (len(move.pieces), move.run, move.plain) == (1, ROW, True)
    found = list(extents(move))
    assert len(found) == ROWS - 31  # the last row of each of the 32 heads leads on to the first of the next
    assert [e.source_offset // ROW for e in found[:4]] == [0, 2, 4, 6]
    assert every_extent(layout.rearrange(halves, (32, 2, 64, COLUMNS), (0, 2, 1, 3), (ROWS, COLUMNS))) == [
        Extent("w", 0, 0, ROWS * ROW)
    ]


def test_a_transpose_is_one_piece_whatever_its_size() -> None:
    for shape in ((8192, 8192), (150_000, 4096), (7, 2_000_003)):
        (move,) = lower(layout.permute(layout.source("w", "bfloat16", shape), (1, 0)))
        assert (len(move.pieces), len(move.pieces[0].axes[0].atoms), move.run) == (1, 2, 2)
        assert not move.plain


def test_fused_transposed_interleaved_experts_are_one_piece_per_tensor() -> None:
    """[expert, in, (out two)]: gate and up alternate along the last axis."""
    both = [layout.stack([matrix(f"gate{e}"), matrix(f"up{e}")], 0) for e in range(4)]
    shape = (4, COLUMNS, ROWS * 2)
    array = layout.rearrange(layout.stack(both, 0), (4, 2, ROWS, COLUMNS), (0, 3, 2, 1), shape)
    moves = lower(array)
    assert [len(m.pieces) for m in moves] == [2] * 4


def test_a_seam_within_a_row_divides_only_there() -> None:
    """Three and five rows folded into rows of two: whole rows stay counters, also under an outer axis."""
    parts = [layout.source("a", "int16", (1000, 3, 4)), layout.source("b", "int16", (1000, 5, 4))]
    joined = layout.concat(parts, 1)
    folded = layout.reshape(joined, (4000, 2, 4))
    assert len(folded.pieces) == 4
    a = torch.arange(12000, dtype=torch.int16).reshape(1000, 3, 4)
    b = torch.arange(20000, dtype=torch.int16).reshape(1000, 5, 4) + 12000
    turned = torch.cat([a, b], 1).reshape(4000, 2, 4).permute(1, 0, 2)
    check(turned, layout.permute(folded, (1, 0, 2)), stored({"a": a, "b": b}), block=4096)


def test_tiles_are_long_on_both_sides() -> None:
    for shape in ((8192, 8192), (500_000, 64), (64, 500_000), (48, 1000, 300)):
        array = layout.source("w", "bfloat16", shape)
        (move,) = lower(layout.permute(array, (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)))
        for tile in tiles(move, 4 << 20):
            assert tile.rows * tile.width <= 4 << 20
            reads = [a for p in tile.pieces for a in p.axes[0].atoms if a.stride == 2]
            assert tile.width >= min(2 * shape[-2], 2048) or tile.target + tile.width == tile.pitch
            assert reads
            break


def test_ninety_thousand_tensors_are_lowered_in_no_time() -> None:
    start = time.process_time()
    for n in range(9_100):
        lower(layout.source("w", "bfloat16", (4096, 1024), n << 23), n << 23)
    assert time.process_time() - start < 0.5  # 0.1 s on an ordinary machine; guards against the quadratic


def test_short_runs_make_a_move_that_is_not_plain_unless_few() -> None:
    vector = layout.rearrange(layout.source("n", "bfloat16", (128,)), (64, 2), (1, 0), (128,))
    assert [m.plain for m in lower(vector)] == [True]
    narrow_rows = layout.split(layout.source("w", "bfloat16", (4096, 256)), 1, [128, 128])[0]
    assert [(m.run, m.plain) for m in lower(narrow_rows)] == [(256, False)]
    wide_rows = layout.split(layout.source("w", "bfloat16", (4096, 512)), 1, [256, 256])[0]
    assert [(m.run, m.plain) for m in lower(wide_rows)] == [(SHORT_RUN, True)]


def test_a_part_of_a_move() -> None:
    (move,) = lower(matrix(), 100)
    assert list(extents(move, 10, 30)) == [Extent("w", 10, 110, 20)]


def test_layout_means_what_ops_mean() -> None:
    """The algebra that ops are written over, on byte ranges."""
    from compiler.ops.algebra import Bundle
    from compiler.ops.structural import Concat, Split

    algebra = layout.LayoutAlgebra()
    cut = Split(0, 2, (1000, 3096)).apply(Bundle(({(): matrix()},)), algebra)
    whole = Concat(0, 2, (1000, 3096)).apply(cut, algebra)
    assert every_extent(whole.slots[0][()]) == every_extent(matrix())
