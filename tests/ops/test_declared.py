"""What an op states about itself: the words that mean it, and how its result is cut into rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compiler.executor.evaluator import ArrayEvaluator
from compiler.language.schema import op_words
from compiler.layout.array import Array, source
from compiler.layout.computed import Formulas, Node
from compiler.ops.algebra import Bundle
from compiler.ops.arithmetic import Affine, Computed, Full, Pad
from compiler.ops.block_quantize import QuantizeQ8
from compiler.ops.kernels import TorchAlgebra
from compiler.ops.lossy import DequantizeBlocks, DequantizeMxfp4, Lora, Normalize, Sum
from compiler.ops.step_readers import READERS

BYTES = torch.arange(5 * 2 * 16, dtype=torch.uint8)
# Each op that computes, with tensors for it; a second case where it cuts rows in another way.
CASES: list[tuple[Computed, tuple[Tensor, ...]]] = [
    (Affine(3.0, 1.0), (torch.randn(7, 3),)),
    (Affine(3.0, 1.0).inverse(), (torch.randn(7, 3),)),  # type: ignore[list-item]
    (Pad(0, 5, 9, 2.0), (torch.randn(5, 3),)),
    (Pad(-2, 5, 9, 2.0), (torch.randn(5, 3),)),
    (Pad(1, 3, 4, 2.0), (torch.randn(5, 3),)),
    (Full(1.5, (6, 2), "bfloat16"), ()),
    (Normalize(1), (torch.randn(7, 300),)),
    (Normalize(0), (torch.randn(7, 300),)),
    (Sum(3, 0.5), (torch.randn(21),)),
    (Sum(2, 1.0), (torch.randn(8, 3).half(),)),
    (DequantizeBlocks(3, 2, "bfloat16"), (torch.randn(8, 5).to(torch.float8_e4m3fn), torch.rand(3, 3))),
    (DequantizeBlocks(3, 2, "float32"), (torch.randn(4, 8, 5).to(torch.float8_e4m3fn), torch.rand(4, 3, 3))),
    (DequantizeMxfp4("bfloat16"), (BYTES.reshape(5, 2, 16), torch.randint(110, 140, (5, 2), dtype=torch.uint8))),
    (DequantizeMxfp4("bfloat16"), (BYTES[:32].reshape(2, 16), torch.randint(110, 140, (2,), dtype=torch.uint8))),
    (QuantizeQ8(), (torch.randn(7, 96),)),
    (QuantizeQ8(), (torch.randn(3, 2, 64),)),
    (Lora(2, 0.5), (torch.randn(6, 4), torch.randn(2, 4), torch.randn(6, 2))),
]


def leaves(op: type[Computed] = Computed) -> list[type[Computed]]:
    below = op.__subclasses__()
    return [leaf for one in below for leaf in leaves(one)] if below else [op]


def test_every_op_that_computes_is_cut_here() -> None:
    assert {type(op) for op, _ in CASES} == set(leaves())


@pytest.mark.parametrize(("op", "tensors"), CASES)
def test_rows_of_a_result_have_the_bits_of_the_whole(op: Computed, tensors: tuple[Tensor, ...]) -> None:
    """Every run of rows that begins and ends at a grain, or ends with the result."""
    whole = op.apply(Bundle(tuple({(): t} for t in tensors)), TorchAlgebra()).slots[0][()]
    named = {str(n): tensor for n, tensor in enumerate(tensors)}
    formulas = Formulas()
    arrays = [source(n, str(t.dtype).removeprefix("torch."), tuple(t.shape)) for n, t in named.items()]
    (slot,) = op.apply(Bundle(tuple({(): array} for array in arrays)), formulas).slots
    (node,) = formulas.nodes.values()
    assert slot[()].shape == tuple(whole.shape)

    def fill(array: Array, buffer: memoryview) -> None:
        (piece,) = array.pieces
        data = named[piece.source].contiguous().view(torch.uint8).reshape(-1)
        buffer[:] = memoryview(data.numpy())[piece.offset : piece.offset + len(buffer)]  # type: ignore[arg-type]

    evaluator = ArrayEvaluator(formulas.nodes, fill)
    for start in range(0, node.height, node.grain):
        for end in range(start + node.grain, node.height + node.grain, node.grain):
            stop = min(end, node.height)
            made = evaluator.compute(node.rows(start, stop))
            assert made.view(torch.uint8).equal(whole[start:stop].contiguous().view(torch.uint8)), (start, stop)


@pytest.mark.parametrize(("op", "tensors"), CASES)
def test_what_another_device_may_round_stays_on_the_host(op: Computed, tensors: tuple[Tensor, ...]) -> None:
    assert op.host_only == isinstance(op, Normalize | Sum | Lora | QuantizeQ8)


def test_a_cast_between_other_types_is_a_row_by_itself() -> None:
    formulas = Formulas()
    formulas.cast(source("x", "int32", (4, 2)), "float32")
    (node,) = formulas.nodes.values()
    assert isinstance(node, Node)
    assert (node.grain, node.rows(1, 3).shape, node.rows(1, 3).operands[0].shape) == (1, (2, 2), (2, 2))


def test_every_word_of_the_language_is_read_by_an_op() -> None:
    assert set(op_words()) == READERS.keys()
