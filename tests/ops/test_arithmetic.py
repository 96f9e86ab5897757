"""The ops that compute: the shape rule is the kernel's, the way back is what each says of itself, and what does not fit
is an OpError. Formulas are held against plain loops and, where one is installed, against the code of Transformers."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from compiler.diagnostics import Span
from compiler.layout.array import LayoutAlgebra, source
from compiler.layout.computed import Node
from compiler.ops.algebra import Bundle, Op, OpError, ShapeAlgebra
from compiler.ops.arithmetic import Affine, Computed, Crop, Full, Pad
from compiler.ops.kernels import KERNELS, TorchAlgebra, bytes_of
from compiler.ops.lossy import DequantizeBlocks, DequantizeMxfp4, Lora, Normalize, Origin
from compiler.ops.rearrange_notation import DEINTERLEAVE, INTERLEAVE, parse_rearrange

LENGTHS = st.integers(1, 9)
SHAPES = st.lists(LENGTHS, min_size=1, max_size=4).map(tuple)
FLOATS = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


def on_torch(op: Op, *tensors: Tensor) -> list[Tensor]:
    return [slot[()] for slot in op.apply(Bundle(tuple({(): t} for t in tensors)), TorchAlgebra()).slots]


def on_shapes(op: Op, *shapes: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [slot[()] for slot in op.apply(Bundle(tuple({(): s} for s in shapes)), ShapeAlgebra()).slots]


def same(a: Tensor, b: Tensor) -> bool:
    """To the bit, NaN and the sign of zero included."""
    return a.dtype == b.dtype and a.shape == b.shape and bytes(_bytes(a)) == bytes(_bytes(b))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)


def agree(op: Op, *tensors: Tensor) -> list[Tensor]:
    """What the kernel makes, whose shapes and types are those that the rules say."""
    made = on_torch(op, *tensors)
    assert [tuple(t.shape) for t in made] == on_shapes(op, *(tuple(t.shape) for t in tensors))
    types = tuple(str(t.dtype).removeprefix("torch.") for t in tensors)
    assert tuple(str(t.dtype).removeprefix("torch.") for t in made) == op.dtypes(types)
    return made


@given(SHAPES, st.data(), FLOATS, st.sampled_from([0.0, 1.0, -0.5]))
def test_pad_is_undone_to_the_bit(shape: tuple[int, ...], data: st.DataObject, dtype: torch.dtype, fill: float) -> None:
    axis, more = data.draw(st.integers(-len(shape), len(shape) - 1)), data.draw(st.integers(0, 5))
    op = Pad(axis, shape[axis], shape[axis] + more, fill)
    tensor = torch.randn(shape).to(dtype)
    (padded,) = agree(op, tensor)
    rows = padded.movedim(axis, 0)
    assert same(rows[: shape[axis]], tensor.movedim(axis, 0))
    assert bool((rows[shape[axis] :] == fill).all())
    (back,) = agree(op.inverse(), padded)
    assert same(back, tensor)
    assert op.undo == "exact"


@given(SHAPES, st.data())
def test_crop_is_what_bytes_can_do(shape: tuple[int, ...], data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    op = Crop(axis, shape[axis], data.draw(st.integers(1, shape[axis])))
    (cropped,) = agree(op, torch.randn(shape))
    array = op.apply(Bundle(({(): source("a", "float32", shape)},)), LayoutAlgebra()).slots[0][()]
    assert array.shape == tuple(cropped.shape)
    assert op.loss
    assert on_shapes(op.inverse(), tuple(cropped.shape)) == [shape]


@given(SHAPES, FLOATS, st.sampled_from([1.0, 2.0, 0.125, 3.0, -1.7]), st.sampled_from([0.0, 1.0, -1.0, 0.3]))
def test_affine_is_undone_up_to_rounding(
    shape: tuple[int, ...], dtype: torch.dtype, scale: float, shift: float
) -> None:
    tensor = torch.randn(shape).to(dtype)
    op = Affine(scale, shift)
    (made,) = agree(op, tensor)
    assert same(made, (tensor.double() * scale + shift).float().to(dtype)) or torch.allclose(
        made.double(), tensor.double() * scale + shift, rtol=torch.finfo(dtype).eps, atol=1e-6
    )
    (back,) = agree(op.inverse(), made)
    room = 4 * torch.finfo(dtype).eps * (abs(shift / scale) + 5)
    assert torch.allclose(back.double(), tensor.double(), rtol=0, atol=room)
    if shift == 0 and math.log2(abs(scale)).is_integer() and dtype == torch.float32:
        assert same(back, tensor)
    assert op.inverse().inverse() == op


@given(SHAPES, st.sampled_from([0.0, 1.0, 2.5]), st.sampled_from(["float32", "bfloat16", "int64"]))
def test_a_constant(shape: tuple[int, ...], fill: float, dtype: str) -> None:
    op = Full(fill, shape, dtype)
    made = op.apply(Bundle(()), TorchAlgebra()).slots[0][()]
    assert same(made, torch.full(shape, fill, dtype=getattr(torch, dtype)))
    assert op.apply(Bundle(()), ShapeAlgebra()).slots[0][()] == shape


# ---------------------------------------------------------------------------------------------------------------------
# What has no way back


@given(SHAPES, st.data(), st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
def test_normalize(shape: tuple[int, ...], data: st.DataObject, dtype: torch.dtype) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    scale = data.draw(st.sampled_from([1.0, 1e-3, 200.0]))  # whose squares half precision does not hold
    tensor = (torch.randn(shape, dtype=torch.float64) * scale).to(dtype)
    op = Normalize(axis)
    (made,) = agree(op, tensor)
    rows = tensor.double().movedim(axis, -1).reshape(-1, shape[axis])
    wanted = torch.stack([row / max(math.hypot(*row.tolist()), 1e-12) for row in rows])
    room = 4 * torch.finfo(dtype).eps
    assert torch.allclose(made.double().movedim(axis, -1).reshape(rows.shape), wanted, rtol=room, atol=room * 1e-3)
    assert (op.undo, op.inverse()) == ("none", op)
    assert op.loss


def test_nothing_has_no_direction() -> None:
    tensor = torch.tensor([[0.0, 0.0], [3.0, -4.0], [1e-30, 0.0]])
    (made,) = agree(Normalize(1), tensor)
    assert made.tolist() == [[0.0, 0.0], [pytest.approx(0.6), pytest.approx(-0.8)], [pytest.approx(1e-18), 0.0]]


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_normalized_rows_come_one_by_one_where_they_can(axis: int) -> None:
    """In blocks of rows the bits are those of the whole; along the rows there are no blocks."""
    tensor = torch.randn(37, 4099).to(torch.bfloat16)
    node = Node(Normalize(axis), (source("w", "bfloat16", (37, 4099)),), "bfloat16", (37, 4099))
    assert node.grain == (37 if axis == 0 else 1)
    (whole,) = on_torch(Normalize(axis), tensor)
    parts = [on_torch(Normalize(axis), part)[0] for part in tensor.split(node.grain)]
    assert same(torch.cat(parts), whole)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4))
def test_blocks(height: int, width: int, rows: int, columns: int) -> None:
    op = DequantizeBlocks(rows, columns, "bfloat16")
    weight = torch.randn(height, width).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-height // rows), -(-width // columns)) + 0.5
    (made,) = agree(op, weight, scale)
    for i in range(height):
        for j in range(width):
            exact = weight[i, j].float() * scale[i // rows, j // columns]
            assert made[i, j] == exact.to(torch.bfloat16)
    assert on_shapes(op.inverse(), (height, width)) == [(height, width), tuple(scale.shape)]


def test_blocks_are_those_of_transformers() -> None:
    module = pytest.importorskip("transformers.integrations.finegrained_fp8")
    if not hasattr(module, "Fp8Dequantize"):
        pytest.skip("this generation of Transformers dequantizes on a GPU only")
    weight, scale = torch.randn(256, 384).to(torch.float8_e4m3fn), torch.rand(2, 3)
    (made,) = on_torch(DequantizeBlocks(128, 128, "bfloat16"), weight, scale)
    theirs = module.Fp8Dequantize._dequantize_one(None, weight, scale, output_dtype=torch.bfloat16)
    assert same(made, theirs)


def test_mxfp4_by_hand() -> None:
    """Every byte against the table of the OCP specification, every exponent in use."""
    table = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]
    blocks = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    scales = (torch.arange(16, dtype=torch.uint8) + 119).reshape(1, 16)
    (made,) = agree(DequantizeMxfp4("float32"), blocks, scales)
    assert made.shape == (1, 512)
    for byte in range(256):
        power = 2.0 ** (byte // 16 - 8)
        low, high = made[0, 2 * byte], made[0, 2 * byte + 1]
        assert (float(low), float(high)) == (table[byte % 16] * power, table[byte // 16] * power)
    assert on_shapes(DequantizeMxfp4("float32").inverse(), (1, 512)) == [(1, 16, 16), (1, 16)]


def test_mxfp4_is_that_of_transformers() -> None:
    module = pytest.importorskip("transformers.integrations.mxfp4")
    random = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (2, 6, 3, 16), generator=random, dtype=torch.uint8)
    scales = torch.randint(110, 140, (2, 6, 3), generator=random, dtype=torch.uint8)
    (made,) = on_torch(DequantizeMxfp4("bfloat16"), blocks, scales)
    theirs = module.convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
    assert same(made.transpose(1, 2), theirs)  # theirs is turned for the layer that multiplies from the other side


@given(LENGTHS, LENGTHS, st.integers(1, 4), FLOATS, st.sampled_from([1.0, 0.5, 2.0]))
def test_lora(out: int, into: int, rank: int, dtype: torch.dtype, scale: float) -> None:
    weight, down, up = torch.randn(out, into).to(dtype), torch.randn(rank, into), torch.randn(out, rank)
    op = Lora(rank, scale)
    (made,) = agree(op, weight, down, up)
    assert same(made, weight + (scale * (up @ down)).to(dtype))
    assert on_shapes(op.inverse(), (out, into)) == [(out, into), (rank, into), (out, rank)]


# ---------------------------------------------------------------------------------------------------------------------
# Misuse, and completeness


@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        (Pad(0, 4, 6, 0.0), [(5, 2)]),
        (Pad(0, 4, 3, 0.0), [(4, 2)]),
        (Pad(2, 4, 6, 0.0), [(4, 2)]),
        (Crop(0, 4, 6), [(4, 2)]),
        (Affine(0.0, 1.0).inverse(), [(4, 2)]),
        (Crop(1, 4, 2), [(4, 2)]),
        (Normalize(1), [(4,)]),
        (DequantizeBlocks(2, 2, "bfloat16"), [(4, 4), (2, 3)]),
        (DequantizeBlocks(2, 2, "bfloat16"), [(4,), (2,)]),
        (DequantizeMxfp4("bfloat16"), [(4, 15), (4,)]),
        (DequantizeMxfp4("bfloat16"), [(4, 16), (5,)]),
        (Origin(DequantizeMxfp4("bfloat16")), [(4, 33)]),
        (Lora(2, 1.0), [(4, 4), (3, 4), (4, 3)]),
        (Lora(2, 1.0), [(4, 4), (4, 2), (2, 4)]),
    ],
)
def test_what_does_not_fit(op: Op, shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(OpError, match=op.word if not isinstance(op, Origin) else op.of.word):
        on_shapes(op, *shapes)


def test_an_op_takes_so_many_tensors() -> None:
    assert Pad(0, 1, 2, 0.0).arity(3, ("e",)) == (3, ("e",))
    assert Lora(1, 1.0).arity(3, ()) == (1, ())
    with pytest.raises(OpError, match="3 tensors"):
        Lora(1, 1.0).arity(2, ())
    with pytest.raises(OpError, match="2 tensors"):
        DequantizeBlocks(1, 1, "bfloat16").arity(1, ())


def test_numbers_are_bound() -> None:
    def number(value: object, whole: bool = True) -> object:
        return value if value != "?" else 7 if whole else 0.5

    assert Pad(0, "?", "?", 0.0).bind(number) == Pad(0, 7, 7, 0.0)  # type: ignore[arg-type]
    assert Lora("?", "?").bind(number) == Lora(7, 0.5)  # type: ignore[arg-type]
    assert Full(0.0, ("?", 2)).bind(number).shape == (7, 2)  # type: ignore[arg-type]


def test_bytes_alone_cannot_compute() -> None:
    with pytest.raises(NotImplementedError):
        Affine(2.0, 0.0).apply(Bundle(({(): source("a", "float32", (2,))},)), LayoutAlgebra())


def test_one_element_of_a_larger_tensor_has_bytes() -> None:
    """Torch calls it contiguous, whatever its stride, and then cannot view it as bytes."""
    tensor = torch.tensor([[1.5, 2.5]])[:, :1].T
    assert bytes(bytes_of(tensor)) == bytes(bytes_of(torch.tensor([[1.5]])))


def computed() -> list[type[Computed]]:
    found: list[type[Computed]] = []
    todo = [Computed]
    while todo:
        todo += (below := todo.pop().__subclasses__())
        found += [op for op in below if not op.__subclasses__()]
    return found


@pytest.mark.parametrize("op", computed(), ids=lambda op: op.__name__)
def test_each_states_itself(op: type[Computed]) -> None:
    assert op.kernel in KERNELS
    assert op.undo in ("exact", "tolerance", "none")
    assert (op.undo == "none") == bool(op.loss)
    assert {*op.counts, *op.reals} <= {field.name for field in fields(op)}
    assert op.__doc__


def test_interleave_is_a_rearrangement() -> None:
    rows = torch.tensor([[0], [1], [2], [10], [11], [12]])
    op = parse_rearrange(INTERLEAVE, {"part": 2}, Span(""))
    assert on_torch(op, rows)[0].flatten().tolist() == [0, 10, 1, 11, 2, 12]
    back = parse_rearrange(DEINTERLEAVE, {"part": 2}, Span(""))
    assert on_torch(back, on_torch(op, rows)[0])[0].tolist() == rows.tolist()
    assert op.inverse() == back
