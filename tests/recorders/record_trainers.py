"""Record the folders that trainers leave when they shard a model over ranks, with the tensors of the unsharded model.

Usage: python record_trainers.py OUT [CASE...]; runs up to four gloo processes on the CPU. Needs torch, transformers,
accelerate and, for its cases, deepspeed, which installs without a compiler with DS_BUILD_OPS=0. Cases:
- `fsdp2`: FSDP2's DTensors, saved as verl does: one file for each rank, `fsdp_config.json`, config in `huggingface/`.
- `fsdp1`: FSDP1's ShardedTensors, by its own function for shards (FSDP1 itself wants an accelerator).
- `mesh`: DTensors on a mesh of 2 x 2, with every combination of placements.
- `accelerate`: accelerate's `save_fsdp_model` with SHARDED_STATE_DICT, a distributed checkpoint.
- `zero1`, `zero2`, `zero3`: DeepSpeed, two steps of training with frozen parameters, a buffer and tied embeddings; what
  DeepSpeed's own `zero_to_fp32` makes of them is `expected.safetensors`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

PORT = 29641


def model(tied: bool = False) -> Qwen3ForCausalLM:
    torch.manual_seed(7)
    config = Qwen3Config(
        vocab_size=13, hidden_size=6, intermediate_size=7, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, tie_word_embeddings=tied,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def save_rank(state: dict[str, Any], folder: Path) -> None:
    torch.save(state, folder / f"model_world_size_{dist.get_world_size()}_rank_{dist.get_rank()}.pt")


def fsdp2(out: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    sharded = model()
    if dist.get_rank() == 0:
        (out / "actor/huggingface").mkdir(parents=True)
        (out / "actor/fsdp_config.json").write_text(
            json.dumps({"FSDP_version": 2, "world_size": mesh.size()}, indent=4)
        )
        sharded.save_pretrained(out / "full")
        shutil.copy(out / "full/config.json", out / "actor/huggingface/config.json")
    dist.barrier()
    for layer in sharded.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    save_rank(sharded.state_dict(), out / "actor")


def fsdp1(out: Path) -> None:
    from torch.distributed.fsdp._shard_utils import _create_chunk_sharded_tensor

    rank, world = dist.get_rank(), dist.get_world_size()
    group = dist.distributed_c10d._get_default_group()
    full = model()
    if rank == 0:
        full.save_pretrained(out / "full")
    state: dict[str, Any] = {
        name: _create_chunk_sharded_tensor(tensor, rank, world, world, group, torch.device("cpu"))
        for name, tensor in full.state_dict().items()
    }
    save_rank(state, out)


def mesh(out: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.placement_types import _StridedShard

    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tp"))
    kinds = {"rows": Shard(0), "columns": Shard(1), "all": Replicate()}
    full = {f"{a}.{b}.weight": torch.randn(7, 5) for a in kinds for b in kinds}
    full |= {"scalar": torch.tensor(2.5), "strided.weight": torch.randn(8, 3), "plain": torch.randn(3)}
    state: dict[str, Any] = {}
    for name, tensor in full.items():
        words = name.split(".")
        if words[0] in kinds:
            state[name] = distribute_tensor(tensor, grid, [kinds[words[0]], kinds[words[1]]])
        elif name == "scalar":
            state[name] = distribute_tensor(tensor, grid, [Replicate(), Replicate()])
        elif name == "strided.weight":  # FSDP2 of a parameter whose rows are tensor-parallel
            state[name] = distribute_tensor(tensor, grid, [_StridedShard(0, split_factor=2), Shard(0)])
        else:
            state[name] = tensor
    if dist.get_rank() == 0:
        save_file(full, out / "full.safetensors")
    save_rank(state, out)


def accelerate(out: Path) -> None:
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import save_fsdp_model

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, state_dict_type="SHARDED_STATE_DICT", auto_wrap_policy="no_wrap", reshard_after_forward=True
    )
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    full = model()
    if dist.get_rank() == 0:
        full.save_pretrained(out / "full")
    optimizer = torch.optim.AdamW(full.parameters())
    prepared, _ = accelerator.prepare(full, optimizer)
    save_fsdp_model(plugin, accelerator, prepared, str(out / "checkpoint-2"))
    if dist.get_rank() == 0:
        shutil.copy(out / "full/config.json", out / "checkpoint-2/config.json")


def zero(out: Path) -> None:
    import deepspeed
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    stage = int(out.name.removeprefix("zero"))
    trained = model(tied=True)
    rotary = torch.nn.Module()  # as in old checkpoints, which saved it
    rotary.register_buffer("inv_freq", torch.tensor([1.0, 0.01]))
    trained.model.layers[0].self_attn.rotary_emb = rotary
    for name, parameter in trained.named_parameters():
        parameter.requires_grad_("mlp.up_proj" not in name and not name.endswith("input_layernorm.weight"))
    kinds = [[p for p in trained.parameters() if p.requires_grad and (p.ndim > 1) == wide] for wide in (True, False)]
    optimizer = torch.optim.AdamW([{"params": kind} for kind in kinds], lr=1e-3)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    engine, *_ = deepspeed.initialize(model=trained, optimizer=optimizer, config=config)
    tokens = torch.arange(8).reshape(1, 8)
    for _ in range(2):
        engine.backward(engine(input_ids=tokens, labels=tokens).loss)
        engine.step()
    engine.save_checkpoint(str(out / "run"), tag=f"global_step{engine.global_steps}")
    dist.barrier()
    if dist.get_rank() == 0:
        for program in ("zero_to_fp32.py", "zero_to_torch.py"):
            (out / "run" / program).unlink(missing_ok=True)
        expected = get_fp32_state_dict_from_zero_checkpoint(str(out / "run"))
        save_file({name: tensor.clone() for name, tensor in expected.items()}, out / "expected.safetensors")
        trained.config.architectures = [type(trained).__name__]
        trained.config.save_pretrained(out / "run")


CASES: dict[str, tuple[int, Callable[[Path], None]]] = {
    "fsdp2": (2, fsdp2),
    "fsdp1": (2, fsdp1),
    "mesh": (4, mesh),
    "accelerate": (2, accelerate),
    "zero1": (2, zero),
    "zero2": (2, zero),
    "zero3": (2, zero),
}


def _process(rank: int, case: str, out: Path) -> None:
    world, record = CASES[case]
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(PORT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    torch.set_num_threads(1)
    torch.manual_seed(11)
    dist.init_process_group("gloo")
    record(out)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    out, *names = sys.argv[1:]
    for case in names or CASES:
        place = Path(out) / case
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        processes.spawn(_process, (case, place), nprocs=CASES[case][0])
        if (place / "full").is_dir():  # the expected tensors; config.json is with the shards
            tensors = load_file(place / "full/model.safetensors")
            shutil.rmtree(place / "full")
            save_file(tensors, place / "expected.safetensors")
        elif (place / "full.safetensors").is_file():
            (place / "full.safetensors").rename(place / "expected.safetensors")
        print(case, sum(f.stat().st_size for f in place.rglob("*") if f.is_file()), "bytes")


if __name__ == "__main__":
    main()
