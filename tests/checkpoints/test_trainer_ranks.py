"""The files of ranks, as one checkpoint: equal bit for bit to the unsharded tensors, and refused where ranks do not fit.

`tests/data/trainers` was written by the trainers themselves (`tests/recorders/record_trainers.py`).
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint, verify
from compiler.checkpoints.formats import torch_save
from compiler.checkpoints.formats.boxes import Untiled, flat_boxes, flat_range, tiled
from compiler.checkpoints.formats.pickle_globals import Global, Inert, Sharded, Storage, View
from compiler.checkpoints.formats.sharded_tensor import Misplaced, local_parts
from compiler.checkpoints.formats.stored_tensor import Tensor, read_bytes
from compiler.diagnostics import Refusal
from compiler.dtypes import ITEM_SIZES
from compiler.executor.preconditions import check_replicas

TRAINERS = Path(__file__).parent.parent / "data" / "trainers"
PLACES = {
    "fsdp2": "actor", "fsdp1": ".", "mesh": ".", "accelerate": "checkpoint-2",
    "zero1": "run", "zero2": "run", "zero3": "run",
}  # fmt: skip
FROZEN = {"model.layers.0.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight"}


def expected(case: str) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """Name -> shape and bytes."""
    with safe_open(TRAINERS / case / "expected.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
    return {n: (tuple(t.shape), t.reshape(-1).view(torch.uint8).numpy().tobytes()) for n, t in tensors.items()}


def contents(checkpoint: Checkpoint) -> dict[str, tuple[tuple[int, ...], bytes]]:
    return {name: (tuple(t.shape), bytes(read_bytes(t))) for name, t in checkpoint.tensors.items()}


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(TRAINERS / request.param / PLACES[request.param], tmp_path / "source"))


@pytest.mark.parametrize("case", PLACES)
def test_the_unsharded_tensors(case: str) -> None:
    checkpoint = open_checkpoint(TRAINERS / case / PLACES[case])
    found, wanted = contents(checkpoint), expected(case)
    lost = FROZEN if case == "zero1" else set()  # by DeepSpeed's own program
    assert found.keys() == wanted.keys() | lost
    assert {name: found[name] for name in wanted} == wanted
    check_replicas(checkpoint)
    assert verify(checkpoint) > 0
    if case.startswith("zero"):
        assert {checkpoint.tensors[name].dtype for name in FROZEN} == {"bfloat16"}
        assert checkpoint.tensors["model.norm.weight"].dtype == "float32"


def test_replicas_are_compared() -> None:
    checkpoint = open_checkpoint(TRAINERS / "mesh")
    names = {one.name for one, _ in checkpoint.replicas}
    assert {"all.all.weight", "all.rows.weight", "rows.all.weight", "scalar", "plain"} <= names
    assert "rows.columns.weight" not in names
    assert "strided.weight" not in names


@pytest.mark.parametrize("folder", ["mesh"], indirect=True)
def test_a_replica_that_differs(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    _, other = next(pair for pair in checkpoint.replicas if pair[0].name == "all.all.weight")
    data = bytearray(other.path.read_bytes())
    data[other.offset] ^= 1
    other.path.write_bytes(data)
    with pytest.raises(Refusal, match=r"all\.all\.weight should be the same in .*rank_0\.pt and .*but differs"):
        check_replicas(checkpoint)


def swap(one: Path, other: Path) -> None:
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def files(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.rglob(pattern))


def remove_last(folder: Path) -> None:
    (files(folder, "*optim_states.pt") or files(folder, "*world_size*.pt"))[-1].unlink()


def swap_ranks(folder: Path) -> None:
    swap(*files(folder, "*world_size*rank*.pt")[:2])


def swap_partitions(folder: Path) -> None:
    swap(*files(folder, "*optim_states.pt")[:2])


def swap_model_states(folder: Path) -> None:
    swap(*files(folder, "zero_pp*model_states.pt"))


def copy_partition(folder: Path) -> None:
    shutil.copy(*files(folder, "*optim_states.pt")[:2])


def truncate(folder: Path) -> None:
    file = files(folder, "*rank_1*.pt")[0]
    file.write_bytes(file.read_bytes()[:-700])


def foreign(case: str) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        mine, other = files(folder, "*rank_1*.pt")[0], files(TRAINERS / case, "*rank_1*.pt")[0]
        shutil.copy(other, mine)

    return put


def two_runs(folder: Path) -> None:
    for number, file in enumerate(files(folder, "*world_size*rank*.pt")):
        shutil.copy(file, file.with_name(f"model_world_size_3_rank_{number}.pt"))


def two_steps(folder: Path) -> None:
    shutil.copytree(folder / "global_step2", folder / "global_step4")
    (folder / "latest").unlink()


def other_step(folder: Path) -> None:
    """Rank 1 is of a step later: its optimizer counts three steps."""
    from compiler.checkpoints.zero_partitions import _Optimizer

    path = files(folder, "*rank_1_mp_rank_00_optim_states.pt")[0]
    rank = _Optimizer(path, 1)
    data = bytearray(path.read_bytes())
    for view in rank.steps():
        offset = rank.places.locate("step", view).offset
        data[offset : offset + 4] = b"\0\0\x40\x40"
    path.write_bytes(data)


def fewer_stated(folder: Path) -> None:
    (folder / "fsdp_config.json").write_text(json.dumps({"world_size": 8}))


def no_model_states(folder: Path) -> None:
    files(folder, "*_model_states.pt")[-1].unlink()


@pytest.mark.parametrize(
    ("folder", "spoil", "says", "kind"),
    [
        ("fsdp2", remove_last, "the file of rank 1 is missing; there are 1 of 2", "missing-part"),
        ("fsdp2", swap_ranks, "rank 1 saved it, and the file is named as that of rank 0", "unfit-parts"),
        ("fsdp1", swap_ranks, "rank 1 saved it, and the file is named as that of rank 0", "unfit-parts"),
        ("mesh", swap_ranks, "rank 1 saved it, and the file is named as that of rank 0", "unfit-parts"),
        ("fsdp2", truncate, "cut short", "damaged-file"),
        ("fsdp2", foreign("mesh"), "it and model_world_size_2_rank_0.pt has", "unfit-parts"),
        ("fsdp2", two_runs, "files of runs with 2, 3 ranks are in one folder", "ambiguous-container"),
        ("fsdp2", fewer_stated, "it states 8 ranks, and the files are of 2", "unfit-parts"),
        ("zero2", remove_last, "1 of the 2 optimizer files are here", "missing-part"),
        ("zero3", remove_last, "1 of the 2 optimizer files are here", "missing-part"),
        ("zero1", swap_partitions, "is it another rank's file?", "unfit-parts"),
        ("zero2", swap_partitions, "is it another rank's file?", "unfit-parts"),
        ("zero3", swap_partitions, "files of this folder were exchanged", "unfit-parts"),
        ("zero3", swap_model_states, "files of this folder were exchanged", "unfit-parts"),
        ("zero3", copy_partition, "it is a copy of that file", "unfit-parts"),
        ("zero2", foreign("zero3"), "another stage, number of ranks or size", "unfit-parts"),
        ("zero3", truncate, "cut short", "damaged-file"),
        ("zero2", two_steps, "several folders of shards: global_step2, global_step4", "ambiguous-container"),
        ("zero3", other_step, "has done another number of steps", "unfit-parts"),
        ("zero2", no_model_states, "mp_rank_00_model_states.pt is missing", "missing-part"),
        ("zero3", no_model_states, "zero_pp_rank_1_mp_rank_00_model_states.pt is missing", "missing-part"),
    ],
    indirect=["folder"],
)  # fmt: skip
def test_ranks_that_do_not_fit(folder: Path, spoil: Callable[[Path], None], says: str, kind: str) -> None:
    open_checkpoint(folder)
    spoil(folder)
    with pytest.raises(Refusal) as refused:
        open_checkpoint(folder)
    assert refused.value.diagnostics[0].kind == kind, refused.value
    assert says in str(refused.value), refused.value


@pytest.mark.parametrize(("case", "pattern"), [("fsdp2", "*rank_0.pt"), ("zero2", "*rank_0_*optim_states.pt")])
def test_one_rank_alone(case: str, pattern: str) -> None:
    with pytest.raises(Refusal, match="the file of one rank") as refused:
        open_checkpoint(files(TRAINERS / case, pattern)[0])
    assert refused.value.diagnostics[0].hint.startswith("give the folder")


def test_a_file_of_one_rank_under_another_name(tmp_path: Path) -> None:
    shutil.copy(files(TRAINERS / "fsdp2", "*rank_1.pt")[0], tmp_path / "model.pt")
    with pytest.raises(Refusal, match="one rank's part of it"):
        open_checkpoint(tmp_path / "model.pt")


# Values that a pickle may put anywhere, where a reader expects sizes, tensors or mappings.
JUNK: list[Any] = [
    None, -1, 0, 1, 2**70, "x", (), [], {}, [1], (1, 2), (-1,), {"a": 1}, 3.5, True, b"x", (2**40, 2**40),
    Inert(Global("a", "b")), Global("torch", "float32"),
]  # fmt: skip


def slots(value: Any, found: list[tuple[Any, Any]], seen: set[int]) -> None:
    """Every (holder, key or attribute) of an object that can be replaced."""
    if id(value) in seen:
        return
    seen.add(id(value))
    fields = {Inert: ("args", "state"), Sharded: ("shape", "state"), View: ("shape", "strides", "offset")}
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            found.append((value, key))
            slots(value[key], found, seen)
    elif isinstance(value, tuple):
        for part in value:
            slots(part, found, seen)
    for name in fields.get(type(value), ()):
        found.append((value, name))
        slots(getattr(value, name), found, seen)


@pytest.mark.parametrize("case", [case for case in PLACES if case != "accelerate"])
def test_any_content_is_read_or_refused(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of wrong types and sizes, anywhere in the objects of the files: never another exception than a Refusal."""
    numbers, load = random.Random(case), torch_save.load

    def spoiled(*args: Any, **named: Any) -> Any:
        tree, place = load(*args, **named)
        found: list[tuple[Any, Any]] = []
        slots(tree, found, set())
        for _ in range(numbers.randint(0, 2)):
            holder, key = numbers.choice(found)
            if isinstance(holder, dict | list):
                holder[key] = numbers.choice(JUNK)
            else:
                setattr(holder, key, numbers.choice(JUNK))
        return tree, place

    monkeypatch.setattr(torch_save, "load", spoiled)
    outcomes = set()
    for _ in range(80):
        try:
            open_checkpoint(TRAINERS / case / PLACES[case])
            outcomes.add("read")
        except Refusal as refusal:
            outcomes.add(refusal.diagnostics[0].kind)
    assert {"read", "unfit-parts" if case in ("fsdp1", "fsdp2", "mesh") else "damaged-file"} <= outcomes


