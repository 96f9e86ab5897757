"""docs/ops.md and its pictures are what their generators make; every op has a picture, drawn as the op computes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from compiler.language.schema import op_words
from compiler.layout.array import LayoutAlgebra, source
from compiler.ops.kernels import TorchAlgebra

DOCS = Path(__file__).parent.parent.parent / "docs"
sys.path.insert(0, str(DOCS))

import make_op_pictures  # noqa: E402
import make_ops  # noqa: E402
import op_examples  # noqa: E402


def test_the_page_and_the_pictures_are_fresh() -> None:
    assert make_ops.PAGE.read_text() == make_ops.page(), "python docs/make_ops.py"
    made = {f"{name}.svg": make_op_pictures.picture(name) for name in op_examples.EXAMPLES}
    kept = {path.name: path.read_text() for path in make_op_pictures.FOLDER.iterdir()}
    assert kept == made, "python docs/make_op_pictures.py"
    assert sum(map(len, kept.values())) < 100_000


def test_every_op_has_a_picture() -> None:
    pictured = {name.partition("-")[0] for name in op_examples.EXAMPLES}
    assert pictured == {*op_words(), *(op.word for op in make_ops.declared())}


@pytest.mark.parametrize("name", [n for n, e in op_examples.EXAMPLES.items() if not e.computes])
def test_the_layout_moves_what_torch_moves(name: str) -> None:
    """Two algebras, one place for each cell."""
    example = op_examples.EXAMPLES[name]
    rule = op_examples.read(example)
    starts, count = {}, 0
    for key, one in example.sources.items():
        size = torch.Size(one.shape).numel()
        starts[key] = torch.arange(count, count + size).reshape(one.shape)
        count += size
    moved = rule.apply(starts.__getitem__, TorchAlgebra())
    arranged = rule.apply(lambda key: source(key, "uint8", example.sources[key].shape), LayoutAlgebra())
    for tensors, arrays in zip(moved.slots, arranged.slots, strict=True):
        for key, tensor in tensors.items():
            places = [int(starts[n].flatten()[at]) for n, at in op_examples.origins(arrays[key])]
            assert places == tensor.flatten().tolist()


def test_what_a_picture_shows() -> None:
    """Rotary pairs of two heads, as the row letters of the picture."""
    _, (after,) = op_examples.result(op_examples.EXAMPLES["rope_to_half"])
    assert [cell.text for cell in after.cells[::2]] == [f"{row}0" for row in "acbdegfh"]
    _, (padded,) = op_examples.result(op_examples.EXAMPLES["pad"])
    assert [cell.colour for cell in padded.cells] == [0] * 9 + [op_examples.QUIET] * 6
