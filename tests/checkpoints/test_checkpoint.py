"""The readers against torch and safetensors: what those load, the readers find byte for byte without importing them.

Every file is written by torch.save or safetensors, in all formats and from random state dicts: views, strides, shared
and expanded storages, every element type.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import pathlib
import struct
import subprocess
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint, open_parts, verify
from compiler.checkpoints.formats.stored_tensor import read_bytes
from compiler.diagnostics import Refusal
from compiler.dtypes import ITEM_SIZES

DATA = Path(__file__).parent.parent / "data" / "readers"
FORMATS = ("zip", "legacy", "protocol 4")
NEWER = {getattr(torch, t) for t in ITEM_SIZES if t in ("uint16", "uint32", "uint64") or t.startswith("float8")}


def save(value: Any, path: Path, how: str = "zip") -> Path:
    protocol = 4 if how == "protocol 4" else 2
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=how != "legacy")
    return path


def stored(tensor: torch.Tensor) -> bytes:
    return tensor.detach().flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8).numpy().tobytes()


def assert_same(checkpoint: Checkpoint, expected: dict[str, torch.Tensor]) -> None:
    """Names in their order, element types, shapes and bytes; then every place within its file."""
    assert list(checkpoint.tensors) == list(expected)
    for name, tensor in expected.items():
        found = checkpoint.tensors[name]
        assert (found.name, f"torch.{found.dtype}", found.shape) == (name, str(tensor.dtype), tuple(tensor.shape))
        assert bytes(read_bytes(found)) == stored(tensor)
        assert found.nbytes == tensor.numel() * tensor.element_size()
        assert found.extent[0] <= found.offset <= found.extent[1] <= found.path.stat().st_size
        if found.contiguous:
            with found.path.open("rb") as file:
                file.seek(found.offset)
                assert file.read(found.nbytes) == stored(tensor)
        elif tensor.numel() > 1:
            assert not tensor.is_contiguous()


def bits(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """A tensor of random bits, or of random truth values."""
    generator = torch.Generator().manual_seed(seed)
    count = int(np.prod(shape)) * dtype.itemsize
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


@st.composite
def state_dicts(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Dense tensors, then views of them: transposed, narrowed, strided, expanded, or shared as they are."""
    tensors: list[torch.Tensor] = []
    for seed in range(draw(st.integers(1, 3))):
        dtype = getattr(torch, draw(st.sampled_from(sorted(ITEM_SIZES))))
        tensors.append(bits(dtype, tuple(draw(st.lists(st.integers(0, 5), max_size=4))), seed))
    for _ in range(draw(st.integers(0, 5))):
        tensor = draw(st.sampled_from(tensors))
        axis = draw(st.integers(0, max(0, tensor.dim() - 1)))
        kind = draw(st.sampled_from(("same", "transpose", "narrow", "step", "expand", "select")))
        if kind == "transpose":
            tensor = tensor.transpose(0, -1) if tensor.dim() > 1 else tensor
        elif kind == "expand":
            tensor = tensor.unsqueeze(0).expand(3, *tensor.shape)
        elif kind != "same" and tensor.dim() and tensor.shape[axis] > 1:
            if kind == "narrow":
                tensor = tensor.narrow(axis, 1, tensor.shape[axis] - 1)
            elif kind == "step":
                tensor = tensor[(slice(None),) * axis + (slice(0, None, 2),)]
            else:
                tensor = tensor.select(axis, tensor.shape[axis] - 1)
        tensors.append(tensor)
    return {f"layers.{i}.weight": t for i, t in enumerate(tensors)}