# ---------------------------------------------------------------------------------------------------------------------
# Boxes


def flat(size: int, start: int = 0) -> Tensor:
    item = ITEM_SIZES["float32"]
    return Tensor("t", "float32", (size,), (1,), Path("file"), start * item, (0, 1 << 20))


@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 3), (4, 1, 3), (2, 3, 4, 5), (1, 1, 6)])
def test_flat_ranges_tile_their_tensor(shape: tuple[int, ...]) -> None:
    """Cut anywhere, the parts come out in order: the element at flat position n is read from place n."""
    numbers, size = random.Random(len(shape)), prod(shape)
    for _ in range(30):
        cuts = sorted({0, size, *(numbers.randint(0, size) for _ in range(numbers.randint(0, 4)))})
        pieces = [flat(b - a, a) for a, b in itertools.pairwise(cuts)]
        boxes = [box for first, piece in flat_range(pieces, 0, size) for box in flat_boxes(piece, first, shape)]
        assert len(boxes) <= len(pieces) * max(1, 2 * len(shape))
        tensor = tiled("t", boxes, shape)
        assert tuple(tensor.shape) == shape
        assert places(tensor) == list(range(size))
        if len(boxes) > 1:
            with pytest.raises(Untiled):
                tiled("t", boxes[1:], shape)


