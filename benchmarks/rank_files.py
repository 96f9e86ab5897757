"""Files of several ranks, to be made one checkpoint: what the trainers' own mergers do, to hold `compile run hf` against.

    python -m benchmarks.rank_files {zero,dcp} FOLDER LAYERS    write FOLDER/zero or FOLDER/dcp: float32, of RANKS ranks
    python -m benchmarks.rank_files {merge-zero,merge-dcp} FOLDER

`zero` is a step of ZeRO-3, `dcp` a distributed checkpoint of sharded DTensors. `merge-zero` does what DeepSpeed's
`zero_to_fp32.py` does (load all optimizer files, concatenate each parameter's parts, save), without the package;
`merge-dcp` is torch's own `dcp_to_torch_save`. Both write FOLDER/out/pytorch_model.bin.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from benchmarks import models

RANKS, PORT = 4, 29_677


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    import torch
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in LlamaForCausalLM(models.config(layers)).state_dict().items()}


def noise(count: int) -> Any:
    import torch

    block = torch.randn(1 << 22, generator=torch.Generator().manual_seed(count))
    return block.repeat(-(-count // len(block)))[:count].clone()


def write_config(folder: Path, layers: int) -> None:
    config: Any = models.config(layers)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)


def zero(folder: Path, layers: int) -> None:
    """Each parameter is flat and cut into RANKS parts; a rank has its parts of all parameters in one tensor."""
    import torch

    step = folder / "zero" / "global_step1"
    step.mkdir(parents=True)
    write_config(folder / "zero", layers)
    (folder / "zero" / "latest").write_text("global_step1")
    named = shapes(layers)
    sizes = [-(-prod(shape) // RANKS) for shape in named.values()]
    for rank in range(RANKS):
        states = {"module": {}, "param_shapes": [{name: torch.Size(shape) for name, shape in named.items()}],
                  "buffer_names": [], "shared_params": {}, "global_steps": 1}  # fmt: skip
        torch.save(states, step / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        flat = noise(sum(sizes) + rank)[rank:].clone()
        optimizer = {"zero_stage": 3, "partition_count": RANKS, "fp32_flat_groups": [flat]}
        torch.save({"optimizer_state_dict": optimizer}, step / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")


def merge_zero(folder: Path) -> None:
    import torch

    step = folder / "zero" / "global_step1"
    names = [f"zero_pp_rank_{rank}_mp_rank_00" for rank in range(RANKS)]
    optimizers = [torch.load(step / f"{name}_optim_states.pt", mmap=True, weights_only=False) for name in names]
    flats = [optimizer["optimizer_state_dict"]["fp32_flat_groups"][0] for optimizer in optimizers]
    (listed,) = torch.load(step / f"{names[0]}_model_states.pt", weights_only=False)["param_shapes"]
    state, place = {}, 0
    for name, shape in listed.items():
        size = -(-shape.numel() // RANKS)
        state[name] = torch.cat([flat.narrow(0, place, size) for flat in flats])[: shape.numel()].view(shape)
        place += size
    save(folder, state)


def dcp_rank(rank: int, folder: str, layers: int) -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed import checkpoint
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{PORT}", rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    state = {}
    for name, shape in shapes(layers).items():
        rows = [len(part) for part in torch.empty(shape[0], device="meta").chunk(RANKS)]
        local = (rows[rank], *shape[1:])
        part = noise(prod(local) + rank)[rank:].reshape(local)
        stride = tuple(prod(shape[n + 1 :]) for n in range(len(shape)))
        state[name] = DTensor.from_local(part, mesh, [Shard(0)], shape=torch.Size(shape), stride=stride)
    checkpoint.save({"model": state}, checkpoint_id=f"{folder}/dcp/pytorch_model_fsdp_0")
    dist.destroy_process_group()


def dcp(folder: Path, layers: int) -> None:
    import torch.multiprocessing as processes

    (folder / "dcp" / "pytorch_model_fsdp_0").mkdir(parents=True)
    write_config(folder / "dcp", layers)
    processes.spawn(dcp_rank, args=(str(folder), layers), nprocs=RANKS)


def merge_dcp(folder: Path) -> None:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    (folder / "out").mkdir()
    dcp_to_torch_save(folder / "dcp" / "pytorch_model_fsdp_0", folder / "out" / "pytorch_model.bin")


def save(folder: Path, state: Mapping[str, Any]) -> None:
    import torch

    (folder / "out").mkdir()
    torch.save(dict(state), folder / "out" / "pytorch_model.bin")


if __name__ == "__main__":
    word, place, *layers_given = sys.argv[1:]
    if word.startswith("merge-"):
        {"merge-zero": merge_zero, "merge-dcp": merge_dcp}[word](Path(place))
    else:
        {"zero": zero, "dcp": dcp}[word](Path(place), int(layers_given[0]))
