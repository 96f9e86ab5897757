"""Record a small seeded DeepSeek-V3 as the inference shards that DeepSeek's own convert.py writes, with its own model's logits.

ORIGINALS is a folder of those files as `make test-oracles` fetches them: `deepseek_v3/convert.py` and `deepseek_v3/model.py`
(deepseek-ai/DeepSeek-V3, inference/, 9b4e978). The model runs in float32 on the target's numbers; its kernels are for FP8 and
are not called. It has a bias for the choice of experts at the width of the released model alone, so it is given one here.

Usage: python run_deepseek_shards.py OUT [--seed N] --originals ORIGINALS; writes OUT/deepseek_v3/CASE.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import recording
import run_deepseek_v3
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

PARTS = 2
BLOCK = [run_deepseek_v3.ROWS, run_deepseek_v3.COLUMNS]
# Every matrix has an even number of blocks along the axis that is cut.
SIZES = {**run_deepseek_v3.SIZES, "hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 32, "num_hidden_layers": 2,
         "q_lora_rank": 32, "kv_lora_rank": 48, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16}  # fmt: skip
YARN = {**run_deepseek_v3.YARN, "mscale": 0.7, "mscale_all_dim": 0.7}  # one number in the shards' config


def theirs(sizes: dict[str, Any]) -> dict[str, Any]:
    """The same sizes in the words of the inference config."""
    return {
        "vocab_size": sizes["vocab_size"], "dim": sizes["hidden_size"], "inter_dim": sizes["intermediate_size"],
        "moe_inter_dim": sizes["moe_intermediate_size"], "n_layers": sizes["num_hidden_layers"],
        "n_dense_layers": sizes["first_k_dense_replace"], "n_heads": sizes["num_attention_heads"],
        "n_routed_experts": sizes["n_routed_experts"], "n_shared_experts": sizes["n_shared_experts"],
        "n_activated_experts": sizes["num_experts_per_tok"], "n_expert_groups": sizes["n_group"],
        "n_limited_groups": sizes["topk_group"], "route_scale": sizes["routed_scaling_factor"], "score_func": "sigmoid",
        "q_lora_rank": sizes["q_lora_rank"], "kv_lora_rank": sizes["kv_lora_rank"],
        "qk_nope_head_dim": sizes["qk_nope_head_dim"], "qk_rope_head_dim": sizes["qk_rope_head_dim"],
        "v_head_dim": sizes["v_head_dim"], "dtype": "bf16", "mscale": YARN["mscale"], "rope_factor": float(YARN["factor"]),
        "original_seq_len": YARN["original_max_position_embeddings"],
        "max_seq_len": YARN["factor"] * YARN["original_max_position_embeddings"],
    }  # fmt: skip


def own_logits(model_file: Any, shard: Path, arguments: dict[str, Any], input_ids: Tensor) -> Tensor:
    """The logits of DeepSeek's model (1 x length x vocabulary) with the tensors of the one shard, in float32."""
    model = model_file.Transformer(model_file.ModelArgs(**arguments))
    for module in model.modules():
        if isinstance(module, model_file.Gate):
            module.bias = nn.Parameter(torch.empty(arguments["n_routed_experts"]))
    model.load_state_dict(load_file(shard))
    model = model.float()
    prefixes = [input_ids[:, : n + 1] for n in range(input_ids.shape[1])]
    return torch.stack([model(prefix) for prefix in prefixes], 1)  # it returns the last position alone


def record(out: Path, case: str, seed: int, convert: Any, model_file: Any) -> None:
    sizes = SIZES
    scaled = {"rope_type": "yarn", "rope_theta": 10000.0, **{n: v for n, v in YARN.items() if n != "type"}}
    model = recording.seeded_class(run_deepseek_v3.CLASS, {**sizes, "rope_parameters": scaled}, seed)
    random = torch.Generator().manual_seed(seed)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.rand(buffer.shape, generator=random) * 0.4)  # never below zero: see ORIGIN.md
    with tempfile.TemporaryDirectory() as place:
        state = run_deepseek_v3.written(model, Path(place))
    published: dict[str, Tensor] = {}
    target: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if "_proj" in name:
            published[name], published[f"{name}_scale_inv"] = run_deepseek_v3.quantized(tensor)
            target[name] = run_deepseek_v3.dequantized(published[name], published[f"{name}_scale_inv"])
        else:
            published[name] = target[name] = tensor.float() if name.endswith("bias") else tensor.bfloat16()

    def cut(tensors: dict[str, Tensor], folder: Path, parts: int) -> None:
        with tempfile.TemporaryDirectory() as hub:
            save_file(tensors, Path(hub) / "model.safetensors", {"format": "pt"})
            convert.main(hub, str(folder), sizes["n_routed_experts"], parts)

    def save(folder: Path) -> None:
        cut(published, folder, PARTS)
        stated = {**theirs(sizes), "dtype": "fp8", "weight_block_size": BLOCK}
        (folder / "config_tiny.json").write_text(json.dumps(stated, indent=1) + "\n")

    input_ids = recording.ids(40, seed)
    with tempfile.TemporaryDirectory() as place:
        cut(target, Path(place), 1)
        logits = own_logits(model_file, Path(place) / "model0-mp1.safetensors", theirs(sizes), input_ids)
    recording.record(
        out / "deepseek_v3" / case,
        {"spec": "deepseek_mp_deepseek_v3", "weights": ".", "config": "config_tiny.json", "tolerance": 2e-5,
         "lossy": "quantizing anew would not restore the bits"},
        save=save, target=target, model_class=run_deepseek_v3.CLASS, config={**sizes, "rope_parameters": scaled},
        input_ids=input_ids, logits=logits, notes={"original": "deepseek-ai/DeepSeek-V3 9b4e978, inference/model.py"},
    )  # fmt: skip


def main() -> None:
    options = recording.arguments(__doc__ or "", "--originals")
    absent = dict.fromkeys(("act_quant", "weight_dequant", "fp8_gemm"))
    recording.stand_in("kernel", **absent)  # Triton's; FP8 alone calls them
    sys.path.insert(0, str(options.originals / "deepseek_v3"))
    convert, model_file = importlib.import_module("convert"), importlib.import_module("model")
    record(options.out, "shards", options.seed, convert, model_file)


if __name__ == "__main__":
    main()
