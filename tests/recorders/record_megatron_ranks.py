"""Record the ranks that Megatron-Core makes of a model with tensor, pipeline, interleaved and expert parallelism.

Usage: python record_megatron_ranks.py OUT [CASE...], with megatron-core installed; runs up to eight gloo processes on the
CPU. One process seeds the complete model and saves it in Megatron-Core's distributed format; the ranks load that, so that
Megatron-Core itself decides which layers, experts and slices each of them has, and under which names. Written are

- `run/iter_0000010/mp_rank_*/model_optim_rng.pt`: the state dict of each rank, in the folders and dictionaries of
  Megatron-LM (`get_checkpoint_name`, `generate_state_dict` in megatron/training/checkpointing.py), which is no package;
- `torch_dist/`: what the same ranks save with `dist_checkpointing.save`, one tensor for all layers or one for each;
- `whole/mp_rank_00/model_optim_rng.pt`: the state dict of the one process.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import recording
import run_megatron_core as core
import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.random import initialize_rng_tracker
from megatron.core.transformer.moe import moe_utils
from torch import distributed, multiprocessing

ITERATION = 10
STACKED = ("megatron_interleaved",)
SMALL = {"hidden_size": 8, "ffn_hidden_size": 12, "kv_channels": 4, "padded_vocab_size": 24}
CASES = {
    "megatron_interleaved": {  # layers 0 and 2 are of the first stage, 1 and 3 of the second one
        "num_layers": 4,
        "tensor_model_parallel_size": 2,
        "pipeline_model_parallel_size": 2,
        "virtual_pipeline_model_parallel_size": 2,
        "transformer_impl": "transformer_engine",
    },
    "megatron_uneven": {  # both ends of the model have the embedding, and the second stage more layers
        "num_layers": 3,
        "pipeline_model_parallel_size": 2,
        "num_layers_in_first_pipeline_stage": 1,
        "qk_layernorm": True,
        "untie_embeddings_and_output_weights": False,
    },
    "megatron_experts": {
        "tensor_model_parallel_size": 2,
        "pipeline_model_parallel_size": 2,
        "expert_model_parallel_size": 2,
        "transformer_impl": "transformer_engine",
        "qk_layernorm": True,
        "num_experts": 4,
        "moe_ffn_hidden_size": 6,
        "untie_embeddings_and_output_weights": False,
    },
}


def settings(case: str) -> Namespace:
    parallel = {"pipeline_model_parallel_size": 1, "virtual_pipeline_model_parallel_size": None}
    return Namespace(**(core.ARGS | SMALL | parallel | {"expert_model_parallel_size": 1} | CASES[case]))


def chunks(said: Namespace) -> list[GPTModel]:
    """The parts of the model that this rank has, one for each virtual stage."""
    last_stage, last_chunk = said.pipeline_model_parallel_size - 1, (said.virtual_pipeline_model_parallel_size or 1) - 1
    stage = parallel_state.get_pipeline_model_parallel_rank()
    return [
        core.built(
            said,
            pre_process=stage == chunk == 0,
            post_process=(stage, chunk) == (last_stage, last_chunk),
            vp_stage=chunk if last_chunk else None,
        )
        for chunk in range(last_chunk + 1)
    ]


def in_rank(rank: int, said: Namespace, world: int, place: Path, stacked: bool) -> None:
    torch.cuda.current_device = lambda: "cpu"
    torch.cuda.synchronize = lambda: None
    torch.Tensor.cuda = lambda tensor: tensor
    moe_utils.te_general_gemm = None
    distributed.init_process_group("gloo", init_method=f"file://{place}/meet_{world}", rank=rank, world_size=world)
    parallel_state.initialize_model_parallel(
        said.tensor_model_parallel_size,
        said.pipeline_model_parallel_size,
        said.virtual_pipeline_model_parallel_size,
        expert_model_parallel_size=said.expert_model_parallel_size,
    )
    initialize_rng_tracker(inference_rng_tracker=True)
    models, metadata = chunks(said), {"non_homogeneous_layers": not stacked}
    seeds, saved = place / "seeds", place / "torch_dist"
    if world == 1:
        recording.seed_weights(models[0], 3)
        seeds.mkdir()
        dist_checkpointing.save({"model": models[0].half().sharded_state_dict(metadata=metadata)}, str(seeds))
    else:
        state = {f"model{n}": m.half().sharded_state_dict(metadata=metadata) for n, m in enumerate(models)}
        loaded = dist_checkpointing.load(state, str(seeds))
        for n, model in enumerate(models):
            model.load_state_dict(loaded[f"model{n}"])
        if rank == 0:
            saved.mkdir()
        distributed.barrier()
        kept: dict[str, Any] = {"args": said, "checkpoint_version": 3.0, "iteration": ITERATION}
        names = ["model"] if len(models) == 1 else [f"model{n}" for n in range(len(models))]
        kept |= {name: m.sharded_state_dict(metadata=metadata) for name, m in zip(names, models, strict=True)}
        dist_checkpointing.save(kept, str(saved))
    folder = "whole/mp_rank_00" if world == 1 else f"run/iter_{ITERATION:07}/{rank_folder(said)}"
    if parallel_state.get_expert_data_parallel_rank() == 0:
        save(models, Namespace(**vars(said), rank=rank, world_size=world), place / folder)
    distributed.destroy_process_group()


def rank_folder(said: Namespace) -> str:
    name = f"mp_rank_{parallel_state.get_tensor_model_parallel_rank():02d}"
    if said.pipeline_model_parallel_size > 1:
        name += f"_{parallel_state.get_pipeline_model_parallel_rank():03d}"
    if said.expert_model_parallel_size > 1:
        name += f"_{parallel_state.get_expert_model_parallel_rank():03d}"
    return name


def save(models: list[GPTModel], args: Namespace, folder: Path) -> None:
    states = [core.named(model.state_dict_for_save_checkpoint(), args) for model in models]
    kept: dict[str, Any] = {"args": args, "checkpoint_version": 3.0, "iteration": ITERATION}
    names = ["model"] if len(states) == 1 else [f"model{n}" for n in range(len(states))]
    folder.mkdir(parents=True)
    torch.save(kept | dict(zip(names, states, strict=True)), folder / "model_optim_rng.pt")


def record(case: str, out: Path) -> None:
    said = settings(case)
    tensors, stages, experts = (
        getattr(said, f"{kind}_model_parallel_size") for kind in ("tensor", "pipeline", "expert")
    )
    single = {name: 1 for name in vars(said) if name.endswith("l_parallel_size")}
    single |= {"virtual_pipeline_model_parallel_size": None, "num_layers_in_first_pipeline_stage": None}
    with tempfile.TemporaryDirectory() as text:
        place = Path(text)
        for world, given in ((1, Namespace(**(vars(said) | single))), (tensors * stages * experts, said)):
            multiprocessing.start_processes(
                in_rank, (given, world, place, case in STACKED), nprocs=world, start_method="fork"
            )
        (place / "run/latest_checkpointed_iteration.txt").write_text(str(ITERATION))
        for name in ("run", "torch_dist", "whole"):
            shutil.copytree(place / name, out / case / name)


def main() -> None:
    os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    for case in sys.argv[2:] or CASES:
        shutil.rmtree(out / case, ignore_errors=True)
        record(case, out)


if __name__ == "__main__":
    main()
