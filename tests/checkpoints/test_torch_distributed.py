"""Folders of torch.distributed.checkpoint, read without torch. `tests/data/dcp/grid` was written by torch 2.13.0 in four
processes (`tests/data/dcp/make.py`); everything else here is written on the spot.
"""

from __future__ import annotations

import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.synthetic import synthetic

from compiler.checkpoints.checkpoint import open_checkpoint, verify
from compiler.checkpoints.formats import torch_distributed
from compiler.checkpoints.formats.stored_tensor import Joined, read_bytes
from compiler.diagnostics import Refusal
from compiler.jobs.convert import convert
from compiler.jobs.request import Request
from compiler.program.loading import load_program

ROOT = Path(__file__).parent.parent.parent
GRID = Path(__file__).parent.parent / "data" / "dcp" / "grid"
SHAPES = {"rows": (7, 4), "grid": (6, 10), "twice": (8, 3), "short": (1, 2), "same": (5,), "plain": (2, 2)}
TYPES = {"grid": torch.bfloat16, "same": torch.float16}


pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def numbers(name: str) -> torch.Tensor:
    shape = SHAPES[name]
    tensor = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    return tensor.to(TYPES.get(name, torch.float32))


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GRID, tmp_path / "grid"))


def change(folder: Path, edit: Callable[[Any], object]) -> Path:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    edit(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder


@pytest.mark.parametrize("name", ["grid", "grid/.metadata"])
def test_every_layout_of_four_processes(name: str) -> None:
    checkpoint = open_checkpoint(GRID.parent / name)
    assert {n: t.shape for n, t in checkpoint.tensors.items()} == SHAPES
    for tensor in checkpoint.tensors.values():
        assert bytes(read_bytes(tensor)) == raw(numbers(tensor.name)), tensor.name
    assert isinstance(checkpoint.tensors["grid"], Joined)
    assert len(checkpoint.tensors["grid"].parts) == 4
    assert checkpoint.objects == {"step": 12, "args": {"heads": 4}}
    assert [path.name for path in checkpoint.files] == [f"__{n}_0.distcp" for n in range(4)]
    assert verify(checkpoint) > 300


def test_torch_is_not_imported() -> None:
    code = f"import sys; from compiler.checkpoints.checkpoint import *; open_checkpoint({str(GRID)!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_conversion(tmp_path: Path) -> None:
    """The same folder as from a .pth, tied weights, prefixes, nesting and all."""
    tensors = dict(synthetic(load_program("llama"), 0, "float16", finite=True).tensors)
    torch.save(tensors, tmp_path / "model.pth")
    dcp.save(
        {"model": {f"_orig_mod.{n}": t for n, t in tensors.items()}, "step": 3},
        checkpoint_id=tmp_path / "step",
        no_dist=True,
    )
    program = load_program("llama")
    for source, out in (("model.pth", "a"), ("step", "b")):
        convert(program, Request([tmp_path / source]), tmp_path / out)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert (tmp_path / "a" / "config.json").read_text() == (tmp_path / "b" / "config.json").read_text()


def test_every_element_type(tmp_path: Path) -> None:
    from compiler.dtypes import ITEM_SIZES

    tensors = {
        n: torch.arange(0, 96, dtype=torch.uint8).view(getattr(torch, n)) for n in sorted(ITEM_SIZES) if n != "bool"
    }
    tensors |= {"bool": torch.tensor([True, False]), "turned": torch.arange(6.0).reshape(2, 3).T}
    dcp.save(dict(tensors), checkpoint_id=tmp_path / "x", no_dist=True)
    found = open_checkpoint(tmp_path / "x").tensors
    assert {n: bytes(read_bytes(t)) for n, t in found.items()} == {n: raw(t) for n, t in tensors.items()}


# ---------------------------------------------------------------------------------------------------------------------
# What is wrong is refused


def chunk_of(metadata: Any, name: str, number: int) -> Any:
    return metadata.state_dict_metadata[f"model.{name}"].chunks[number]


def info_of(metadata: Any, name: str) -> Any:
    return next(info for index, info in metadata.storage_data.items() if index.fqn == f"model.{name}")


def index_of(metadata: Any, name: str) -> Any:
    return next(index for index in metadata.storage_data if index.fqn == f"model.{name}")


def exchange(metadata: Any, one: str, other: str) -> None:
    """Each of two tensors is stored where the other was."""
    stored, a, b = metadata.storage_data, index_of(metadata, one), index_of(metadata, other)
    stored[a], stored[b] = stored[b], stored[a]


@pytest.mark.parametrize(
    ("edit", "kind", "says"),
    [
        (lambda m: m.state_dict_metadata["model.grid"].chunks.pop(), "damaged-file", "of grid end"),
        (lambda m: m.state_dict_metadata["model.twice"].chunks.pop(1), "damaged-file", "hole"),
        (lambda m: m.state_dict_metadata["model.rows"].chunks.append(chunk_of(m, "rows", 0)), "damaged-file", "tile"),
        (lambda m: setattr(m.state_dict_metadata["model.rows"], "size", torch.Size((9, 4))), "damaged-file", "end before"),
        (lambda m: m.storage_data.clear(), "damaged-file", "has no location for"),
        (lambda m: setattr(info_of(m, "same"), "relative_path", "../x.distcp"), "bad-index", "not the plain name"),
        (lambda m: setattr(info_of(m, "same"), "relative_path", "gone.distcp"), "bad-index", "is missing"),
        (lambda m: setattr(info_of(m, "same"), "length", 10**9), "damaged-file", "cut short"),
        (lambda m: setattr(info_of(m, "same"), "offset", -1), "damaged-file", "has no location for"),
        (lambda m: setattr(info_of(m, "same"), "transform_descriptors", ["zstd"]), "unsupported-tensor", "compressed"),
        (lambda m: setattr(info_of(m, "same"), "offset", info_of(m, "plain").offset), "damaged-file", "."),
        (lambda m: m.planner_data.update({"model.same": ("model", "rows")}), "damaged-file", "twice"),
        (lambda m: m.planner_data.update({"model.same": ("model", "rows", "x")}), "damaged-file", "inside something that"),
        (lambda m: setattr(chunk_of(m, "rows", 0), "offsets", torch.Size((0,))), "damaged-file", "chunk of model.rows makes"),
        (lambda m: m.storage_data.update({replace(index_of(m, "same"), fqn=5): 1}), "damaged-file", "entry of its table"),
        (lambda m: exchange(m, "same", "plain"), "damaged-file", "at .* is not the .* of .* it says"),
        (lambda m: m.state_dict_metadata.clear(), "missing-weights", "."),
    ],
)  # fmt: skip
def test_metadata_that_does_not_fit(grid: Path, edit: Callable[[Any], object], kind: str, says: str) -> None:
    with pytest.raises(Refusal, match=says) as caught:
        open_checkpoint(change(grid, edit))
    assert {d.kind for d in caught.value.diagnostics} == {kind}


def test_large_objects_are_left_out(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each alone, and all together."""
    for limit in ("_MOST_OBJECT", "_MOST_OBJECTS"):
        with monkeypatch.context() as patch:
            patch.setattr(torch_distributed, limit, 10)
            assert open_checkpoint(grid).objects["args"] == {"heads": None}
        assert open_checkpoint(grid).objects["args"] == {"heads": 4}


def test_an_object_under_two_names_is_read_once(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def alias(metadata: Any) -> None:
        index = next(index for index in metadata.storage_data if index.fqn == "args.heads")
        metadata.storage_data[replace(index, fqn="again")] = metadata.storage_data[index]
        metadata.state_dict_metadata["again"] = metadata.state_dict_metadata["args.heads"]
        metadata.planner_data["again"] = ("again",)

    stored = sum(lengths(grid))
    monkeypatch.setattr(torch_distributed, "_MOST_OBJECTS", stored)
    assert open_checkpoint(change(grid, alias)).objects == {"step": 12, "args": {"heads": 4}, "again": 4}


def lengths(grid: Path) -> list[int]:
    """Of the objects in the folder."""
    metadata = pickle.loads((grid / ".metadata").read_bytes())
    return [info.length for index, info in metadata.storage_data.items() if index.fqn in ("args.heads", "step")]


def test_metadata_that_is_too_large(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_distributed, "MAX_BYTES", 100)
    with pytest.raises(Refusal, match="a pickle of more than 0 MiB") as caught:
        open_checkpoint(grid)
    assert caught.value.diagnostics[0].kind == "unsupported-pickle"


def test_a_tensor_without_elements(tmp_path: Path) -> None:
    tensors = {"empty": torch.empty(0, 3), "w": torch.ones(2)}
    dcp.save({"model": tensors}, checkpoint_id=tmp_path / "x", no_dist=True)
    found = open_checkpoint(tmp_path / "x").tensors
    assert {n: (t.shape, bytes(read_bytes(t))) for n, t in found.items()} == {
        "empty": ((0, 3), b""),
        "w": ((2,), raw(tensors["w"])),
    }


@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"\x80\x04}.", b"{}", b"\x80\x04cos\nsystem\n."])
def test_metadata_that_is_something_else(grid: Path, content: bytes) -> None:
    (grid / ".metadata").write_bytes(content)
    with pytest.raises(Refusal):
        open_checkpoint(grid)


def test_a_link_that_leaves_the_folder(grid: Path) -> None:
    (grid / "__1_0.distcp").rename(grid.parent / "elsewhere")
    (grid / "__1_0.distcp").symlink_to(grid.parent / "elsewhere")
    with pytest.raises(Refusal, match="leaves the folder"):
        open_checkpoint(grid)


def test_one_of_the_files(grid: Path) -> None:
    with pytest.raises(Refusal, match="give the folder"):
        open_checkpoint(grid / "__1_0.distcp")


def test_changed_bytes_are_found(grid: Path) -> None:
    part = open_checkpoint(grid).tensors["grid"].parts[3]
    data = bytearray(part.path.read_bytes())
    data[part.offset] ^= 1
    part.path.write_bytes(data)
    with pytest.raises(Refusal, match=r"of grid do not match their checksum"):
        verify(open_checkpoint(grid))


def test_damage_is_refused_or_harmless(grid: Path) -> None:
    """Whatever byte of any file is changed: a refusal, or the tensors as they were."""
    rng = random.Random(0)
    sound = {n: bytes(read_bytes(t)) for n, t in open_checkpoint(grid).tensors.items()}
    for _ in range(400):
        path = rng.choice(sorted(grid.iterdir()))
        data = path.read_bytes()
        broken = bytearray(data)
        if rng.random() < 0.2:
            del broken[rng.randrange(len(broken)) :]
        else:
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        path.write_bytes(broken)
        try:
            checkpoint = open_checkpoint(grid)
            verify(checkpoint)
            found = {n: bytes(read_bytes(t)) for n, t in checkpoint.tensors.items()}
        except Refusal:
            found = sound
        renamed = found.keys() != sound.keys()  # no checksum guards the names in the metadata
        assert renamed or path.name == ".metadata" or found == sound
        path.write_bytes(data)
