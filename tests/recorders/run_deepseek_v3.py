"""Record a small seeded DeepSeek-V3 in FP8 blocks, with a layer that predicts further tokens, as it is published.

The weights are quantized here, block by block, and multiplied by their scales again through a Kronecker product; the
logits are those of the class with those weights.

Usage: python run_deepseek_v3.py OUT [--seed N]; writes OUT/deepseek_v3/CASE.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import recording
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

CLASS = "DeepseekV3ForCausalLM"
ROWS, COLUMNS = 16, 32  # of a block; published are 128 of each
LARGEST = torch.finfo(torch.float8_e4m3fn).max
SIZES = {
    "vocab_size": recording.VOCABULARY,
    "hidden_size": 40,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_shared_experts": 2,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "n_group": 2,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.7,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 20,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "attention_bias": False,
}
# Every matrix in whole blocks: the only kind that the reader of Transformers takes.
WHOLE = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_hidden_layers": 2, "kv_lora_rank": 32,
         "qk_rope_head_dim": 16, "q_lora_rank": None}  # fmt: skip
YARN = {"beta_fast": 32, "beta_slow": 1, "factor": 4, "mscale": 1.0, "mscale_all_dim": 0.7,
        "original_max_position_embeddings": 16, "type": "yarn"}  # fmt: skip
PUBLISHED = {
    "model_type": "deepseek_v3",
    "architectures": [CLASS],
    "ep_size": 1,
    "hidden_act": "silu",
    "moe_layer_freq": 1,
    "num_nextn_predict_layers": 1,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [ROWS, COLUMNS],
    },
    "rope_scaling": YARN,
    "rope_theta": 10000,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
}


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The FP8 numbers of a matrix and one scale for each block, by which the largest number of the block is 448."""
    height, width = weight.shape
    scale = torch.empty(-(-height // ROWS), -(-width // COLUMNS))
    numbers = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            block = (slice(i * ROWS, (i + 1) * ROWS), slice(j * COLUMNS, (j + 1) * COLUMNS))
            scale[i, j] = weight[block].abs().max() / LARGEST
            numbers[block] = (weight[block] / scale[i, j]).to(torch.float8_e4m3fn)
    return numbers, scale


def dequantized(numbers: Tensor, scale: Tensor) -> Tensor:
    spread = torch.kron(scale, torch.ones(ROWS, COLUMNS))[: numbers.shape[0], : numbers.shape[1]]
    return (numbers.float() * spread).bfloat16()


def written(model: Any, place: Path) -> dict[str, Tensor]:
    """The tensors of a model under the names of its files."""
    model.save_pretrained(place)
    return load_file(place / "model.safetensors")


def further(state: dict[str, Tensor], layers: int, random: torch.Generator) -> dict[str, Tensor]:
    """A layer behind the last, with the names that such a layer has more."""
    last = f"model.layers.{layers - 1}."
    names = {name.removeprefix(last): tensor.shape for name, tensor in state.items() if name.startswith(last)}
    embedding = state["model.embed_tokens.weight"].shape
    hidden = embedding[1:]
    names |= {"enorm.weight": hidden, "hnorm.weight": hidden, "shared_head.norm.weight": hidden}
    names |= {
        "eh_proj.weight": (*hidden, 2 * hidden[0]),
        "embed_tokens.weight": embedding,
        "shared_head.head.weight": embedding,
    }
    return {f"model.layers.{layers}.{name}": torch.randn(shape, generator=random) for name, shape in names.items()}


def record(out: Path, case: str, seed: int, more: dict[str, Any]) -> None:
    sizes = {**SIZES, **more}
    scaled = {"rope_type": "yarn", "rope_theta": 10000.0, **{n: v for n, v in YARN.items() if n != "type"}}
    model = recording.seeded_class(CLASS, {**sizes, "rope_parameters": scaled}, seed)
    random = torch.Generator().manual_seed(seed)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.rand(buffer.shape, generator=random) * 0.4)  # never below zero: see ORIGIN.md
    with tempfile.TemporaryDirectory() as place:
        state = written(model, Path(place))
    source: dict[str, Tensor] = {}
    target: dict[str, Tensor] = {}
    layers = sizes["num_hidden_layers"]
    for name, tensor in (state | further(state, layers, random)).items():
        ours = not name.startswith(f"model.layers.{layers}.")
        if "_proj" in name and "eh_proj" not in name:
            source[name], source[f"{name}_scale_inv"] = quantized(tensor)
            target |= {name: dequantized(source[name], source[f"{name}_scale_inv"])} if ours else {}
        else:
            source[name] = tensor.float() if name.endswith("bias") else tensor.bfloat16()
            target |= {name: source[name]} if ours else {}

    def save(folder: Path) -> None:
        save_file(source, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps({**PUBLISHED, **sizes}, indent=1) + "\n")

    input_ids = recording.ids(40, seed)
    with tempfile.TemporaryDirectory() as place:
        model.config.save_pretrained(place)
        save_file(target, Path(place) / "model.safetensors", {"format": "pt"})
        plain = getattr(transformers, CLASS).from_pretrained(place, dtype=torch.float32, attn_implementation="eager")
        with torch.no_grad():
            logits = plain.eval()(input_ids=input_ids).logits
    recording.record(
        out / "deepseek_v3" / case,
        {"spec": "deepseek_v3_fp8_deepseek_v3", "config": "config.json", "tolerance": 2e-5,
         "lossy": "quantizing anew would not restore the bits"},
        save=save, target=target, model_class=CLASS, config={**sizes, "rope_parameters": scaled}, input_ids=input_ids,
        logits=logits, notes={"original": CLASS},
    )  # fmt: skip


def main() -> None:
    options = recording.arguments(__doc__ or "")
    record(options.out, "fp8_blocks", options.seed, {"q_lora_rank": 24})
    record(options.out, "fp8_whole_blocks", options.seed + 1, WHOLE)


if __name__ == "__main__":
    main()
