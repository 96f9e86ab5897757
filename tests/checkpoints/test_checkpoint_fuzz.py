"""Damage of every kind, seeded: each damaged file is refused, or read as it was, or found out by `verify`.

Only the zip format has checksums. In the others a changed byte may be a changed weight or name; there the readers owe
that nothing but a Refusal is raised and that every place lies within the file.
"""

from __future__ import annotations

import argparse
import random
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint, verify
from compiler.checkpoints.formats.stored_tensor import read_bytes, span
from compiler.diagnostics import Refusal
from compiler.dtypes import ITEM_SIZES

ROUNDS = 250


def flip(data: bytearray, at: int, _: random.Random) -> None:
    data[at] ^= 1 << (at % 8)


def overwrite(data: bytearray, at: int, rng: random.Random) -> None:
    data[at] = rng.choice((0, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def widen(data: bytearray, at: int, _: random.Random) -> None:
    data[at : at + 4] = b"\xff\xff\xff\x7f"


def cut(data: bytearray, at: int, _: random.Random) -> None:
    del data[at:]


def drop(data: bytearray, at: int, rng: random.Random) -> None:
    del data[at : at + rng.randrange(1, 9)]


def repeat(data: bytearray, at: int, rng: random.Random) -> None:
    data[at:at] = data[at : at + rng.randrange(1, 40)]


def original(path: Path, kind: str) -> Checkpoint:
    base = torch.arange(24, dtype=torch.float32)
    weights = {"module.a.w": base.reshape(4, 6), "module.b.w": base.reshape(4, 6).t(), "module.c": torch.ones(3).half()}
    if kind == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path, metadata={"format": "pt"})
    else:
        value = {"model": weights, "args": argparse.Namespace(lr=0.1), "optimizer": {"state": [torch.zeros(2)]}}
        torch.save(
            value, path, _use_new_zipfile_serialization=kind == "zip", pickle_protocol=4 if kind == "framed" else 2
        )
    return open_checkpoint(path)


def content(checkpoint: Checkpoint) -> dict[str, tuple[object, ...]]:
    return {name: (t.dtype, t.shape, bytes(read_bytes(t))) for name, t in checkpoint.tensors.items()}


def outcome(path: Path, expected: dict[str, tuple[object, ...]]) -> str:
    try:
        checkpoint = open_checkpoint(path)
        found = content(checkpoint)
        size = path.stat().st_size
        for tensor in checkpoint.tensors.values():
            assert 0 <= tensor.extent[0] <= tensor.offset <= tensor.extent[1] <= size
            assert tensor.offset + span(tensor.shape, tensor.strides) * ITEM_SIZES[tensor.dtype] <= tensor.extent[1]
        if found == expected:
            return "same"
        verify(checkpoint)
    except Refusal as refusal:
        return "refused" if str(refusal).replace("\n", "").isprintable() else "refused with control characters"
    return "different"


@pytest.mark.parametrize("damage", [flip, overwrite, widen, cut, drop, repeat], ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", ["zip", "legacy", "framed", "safetensors"])
def test_damage(kind: str, damage: Callable[[bytearray, int, random.Random], None], tmp_path: Path) -> None:
    rng = random.Random(f"{kind} {damage.__name__}")
    path = tmp_path / "x"
    expected = content(original(path, kind))
    data = path.read_bytes()
    outcomes = {"same": 0, "refused": 0, "different": 0}  # a KeyError below is a failure, too
    for _ in range(ROUNDS):
        changed = bytearray(data)
        damage(changed, rng.randrange(len(data)), rng)
        path.write_bytes(changed)
        began = time.process_time()
        outcomes[outcome(path, expected)] += 1
        assert time.process_time() - began < 1
    assert outcomes["refused"] > ROUNDS // 10
    if kind == "zip":
        assert outcomes["different"] == 0
    if damage is cut:
        assert outcomes["refused"] == ROUNDS


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_a_strided_view_ends_within_its_storage(kind: str, tmp_path: Path) -> None:
    """Its shape is spelled as large as its storage, its strides reach beyond."""
    path = tmp_path / "x"
    torch.save({"w": torch.arange(24.0).reshape(4, 6).t()}, path, _use_new_zipfile_serialization=kind == "zip")
    data = path.read_bytes()
    old, new = b"K\x01K\x06\x86q", b"K\x02K\x06\x86q"  # strides (1, 6); the last element is number 28 of 24
    assert data.count(old) == 1
    changed = data.replace(old, new)
    if kind == "zip":  # its pickle has a checksum, which an attacker sets right
        with zipfile.ZipFile(path) as archive:
            records = {info.filename: archive.read(info) for info in archive.infolist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in records.items():
                archive.writestr(name, content.replace(old, new))
    else:
        path.write_bytes(changed)
    with pytest.raises(Refusal, match="of a storage of 96"):
        open_checkpoint(path)
