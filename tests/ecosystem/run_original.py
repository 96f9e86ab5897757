"""Runs the program that owns a layout on a folder that `--reverse` or `--to` wrote, in a Python that has it.

Usage: python run_original.py FAMILY FOLDER INPUT OUT: INPUT is a tensor (ids or pixels) or a dictionary of them, and OUT gets
the logits (float32) or tokens, both by torch.save. Loads as the program's own users do, and never with `strict=False`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch


def litgpt(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    from litgpt import GPT, Config

    model = GPT(Config.from_file(folder / "model_config.yaml"))
    model.load_state_dict(torch.load(folder / "lit_model.pth", weights_only=True))
    return model.eval()(ids)


def torchtune(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """By its model builder, whose arguments are those that the manifest records, and its own checkpointer, which needs an
    older torchao (see the Makefile)."""
    sys.path.insert(0, str(Path(sys.prefix) / "torchao-0.13"))
    from torchtune.models.llama3_1 import llama3_1
    from torchtune.training import FullModelTorchTuneCheckpointer

    checkpointer = FullModelTorchTuneCheckpointer(
        folder, ["model.pt"], "LLAMA3", output_dir=folder.parent / "torchtune"
    )
    recorded = json.loads((folder / "mapspec.json").read_text())["settings"]
    names = "vocab_size num_layers num_heads num_kv_heads embed_dim max_seq_len intermediate_dim rope_base norm_eps"
    settings = {name: recorded[name] for name in names.split() if name in recorded}
    model = llama3_1(**settings, scale_factor=recorded["scale_factor"] or 1)
    model.load_state_dict(checkpointer.load_checkpoint()["model"])
    return model.eval()(ids)


def timm(folder: Path, pixels: torch.Tensor) -> torch.Tensor:
    """The network's sizes are arguments of timm's class, as the manifest records them."""
    import timm.models.vision_transformer
    from safetensors.torch import load_file

    of = json.loads((folder / "mapspec.json").read_text())["settings"]
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=of["image_size"],
        patch_size=of["patch_size"],
        embed_dim=of["embed_dim"],
        depth=of["depth"],
        num_heads=of["num_heads"],
        mlp_ratio=of["mlp_width"] / of["embed_dim"],
        num_classes=of["num_classes"],
    )
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()})
    return model.eval()(pixels)


def torchtitan(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """The model's sizes are in torchtitan's code, here in that of the recorder."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "recorders"))
    import run_torchtitan as recorder

    recorder.ScaledDotProductAttention.sdpa_backends = [torch.nn.attention.SDPBackend.MATH]
    config = next(f for f in recorder.FAMILIES.values() if f.spec == _spec(folder)).config()
    for layer in config.layers:
        layer.attention.inner_attention = recorder.ScaledDotProductAttention.Config()
    model = config.build()
    state = torch.load(next(folder.glob("*.pt*")), weights_only=True)
    model.load_state_dict(state)
    return model.float().eval()(ids, positions=torch.arange(ids.shape[1])[None])


