"""The code of one step computes what the step computes."""

from __future__ import annotations

import einops
import pytest
import torch

from compiler.diagnostics import Span
from compiler.ops.algebra import Bundle
from compiler.ops.kernels import TorchAlgebra
from compiler.ops.rearrange_notation import parse_rearrange
from compiler.render.rule_function import rearranged


@pytest.mark.parametrize(
    ("notation", "shape", "code"),
    [
        ("a b -> b a", (2, 3), ".transpose(0, 1)"),
        ("a b c -> c a b", (2, 3, 4), ".movedim((2, 0, 1), (0, 1, 2))"),
        ("(a b) c -> b (a c)", (6, 4), ".unflatten(0, (2, -1)).transpose(0, 1).flatten(1, 2)"),
        ("a 1 b -> b a", (2, 1, 3), ".squeeze(1).transpose(0, 1)"),
        ("1 a b -> a b", (1, 2, 3), ".squeeze(0)"),
        ("a b -> a 1 b", (2, 3), ".unsqueeze(1)"),
        ("1 a -> a 1 1", (1, 2), ".squeeze(0).unsqueeze(1).unsqueeze(2)"),
    ],
)
def test_a_rearrangement(notation: str, shape: tuple[int, ...], code: str) -> None:
    sizes = {"a": 2} if "(" in notation else {}
    op = parse_rearrange(notation, sizes, Span("here", 1, 1, 1, ""))  # type: ignore[arg-type]
    assert rearranged(op, str) == code
    tensor = torch.arange(torch.Size(shape).numel()).reshape(shape)
    made = eval(f"tensor{code}", {"tensor": tensor})
    assert torch.equal(made, op.apply(Bundle(({(): tensor},)), TorchAlgebra()).slots[0][()])
    assert torch.equal(made, einops.rearrange(tensor, notation, **sizes))
