"""A state_dict cut into the files that its trainer reads: the very files that were joined, bit for bit.

`tests/data/trainers/megatron_*` was cut and saved by Megatron-Core (`tests/recorders/record_megatron_ranks.py`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.oracle_cases import Case, digests
from support.parity import ORACLES
from support.synthetic import folder_image, image

from compiler.cli.main import main
from compiler.diagnostics import Refusal
from compiler.executor.model_parallel_files import Share
from compiler.jobs.convert import convert
from compiler.jobs.request import Request
from compiler.layout import array as layout
from compiler.output.journal import Journal
from compiler.process import Interrupted
from compiler.program.loading import load_program
from compiler.transfer.worker import Worker

META = Case(ORACLES / "meta_llama" / "llama3_2shard_gqa")
MCORE = Case(ORACLES / "megatron_mcore" / "qwen2_qkv_bias_tp2")
TRAINERS = ORACLES.parent / "trainers"
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
    written = tmp_path / "parts" / case.program.spec.layout.folder
    assert sorted(files) == sorted(f.relative_to(written) for f in (tmp_path / "parts").rglob("*.pt*"))
    for file in files:
        theirs = torch.load(case.folder / "source" / file, weights_only=False)
        theirs = theirs.get("model", theirs)
        kept = {name: tensor for name, tensor in theirs.items() if isinstance(tensor, torch.Tensor)}
        mine = torch.load(written / file, weights_only=False)
        ours = image(mine.get("model", mine))
        assert ours.items() <= image(kept).items()
        assert {name for name in kept.keys() - ours.keys() if "freqs" not in name} == set()


# The spec, and the grid of the recorded ranks.
RANKS = {
    "megatron_experts": ("mcore_qwen3_moe", "tp=2,pp=2,ep=2"),
    "megatron_interleaved": ("mcore_llama", "tp=2,pp=2"),
    "megatron_uneven": ("mcore_qwen3", "pp=3"),
}
QUICK: dict[str, Any] = {"check": False, "checksums": False}


def ranks(case: str, place: Path, grid: str, **more: Any) -> Path:
    """The folder of ranks that a reverse makes of what one process saved."""
    program = load_program(RANKS[case][0])
    convert(program, Request([TRAINERS / case / "whole"], **QUICK), place / "converted")
    convert(program, Request([place / "converted"], reverse=True, ranks=grid, **QUICK, **more), place / "ranks")
    return place / "ranks"


def kept(file: Path) -> dict[str, Any]:
    state = torch.load(file, weights_only=False)["model"]
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def test_ranks_are_those_that_megatron_saves(tmp_path: Path) -> None:
    """Names, numbers and bytes of every tensor of every rank, of a model whose last stage has the tied embedding again."""
    made = ranks("megatron_experts", tmp_path, RANKS["megatron_experts"][1])
    assert (made / "latest_checkpointed_iteration.txt").read_text() == "release"
    recorded = sorted((TRAINERS / "megatron_experts" / "run").glob("iter_*/*/*.pt"))
    assert len(recorded) == 8
    assert [file.parent.name for file in recorded] == sorted(f.parent.name for f in made.rglob("*.pt"))
    for file in recorded:
        ours = made / "release" / file.parent.name / file.name
        assert image(kept(ours)) == image(kept(file)), file.parent.name
        stored = torch.load(ours, weights_only=False)
        arguments, theirs = (vars(torch.load(one, weights_only=False)["args"]) for one in (ours, file))
        sizes = {name for name in arguments if name.endswith("_model_parallel_size")}
        assert len(sizes) == 3
        assert {n: arguments[n] for n in sizes} == {n: theirs[n] for n in sizes}
        assert arguments["untie_embeddings_and_output_weights"] is False
        assert (stored["checkpoint_version"], stored["iteration"]) == (3.0, 0)


@pytest.mark.parametrize("case", RANKS)
def test_ranks_are_read_as_the_same_model(tmp_path: Path, case: str) -> None:
    program, (_, grid) = load_program(RANKS[case][0]), RANKS[case]
    made = ranks(case, tmp_path, grid)
    convert(program, Request([made], **QUICK), tmp_path / "again")
    assert folder_image(tmp_path / "again") == folder_image(tmp_path / "converted")
    read = [(place / "config.json").read_text() for place in (tmp_path / "again", tmp_path / "converted")]
    assert read[0] == read[1]
    assert (
        len(list(made.rglob("*.pt"))) == {"megatron_experts": 8, "megatron_interleaved": 4, "megatron_uneven": 3}[case]
    )


def test_one_pass_from_another_layout(tmp_path: Path) -> None:
    """`--to` writes the ranks that two passes write."""
    program, source = load_program("qwen3"), ONE.request
    to = replace(source, to="mcore_qwen3", ranks="tp=2,pp=2", assigned={**source.assigned}, **QUICK)
    convert(program, to, tmp_path / "one")
    convert(program, replace(source, **QUICK), tmp_path / "converted")
    back = Request([tmp_path / "converted"], reverse=True, ranks="tp=2,pp=2", **QUICK)
    convert(load_program("mcore_qwen3"), back, tmp_path / "two")
    files = sorted(file.relative_to(tmp_path / "one") for file in (tmp_path / "one").rglob("*.pt"))
    assert len(files) == 4
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_rows_that_pad_the_vocabulary(tmp_path: Path) -> None:
    """Zeros, which a conversion crops again; the last rank has them."""
    program = load_program("mcore_llama")
    padded = {"vocab_size": 24, "padded_vocab_size": 32}
    made = ranks("megatron_interleaved", tmp_path, "tp=2,pp=2", assigned=padded)
    names = ("embedding.word_embeddings.weight", "output_layer.weight")
    for stage, name in enumerate(names):
        rows = [kept(made / "release" / f"mp_rank_{n:02}_{stage:03}" / "model_optim_rng.pt")[name] for n in (0, 1)]
        assert [len(part) for part in rows] == [16, 16]
        assert rows[1][8:].eq(0).all()
        assert not rows[1][:8].eq(0).all(1).any()
    convert(program, Request([made], **QUICK), tmp_path / "again")
    assert folder_image(tmp_path / "again") == folder_image(tmp_path / "converted")


def test_a_run_that_was_interrupted_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the journal has of files in folders is not written again, and the result is the same."""
    wanted = ranks("megatron_experts", tmp_path / "wanted", "tp=2,pp=2")
    safe: list[int] = []

    def interrupted(journal: Journal, path: Path, start: int, stop: int) -> None:
        wrote(journal, path, start, stop)
        safe.append(stop - start)
        if len(safe) == 20:
            raise KeyboardInterrupt

    wrote = Journal.wrote
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "wrote", interrupted)
        with pytest.raises(Interrupted, match="--resume"):
            ranks("megatron_experts", tmp_path, "tp=2,pp=2")
    assert not (tmp_path / "ranks").exists()
    notes: list[str] = []
    request = Request([tmp_path / "converted"], reverse=True, ranks="tp=2,pp=2", resume=True, **QUICK)
    program = load_program("mcore_qwen3_moe")
    convert(program, request, tmp_path / "ranks", lambda note: notes.append(str(note)))
    assert any("bytes of an earlier run are unchanged" in note for note in notes)
    files = [file.relative_to(wanted) for file in wanted.rglob("*.pt")]
    assert len(files) == 4
    for file in files:
        assert (tmp_path / "ranks" / file).read_bytes() == (wanted / file).read_bytes()


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