def mistral_inference(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """By its own loader, which reads params.json; torch's attention stands in for that of xformers."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "recorders"))
    import run_mistral_inference as recorder

    recorder._xformers()
    from mistral_inference.cache import BufferCache
    from mistral_inference.transformer import Transformer

    model = Transformer.from_folder(folder, device="cpu", dtype=torch.float32)
    of = model.args
    cache = BufferCache(of.n_layers, 1, ids.shape[1], of.n_kv_heads, of.head_dim, of.sliding_window)
    return model(ids[0], [ids.shape[1]], cache=cache)[None]


def whisper(folder: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """By its own loader, which reads the sizes from the file."""
    import whisper

    model = whisper.load_model(str(next(folder.glob("*.pt"))), device="cpu").float()
    return model(inputs["input_features"].float(), inputs["decoder_input_ids"])


def _spec(folder: Path) -> str:
    return str(json.loads((folder / "mapspec.json").read_text())["spec"]["name"])


def megatron(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """Megatron-Core's own GPT in one process for each rank file, which talk over gloo. The step is the one that the tracker
    file names; the sizes and the grid are those of the stored arguments."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "recorders"))
    from torch import multiprocessing

    step = folder / (folder / "latest_checkpointed_iteration.txt").read_text()
    # The order of Megatron's ranks: tensor parallel first, then expert parallel, pipeline stages last.
    files = sorted(step.glob("mp_rank_*/model_optim_rng.pt"), key=_megatron_order)
    work = folder.parent / "megatron"
    work.mkdir()
    multiprocessing.start_processes(_megatron_rank, (files, ids, work), nprocs=len(files), start_method="fork")
    logits: torch.Tensor = torch.load(work / "logits.pt")
    return logits


def megatron_dist(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """Megatron-Core's own GPT, which loads a distributed checkpoint in two tensor-parallel ranks; sizes are those of the
    arguments in `common.pt`."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "recorders"))
    from torch import multiprocessing

    work = folder.parent / "megatron"
    work.mkdir()
    multiprocessing.start_processes(_megatron_dist_rank, (folder, ids, work), nprocs=2, start_method="fork")
    logits: torch.Tensor = torch.load(work / "logits.pt")
    return logits


def _megatron_dist_rank(rank: int, folder: Path, ids: torch.Tensor, work: Path) -> None:
    from argparse import Namespace

    from megatron.core import dist_checkpointing

    core = _megatron_start(rank, [2, 1, 1], work)
    common = dist_checkpointing.load_common_state_dict(str(folder))
    sizes = {"tensor_model_parallel_size": 2}
    model = core.built(Namespace(**{**core.ARGS, **vars(common["args"]), **sizes})).eval()
    strict = dist_checkpointing.validation.StrictHandling.RETURN_ALL
    state = {"model": model.sharded_state_dict()}
    loaded, unread, absent = dist_checkpointing.load(state, str(folder), strict=strict)
    assert not unread, unread
    assert all(name.endswith("_extra_state") for name in absent), absent  # the scales of FP8 training
    model.load_state_dict(loaded["model"])
    masked = torch.ones(1, 1, ids.shape[1], ids.shape[1]).triu(1).bool()
    with torch.no_grad():
        result = model(ids, torch.arange(ids.shape[1])[None], masked)
    if rank == 0:
        torch.save(result, work / "logits.pt")


def _megatron_start(rank: int, sizes: list[int], work: Path) -> Any:
    """Join the processes of a tensor-, pipeline- and expert-parallel grid, on the CPU; returns the recorder's module."""
    import run_megatron_core as core
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import initialize_rng_tracker
    from megatron.core.transformer.moe import moe_utils
    from torch import distributed

    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment, return-value]
    torch.cuda.synchronize = lambda: None  # type: ignore[assignment, misc]
    torch.Tensor.cuda = lambda tensor: tensor  # type: ignore[assignment, method-assign, misc]
    moe_utils.te_general_gemm = None
    world = sizes[0] * sizes[1] * sizes[2]
    distributed.init_process_group("gloo", init_method=f"file://{work}/meet", rank=rank, world_size=world)
    parallel_state.initialize_model_parallel(sizes[0], sizes[1], expert_model_parallel_size=sizes[2])
    initialize_rng_tracker(inference_rng_tracker=True)
    return core


def _megatron_order(file: Path) -> list[str]:
    tensor, *others = file.parent.name.removeprefix("mp_rank_").split("_")
    return [*others, tensor]


def _megatron_rank(rank: int, files: list[Path], ids: torch.Tensor, work: Path) -> None:
    from argparse import Namespace

    from megatron.core import parallel_state
    from torch import distributed

    stored = torch.load(files[rank], weights_only=False)
    sizes = [getattr(stored["args"], f"{axis}_model_parallel_size") for axis in ("tensor", "pipeline", "expert")]
    core = _megatron_start(rank, sizes, work)
    said = Namespace(**{**core.ARGS, **vars(stored["args"])})
    stage, last = parallel_state.get_pipeline_model_parallel_rank(), sizes[1] - 1
    assert files[rank].parent.name == _megatron_name(parallel_state, sizes)
    model = core.built(said, pre_process=stage == 0, post_process=stage == last).eval()
    model.load_state_dict(stored["model"])
    length, neighbour = ids.shape[1], len(files) // sizes[1]
    masked = torch.ones(1, 1, length, length).triu(1).bool()
    with torch.no_grad():
        if stage:
            hidden = torch.empty(length, len(ids), said.hidden_size)
            distributed.recv(hidden, rank - neighbour)
            model.set_input_tensor(hidden)
        result = model(ids, torch.arange(length)[None], masked)
    if stage < last:
        distributed.send(result.contiguous(), rank + neighbour)
    elif rank == len(files) - 1:
        torch.save(result, work / "logits.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def _megatron_name(parallel_state: Any, sizes: list[int]) -> str:
    name = f"mp_rank_{parallel_state.get_tensor_model_parallel_rank():02d}"
    name += f"_{parallel_state.get_pipeline_model_parallel_rank():03d}" * (sizes[1] > 1)
    return name + f"_{parallel_state.get_expert_model_parallel_rank():03d}" * (sizes[2] > 1)


def gguf(file: Path, ids: torch.Tensor) -> torch.Tensor:
    """16 greedy tokens of llama.cpp after each row, not logits; over HTTP, since only that answers with ids."""
    from urllib.request import Request, urlopen

    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx, settings.warmup, settings.cpuparams.n_threads = 256, False, 1
    server = xllamacpp.Server(settings)
    rows = []
    for row in ids.tolist():
        asked = {"prompt": row, "n_predict": 16, "temperature": 0, "ignore_eos": True, "return_tokens": True}
        address = f"{server.listening_address}/completion"
        with urlopen(Request(address, json.dumps(asked).encode(), {"Content-Type": "application/json"})) as answer:
            rows.append(json.load(answer)["tokens"])
    return torch.tensor(rows)


if __name__ == "__main__":
    family, folder, given, out = sys.argv[1:]
    programs = {"litgpt": litgpt, "torchtune": torchtune, "timm": timm, "gguf": gguf, "megatron": megatron}
    programs |= {"megatron_dist": megatron_dist, "torchtitan": torchtitan}
    programs |= {"mistral_inference": mistral_inference, "whisper": whisper}
    with torch.no_grad():
        result = programs[family](Path(folder), torch.load(given, weights_only=True))
    torch.save(result if family == "gguf" else result.float(), out)
