"""Model-parallel ranks as one checkpoint: equal bit for bit to what one process had, and refused where they do not fit.

`tests/data/trainers/megatron_*` was cut and saved by Megatron-Core (`tests/recorders/record_megatron_ranks.py`).
"""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support.oracle_cases import digests

from compiler.checkpoints.checkpoint import Checkpoint, verify
from compiler.checkpoints.formats.stored_tensor import read_bytes
from compiler.diagnostics import Refusal
from compiler.executor.preconditions import check_replicas
from compiler.jobs.convert import convert
from compiler.jobs.detect import detect, unique
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.program.loading import load_program
from compiler.source.source_files import open_source

TRAINERS = Path(__file__).parent.parent / "data" / "trainers"
SPECS = {
    "megatron_interleaved": "mcore_llama",
    "megatron_uneven": "mcore_qwen3",
    "megatron_experts": "mcore_qwen3_moe",
}
RANK_FILE = "model_optim_rng.pt"


def opened(case: str, folder: Path) -> Checkpoint:
    return open_source(load_program(SPECS[case]), [folder])


def contents(checkpoint: Checkpoint) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {n: (t.dtype, tuple(t.shape), bytes(read_bytes(t))) for n, t in checkpoint.tensors.items()}


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(TRAINERS / request.param / "run", tmp_path / "run"))


@pytest.mark.parametrize("case", SPECS)
def test_the_tensors_of_one_process(case: str) -> None:
    ranks = opened(case, TRAINERS / case / "run")
    assert contents(ranks) == contents(opened(case, TRAINERS / case / "whole"))
    check_replicas(ranks)
    assert verify(ranks) > 0


@pytest.mark.parametrize("case", ["megatron_interleaved", "megatron_experts"])
def test_the_ranks_of_a_distributed_checkpoint(case: str, tmp_path: Path) -> None:
    """Of the same parallel run, saved by Megatron-Core itself: one tensor for all layers, or one for each."""
    stacked = SPECS[case].replace("mcore_", "mcore_dist_") if case == "megatron_interleaved" else SPECS[case]
    found = []
    for name, spec in (("torch_dist", stacked), ("run", SPECS[case]), ("whole", SPECS[case])):
        convert(load_program(spec), Request([TRAINERS / case / name], check=False), tmp_path / name)
        found.append((digests(tmp_path / name), (tmp_path / name / "config.json").read_text()))
    assert found[0] == found[1] == found[2]


def test_what_ranks_hold_alike_is_compared() -> None:
    pairs = opened("megatron_experts", TRAINERS / "megatron_experts" / "run").replicas
    alike = {(other.name, other.path.parent.name[8:]) for _, other in pairs}
    assert ("decoder.layers.0.mlp.router.weight", "01_000_001") in alike  # in every rank of the stage
    assert ("embedding.word_embeddings.weight", "01_000_001") in alike  # in every expert-parallel rank
    assert ("embedding.word_embeddings.weight", "01_000_000") not in alike
    copies = {(one.name, other.name, other.path.parent.name[8:]) for one, other in pairs if one.name != other.name}
    assert copies == {
        ("embedding.word_embeddings.weight", "output_layer.weight", f"{tensor:02}_001_000") for tensor in (0, 1)
    }
    assert not any("experts" in one.name for one, _ in pairs)


def test_detect_names_the_spec() -> None:
    source = TRAINERS / "megatron_experts" / "run"
    programs = [
        load_program(name) for name in (*SPECS.values(), "mcore_qwen2", "mcore_dist_qwen3_moe", "megatron_gpt2")
    ]
    fit = unique(detect(Request([source]), programs), source)
    assert (fit.spec, fit.status, fit.container) == ("mcore_qwen3_moe", "fits", True)


# ---------------------------------------------------------------------------------------------------------------------
# Ranks that do not fit


def step(folder: Path) -> Path:
    return folder / "iter_0000010"


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob(RANK_FILE))


def change(file: Path, **values: Any) -> None:
    """Save a file again with other entries; those of `args` are changed in it."""
    held = torch.load(file, weights_only=False)
    for name, value in values.items():
        held[name] = Namespace(**(vars(held[name]) | value)) if name == "args" else value
    torch.save(held, file)


