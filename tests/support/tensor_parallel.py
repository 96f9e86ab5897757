"""Tensor parallelism on two processes, compared with one process.

Run as `python tensor_parallel.py PORT RANK FOLDER...`, once for each of two ranks. Each folder holds a saved model with
its code. Rank 0 prints one JSON object: folder -> the largest differences of logits and of each gradient, relative to the
largest value of the tensor in one process; whether the generated tokens are equal; and the parameters that were split.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch.distributed.tensor import DTensor


def main(port: str, rank: str, folders: list[str]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results = {folder: compare(Path(folder)) for folder in folders}
    if rank == "0":
        print(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


def compare(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text())
    module, _, name = config["auto_map"]["AutoModelForCausalLM"].partition(".")
    sys.path.insert(0, str(folder.parent))
    model_class = getattr(importlib.import_module(f"{folder.name}.{module}"), name)
    ids = torch.randint(3, config["vocab_size"], (2, 9), generator=torch.Generator().manual_seed(0))
    found = []
    for plan in ({}, {"tp_plan": "auto"}):
        model = model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **plan).eval()
        output = model(ids, labels=ids)
        output.loss.backward()
        gradients = {n: whole(p.grad) for n, p in model.named_parameters() if p.grad is not None}
        with torch.no_grad():
            text = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
        split = [n for n, p in model.named_parameters() if isinstance(p, DTensor)]
        found.append((whole(output.logits.detach()), gradients, text.tolist(), split))
    (one, mine, tokens, _), (two, theirs, others, split) = found
    return {
        "logits": apart(one, two),
        "gradients": {name: apart(mine[name], theirs[name]) for name in mine},
        "same tokens": tokens == others,
        "split": split,
        "release": int(transformers.__version__.partition(".")[0]),
    }


def whole(tensor: Any) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def apart(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one - two).abs().max() / one.abs().max().clamp(min=1e-12))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