@pytest.mark.parametrize("how", FORMATS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(weights=state_dicts(), nest=st.sampled_from([(), ("model",), ("checkpoint", "state_dict")]))
def test_same_as_torch_load(weights: dict[str, torch.Tensor], nest: tuple[str, ...], how: str, tmp_path: Path) -> None:
    value: Any = weights
    for key in reversed(nest):
        value = {key: value, "step": 7, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}
    path = save(value, tmp_path / "x.pth", how)
    expected: Any = value
    # torch cannot load the newer types back from the old stream, nor safely from protocol 4.
    if how == "zip" or not (how == "legacy" and NEWER & {t.dtype for t in weights.values()}):
        expected = torch.load(path, weights_only=how != "protocol 4")
    for key in nest:
        expected = expected[key]
    checkpoint = open_checkpoint(path)
    assert_same(checkpoint, expected)
    assert checkpoint.objects == ({"step": 7} if nest else {})
    verify(checkpoint)
    # The same view of the same bytes is the same region, a different one is not.
    for name, tensor in expected.items():
        for other, twin in expected.items():
            if tensor.numel() and twin.numel() and tensor.dtype == twin.dtype:
                same = (tensor.data_ptr(), tensor.shape, tensor.stride()) == (
                    twin.data_ptr(),
                    twin.shape,
                    twin.stride(),
                )
                assert same == (checkpoint.tensors[name].region == checkpoint.tensors[other].region)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(weights=state_dicts())
def test_same_as_safetensors(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    weights = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}
    save_file(weights, tmp_path / "x.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    assert_same(checkpoint, {name: weights[name] for name in checkpoint.tensors})
    assert checkpoint.tensors.keys() == weights.keys()
    assert all(t.contiguous for t in checkpoint.tensors.values())


@pytest.mark.parametrize("length", [0x0280, 0x8B1F])
def test_a_header_whose_length_looks_like_another_format(length: int, tmp_path: Path) -> None:
    """As a pickle of protocol 2, as gzip."""
    text = json.dumps({"w": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}).encode().ljust(length)
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", length) + text + b"ab")
    assert bytes(read_bytes(open_checkpoint(tmp_path / "x.safetensors").tensors["w"])) == b"ab"


def test_a_parameter_and_a_state_dict_of_a_module(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    assert_same(open_checkpoint(save(module.state_dict(), tmp_path / "x.pth")), module.state_dict())
    weights = {"w": torch.nn.Parameter(torch.randn(3, 2)), "tagged": torch.randn(2)}
    weights["tagged"].note = "an attribute"  # type: ignore[attr-defined]
    weights["w"].note = "another"  # type: ignore[attr-defined]
    assert_same(open_checkpoint(save(weights, tmp_path / "y.pth")), weights)


@pytest.mark.parametrize("part", [(0, 6), (2, 3)])
def test_a_part_of_a_storage_in_an_old_file(part: tuple[int, int], tmp_path: Path) -> None:
    """torch once saved views of storages as parts of them: the sixth element of the persistent id."""
    whole = torch.arange(6, dtype=torch.float32)
    data = save({"w": whole}, tmp_path / "x.pth", "legacy").read_bytes()
    first, count = part
    at = data.index(b"K\x06N")
    view = b"K\x06(X" + struct.pack("<I", 1) + b"v" + bytes((0x4B, first, 0x4B, count)) + b"t"
    data = data[:at] + view + data[at + 3 :]
    data = data.replace(b"K\x00K\x06\x85", bytes((0x4B, 0, 0x4B, count)) + b"\x85", 1)
    (tmp_path / "y.pth").write_bytes(data)
    expected = torch.load(tmp_path / "y.pth", weights_only=True)
    assert expected["w"].tolist() == whole[first : first + count].tolist()
    assert_same(open_checkpoint(tmp_path / "y.pth"), expected)


def test_a_file_beyond_four_gigabytes(tmp_path: Path) -> None:
    """Sparse on disk: torch.save without the data writes zip64 sizes and offsets."""
    weights = {"big": torch.empty(5 << 30, dtype=torch.uint8), "small": torch.zeros(3)}
    with torch.serialization.skip_data():
        torch.save(weights, tmp_path / "x.pth")
    found = open_checkpoint(tmp_path / "x.pth").tensors
    assert found["big"].nbytes == 5 << 30
    assert found["small"].offset > 5 << 30
    assert found["small"].extent == (found["small"].offset, found["small"].offset + 12)


def test_zip64_fields_of_another_writer(tmp_path: Path) -> None:
    weights = {"w": torch.arange(5.0), "v": torch.arange(3)}
    with zipfile.ZipFile(save(weights, tmp_path / "x.pth")) as old, zipfile.ZipFile(tmp_path / "y.pth", "w") as new:
        for name in old.namelist():
            with new.open(name, "w", force_zip64=True) as record:
                record.write(old.read(name))
    assert_same(open_checkpoint(tmp_path / "y.pth"), weights)


def test_a_file_without_checksums(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = save({"w": torch.arange(5.0)}, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    checkpoint = open_checkpoint(path)
    assert_same(checkpoint, {"w": torch.arange(5.0)})
    assert verify(checkpoint) == 0


def test_what_lay_beside_comes_as_plain_data(tmp_path: Path) -> None:
    class Custom:
        def __init__(self) -> None:
            self.dim, self.names = 64, ["a"]

    sys.modules["vanishing"] = types.ModuleType("vanishing")
    Custom.__module__, Custom.__qualname__ = "vanishing", "Custom"
    sys.modules["vanishing"].Custom = Custom  # type: ignore[attr-defined]
    beside: dict[str, Any] = {
        "args": argparse.Namespace(lr=1e-3, layers=2),
        "simple": types.SimpleNamespace(a=1),
        "custom": Custom(),
        "best": np.float64(1.5),
        "count": np.int32(-3),
        "array": np.arange(3),
        "where": pathlib.PurePosixPath("/runs/a"),
        "defaults": collections.defaultdict(list, {"k": [1]}),
        "counter": collections.Counter("aab"),
        "shape": torch.Size([2, 3]),
        "device": torch.device("cuda", 1),
        "dtype": torch.bfloat16,
        "tags": {"x"},
        "raw": b"abc",
        "big": 1 << 100,
        "nothing": None,
        "yes": True,
        "function": torch.nn.functional.relu,
        "rng": torch.get_rng_state(),
    }
    for how in FORMATS:
        checkpoint = open_checkpoint(save({"state_dict": {"w": torch.ones(2)}} | beside, tmp_path / "x.pth", how))
        assert checkpoint.objects == {
            "args": {"lr": 1e-3, "layers": 2},
            "simple": {"a": 1},
            "custom": {"__class__": "vanishing.Custom", "dim": 64, "names": ["a"]},
            "best": 1.5,
            "count": -3,
            "array": "<numpy.ndarray>",
            "where": "/runs/a",
            "defaults": {"k": [1]},
            "counter": {"a": 2, "b": 1},
            "shape": [2, 3],
            "device": "cuda:1",
            "dtype": "torch.bfloat16",
            "tags": ["x"],
            "raw": "<3 bytes>",
            "big": 1 << 100,
            "nothing": None,
            "yes": True,
            "function": "torch.nn.functional.relu",
        }
        assert "not kept: rng (holds tensors)" in checkpoint.notes[0]
        json.dumps(checkpoint.objects.copy())
    del sys.modules["vanishing"]


def test_what_refers_to_itself_is_left_out(tmp_path: Path) -> None:
    ring: list[Any] = []
    ring.append(ring)
    shared: Any = ["x"]
    for _ in range(40):
        shared = [shared, shared]  # 2^40 values when written out
    checkpoint = open_checkpoint(
        save({"model": {"w": torch.ones(2)}, "ring": ring, "bomb": shared}, tmp_path / "x.pth")
    )
    assert checkpoint.objects == {}
    assert "ring (too large or nested too deeply)" in checkpoint.notes[0]


@pytest.mark.parametrize(
    ("value", "names", "note"),
    [
        ({"ema": {"w": 1}, "model": {"v": 2}}, ["v"], "opened 'model' (beside: ema); not kept: ema (holds tensors)"),
        (
            {"ema": {"w": 1}, "optimizer": {"s": 3}},
            ["w"],
            "opened 'ema' (beside: optimizer); not kept: optimizer (holds tensors)",
        ),
        ({"w": 1, "optimizer": {"s": 3}}, ["w"], "skipped entries that are not tensors: optimizer (a dict)"),
        (
            {"whatever": {"w": 1}, "lr_scheduler": {"s": 3}},
            ["w"],
            "opened 'whatever' (beside: lr_scheduler); not kept: lr_scheduler (holds tensors)",
        ),
        (
            {"net": {"w": 1, "alpha": 0.5, "hole": None}},
            ["w"],
            "skipped entries that are not tensors: alpha (a float), hole (None)",
        ),
        ({"module.a.w": 1, "module.b.w": 2}, ["a.w", "b.w"], "stripped the prefix 'module.' from 2 names"),
        ({"_orig_mod.module.w": 1}, ["w"], "stripped the prefix '_orig_mod.module.' from 1 names"),
        (
            {"a._fsdp_wrapped_module.b._checkpoint_wrapped_module.w": 1},
            ["a.b.w"],
            "removed wrapper components from 1 names",
        ),
        ({"modules.w": 1, "a.module": 2, "model.w": 3}, ["modules.w", "a.module", "model.w"], ""),
        (
            {"__metadata__": 1},
            ["__metadata__"],
            "a tensor is called '__metadata__', a name that safetensors files reserve",
        ),
    ],
)
def test_containers_and_prefixes(value: dict[str, Any], names: list[str], note: str, tmp_path: Path) -> None:
    def tensors(node: Any) -> Any:
        if isinstance(node, dict):
            return {k: tensors(v) for k, v in node.items()}
        return torch.tensor([node]) if isinstance(node, int) else node

    checkpoint = open_checkpoint(save(tensors(value), tmp_path / "x.pth"))
    assert list(checkpoint.tensors) == names
    assert note in checkpoint.notes or (not note and not checkpoint.notes)


def test_the_root_can_be_named(tmp_path: Path) -> None:
    value = {"a": {"one.two": {"w": torch.ones(1)}}, "b": {"v": torch.ones(1)}, "model": {"m": torch.ones(1)}}
    path = save(value, tmp_path / "x.pth")
    assert list(open_checkpoint(path).tensors) == ["m"]
    assert list(open_checkpoint(path, root="b").tensors) == ["v"]
    assert list(open_checkpoint(path, root="a.one.two").tensors) == ["w"]


def test_names_that_become_one_are_fine_where_they_are_one(tmp_path: Path) -> None:
    w = torch.ones(2)
    checkpoint = open_checkpoint(save({"a.module.w": w, "a.w": w}, tmp_path / "x.pth"))
    assert_same(checkpoint, {"a.w": w})


def index(folder: Path, weight_map: object, name: str = "model.safetensors.index.json") -> Path:
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder / name


def test_folders_shards_and_several_files(tmp_path: Path) -> None:
    a, b = {"module.a": torch.ones(2)}, {"module.b": torch.zeros(3)}
    save_file(a, tmp_path / "1.safetensors")
    save_file(b, tmp_path / "2.safetensors")
    whole = {"a": a["module.a"], "b": b["module.b"]}
    assert_same(open_checkpoint([tmp_path / "1.safetensors", tmp_path / "2.safetensors"]), whole)
    assert [list(c.tensors) for c in open_parts(sorted(tmp_path.iterdir()))] == [["a"], ["b"]]
    path = index(tmp_path, {"module.a": "1.safetensors", "module.b": "2.safetensors"})
    for given_path in (path, tmp_path):
        checkpoint = open_checkpoint(given_path)
        assert_same(checkpoint, whole)
        assert len(checkpoint.files) == 2
    save({"c": torch.ones(1)}, tmp_path / "training_args.bin")
    save_file({"z": torch.ones(1)}, tmp_path / "model.safetensors")
    assert list(open_checkpoint(tmp_path).tensors) == ["z"]


def test_shards_of_torch_and_a_lone_file(tmp_path: Path) -> None:
    save({"a": torch.ones(2)}, tmp_path / "pytorch_model-1.bin")
    save({"b": torch.ones(2)}, tmp_path / "pytorch_model-2.bin", "legacy")
    index(tmp_path, {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}, "pytorch_model.bin.index.json")
    assert list(open_checkpoint(tmp_path).tensors) == ["a", "b"]
    lone = tmp_path / "lone"
    lone.mkdir()
    save({"c": torch.ones(2)}, lone / "some.ckpt")
    (lone / "config.json").write_text("{}")
    assert list(open_checkpoint(lone).tensors) == ["c"]


def test_links_of_the_hugging_face_cache(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_file({"a": torch.ones(2)}, blobs / "f00")
    (snapshot / "1.safetensors").symlink_to("../../blobs/f00")
    index(snapshot, {"a": "1.safetensors"})
    assert list(open_checkpoint(snapshot).tensors) == ["a"]


def test_files_that_other_programs_wrote() -> None:
    good = open_checkpoint(DATA / "legacy_nonzip.pth")
    assert len(good.tensors) == 21
    for name in ("pickle_unknown_class", "numpy_scalar_in_ckpt"):
        checkpoint = open_checkpoint(DATA / f"{name}.pth")
        assert {n: read_bytes(t) for n, t in checkpoint.tensors.items()} == {
            n: read_bytes(t) for n, t in good.tensors.items()
        }
        assert verify(checkpoint) == sum(t.nbytes for t in good.tensors.values())
    assert open_checkpoint(DATA / "numpy_scalar_in_ckpt.pth").objects["best_loss"] == 1.5
    assert open_checkpoint(DATA / "pickle_unknown_class.pth").objects["cfg"] == {
        "__class__": "mylib_train.TrainCfg",
        "lr": 0.001,
    }


def test_a_changed_byte_is_found_by_its_checksum() -> None:
    with pytest.raises(Refusal, match=r"the bytes of model\.layers\.\S+ do not match their checksum \[damaged-file\]"):
        verify(open_checkpoint(DATA / "zip_corrupt_byte_crc.pth"))


def test_torch_is_not_imported_and_tens_of_thousands_of_tensors_take_a_moment(tmp_path: Path) -> None:
    base = torch.zeros(4)
    path = save({f"layers.{i}.weight": base[:2].clone() for i in range(20_000)}, tmp_path / "x.pth")
    script = (
        "import sys, time, pathlib; from compiler.checkpoints.checkpoint import open_checkpoint as o; t = time.process_time();"
        "n = len(o(pathlib.Path(sys.argv[1])).tensors); took = time.process_time() - t;"
        "print(n, took < 4, [m for m in ('torch', 'numpy', 'safetensors') if m in sys.modules])"
    )
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "20000 True []"


def test_a_read_beyond_the_end_names_the_file(tmp_path: Path) -> None:
    path = save({"w": torch.ones(100)}, tmp_path / "x.pth")
    tensor = open_checkpoint(path).tensors["w"]
    path.write_bytes(path.read_bytes()[: tensor.offset + 10])
    with pytest.raises(Refusal, match=r"x\.pth: the file ends 390 bytes before a tensor does"):
        read_bytes(tensor)


def test_torch_can_be_fed_from_the_places(tmp_path: Path) -> None:
    """A buffer that torch wrote through a file object has the same layout as one that it wrote by path."""
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(6.0).reshape(2, 3).t()}, buffer)
    (tmp_path / "x.pth").write_bytes(buffer.getvalue())
    found = open_checkpoint(tmp_path / "x.pth").tensors["w"]
    assert (found.shape, found.strides, found.contiguous) == ((3, 2), (1, 3), False)
    assert torch.frombuffer(read_bytes(found), dtype=torch.float32).tolist() == [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
