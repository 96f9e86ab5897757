"""Several files as one checkpoint: what a trainer cut for its ranks comes together again, or is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.checkpoints.formats.stored_tensor import read_bytes
from compiler.diagnostics import Refusal
from compiler.executor.preconditions import check_replicas
from compiler.language.parser import load_spec
from compiler.ops.kernels import tensor_of
from compiler.program.loading import compile_spec
from compiler.program.program import Program
from compiler.source.source_files import open_source

SPEC = """
spec: 1
name: parts
summary: a model in parts
source:
  weights: {weights}
  merge: {{rows.weight: 0, columns.weight: "1 if dim('columns.weight', 0) == dim('same.weight', 0) else 0", blocks.weight: {{axis: 0, blocks: 2}}}}
target: {{model: LlamaForCausalLM}}
keep: [rows.weight, columns.weight, blocks.weight, same.weight]
"""


def program(weights: str = "part.*.pth") -> Program:
    return compile_spec(load_spec("", SPEC.format(weights=weights)))


def save(folder: Path, parts: list[dict[str, Tensor]]) -> list[Path]:
    files = []
    for n, part in enumerate(parts):
        files.append(folder / f"part.{n:02d}.pth")
        torch.save(part, files[-1])
    return files


def read(checkpoint: Checkpoint, name: str) -> Tensor:
    tensor = checkpoint.tensors[name]
    return tensor_of(read_bytes(tensor), tensor.dtype, tensor.shape)


def cut(whole: dict[str, Tensor], ranks: int) -> list[dict[str, Tensor]]:
    """As a trainer does: each rank its share of the rows, of the columns, of both blocks."""
    gate, up = whole["blocks.weight"].chunk(2)
    return [
        {
            "rows.weight": whole["rows.weight"].chunk(ranks)[r].clone(),
            "columns.weight": whole["columns.weight"].chunk(ranks, 1)[r].clone(),
            "blocks.weight": torch.cat([gate.chunk(ranks)[r], up.chunk(ranks)[r]]),
            "same.weight": whole["same.weight"],
        }
        for r in range(ranks)
    ]


def model(ranks: int, rows: int, width: int) -> dict[str, Tensor]:
    return {
        "rows.weight": torch.randn(ranks * rows, width),
        "columns.weight": torch.randn(width, ranks * rows),
        "blocks.weight": torch.randn(2 * ranks * rows, width),
        "same.weight": torch.randn(width),
    }


@settings(max_examples=25, deadline=None)
@given(ranks=st.integers(1, 4), rows=st.integers(1, 3), width=st.integers(2, 5))
def test_what_was_cut_comes_together(
    tmp_path_factory: pytest.TempPathFactory, ranks: int, rows: int, width: int
) -> None:
    whole, folder = model(ranks, rows, width), tmp_path_factory.mktemp("parts")
    files = save(folder, cut(whole, ranks))
    for source in ([folder], files[::-1]):
        checkpoint = open_source(program(), source)
        assert {n: read(checkpoint, n).tolist() for n in whole} == {n: t.tolist() for n, t in whole.items()}
        assert len(checkpoint.files) == ranks


def test_a_tensor_without_an_axis_is_the_same_in_each(tmp_path: Path) -> None:
    parts = cut(model(2, 2, 3), 2)
    parts[1]["same.weight"] = parts[1]["same.weight"] + 1
    save(tmp_path, parts)
    with pytest.raises(
        Refusal, match=r"same\.weight should be the same in part\.00\.pth and part\.01\.pth, but differs"
    ):
        check_replicas(open_source(program(), [tmp_path]))
    parts[1]["same.weight"] = torch.randn(4)
    save(tmp_path, parts)
    with pytest.raises(Refusal, match=r"joins it along no axis, but the parts have the shapes \[3\] and \[4\]"):
        open_source(program(), [tmp_path])


def test_parts_that_do_not_fit(tmp_path: Path) -> None:
    parts = cut(model(2, 2, 3), 2)
    parts[1]["rows.weight"] = torch.randn(2, 4)
    save(tmp_path, parts)
    with pytest.raises(Refusal, match=r"rows\.weight: parts of \[2, 3\] and \[2, 4\] cannot be joined along axis 0"):
        open_source(program(), [tmp_path])
    parts[1]["rows.weight"] = torch.randn(2, 3).half()
    save(tmp_path, parts)
    with pytest.raises(Refusal, match="unfit-parts"):
        open_source(program(), [tmp_path])


def test_a_part_lacks_a_tensor(tmp_path: Path) -> None:
    parts = cut(model(2, 2, 3), 2)
    del parts[1]["rows.weight"]
    save(tmp_path, parts)
    with pytest.raises(Refusal, match=r"only one of this and .*part\.01\.pth has rows\.weight"):
        open_source(program(), [tmp_path])


def test_a_missing_part_is_noticed(tmp_path: Path) -> None:
    files = save(tmp_path, cut(model(3, 1, 3), 3))
    with pytest.raises(Refusal, match="this is one of 3 parts of a model"):
        open_source(program(), [files[1]])
    files[1].unlink()
    with pytest.raises(Refusal, match="part 1 is missing"):
        open_source(program(), [tmp_path])


def test_one_file_of_another_name_is_a_whole_model(tmp_path: Path) -> None:
    whole = model(1, 2, 3)
    torch.save(whole, tmp_path / "whole.pth")
    save(tmp_path, cut(model(2, 2, 3), 2))
    checkpoint = open_source(program(), [tmp_path / "whole.pth"])
    assert read(checkpoint, "rows.weight").tolist() == whole["rows.weight"].tolist()


def test_a_plain_glob_names_no_parts(tmp_path: Path) -> None:
    save(tmp_path, cut(model(2, 2, 3), 2))
    with pytest.raises(Refusal, match="several checkpoints in this folder"):
        open_source(program("'*.pth'"), [tmp_path])


def test_the_parts_of_the_last_step(tmp_path: Path) -> None:
    """As Megatron-LM leaves them: a file that tells the number of the step, beside the folders of all steps."""
    whole = model(2, 2, 3)
    for name, tensors in (("iter_0000009", model(2, 2, 3)), ("iter_0000010", whole)):
        (tmp_path / name).mkdir()
        save(tmp_path / name, cut(tensors, 2))
    with pytest.raises(Refusal, match="several steps in one folder: iter_0000009, iter_0000010"):
        open_source(program(), [tmp_path])
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("10")
    found = open_source(program(), [tmp_path])
    assert all(torch.equal(read(found, name), tensor) for name, tensor in whole.items())


MIXER = """
spec: 1
name: unequal
summary: a model in parts whose projection has blocks of unequal lengths
source:
  weights: part.*.pth
  merge: {in_proj.weight: {axis: 0, blocks: ["dim('norm.weight', 0)", 2, "dim('A_log', 0)"]}, norm.weight: 0, A_log: 0}