@pytest.mark.parametrize(
    ("case", "grid", "said"),
    [
        ("megatron_uneven", "pp=2", r"3 layers cannot be divided evenly among 2 pipeline stages .*unfit-parts.*"),
        ("megatron_experts", "ep=3", r"4 experts cannot be divided evenly among 3 expert-parallel ranks"),
        ("megatron_interleaved", "ep=2", r"no expert-parallel ranks .*wrong-usage"),
        ("megatron_interleaved", "tp=5", r"cannot be split evenly into 5 parts"),
        ("megatron_interleaved", "pp=8", r"4 layers cannot be divided evenly among 8 pipeline stages"),
        ("megatron_interleaved", "dp=2", r"'dp=2' is not a grid of ranks .*wrong-usage"),
        ("megatron_interleaved", "tp=2,tp=2", r"is not a grid of ranks"),
        ("megatron_interleaved", "tp=0", r"is not a grid of ranks"),
    ],
)
def test_a_grid_that_does_not_fit(tmp_path: Path, case: str, grid: str, said: str) -> None:
    with pytest.raises(Refusal, match=said):
        ranks(case, tmp_path, grid)
    assert [place.name for place in tmp_path.iterdir()] == ["converted"]


def test_a_spec_without_stages(folders: dict[str, Path], tmp_path: Path) -> None:
    request = Request([folders[META.spec]], reverse=True, ranks="pp=2")
    with pytest.raises(Refusal, match=r"meta_llama has no pipeline stages .*wrong-usage"):
        convert(META.program, request, tmp_path / "ranks")
    with pytest.raises(Refusal, match=r"--parts 2 is --ranks tp=2"):
        convert(META.program, replace(request, parts=2), tmp_path / "ranks")


@pytest.mark.parametrize(("words", "said"), [
    (["--parts", "2"], "--parts is an option of --reverse"),
    (["--ranks", "tp=2"], "--ranks is an option of --reverse"),
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
