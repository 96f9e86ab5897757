"""Record what nanotron's own Llama computes with small seeded weights, in the folders that nanotron itself saves.

The model runs on the CPU in one process; ranks that talk over gloo then load its folder, so that nanotron cuts it, and
save their parts. flash_attn, which wants a GPU, is replaced by plain torch: attention, RMS norms, and rotary embeddings of
neighbours, as its documentation defines them.

Usage: python run_nanotron.py OUT [--seed N], with nanotron 0.4 installed (`pip install --no-deps nanotron dacite`); writes
OUT/nanotron/CASE.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import recording
import torch
from torch import Tensor, distributed, multiprocessing, nn

LENGTH = 24
SIZES = {
    "vocab_size": recording.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
CASES: dict[str, tuple[dict[str, Any], int, int]] = {  # fields of the config, tensor-parallel ranks, stages
    "llama_tp2_pp2": ({"num_key_value_heads": 2}, 2, 2),
    "llama_tied": ({"num_key_value_heads": 4, "tie_word_embeddings": True}, 2, 1),
}


class Rotary(nn.Module):
    """flash_attn.layers.rotary.RotaryEmbedding, interleaved."""

    def __init__(self, dim: int, interleaved: bool = False, base: float = 10000.0) -> None:
        super().__init__()
        assert interleaved
        self.dim, self.base = dim, base

    def forward(self, q: Tensor, kv: Tensor) -> tuple[Tensor, Tensor]:
        angles = torch.outer(torch.arange(q.shape[1]), self.base ** (-torch.arange(0, self.dim, 2) / self.dim))
        cos, sin = angles.cos()[None, :, None], angles.sin()[None, :, None]

        def turned(x: Tensor) -> Tensor:
            even, odd = x[..., ::2], x[..., 1::2]
            return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)

        return turned(q), torch.stack((turned(kv[:, :, 0]), kv[:, :, 1]), 2)


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, **rest: Any) -> Tensor:
    """flash_attn_varlen_func of one sequence."""
    repeats = q.shape[1] // k.shape[1]
    q, k, v = (x.transpose(0, 1) for x in (q, k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)))
    return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(0, 1)


def norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, is_rms_norm: bool, **rest: Any) -> Tensor:
    assert is_rms_norm
    return nn.functional.rms_norm(x, (x.shape[-1],), weight, eps)


def import_nanotron() -> None:
    for package in ("flash_attn", "flash_attn.layers", "flash_attn.ops", "flash_attn.ops.triton"):
        recording.stand_in(package, __path__=[])
    recording.stand_in("flash_attn.bert_padding")
    recording.stand_in(
        "flash_attn.flash_attn_interface", flash_attn_varlen_func=attention, flash_attn_with_kvcache=None
    )
    recording.stand_in("flash_attn.layers.rotary", RotaryEmbedding=Rotary)
    recording.stand_in("flash_attn.ops.triton.layer_norm", layer_norm_fn=norm)
    # Its modules for logging and config import each other: logging gets a stand-in of the other until it is there.
    importlib.import_module("nanotron")
    recording.stand_in("nanotron.config", __path__=[])
    recording.stand_in("nanotron.config.config", LoggingArgs=object)
    importlib.import_module("nanotron.logging")
    for name in ("nanotron.config.config", "nanotron.config"):
        del sys.modules[name]


def target(state: Mapping[str, Tensor], fields: Mapping[str, Any]) -> dict[str, Tensor]:
    """The same weights under the names of the standard class."""
    heads, groups = SIZES["num_attention_heads"], fields["num_key_value_heads"]
    size = SIZES["hidden_size"] // heads
    found = {
        "model.embed_tokens.weight": state["model.token_position_embeddings.pp_block.token_embedding.weight"],
        "model.norm.weight": state["model.final_layer_norm.pp_block.weight"],
    }
    if not fields.get("tie_word_embeddings"):
        found["lm_head.weight"] = state["model.lm_head.pp_block.weight"]
    for i in range(SIZES["num_hidden_layers"]):
        ours, theirs = f"model.decoder.{i}.pp_block.", f"model.layers.{i}."
        queries, keys, values = state[f"{ours}attn.qkv_proj.weight"].split([n * size for n in (heads, groups, groups)])
        for letter, rows in {"q": queries, "k": keys}.items():
            by_head = rows.unflatten(0, (-1, size))
            found[f"{theirs}self_attn.{letter}_proj.weight"] = torch.cat(
                (by_head[:, ::2], by_head[:, 1::2]), 1
            ).flatten(0, 1)
        found[f"{theirs}self_attn.v_proj.weight"] = values
        found[f"{theirs}self_attn.o_proj.weight"] = state[f"{ours}attn.o_proj.weight"]
        gate, up = state[f"{ours}mlp.gate_up_proj.weight"].chunk(2)
        found |= {f"{theirs}mlp.gate_proj.weight": gate, f"{theirs}mlp.up_proj.weight": up}
        found[f"{theirs}mlp.down_proj.weight"] = state[f"{ours}mlp.down_proj.weight"]
        for name in ("input_layernorm.weight", "post_attention_layernorm.weight"):
            found[theirs + name] = state[ours + name]
    return {name: tensor.half().contiguous() for name, tensor in found.items()}


def in_rank(rank: int, fields: dict[str, Any], ranks: int, stages: int, place: Path, input_ids: Tensor) -> None:
    """Build the part of one rank and save it in `place`/step. The only rank seeds it and computes; others load that."""
    world = ranks * stages
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    distributed.init_process_group("gloo", init_method=f"file://{place}/meet_{world}", rank=rank, world_size=world)
    import_nanotron()
    from nanotron.config import LlamaConfig, ParallelismArgs
    from nanotron.models import build_model, llama
    from nanotron.parallel import ParallelContext
    from nanotron.parallel.pipeline_parallel.p2p import P2P
    from nanotron.serialize.metadata import TensorMetadata, save_meta
    from nanotron.serialize.weights import load_weights, save_weights
    from nanotron.trainer import mark_tied_parameters

    ParallelContext.set_device = lambda self: None
    hooks = TensorMetadata._metadata_config.type_hooks  # which cannot read what numpy 2 writes
    shapes = next(kind for kind in hooks if "int" in str(kind))
    read = hooks[shapes]
    hooks[shapes] = lambda shape: read(re.sub(r"np\.int64\((\d+)\)", r"\1", shape))
    llama.P2P = lambda group, device: P2P(group, torch.device("cpu"))
    context = ParallelContext(ranks, stages, 1)
    config, parallel = LlamaConfig(**SIZES, **fields), ParallelismArgs(dp=1, pp=stages, tp=ranks)
    model = build_model(
        lambda: llama.LlamaForTraining(config, context, parallel), context, torch.float32, device=torch.device("cpu")
    )
    mark_tied_parameters(model, context, parallel)
    if world == 1:
        recording.seed_weights(model, 1)
        with torch.no_grad():
            logits = model.model(input_ids=input_ids, input_mask=torch.ones_like(input_ids).bool())
        torch.save(logits.transpose(0, 1), place / "logits.pt")
        torch.save({n: p.data.clone() for n, p in model.named_parameters()}, place / "weights.pt")
    else:
        with torch.no_grad():
            load_weights(model, context, place / "single")
    folder = place / ("single" if world == 1 else "step")
    save_weights(model.half(), context, folder) if world > 1 else save_weights(model, context, folder)
    save_meta(context, folder, {"last_train_step": 10, "consumed_train_samples": 0})
    if rank == 0:
        (folder / "model_config.json").write_text(json.dumps(asdict(config)))
    distributed.destroy_process_group()


def main() -> None:
    options = recording.arguments(__doc__ or "")
    for case, (fields, ranks, stages) in CASES.items():
        input_ids = recording.ids(LENGTH, options.seed)
        with tempfile.TemporaryDirectory() as text:
            place = Path(text)
            for size in ((1, 1), (ranks, stages)):
                given = (fields, *size, place, input_ids)
                multiprocessing.start_processes(in_rank, given, nprocs=size[0] * size[1], start_method="fork")
            config = {**SIZES, "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2, **fields}
            recording.record(
                options.out / "nanotron" / case,
                {"spec": "nanotron_llama", "weights": ".", "tolerance": 2e-5},
                save=lambda source, saved=place / "step": shutil.copytree(saved, source, dirs_exist_ok=True),
                target=target(torch.load(place / "weights.pt", weights_only=False), fields),
                model_class="LlamaForCausalLM",
                config=config,
                input_ids=input_ids,
                logits=torch.load(place / "logits.pt"),
                notes={"nanotron": version("nanotron"), "tensor_parallel": ranks, "stages": stages},
            )


if __name__ == "__main__":
    main()