def swap(one: Path, other: Path) -> None:
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def swapped(*names: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        swap(*(step(folder) / f"mp_rank_{name}" / RANK_FILE for name in names))

    return spoil


def removed(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(step(folder) / f"mp_rank_{name}")


def changed(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change(files(folder)[-1], **values)


def all_changed(**values: Any) -> Callable[[Path], None]:
    return lambda folder: [change(file, **values) for file in files(folder)] and None


def without(name: str) -> Callable[[Path], None]:
    """The last file lacks a tensor."""

    def spoil(folder: Path) -> None:
        held = torch.load(files(folder)[-1], weights_only=False)["model"]
        del held[name]
        change(files(folder)[-1], model=held)

    return spoil


def truncate(folder: Path) -> None:
    files(folder)[1].write_bytes(files(folder)[1].read_bytes()[:-700])


def foreign(folder: Path) -> None:
    shutil.copy(files(TRAINERS / "megatron_uneven" / "run")[-1], files(folder)[-1])


def two_steps(folder: Path) -> None:
    shutil.copytree(step(folder), folder / "iter_0000020")
    (folder / "latest_checkpointed_iteration.txt").unlink()


def lost_step(folder: Path) -> None:
    (folder / "latest_checkpointed_iteration.txt").write_text("20")


def two_runs(folder: Path) -> None:
    shutil.copytree(step(folder) / "mp_rank_00_000", step(folder) / "mp_rank_00")


def other_run(folder: Path) -> None:
    shutil.copytree(step(folder) / "mp_rank_00_001", step(folder) / "mp_rank_00_002")
    shutil.copytree(step(folder) / "mp_rank_01_001", step(folder) / "mp_rank_01_002")


def one_run_of_layers(folder: Path) -> None:
    held = torch.load(files(folder)[-1], weights_only=False)
    torch.save({name: value for name, value in held.items() if name != "model1"}, files(folder)[-1])


INTERLEAVED, UNEVEN, EXPERTS = SPECS


@pytest.mark.parametrize(
    ("folder", "spoil", "says", "kind"),
    [
        (INTERLEAVED, removed("01_001"), "the file of tensor rank 1, pipeline rank 1 is missing; there are 3 of 4", "missing-part"),
        (UNEVEN, removed("00_001"), "the file of pipeline rank 1 is missing; there are 1 of 2", "missing-part"),
        (EXPERTS, removed("00_001_001"), "tensor rank 0, pipeline rank 1, expert rank 1 is missing; there are 7 of 8", "missing-part"),
        (INTERLEAVED, swapped("00_000", "01_000"), "rank 1 wrote it, which is tensor rank 1, expert rank 0, pipeline rank 0", "unfit-parts"),
        (UNEVEN, swapped("00_000", "00_001"), "rank 1 wrote it, which is tensor rank 0, expert rank 0, pipeline rank 1", "unfit-parts"),
        (EXPERTS, swapped("00_000_000", "00_000_001"), "rank 2 wrote it, which is tensor rank 0, expert rank 1", "unfit-parts"),
        (INTERLEAVED, truncate, "cut short", "damaged-file"),
        (INTERLEAVED, foreign, "its tensor_model_parallel_size is 1, but that of mp_rank_00_000 is 2", "unfit-parts"),
        (INTERLEAVED, two_steps, "several steps in one folder: iter_0000010, iter_0000020", "ambiguous-container"),
        (INTERLEAVED, lost_step, "the folder of step 20 is missing", "missing-part"),
        (INTERLEAVED, two_runs, "files of two runs: mp_rank_00/model_optim_rng.pt, mp_rank_00_000", "ambiguous-container"),
        (INTERLEAVED, other_run, "its arguments state pipeline_model_parallel_size = 2, and there are files of 3", "unfit-parts"),
        (INTERLEAVED, one_run_of_layers, "it has 1 runs of layers, but mp_rank_00_000 has 2", "unfit-parts"),
        (INTERLEAVED, changed(iteration=20), "it is of step 20, but mp_rank_00_000 is of step 10", "unfit-parts"),
        (EXPERTS, without("decoder.layers.0.mlp.router.weight"), "has decoder.layers.0.mlp.router.weight", "missing-tensor"),
        (EXPERTS, without("decoder.layers.0.mlp.experts.linear_fc2.weight1"), "has decoder.layers.0.mlp.experts.linear_fc2.weight1", "missing-tensor"),
        (EXPERTS, all_changed(args={"expert_tensor_parallel_size": 1}), "its experts are cut into another number of parts", "unsupported-tensor"),
        (UNEVEN, all_changed(args={"pipeline_model_parallel_size": 10**9}), "pipeline rank 2 is missing; there are 2 of 1000000000", "missing-part"),
    ],
    indirect=["folder"],
)  # fmt: skip
def test_ranks_that_do_not_fit(
    request: pytest.FixtureRequest, folder: Path, spoil: Callable[[Path], None], says: str, kind: str
) -> None:
    case = request.node.callspec.params["folder"]
    opened(case, folder)
    spoil(folder)
    with pytest.raises(Refusal) as refused:
        opened(case, folder)
    assert refused.value.diagnostics[0].kind == kind, refused.value
    assert says in str(refused.value), refused.value


@pytest.mark.parametrize("folder", [UNEVEN], indirect=True)
@pytest.mark.parametrize("name", ["output_layer.weight"])
def test_a_tied_copy_that_differs(folder: Path, name: str) -> None:
    held = torch.load(files(folder)[-1], weights_only=False)["model"]
    held[name][-1, -1] += 1
    change(files(folder)[-1], model=held)
    with pytest.raises(Refusal, match=r"embedding.word_embeddings.weight should be the same in .* but differs"):
        check_replicas(opened(UNEVEN, folder))


@pytest.mark.parametrize("folder", [INTERLEAVED], indirect=True)
def test_a_program_that_writes_all_ranks(folder: Path) -> None:
    """It states its own rank in every file, which says nothing of their places."""
    all_changed(args={"rank": 0})(folder)
    assert contents(opened(INTERLEAVED, folder)) == contents(opened(INTERLEAVED, TRAINERS / INTERLEAVED / "whole"))


@pytest.mark.parametrize("folder", [UNEVEN], indirect=True)
def test_the_only_step_and_a_release(folder: Path) -> None:
    wanted = contents(opened(UNEVEN, folder))
    (folder / "latest_checkpointed_iteration.txt").unlink()
    assert contents(opened(UNEVEN, folder)) == wanted
    step(folder).rename(folder / "release")
    (folder / "latest_checkpointed_iteration.txt").write_text("release")
    assert contents(opened(UNEVEN, folder)) == wanted


@pytest.mark.parametrize("folder", [INTERLEAVED], indirect=True)
def test_layers_that_no_rank_has(folder: Path) -> None:
    """The files fit each other; the arguments tell that runs of layers are lost."""
    for file in files(folder):
        held = torch.load(file, weights_only=False)
        last = {name: value for name, value in held.pop("model1").items() if not name.startswith("decoder.layers.")}
        torch.save(held | {"model": held.pop("model0") | last}, file)
    with pytest.raises(Refusal, match=r"num_layers = 4 \(the checkpoint's 'args'\), but the checkpoint has 2"):
        prepare(load_program(SPECS[INTERLEAVED]), Request([folder]))


def split(whole: Mapping[str, torch.Tensor], experts: int) -> list[dict[str, torch.Tensor]]:
    """The parts of expert-parallel ranks, by Megatron-Core's rule: as many experts in a row for each."""
    parts: list[dict[str, torch.Tensor]] = [{} for _ in range(experts)]
    for name, tensor in whole.items():
        head, found, number = name.rpartition(".weight")
        if not found or not number:
            for part in parts:
                part[name] = tensor
        else:
            part, local = divmod(int(number), 4 // experts)
            parts[part][f"{head}.weight{local}"] = tensor
    return parts


def test_expert_parallelism_alone(tmp_path: Path) -> None:
    """Two numbers, of which the second one is not a stage, according to the arguments."""
    held = torch.load(TRAINERS / EXPERTS / "whole" / "mp_rank_00" / RANK_FILE, weights_only=False)
    tensors = {name: tensor for name, tensor in held["model"].items() if isinstance(tensor, torch.Tensor)}
    args = vars(held["args"]) | {"expert_model_parallel_size": 4, "world_size": 4}
    for number, part in enumerate(split(tensors, 4)):
        place = tmp_path / f"mp_rank_00_{number:03}"
        place.mkdir()
        torch.save(held | {"model": part, "args": Namespace(**(args | {"rank": number}))}, place / RANK_FILE)
    assert contents(opened(EXPERTS, tmp_path)) == contents(opened(EXPERTS, TRAINERS / EXPERTS / "whole"))
