"""Folders with a file for each parameter and rank: slices fill the complete tensors, and what does not fit is refused.

The folders were written by nanotron itself (`tests/recorders/run_nanotron.py`); `tests/specs/test_oracles.py` compares their
tensors with those of the unsharded model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from compiler.checkpoints.checkpoint import open_checkpoint
from compiler.checkpoints.formats.stored_tensor import read_bytes
from compiler.diagnostics import Refusal

SOURCE = Path(__file__).parent.parent / "data" / "oracles" / "nanotron" / "llama_tp2_pp2" / "source"
QKV = "model/model/decoder/2/pp_block/attn/qkv_proj"
NAME = "model.decoder.2.pp_block.attn.qkv_proj.weight"
NORM = "model/model/final_layer_norm/pp_block"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SOURCE, tmp_path / "10"))


def rank(folder: Path, number: int, of: int = 2) -> Path:
    return folder / QKV / f"model_weight_pp-rank-1-of-2_tp-rank-{number}-of-{of}.safetensors"


def content(path: Path) -> tuple[torch.Tensor, dict[str, str]]:
    with safe_open(path, "pt") as file:
        return file.get_tensor("data"), file.metadata()


def write(path: Path, tensor: torch.Tensor, metadata: dict[str, str]) -> None:
    save_file({"data": tensor}, path, metadata)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {name: bytes(read_bytes(tensor)) for name, tensor in open_checkpoint(folder).tensors.items()}


def test_the_slices_of_queries_keys_and_values() -> None:
    """Each rank has its share of all three; written out, independently of the metadata."""
    parts = [content(rank(SOURCE, n))[0] for n in (0, 1)]
    queries, keys, values = zip(*(part.split([16, 8, 8]) for part in parts), strict=True)
    wanted = torch.cat([*queries, *keys, *values])
    found = open_checkpoint(SOURCE).tensors[NAME]
    assert (found.dtype, tuple(found.shape)) == ("float16", (64, 32))
    assert bytes(read_bytes(found)) == wanted.view(torch.uint8).numpy().tobytes()


def test_exchanged_files_change_nothing(folder: Path) -> None:
    """A file states its slices, so its name decides nothing."""
    wanted = bytes_of(folder)
    first, second = rank(folder, 0), rank(folder, 1)
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    assert bytes_of(folder) == wanted


def test_the_last_step(folder: Path) -> None:
    wanted = bytes_of(folder)
    assert bytes_of(folder.parent) == wanted  # the only one
    shutil.copytree(folder, folder.parent / "20")
    with pytest.raises(Refusal, match=r"several steps in one folder: 10, 20(.|\n)*latest\.txt would name"):
        open_checkpoint(folder.parent)
    (folder.parent / "latest.txt").write_text("20")
    assert open_checkpoint(folder.parent).files[0].is_relative_to(folder.parent / "20")


def missing(folder: Path) -> None:
    rank(folder, 1).unlink()


def truncated(folder: Path) -> None:
    rank(folder, 1).write_bytes(rank(folder, 1).read_bytes()[:-9])


def twice(folder: Path) -> None:
    shutil.copy(rank(folder, 0), rank(folder, 1))


def other_run(folder: Path) -> None:
    shutil.copy(rank(folder, 0), rank(folder, 0, of=4))


def other_size(folder: Path) -> None:
    (folder / "checkpoint_metadata.json").write_text(json.dumps({"tp": 4}))


def unsharded_too(folder: Path) -> None:
    shutil.copy(rank(folder, 0), folder / QKV / "model_weight.safetensors")


def of_experts(folder: Path) -> None:
    rank(folder, 0).rename(rank(folder, 0).with_name(rank(folder, 0).stem + "_exp-rank-0-of-2.safetensors"))


def other_name(folder: Path) -> None:
    shutil.copy(rank(folder, 0), folder / QKV / "weight.safetensors")


def without_slices(folder: Path) -> None:
    write(rank(folder, 0), content(rank(folder, 0))[0], {"format": "pt"})


def with_pairs(text: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensor, metadata = content(rank(folder, 0))
        write(rank(folder, 0), tensor, metadata | {"local_global_slices_pairs": text})

    return spoil


def another_tensor(folder: Path) -> None:
    other = folder / QKV.replace("qkv_proj", "o_proj") / rank(folder, 0).name
    shutil.copy(other, rank(folder, 0))


def no_data(folder: Path) -> None:
    save_file({"weight": torch.zeros(2)}, folder / NORM / "model_weight.safetensors")


@pytest.mark.parametrize(
    ("spoil", "says", "kind"),
    [
        (missing, f"{NAME}: the file of tensor-parallel rank 1 is missing; there are 1 of 2", "missing-part"),
        (truncated, "it was cut short", "damaged-file"),
        (twice, f"two files hold the same slice of {NAME}", "unfit-parts"),
        (other_run, "files of runs with 2, 4 tensor-parallel ranks are in one folder", "ambiguous-container"),
        (other_size, "it states 4 tensor-parallel ranks, and the files are of 2", "unfit-parts"),
        (unsharded_too, "is of the same parameter and another run", "ambiguous-container"),
        (of_experts, "experts that are divided among ranks have no reader", "unsupported-tensor"),
        (other_name, "its name is not that of a parameter and a rank", "unfit-parts"),
        (without_slices, "it does not state the shape of the complete tensor", "unfit-parts"),
        (with_pairs("0,32,None|None,None,None#32,64,None|None,None,None"), f"the slices of {NAME} overlap or leave a hole", "unfit-parts"),
        (with_pairs("0,32,None|None,None,None#0,16,None|None,None,None"), "a slice of it has another size than its place", "unfit-parts"),
        (with_pairs("0,99,None|None,None,None#0,32,None|None,None,None"), "a slice of it is outside of [32, 32]", "unfit-parts"),
        (with_pairs("0,32,2|None,None,None#0,32,2|None,None,None"), "a slice of it is malformed", "unfit-parts"),
        (with_pairs(""), "a slice of it is malformed", "unfit-parts"),
        (another_tensor, "of a float16 of [64, 32]", "unfit-parts"),
        (no_data, "it has no tensor 'data', but weight", "missing-weights"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit(folder: Path, spoil: Callable[[Path], None], says: str, kind: str) -> None:
    spoil(folder)
    with pytest.raises(Refusal) as refused:
        open_checkpoint(folder)
    assert refused.value.diagnostics[0].kind == kind, refused.value
    assert says in str(refused.value), refused.value
