"""Writes `grid/` beside this file: what torch.distributed.checkpoint makes of four processes on a mesh of 2 x 2.

torchrun --nproc-per-node 4 make.py
"""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))


def numbers(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


state = {
    "model": {
        "rows": distribute_tensor(numbers(7, 4), mesh, [Shard(0), Replicate()]),  # uneven: four rows and three
        "grid": distribute_tensor(numbers(6, 10).bfloat16(), mesh, [Shard(0), Shard(1)]),
        "twice": distribute_tensor(numbers(8, 3), mesh, [Shard(0), Shard(0)]),
        "short": distribute_tensor(numbers(1, 2), mesh, [Shard(0), Replicate()]),  # one process holds nothing of it
        "same": distribute_tensor(numbers(5).half(), mesh, [Replicate(), Replicate()]),
        "plain": numbers(2, 2),
    },
    "step": 12,
    "args": {"heads": 4},
}
dcp.save(state, checkpoint_id=Path(__file__).parent / "grid")
dist.destroy_process_group()
