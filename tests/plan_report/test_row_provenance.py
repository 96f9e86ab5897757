"""What a rule does, in a word, and where its rows come from: compared with the tensors that the executor makes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.oracle_cases import ORACLES, Case

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.checkpoints.formats.stored_tensor import read_bytes
from compiler.executor.execute import tensors
from compiler.jobs.prepare import prepare
from compiler.ops.algebra import Op
from compiler.ops.structural import Cast, Concat, Rearrange, Split, Stack
from compiler.plan.plan import Plan
from compiler.plan_report.effect import effect, label, repeated_name
from compiler.plan_report.row_provenance import Picture, Rows, picture

TRANSPOSE = Rearrange((("a",), ("b",)), (("b",), ("a",)), False)
ROPE = Rearrange((("head", "pair", "two"),), (("head", "two", "pair"),), True, (("pair", 4), ("two", 2)))
OPEN = Rearrange((("group", "row"),), (("group",), ("row",)), True, (("group", 8),))


@pytest.mark.parametrize(
    ("ops", "what"),
    [
        ([], ("copy", "")),
        ([OPEN], ("copy", "reshape")),
        ([ROPE], ("permute", "permute")),
        ([TRANSPOSE], ("permute", "transpose")),
        ([OPEN, Split(1, 3), OPEN.inverse()], ("split", "split")),
        ([Split(0, 3), ROPE], ("split", "split · permute")),
        ([Stack("e"), Concat(1, 2)], ("stack", "stack · concat")),
        ([Cast("float16")], ("compute", "cast to float16")),
    ],
)
def test_effects(ops: list[Op], what: tuple[str, str]) -> None:
    assert (effect(ops), label(ops)) == what


def test_the_name_of_what_is_repeated() -> None:
    """`head` has no size of its own: 32 rows of pairs of 4 are 4 heads, and not 4 pairs."""
    assert repeated_name([ROPE], 4, 32) == "head"
    assert repeated_name([OPEN, OPEN.inverse()], 8, 4096) == "group"
    assert repeated_name([ROPE], 8, 32) == ""


# ---------------------------------------------------------------------------------------------------------------------
# Pictures

CASES = [
    "meta_llama/llama3_2shard_gqa", "megatron_mcore/qwen2_qkv_bias_tp2", "torchtitan/qwen3_moe", "minimind_v2_early/moe",
    "transformer_lens/gpt2", "litgpt/falcon_40b_gqa", "litgpt/gpt_neox", "gpt_fast/llama_grouped", "clip/vit",
]  # fmt: skip


def expanded(rows: Rows) -> Iterator[tuple[int, int, int, int]]:
    """(row of the target, source, axis, row or column there) of all rows."""
    for t in range(rows.times):
        for run in rows.runs:
            for k in range(run.count):
                start = run.start + t * rows.start_step + k * run.step
                yield run.to + t * rows.height + k, run.source + t * rows.source_step, run.axis, start


def differing(drawn: Picture, sources: list[torch.Tensor], made: dict[str, torch.Tensor]) -> list[Any]:
    """The rows of which the first element is not the one that the picture says."""
    wrong = []
    flat = [t.reshape(rows, columns) for t, (_, rows, columns) in zip(sources, drawn.sources, strict=True)]
    for rows in drawn.targets:
        target = made[rows.target]
        target = target.reshape(-1, target.shape[-1] if target.dim() > 1 else 1)
        line = target[0] if rows.axis else target[:, 0]
        found = list(expanded(rows))
        assert [to for to, *_ in found] == list(range(len(line))) == list(range(rows.length))
        wrong += [
            (rows.target, to)
            for to, source, axis, at in found
            if not torch.equal(line[to], flat[source][0, at] if axis else flat[source][at, 0])
        ]
    return wrong


def parts(checkpoint: Checkpoint, names: list[str]) -> list[torch.Tensor]:
    return [
        torch.frombuffer(bytearray(read_bytes(part)), dtype=getattr(torch, part.dtype)).reshape(math.prod(part.shape))
        for name in names
        for part in checkpoint.tensors[name].parts
    ]


def drawings(plan: Plan, checkpoint: Checkpoint) -> Iterator[tuple[Picture, list[torch.Tensor]]]:
    for group in plan.groups:
        if group.ops and group.source_names:
            drawn = picture(group, checkpoint)
            if drawn:
                yield drawn, parts(checkpoint, group.source_names)


@pytest.mark.parametrize("name", CASES)
def test_pictures_tell_where_rows_come_from(name: str) -> None:
    case = Case(ORACLES / name)
    prepared = prepare(case.program, case.request)
    made = dict(tensors(prepared.plan, prepared.checkpoint, "cpu"))
    found = list(drawings(prepared.plan, prepared.checkpoint))
    assert found
    for drawn, sources in found:
        assert differing(drawn, sources, made) == []
    # The comparison sees a row that is said to come from elsewhere.
    drawn, sources = found[0]
    drawn.targets[0].runs[-1] = drawn.targets[0].runs[-1].moved(0, 0, -1 if drawn.targets[0].runs[-1].start else 1)
    with pytest.raises((AssertionError, IndexError)):
        assert differing(drawn, sources, made) == []