target: {model: LlamaForCausalLM}
keep: [in_proj.weight, norm.weight, A_log]
"""


def test_blocks_of_unequal_lengths(tmp_path: Path) -> None:
    """As a trainer cuts the projection of a state-space mixer: each rank has its rows of every block."""
    blocks = [torch.randn(length, 5) for length in (8, 4, 6)]
    whole = {"in_proj.weight": torch.cat(blocks), "norm.weight": torch.randn(8), "A_log": torch.randn(6)}
    parts = [
        {
            "in_proj.weight": torch.cat([block.chunk(2)[rank] for block in blocks]),
            "norm.weight": whole["norm.weight"].chunk(2)[rank].clone(),
            "A_log": whole["A_log"].chunk(2)[rank].clone(),
        }
        for rank in range(2)
    ]
    save(tmp_path, parts)
    unequal = compile_spec(load_spec("", MIXER))
    checkpoint = open_source(unequal, [tmp_path])
    assert {name: read(checkpoint, name).tolist() for name in whole} == {n: t.tolist() for n, t in whole.items()}
    parts[1]["in_proj.weight"] = torch.randn(10, 5)
    save(tmp_path, parts)
    with pytest.raises(Refusal, match=r"in_proj.weight: blocks of 4 \+ 2 \+ 3 are not axis 0 of \[10, 5\]"):
        open_source(unequal, [tmp_path])


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("{blocks: 2}", "the merge of same.weight needs either an axis or an index"),
        ("{axis: 0, by: i}", "the merge of same.weight needs either an axis or an index"),
        ("{by: e}", "the name has no index {e}"),
        ("{axis: 0, blocks: [1, heads]}", "an axis cannot depend on 'heads'"),
    ],
)
def test_a_merge_that_says_too_little_or_too_much(rule: str, says: str) -> None:
    text = SPEC.format(weights="part.*.pth").replace("rows.weight: 0,", f"same.weight: {rule}, rows.weight: 0,", 1)
    with pytest.raises(Refusal, match=says.replace("{", r"\{").replace("}", r"\}")):
        compile_spec(load_spec("", text))
