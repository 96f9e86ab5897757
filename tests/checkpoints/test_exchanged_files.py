"""Files of ranks under each other's names: torch.save keeps the name under which it wrote a file inside of it."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
import torch

from compiler.checkpoints.checkpoint import open_parts
from compiler.checkpoints.exchanged_files import refuse_exchanged
from compiler.diagnostics import Refusal

NAMES = [f"consolidated.{n:02}.pth" for n in range(3)]


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Three files of equal shapes and names, so that only their values tell them apart."""
    files = [tmp_path / name for name in NAMES]
    for number, file in enumerate(files):
        torch.save({"w": torch.full((2, 2), float(number))}, file)
    return files


def rename(files: list[Path], names: list[str]) -> list[Path]:
    """The files under other names, all at once."""
    moved = [file.rename(file.with_suffix(".moved")) for file in files]
    return sorted(file.rename(file.with_name(name)) for file, name in zip(moved, names, strict=True))


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 2, 1), (1, 2, 0), (2, 0, 1)])
def test_exchanged_parts(parts: list[Path], order: tuple[int, ...]) -> None:
    assert [part.tensors["w"].shape for part in open_parts(parts)] == [(2, 2)] * 3
    files = rename(parts, [NAMES[n] for n in order])
    with pytest.raises(
        Refusal, match=r"it was saved as consolidated\.0\d\.pth: files of this folder were exch"
    ) as refused:
        open_parts(files)
    first = next(n for n, place in enumerate(order) if place != n)
    assert refused.value.diagnostics[0].span.path == str(files[first])


@pytest.mark.parametrize(("source", "copy"), [(0, 2), (2, 0), (1, 0)])
def test_a_copy_of_another_part(parts: list[Path], source: int, copy: int) -> None:
    shutil.copy(parts[source], parts[copy])
    with pytest.raises(Refusal, match=f"it was saved as {NAMES[source]}, and so was {NAMES[source]}") as refused:
        open_parts(parts)
    assert refused.value.diagnostics[0].span.path == str(parts[copy])


@pytest.mark.parametrize(
    "names",
    [
        ["part.0.pth", "part.1.pth", "part.2.pth"],
        ["consolidated.01.pth", "consolidated.02.pth", "consolidated.03.pth"],  # counted from 1
        ["consolidated.00.pth", "consolidated.1.pth", "consolidated.02.pth"],
    ],
)
def test_honest_names(parts: list[Path], names: list[str]) -> None:
    files = rename(parts, names)
    assert len(open_parts(files)) == 3


def test_files_that_do_not_name_themselves(tmp_path: Path) -> None:
    files = [tmp_path / name for name in NAMES]
    for file in files:
        buffer = io.BytesIO()
        torch.save({"w": torch.zeros(2)}, buffer)
        file.write_bytes(buffer.getvalue())
    refuse_exchanged(files)
    for file in files:
        torch.save({"w": torch.zeros(2)}, file, _use_new_zipfile_serialization=False)
    refuse_exchanged(files)
    folders = [tmp_path / f"mp_rank_{n:02}" / "weights.pt" for n in range(2)]
    for file in folders:
        file.parent.mkdir()
        torch.save({"w": torch.zeros(2)}, file)
    refuse_exchanged(folders)
