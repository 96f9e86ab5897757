"""Arrays made of torch tensors in one pass: what the ops one by one would have made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from support.array_programs import Pair, programs

from compiler.executor.torch_layout import arranged, stored
from compiler.layout import array as layout

HOST = torch.device("cpu")


@given(program=programs())
@settings(max_examples=300, deadline=None)
def test_random_programs(program: tuple[Pair, dict[str, bytes]]) -> None:
    (tensor, array), files = program
    odd = len(next(iter(files.values()))) % 2  # the bytes before the first element
    sources = {name: torch.frombuffer(bytearray(data[odd:]), dtype=torch.int16) for name, data in files.items()}
    shifted = tuple(piece._replace(offset=piece.offset - odd) for piece in array.pieces)
    made = arranged(replace(array, pieces=shifted), sources, HOST)
    assert made.is_contiguous()
    assert torch.equal(made, tensor)


@pytest.mark.parametrize("types", [("float32", "bfloat16"), ("bfloat16", "float32", "float16"), ("float32", "float32")])
def test_casts_on_the_way(types: tuple[str, ...]) -> None:
    wide = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).to(getattr(torch, types[0]))
    array, wanted = layout.permute(stored("x", wide), (1, 0)), wide.t()
    for dtype in types[1:]:
        array, wanted = layout.cast(array, dtype), wanted.to(getattr(torch, dtype))
    made = arranged(array, {"x": wide}, HOST)
    assert made.dtype == wanted.dtype
    assert torch.equal(made, wanted)


def test_rows_are_a_view_and_columns_are_not() -> None:
    whole = torch.arange(24.0).reshape(6, 4)
    rows, columns = (layout.narrow(stored("x", whole), axis, 1, 2) for axis in (0, 1))
    assert arranged(rows, {"x": whole}, HOST).data_ptr() == whole[1:].data_ptr()
    assert torch.equal(arranged(columns, {"x": whole}, HOST), whole[:, 1:3])
    later = torch.arange(48.0)[24:].reshape(6, 4)  # not at the start of its storage
    assert torch.equal(arranged(columns, {"x": later}, HOST), later[:, 1:3])


def test_nothing() -> None:
    assert arranged(stored("x", torch.empty(0, 3)), {"x": torch.empty(0, 3)}, HOST).shape == (0, 3)


def test_the_benchmark_of_a_device_runs(tmp_path: Path) -> None:
    """On the host, with one pair of small matrices: its steps, not its figures."""
    from benchmarks import cases, gpu

    sizes = {"ROWS": 1024, "COLUMNS": 16, "ELEMENTS": 1024 * 16, "HEAD": 16}
    with pytest.MonkeyPatch.context() as patch:
        for module in (cases, gpu):
            for name, value in sizes.items():
                patch.setattr(module, name, value, raising=False)
        torch.randn(2 * 1024 * 16).bfloat16().view(torch.uint8).numpy().tofile(tmp_path / "bfloat16.bin")
        lines = list(gpu.table(tmp_path, "cpu", 2, 1))
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")].count("rope") == 2
