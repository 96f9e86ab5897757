"""Quantized blocks of GGUF files: bit for bit what the package gguf makes of them, in any rows, through run and converter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from safetensors.torch import load_file

from compiler.checkpoints.checkpoint import open_checkpoint
from compiler.diagnostics import Refusal
from compiler.executor.apply_rule import loaded
from compiler.executor.computed_tasks import MemoryGate, Place, tasks_of
from compiler.executor.execute import array_of
from compiler.jobs.compile import build
from compiler.layout.computed import Formulas
from compiler.quantized.ggml_blocks import BLOCKS, PLAIN, UNREAD, Blocks
from compiler.quantized.ggml_kernels import KERNELS, dequantize_ggml
from compiler.transfer.files import InputFile, OutputFile
from compiler.transfer.worker import Worker
from mapspec import convert

WIDTH = 512


def blocks_of(kind: Blocks, rows: int, seed: int) -> np.ndarray:
    """Random rows of blocks in which every float16 is finite."""
    data = np.random.default_rng(seed).integers(0, 256, (rows * WIDTH // kind.elements, kind.nbytes), np.uint8)
    for start in range(kind.nbytes - 1):  # wherever the scales are
        top = data[:, start + 1]
        top[(top & 0x7C) == 0x7C] ^= 0x40
    return data.reshape(rows, -1)


def test_the_table_is_that_of_the_package() -> None:
    types = gguf.GGMLQuantizationType
    for number, kind in BLOCKS.items():
        assert types(number).name == kind.name
        assert gguf.GGML_QUANT_SIZES[types(number)] == (kind.elements, kind.nbytes)
    assert {number: types(number).name for number in UNREAD if number in {*types}} == {
        number: name for number, name in UNREAD.items() if number in {*types}
    }
    assert not {*BLOCKS} & {*UNREAD} | {*BLOCKS} & {*PLAIN}
    assert KERNELS.keys() == {kind.name for kind in BLOCKS.values()}


@pytest.mark.parametrize("number", BLOCKS, ids=lambda number: BLOCKS[number].name)
def test_a_kernel_gives_the_bits_of_the_package(number: int) -> None:
    kind = BLOCKS[number]
    data = blocks_of(kind, 24, number)
    wanted = dequantize(data, gguf.GGMLQuantizationType(number)).view(np.uint32)
    made = dequantize_ggml(torch.from_numpy(data), kind.name).numpy().view(np.uint32)
    assert len(np.unique(wanted)) > 90
    assert np.array_equal(made, wanted)
    some = dequantize_ggml(torch.from_numpy(data[5:9]), kind.name).numpy().view(np.uint32)
    assert np.array_equal(some, wanted[5:9])
    data[3, 7] ^= 1 << 4  # a bit that is another is seen
    assert not np.array_equal(dequantize_ggml(torch.from_numpy(data), kind.name).numpy().view(np.uint32), wanted)


def write(path: Path, tensors: dict[str, np.ndarray], kinds: dict[str, int]) -> Path:
    """A file of an architecture with a spec; the named tensors are blocks of these types."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_head_count(4)
    writer.add_context_length(64)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType(kinds[name]) if name in kinds else None
        writer.add_tensor(name, tensor, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def model(path: Path) -> tuple[Path, Path]:
    """A model with a matrix of each type, and its twin of float32 that the package makes."""
    names = {"token_embd": 40, "output": 40}
    parts = {"attn_q": WIDTH, "attn_k": WIDTH // 2, "attn_v": WIDTH // 2, "attn_output": WIDTH} | dict.fromkeys(
        ("ffn_gate", "ffn_up", "ffn_down"), WIDTH
    )
    names |= {f"blk.{n}.{part}": rows for n in range(2) for part, rows in parts.items()}
    kinds = {f"{name}.weight": [*BLOCKS][n % len(BLOCKS)] for n, name in enumerate(names)}
    blocks = {
        f"{name}.weight": blocks_of(BLOCKS[kinds[f"{name}.weight"]], rows, n)
        for n, (name, rows) in enumerate(names.items())
    }
    norms = ["output_norm", *(f"blk.{n}.{part}_norm" for n in range(2) for part in ("attn", "ffn"))]
    plain = {f"{name}.weight": np.linspace(-1, 1, WIDTH, dtype=np.float32) for name in norms}
    dense = {n: dequantize(data, gguf.GGMLQuantizationType(kinds[n])) for n, data in blocks.items()}
    assert len({*kinds.values()}) == len(BLOCKS)
    return write(path / "quantized.gguf", blocks | plain, kinds), write(path / "dense.gguf", dense | plain, {})


def test_a_file_of_every_type_becomes_what_its_dense_twin_becomes(tmp_path: Path) -> None:
    quantized, dense = model(tmp_path)
    assert "Q4_K" in open_checkpoint(quantized).notes[0]
    assert not open_checkpoint(dense).notes
    convert("gguf_llama", quantized, tmp_path / "ours")
    convert("gguf_llama", dense, tmp_path / "twin", check=False)
    for name, text in build("gguf_llama", prove=False).items():
        (tmp_path / Path(name).name).write_text(text)
        command = [sys.executable, tmp_path / Path(name).name, quantized, tmp_path / "alone"]
        subprocess.run(command, check=True)
    ours, twin, alone = (load_file(tmp_path / folder / "model.safetensors") for folder in ("ours", "twin", "alone"))
    assert ours.keys() == twin.keys() == alone.keys()
    assert all(torch.equal(ours[n].view(torch.uint8), twin[n].view(torch.uint8)) for n in ours)
    assert all(torch.equal(ours[n].view(torch.uint8), alone[n].view(torch.uint8)) for n in ours)
    convert("gguf_llama", quantized, tmp_path / "half", dtype="bfloat16", check=False)
    half = load_file(tmp_path / "half" / "model.safetensors")
    assert all(torch.equal(half[n], twin[n].bfloat16()) for n in twin)


def test_experts_in_three_axes_and_one_row(tmp_path: Path) -> None:
    q4_k = next(number for number, kind in BLOCKS.items() if kind.name == "Q4_K")
    data = blocks_of(BLOCKS[q4_k], 12, 0)
    tensors = {"experts": data.reshape(3, 4, -1), "row": data[0]}
    checkpoint = open_checkpoint(write(tmp_path / "x.gguf", tensors, dict.fromkeys(tensors, q4_k)))
    wanted = torch.from_numpy(dequantize(data, gguf.GGMLQuantizationType(q4_k)))
    assert torch.equal(loaded(checkpoint.tensors["experts"]), wanted.view(3, 4, WIDTH))
    assert torch.equal(loaded(checkpoint.tensors["row"]), wanted[0])


def test_large_experts_are_computed_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    q4_k = next(number for number, kind in BLOCKS.items() if kind.name == "Q4_K")
    data = blocks_of(BLOCKS[q4_k], 36, 1).reshape(2, 18, -1)
    path = write(tmp_path / "x.gguf", {"experts": data}, {"experts": q4_k})
    tensor = open_checkpoint(path).tensors["experts"]
    formulas = Formulas()
    place = Place(tmp_path / "out", 0, array_of(tensor, formulas))
    for size, number in ((2 << 20, 1), (4 * WIDTH, 36)):  # both experts at once, or a row at a time
        monkeypatch.setattr("compiler.layout.computed.BLOCK", size)
        monkeypatch.setattr("compiler.executor.computed_tasks.TASK", size)
        tasks = [*tasks_of([place], formulas.nodes, pytest.fail, MemoryGate())]
        assert len(tasks) == number
        with InputFile(path) as file, OutputFile(place.path, place.nbytes, True) as out:
            for task in tasks:
                assert sum(task.run(Worker({str(path): file}), {place.path: out})) == place.nbytes // number
        assert place.path.read_bytes() == dequantize(data, gguf.GGMLQuantizationType(q4_k)).tobytes()


@pytest.mark.parametrize(
    ("kind", "width", "message"),
    [
        (16, 256, "a quantized type without a kernel: IQ2_XXS ('a')"),
        (12, 128, "rows of 128, which are no Q4_K blocks of 256"),
        (8, 48, "rows of 48, which are no Q8_0 blocks of 32"),
        (8, 1 << 20, "reaches from byte"),
    ],
)
def test_what_cannot_be_blocks_is_refused(tmp_path: Path, kind: int, width: int, message: str) -> None:
    path = write(tmp_path / "x.gguf", {"a": np.zeros((2, 256), np.float32)}, {})
    data = path.read_bytes()
    at = data.index(b"\1\0\0\0\0\0\0\0a\2\0\0\0") + 13
    header = width.to_bytes(8, "little") + (2).to_bytes(8, "little") + kind.to_bytes(4, "little")
    path.write_bytes(data[:at] + header + data[at + 20 :])
    with pytest.raises(Refusal) as caught:
        open_checkpoint(path)
    assert message in str(caught.value)