def places(tensor: Any) -> list[int]:
    """The place of each element in the file, in C order."""
    if isinstance(tensor, Tensor):
        item = ITEM_SIZES[tensor.dtype]
        steps = itertools.product(*(range(0, n * s, s) for n, s in zip(tensor.shape, tensor.strides, strict=True)))
        return [tensor.offset // item + sum(step) for step in steps]
    rows = prod(tensor.shape[: tensor.axis])
    parts = [places(member) for member in tensor.members]
    return [n for row in range(rows) for p in parts for n in p[row * len(p) // rows : (row + 1) * len(p) // rows]]


# ---------------------------------------------------------------------------------------------------------------------
# Steps of ZeRO that a trainer could leave, made here


STEP = 7
SHAPES = {"a": torch.Size([3, 2]), "b": torch.Size([5])}
Rank = dict[str, Any]


def zero_step(stage: int) -> dict[str, Rank]:
    """File name -> object: two ranks, whose parameters are the numbers from 0 on."""
    flats = [torch.arange(6.0) + 6 * rank for rank in range(2)]  # 11 elements, padded
    if stage == 3:  # each parameter is cut: 3 + 3 elements, then 3 + 2
        flats = [torch.tensor([0.0, 1, 2, 6, 7, 8]), torch.tensor([3.0, 4, 5, 9, 10, 0])]
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    step: dict[str, Rank] = {
        f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt": {
            "optimizer_state_dict": {"zero_stage": stage, "partition_count": 2, key: [flats[rank]]}
        }
        for rank in range(2)
    }
    model = {"module": {"buffer": torch.ones(2)}, "param_shapes": [dict(SHAPES)], "global_steps": STEP}
    names = [f"zero_pp_rank_{n}_mp_rank_00_model_states.pt" for n in range(2)] if stage == 3 else []
    return step | {name: dict(model) for name in names or ["mp_rank_00_model_states.pt"]}


def zero_folder(folder: Path, step: dict[str, Rank]) -> Checkpoint:
    for name, tree in step.items():
        torch.save(tree, folder / name)
    return open_checkpoint(folder)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_made_step_is_read(stage: int, tmp_path: Path) -> None:
    step = zero_step(stage)
    for tree in step.values():
        if "module" in tree:
            tree["shared_params"] = {"alias": "a", "b": "a", "lost": "nowhere"}
    found = contents(zero_folder(tmp_path, step))
    numbers = torch.arange(11.0)
    wanted = {"a": numbers[:6].reshape(3, 2), "b": numbers[6:], "buffer": torch.ones(2)}
    wanted["alias"] = wanted["a"]
    assert found == {n: (tuple(t.shape), t.contiguous().numpy().tobytes()) for n, t in wanted.items()}


def test_a_parameter_without_elements(tmp_path: Path) -> None:
    step = zero_step(2)
    step["mp_rank_00_model_states.pt"]["param_shapes"][0]["empty"] = torch.Size([0, 4])
    checkpoint = zero_folder(tmp_path, step)
    assert contents(checkpoint)["empty"] == ((0, 4), b"")
    assert checkpoint.tensors["empty"].dtype == "float32"


def test_a_rank_without_a_part_of_a_short_parameter(tmp_path: Path) -> None:
    """Stage 3 gives one element to the first of two ranks, and padding to the second."""
    step = zero_step(3)
    for name, tree in step.items():
        if "model_states" in name:
            tree["param_shapes"][0]["c"] = torch.Size([1])
        else:
            flats = tree["optimizer_state_dict"]["fp32_flat_groups"]
            flats[0] = torch.cat([flats[0], torch.tensor([11.0 if "rank_0_" in name else -1.0])])
    assert contents(zero_folder(tmp_path, step))["c"] == ((1,), torch.tensor([11.0]).numpy().tobytes())


FIRST, SECOND = (f"zero_pp_rank_{n}_mp_rank_00_optim_states.pt" for n in range(2))


def optimizer(step: dict[str, Rank], name: str = FIRST) -> Rank:
    state: Rank = step[name]["optimizer_state_dict"]
    return state


def two_dimensional(step: dict[str, Rank]) -> None:
    optimizer(step)["single_partition_of_fp32_groups"] = [torch.ones(2, 4)]


def no_tensor(step: dict[str, Rank]) -> None:
    optimizer(step)["single_partition_of_fp32_groups"] = ["offloaded"]


def no_shapes(step: dict[str, Rank]) -> None:
    del step["mp_rank_00_model_states.pt"]["param_shapes"]


def experts(step: dict[str, Rank]) -> None:
    step["layer_0_expert_1_mp_rank_00_model_states.pt"] = {}


def model_parallel_states(step: dict[str, Rank]) -> None:
    step["mp_rank_01_model_states.pt"] = dict(step["mp_rank_00_model_states.pt"])


def model_parallel(step: dict[str, Rank]) -> None:
    step["zero_pp_rank_0_mp_rank_01_optim_states.pt"] = step[FIRST]


def twice(step: dict[str, Rank]) -> None:
    step[f"bf16_{FIRST}"] = step[FIRST]


def without_the_first(step: dict[str, Rank]) -> None:
    del step[FIRST]


def later(step: dict[str, Rank]) -> None:
    step["zero_pp_rank_1_mp_rank_00_model_states.pt"]["global_steps"] = STEP + 1


def other_shapes(step: dict[str, Rank]) -> None:
    step["zero_pp_rank_1_mp_rank_00_model_states.pt"]["param_shapes"] = [{"a": torch.Size([2, 3]), "b": SHAPES["b"]}]


def more_elements(step: dict[str, Rank]) -> None:
    for name in (FIRST, SECOND):
        optimizer(step, name)["single_partition_of_fp32_groups"] = [torch.ones(12)]


def fewer_elements(step: dict[str, Rank]) -> None:
    for name in (FIRST, SECOND):
        optimizer(step, name)["single_partition_of_fp32_groups"] = [torch.ones(5)]


@pytest.mark.parametrize(
    ("stage", "spoil", "file", "message", "kind"),
    [
        (2, two_dimensional, FIRST, "group 0 is not flat", "damaged-file"),
        (2, no_tensor, FIRST, "group 0 is not a tensor", "damaged-file"),
        (2, no_shapes, "mp_rank_00_model_states.pt", "it is not a file of model states of ZeRO", "unknown-format"),
        (2, experts, "", "experts in files of their own: layer_0_expert_1_mp_rank_00_mod", "unsupported-tensor"),
        (
            2,
            model_parallel_states,
            "",
            "model states of another run or of model parallelism: mp_rank_01",
            "unfit-parts",
        ),
        (2, model_parallel, "zero_pp_rank_0_mp_rank_01_optim_states.pt", "it is of a model-par", "unsupported-tensor"),
        (2, twice, "", f"bf16_{FIRST} and {FIRST} are of the same rank", "ambiguous-container"),
        (2, without_the_first, "", "the optimizer file of rank 0 is missing", "missing-part"),
        (3, later, "zero_pp_rank_1_mp_rank_00_model_states.pt", "it is of another step or model than", "unfit-parts"),
        (3, other_shapes, "zero_pp_rank_1_mp_rank_00_model_states.pt", "it is of another step or mod", "unfit-parts"),
        (2, more_elements, FIRST, "the parameters have 11 elements, and the partitions 24", "unfit-parts"),
        (2, fewer_elements, SECOND, "the parts of b end before it does along axis 0; a partition is", "damaged-file"),
    ],
)
def test_a_step_that_does_not_fit(stage: int, spoil: Any, file: str, message: str, kind: str, tmp_path: Path) -> None:
    step = zero_step(stage)
    spoil(step)
    with pytest.raises(Refusal) as refused:
        zero_folder(tmp_path, step)
    (problem,) = refused.value.diagnostics
    assert problem.message.startswith(message), problem.message
    assert (problem.kind, problem.span.path) == (kind, str(tmp_path / file))


# ---------------------------------------------------------------------------------------------------------------------
# Parts of ranks, as older and newer releases of torch pickle them


def view(*shape: int) -> View:
    return View(Storage("0", "float32", prod(shape)), "float32", 0, shape, tuple(1 for _ in shape))


def instance(name: str, **fields: Any) -> Inert:
    return Inert(Global("torch.distributed", name), state=fields)


def dtensor(mesh: dict[str, Any], *placements: Inert, local: tuple[int, ...] = (2, 4)) -> Sharded:
    """A tensor of 8 x 4 over a mesh of 2 x 2."""
    spec = instance("DTensorSpec", mesh=instance("DeviceMesh", **mesh), placements=placements)
    return Sharded("a DTensor", (8, 4), "float32", {"_local_tensor": view(*local), "_spec": spec})


ROWS, ALIKE = instance("Shard", dim=0), instance("Replicate")


@pytest.mark.parametrize("rank", range(4))
def test_a_mesh_that_is_a_tensor_of_ranks(rank: int) -> None:
    """Without the number of its rank, a coordinate says whose part it is."""
    mesh = {"mesh": view(2, 2), "_coordinate_on_dim": [rank // 2, rank % 2]}
    assert local_parts(dtensor(mesh, ROWS, ROWS), rank)[0][:2] == ((2 * rank, 0), (2, 4))
    with pytest.raises(Misplaced, match=rf"its coordinate \[{rank // 2}, {rank % 2}\] is not that of rank {3 - rank}"):
        local_parts(dtensor(mesh, ROWS, ROWS), 3 - rank)


def test_a_strided_part_that_does_not_fit_its_mesh() -> None:
    mesh = {"mesh": view(2, 2), "_coordinate_on_dim": [0, 1]}
    fits = dtensor(mesh, instance("_StridedShard", dim=0, split_factor=2), ROWS)
    assert local_parts(fits, 1)[0][:2] == ((4, 0), (2, 4))
    with pytest.raises(Misplaced, match="its strided placement interleaves 4 parts, and the mesh has 2 of them"):
        local_parts(dtensor(mesh, instance("_StridedShard", dim=0, split_factor=4), ROWS), 1)


def test_plain_tensors_in_rank_files(tmp_path: Path) -> None:
    """What a rank holds unsharded must be the same everywhere; a config that is not JSON states nothing."""

    def save(rank: int, tensor: torch.Tensor) -> Path:
        torch.save({"w": tensor}, tmp_path / f"model_world_size_2_rank_{rank}.pt")
        return tmp_path / f"model_world_size_2_rank_{rank}.pt"

    (tmp_path / "fsdp_config.json").write_text("FSDP_version: 2")
    for rank in range(2):
        save(rank, torch.ones(2, 3))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tensors["w"].shape == (2, 3)
    check_replicas(checkpoint)
    save(1, torch.ones(2, 3, dtype=torch.float16))
    with pytest.raises(Refusal, match=r"rank_1.pt has a float16 of \[2, 3\], not a float32 of \[2, 3\]") as refused:
        open_checkpoint(tmp_path)
    assert refused.value.diagnostics[0].kind == "unfit-parts"
    save(1, torch.ones(2, 3))
    stray = save(5, torch.ones(2, 3))
    with pytest.raises(Refusal, match="rank 5 of 2 does not exist") as refused:
        open_checkpoint(tmp_path)
    assert refused.value.diagnostics[0].span.path == str(stray)


def test_the_only_rank_is_complete(tmp_path: Path) -> None:
    """Its file and its folder are the same checkpoint; a file of one of two ranks is not."""
    path = tmp_path / "model_world_size_1_rank_0.pt"
    torch.save({"w": torch.arange(6.0).reshape(2, 3)}, path)
    wanted = {"w": ((2, 3), torch.arange(6.0).numpy().tobytes())}
    assert contents(open_checkpoint(path)) == contents(open_checkpoint(tmp_path)) == wanted
    path = path.rename(tmp_path / "model_world_size_2_rank_0.pt")
    with pytest.raises(Refusal, match="the file of one rank"):
        open_checkpoint(path)
