"""Record small seeded models in the formats of published quantized ones, as Transformers' own readers dequantize them.

Qwen3 in FP8 blocks and GPT-OSS with its experts in MXFP4: the source is written here, at random; the target is what
Transformers makes of it when it loads it with `dequantize=True` and saves it again, the logits are its class's.

Usage: python run_quantized.py OUT [--seed N]; writes OUT/qwen3/CASE and OUT/gpt_oss/CASE.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import recording
import torch
import transformers
from run_deepseek_v3 import COLUMNS, ROWS, quantized
from safetensors.torch import load_file, save_file
from torch import Tensor

QWEN3 = {
    "vocab_size": recording.VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 50000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [ROWS, COLUMNS]}
GPT_OSS = {
    "vocab_size": recording.VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 150000.0,
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
                     "original_max_position_embeddings": 32},
    "router_aux_loss_coef": 0.9,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}  # fmt: skip
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}


def plain(fields: dict[str, Any]) -> dict[str, Any]:
    """The config in the words that the class takes."""
    rest = {name: value for name, value in fields.items() if name not in ("rope_theta", "rope_scaling")}
    scaled = fields.get("rope_scaling") or {"rope_type": "default"}
    return {**rest, "rope_parameters": {**scaled, "rope_theta": fields["rope_theta"]}}


def tensors(model_class: str, fields: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """The tensors of a seeded model of the class, in bfloat16."""
    model = recording.seeded_class(model_class, plain(fields), seed)
    return {name: tensor.detach().bfloat16().clone() for name, tensor in model.state_dict().items()}


def dequantized(model_class: str, source: Path, how: object) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """What Transformers reads and saves again; ids, and its class's logits in float32 on what it saved."""
    cls = getattr(transformers, model_class)
    with tempfile.TemporaryDirectory() as place:
        model = cls.from_pretrained(source, dtype=torch.bfloat16, quantization_config=how)
        model.save_pretrained(place)
        target = load_file(Path(place) / "model.safetensors")
        again = cls.from_pretrained(place, dtype=torch.float32, attn_implementation="eager")
        ids = recording.ids(40, 0)
        with torch.no_grad():
            return target, ids, again.eval()(input_ids=ids).logits


def record(
    out: Path, spec: str, model_class: str, fields: dict[str, Any], stored: dict[str, Tensor], method: object
) -> None:
    written = {**fields, "architectures": [model_class], "quantization_config": method,
               "model_type": getattr(transformers, model_class).config_class.model_type,
               "torch_dtype": "bfloat16"}  # fmt: skip

    def save(source: Path) -> None:
        save_file(stored, source / "model.safetensors", {"format": "pt"})
        (source / "config.json").write_text(json.dumps(written, indent=1) + "\n")

    how = {"fp8": transformers.FineGrainedFP8Config, "mxfp4": transformers.Mxfp4Config}[method["quant_method"]]
    with tempfile.TemporaryDirectory() as place:
        save(Path(place))
        blocks = {"weight_block_size": (ROWS, COLUMNS)} if method is FP8 else {}
        target, ids, logits = dequantized(model_class, Path(place), how(dequantize=True, **blocks))
    recording.record(
        out,
        {"spec": spec, "config": "config.json", "tolerance": 2e-5,
         "lossy": "quantizing anew would not restore the bits"},
        save=save, target=target, model_class=model_class, config=plain(fields), input_ids=ids, logits=logits,
        notes={"original": f"{model_class}, dequantized by Transformers"},
    )  # fmt: skip


def main() -> None:
    options = recording.arguments(__doc__ or "")
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors("Qwen3ForCausalLM", QWEN3, options.seed).items():
        stored[name] = tensor
        if "_proj." in name:
            stored[name], stored[f"{name}_scale_inv"] = quantized(tensor.float())
    record(options.out / "qwen3" / "fp8_blocks", "qwen3_fp8_qwen3", "Qwen3ForCausalLM", QWEN3, stored, FP8)

    random = torch.Generator().manual_seed(options.seed)
    stored = {}
    for name, tensor in tensors("GptOssForCausalLM", GPT_OSS, options.seed).items():
        if not name.endswith("experts.gate_up_proj") and not name.endswith("experts.down_proj"):
            stored[name] = tensor
            continue
        experts, columns, rows = tensor.shape
        groups = (experts, rows, columns // 32)
        stored[f"{name}_blocks"] = torch.randint(256, (*groups, 16), generator=random).to(torch.uint8)
        stored[f"{name}_scales"] = torch.randint(119, 125, groups, generator=random).to(torch.uint8)
    record(options.out / "gpt_oss" / "mxfp4", "gpt_oss_mxfp4_gpt_oss", "GptOssForCausalLM", GPT_OSS, stored, MXFP4)


if __name__ == "__main__":
    main()
