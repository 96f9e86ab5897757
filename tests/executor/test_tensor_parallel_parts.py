"""A state_dict cut into the parts that its trainer reads: the very files that were merged, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.oracle_cases import Case, digests
from support.parity import ORACLES
from support.synthetic import image

from compiler.cli.main import main
from compiler.diagnostics import Refusal
from compiler.executor.tensor_parallel_parts import Share
from compiler.jobs.convert import convert
from compiler.jobs.request import Request
from compiler.layout import array as layout
from compiler.transfer.worker import Worker

META = Case(ORACLES / "meta_llama" / "llama3_2shard_gqa")
MCORE = Case(ORACLES / "megatron_mcore" / "qwen2_qkv_bias_tp2")
ONE = Case(ORACLES / "minimind" / "dense_small")


def back(case: Case, folder: Path, out: Path, parts: int, force: bool = False) -> None:
    request = Request([folder], assigned=case.request.assigned, reverse=True, parts=parts, force=force)
    convert(case.program, request, out)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("cutting")
    for case in (META, MCORE, ONE):
        convert(case.program, case.request, place / case.spec)
    return {case.spec: place / case.spec for case in (META, MCORE, ONE)}


@pytest.mark.parametrize("case", [META, MCORE], ids=lambda case: case.spec)
def test_parts_are_those_that_were_merged(folders: dict[str, Path], tmp_path: Path, case: Case) -> None:
    back(case, folders[case.spec], tmp_path / "parts", 2)
    files = [file.relative_to(case.folder / "source") for file in (case.folder / "source").rglob("*.pt*")]
    assert len(files) == 2
    assert sorted(files) == sorted(f.relative_to(tmp_path / "parts") for f in (tmp_path / "parts").rglob("*.pt*"))
    for file in files:
        theirs = torch.load(case.folder / "source" / file, weights_only=False)
        theirs = theirs.get("model", theirs)
        kept = {name: tensor for name, tensor in theirs.items() if isinstance(tensor, torch.Tensor)}
        mine = torch.load(tmp_path / "parts" / file, weights_only=False)
        ours = image(mine.get("model", mine))
        assert ours.items() <= image(kept).items()
        assert {name for name in kept.keys() - ours.keys() if "freqs" not in name} == set()


def test_more_parts_are_the_same_model(folders: dict[str, Path], tmp_path: Path) -> None:
    """Through the whole way: cut, merged again, converted again."""
    back(META, folders[META.spec], tmp_path / "parts", 4)
    request = replace(META.request, source=[tmp_path / "parts"], config=META.folder / "source" / "params.json")
    convert(META.program, request, tmp_path / "again")
    assert digests(tmp_path / "again") == META.manifest


@given(data=st.data(), blocks=st.integers(1, 3), count=st.integers(1, 4), length=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_slices_joined_block_by_block_are_the_whole(data: st.DataObject, blocks: int, count: int, length: int) -> None:
    axis = data.draw(st.integers(0, 1))
    shape = (blocks * count * length, 3) if axis == 0 else (3, blocks * count * length)
    whole = layout.source("s", "float32", shape)
    share = Share(axis, blocks, count)
    parts = [share.cut(whole, part) for part in range(count)]
    assert {part.shape for part in parts} == {share.shape(shape)}
    pieces = [layout.split(part, axis, [length] * blocks) for part in parts]
    joined = layout.concat([pieces[p][b] for b in range(blocks) for p in range(count)], axis)
    numbers = torch.arange(3.0 * blocks * count * length)

    def fill(array: layout.Array) -> list[float]:
        buffer = memoryview(bytearray(4 * len(numbers)))
        worker.fill(array, buffer)
        return list(buffer.cast("f"))

    worker = Worker({"s": Numbers(numbers)})  # type: ignore[dict-item]
    assert fill(joined) == numbers.tolist()


class Numbers:
    """A source in memory."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self.data = numbers.numpy().tobytes()

    def read(self, offset: int, buffers: list[memoryview]) -> None:
        for buffer in buffers:
            buffer[:] = self.data[offset : offset + len(buffer)]
            offset += len(buffer)

    def read_each(self, reads: list[tuple[int, memoryview]]) -> None:
        for offset, buffer in reads:
            self.read(offset, [buffer])


# ---------------------------------------------------------------------------------------------------------------------
# Refused


def test_a_spec_of_one_checkpoint_is_cut_into_none(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"no tensor-parallel parts .*wrong-usage"):
        back(ONE, folders[ONE.spec], tmp_path / "parts", 2)
    assert not list(tmp_path.iterdir())


def test_every_axis_that_does_not_divide_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"cannot be split evenly into 3 parts") as caught:
        back(META, folders[META.spec], tmp_path / "parts", 3)
    assert len(caught.value.diagnostics) > 3
    assert {d.kind for d in caught.value.diagnostics} == {"unfit-parts"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("words", "said"), [
    (["--parts", "2"], "--parts is an option of --reverse"),
    (["--parts", "0", "--reverse"], "--parts must be a whole number of at least 1"),
])  # fmt: skip
def test_parts_that_mean_nothing(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["run", META.spec, str(folders[META.spec]), str(tmp_path / "x"), *words])
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_no_part_of_an_earlier_run_stays(folders: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "parts"
    for count in (4, 2):
        (out / "notes.txt").write_text("mine") if out.exists() else None
        back(META, folders[META.spec], out, count, force=True)
        assert len(list(out.glob("consolidated.*.pth"))) == count
    assert (out / "notes.txt").read_text() == "mine"
