"""Small configs of many classes, and what the installed transformers makes of them: `python target_cases.py FOLDER`.

Run by test_target.py under each version of transformers, hence without pytest; prints one JSON object.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from compiler.diagnostics import Refusal
from compiler.target import config_dialects
from compiler.target import model_class as target

SMALL = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
GROUPED = SMALL | {"num_key_value_heads": 2, "rope_theta": 54321.0}
EXPERTS = GROUPED | {"num_experts_per_tok": 2}
TIED = {"head_dim": 8, "tie_word_embeddings": True}
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip

CASES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": GROUPED,
    "MistralForCausalLM": GROUPED | {"head_dim": 8},
    "Qwen2ForCausalLM": GROUPED | {"tie_word_embeddings": True},
    "Qwen3ForCausalLM": GROUPED | {"head_dim": 16, "tie_word_embeddings": True},
    "Qwen3MoeForCausalLM": EXPERTS | {
        "head_dim": 8, "moe_intermediate_size": 24, "num_experts": 4, "mlp_only_layers": [1],
    },
    "MixtralForCausalLM": EXPERTS | {"num_local_experts": 4},
    "GraniteMoeSharedForCausalLM": EXPERTS | {"num_local_experts": 4, "shared_intermediate_size": 40},
    "PhimoeForCausalLM": EXPERTS | {"num_local_experts": 4},
    "Phi3ForCausalLM": GROUPED | {"pad_token_id": 0},
    "PhiForCausalLM": GROUPED | {"partial_rotary_factor": 0.5, "pad_token_id": 0},
    "PersimmonForCausalLM": SMALL | {"rope_theta": 54321.0, "partial_rotary_factor": 0.5, "pad_token_id": 0},
    "GPT2LMHeadModel": {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "GPTNeoXForCausalLM": SMALL | {"rotary_emb_base": 54321.0, "rotary_pct": 0.5},
    "FalconForCausalLM": {
        "vocab_size": 96, "hidden_size": 32, "ffn_hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_kv_heads": 2, "new_decoder_architecture": True, "rope_theta": 54321.0,
    },
    "GemmaForCausalLM": GROUPED | TIED,
    "Gemma2ForCausalLM": GROUPED | TIED,
    "Gemma3ForCausalLM": GROUPED | TIED | {"rope_local_base_freq": 777.0},
    "OPTForCausalLM": {
        "vocab_size": 96, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 64, "word_embed_proj_dim": 32, "tie_word_embeddings": True,
    },
    "OlmoForCausalLM": GROUPED | {"tie_word_embeddings": False},
    "DeepseekV3ForCausalLM": GROUPED | {
        "num_key_value_heads": 4, "moe_intermediate_size": 24, "n_routed_experts": 4, "n_group": 2, "topk_group": 1,
        "num_experts_per_tok": 2, "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 16,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    },
    "RwkvForCausalLM": {
        "vocab_size": 96, "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2,
        "intermediate_size": 48, "context_length": 64,
    },
    "MambaForCausalLM": {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "WhisperForConditionalGeneration": {
        "vocab_size": 96, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_mel_bins": 8,
        "max_source_positions": 16, "max_target_positions": 16, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "decoder_start_token_id": 1, "tie_word_embeddings": True, "num_hidden_layers": 1,
    },
    "GptOssForCausalLM": EXPERTS | {"num_local_experts": 4, "head_dim": 8, "attention_bias": True},
    "MarianMTModel": {
        "vocab_size": 96, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
        "pad_token_id": 0, "decoder_start_token_id": 0, "tie_word_embeddings": True,
    },
    "T5ForConditionalGeneration": {
        "vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4,
        "decoder_start_token_id": 0,
    },
    "BertForMaskedLM": SMALL | {"tie_word_embeddings": True},
    "ViTForImageClassification": VISION,
    "CLIPModel": {
        "projection_dim": 16, "text_config": SMALL | {"projection_dim": 16},
        "vision_config": VISION | {"projection_dim": 16},
    },
}  # fmt: skip

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 32.0, "beta_slow": 1.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
FACTORS = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0, 3.0, 4.0, 5.0]}
LONG = {"pad_token_id": 0, "original_max_position_embeddings": 16}
THETA = {"rope_theta": 54321.0}
# The same embedding in the words of either generation: NAME and NAME_inside.
ROPES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("LlamaForCausalLM", THETA),
    "plain_inside": ("LlamaForCausalLM", {"rope_parameters": THETA | {"rope_type": "default"}}),
    "yarn": ("Qwen3ForCausalLM", {"head_dim": 8, "rope_scaling": YARN} | THETA),
    "yarn_inside": ("Qwen3ForCausalLM", {"head_dim": 8, "rope_parameters": THETA | YARN}),
    "llama3": ("LlamaForCausalLM", {"rope_scaling": LLAMA3} | THETA),
    "llama3_inside": ("LlamaForCausalLM", {"rope_parameters": THETA | LLAMA3}),
    "long": ("Phi3ForCausalLM", LONG | {"rope_scaling": {"type": "longrope"} | FACTORS} | THETA),
    "long_inside": ("Phi3ForCausalLM", LONG | {"rope_parameters": {"rope_type": "longrope"} | FACTORS | THETA}),
    "partial": ("PhiForCausalLM", {"pad_token_id": 0, "partial_rotary_factor": 0.5} | THETA),
    "partial_inside": ("GPTNeoXForCausalLM", {"rotary_emb_base": 54321.0, "rotary_pct": 0.5}),
}


def config_of(model_class: str, fields: dict[str, Any]) -> dict[str, Any]:
    kind = target.model_type(model_class)
    return config_dialects.config_json(fields, model_class=model_class, model_type=kind, dtype="float32")


def saved(model_class: str, config: dict[str, Any], folder: Path) -> tuple[dict[str, list[int]], dict[str, list[str]]]:
    """Names and shapes in the file that the class writes, and each saved name's other names in memory."""
    import transformers

    cls = getattr(transformers, model_class)
    model = cls(cls.config_class.from_dict(json.loads(json.dumps(config))))
    model.save_pretrained(folder / model_class)
    with open(folder / model_class / "model.safetensors", "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    header.pop("__metadata__", None)
    places: dict[int, list[str]] = {}
    for name, tensor in model.state_dict().items():
        places.setdefault(tensor.data_ptr() if tensor.numel() else id(tensor), []).append(name)
    shared = {name: names for names in places.values() for name in names if len(names) > 1 and name in header}
    return {name: entry["shape"] for name, entry in header.items()}, shared


def misread_fields(model_class: str, config: dict[str, Any]) -> Mapping[str, Any]:
    """Field -> (what `config` says, what the class understands), for those that the installed version reads otherwise."""
    made = target.class_of(model_class).config_class.from_dict(json.loads(config_dialects.json_text(config)))
    return target.different(made, config)


def signature_case(model_class: str, folder: Path) -> dict[str, Any]:
    config = config_of(model_class, CASES[model_class])
    got = target.signature(model_class, config)
    shapes, shared = saved(model_class, config, folder)
    return {
        "got": got.shapes,
        "saved": shapes,
        "ties": got.ties,
        "shared": shared,
        "misread": misread_fields(model_class, config),
        "unlisted": sorted(CASES[model_class].keys() - target.config_fields(model_class).keys()),
    }


def rope_case(name: str, folder: Path) -> dict[str, Any]:
    """The inverse frequencies and the scale of attention that a model loaded from the written config.json computes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model_class, fields = ROPES[name]
    place = folder / f"rope_{name}"
    place.mkdir()
    (place / "config.json").write_text(config_dialects.json_text(config_of(model_class, SMALL | fields)))
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(place))
    rotary = next(module for module in model.modules() if hasattr(module, "inv_freq"))
    model.config.save_pretrained(place / "again")
    again = config_dialects.read_config(json.loads((place / "again/config.json").read_text()))
    words = ("rope_theta", "rope_scaling", "partial_rotary_factor", "original_max_position_embeddings")
    return {
        "inv_freq": rotary.inv_freq.tolist(),
        "scale": rotary.attention_scaling,
        "again": {key: again[key] for key in words if key in again},
    }


def guarded(case: Callable[[str, Path], dict[str, Any]], name: str, folder: Path) -> dict[str, Any]:
    try:
        return case(name, folder)
    except Refusal as refusal:
        return {"refused": str(refusal)}


def main(folder: Path) -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    json.dump(
        {
            "version": transformers.__version__,
            "signatures": {
                name: guarded(signature_case, name, folder) for name in CASES if hasattr(transformers, name)
            },
            "ropes": {name: guarded(rope_case, name, folder) for name in ROPES},
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
