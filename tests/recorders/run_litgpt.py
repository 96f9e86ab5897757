"""Record what LitGPT's own model and its own converters make of small seeded checkpoints.

Usage: python run_litgpt.py OUT [--seed N], with litgpt installed; writes OUT/litgpt/CASE.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import recording
import torch
from litgpt import GPT, Config
from litgpt.scripts import convert_hf_checkpoint as from_hf
from litgpt.scripts import convert_lit_checkpoint as to_hf
from litgpt.utils import save_config

# What makes a model of the family small; heads 4, groups 2.
SMALL = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_query_groups": 2, "head_size": 8, "intermediate_size": 48}
SIZES = {"block_size": 64, "vocab_size": 128, "padded_vocab_size": 128}
DENSE = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
}


@dataclass(frozen=True)
class Family:
    spec: str
    name: str  # LitGPT's name of the config, which decides what its converter does
    copy: str
    model_class: str
    config: dict[str, Any]  # of the standard class, beside DENSE
    changes: dict[str, Any] = field(default_factory=dict)  # to LitGPT's config, beside SMALL
    assigned: dict[str, Any] = field(default_factory=dict)
    omitted: tuple[str, ...] = ()  # of DENSE
    tolerance: float = 2e-5  # of logits below 10
    backwards: bool = False  # asked from the standard class's side


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_seq_len": 16}
FALCON = {
    "activation": "gelu",
    "alibi": False,
    "bias": False,
    "parallel_attn": True,
    "ffn_hidden_size": 48,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 11,
    "eos_token_id": 11,
}
FAMILIES = {
    "llama31_scaled": Family(
        "litgpt_llama",
        "Llama-3.1-8B",
        "copy_weights_llama",
        "LlamaForCausalLM",
        {
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "head_dim": 8,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
        {"rope_adjustments": LLAMA3},
    ),
    "mistral_window": Family(
        "litgpt_mistral",
        "Mistral-7B-v0.1",
        "copy_weights_llama",
        "MistralForCausalLM",
        {"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "head_dim": 8, "sliding_window": 8},
        {"sliding_window_size": 8, "sliding_window_indices": [1, 1]},
    ),
    "qwen25": Family(
        "litgpt_qwen2",
        "Qwen2.5-0.5B",
        "copy_weights_qwen_2_5",
        "Qwen2ForCausalLM",
        {"rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "use_sliding_window": False, "sliding_window": None},
    ),
    "qwen3": Family(
        "litgpt_qwen3",
        "Qwen3-8B",
        "copy_weights_qwen_3",
        "Qwen3ForCausalLM",
        {"rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "head_dim": 12, "sliding_window": None},
        {"head_size": 12},
    ),
    "qwen3_moe": Family(
        "litgpt_qwen3_moe",
        "Qwen3-30B-A3B",
        "copy_weights_qwen_3",
        "Qwen3MoeForCausalLM",
        {
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "head_dim": 8,
            "num_experts": 12,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 16,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "sliding_window": None,
        },
        {"n_expert": 12, "n_expert_per_token": 3, "moe_intermediate_size": 16},
    ),
    "mixtral": Family(
        "litgpt_mixtral",
        "Mixtral-8x7B-v0.1",
        "copy_weights_llama",
        "MixtralForCausalLM",
        {
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0,
            "head_dim": 8,
            "num_local_experts": 11,
            "num_experts_per_tok": 2,
            "intermediate_size": 16,
            "sliding_window": None,
        },
        {"n_expert": 11, "n_expert_per_token": 2, "intermediate_size": 16},
    ),
    "gemma2": Family(
        "litgpt_gemma2",
        "Gemma-2-2b",
        "copy_weights_gemma_2",
        "Gemma2ForCausalLM",
        {
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "head_dim": 8,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 20.0,
            "final_logit_softcapping": 10.0,
            "sliding_window": 8,
        },
        {
            "attention_scores_scalar": 16,
            "attention_logit_softcapping": 20.0,
            "final_logit_softcapping": 10.0,
            "sliding_window_size": 8,
            "sliding_window_indices": [1, 0],
        },
    ),
    "gemma3": Family(
        "litgpt_gemma3",
        "Gemma-3-4b-it",
        "copy_weights_gemma_3",
        "Gemma3ForCausalLM",
        {
            "num_hidden_layers": 7,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "head_dim": 8,
            "query_pre_attn_scalar": 16,
            "sliding_window": 8,
        },
        {"n_layer": 7, "attention_scores_scalar": 16, "sliding_window_size": 8},
        tolerance=1e-4,  # the logits reach 40
    ),
    "gemma": Family(
        "litgpt_gemma",
        "Gemma-2b",
        "copy_weights_llama",
        "GemmaForCausalLM",
        {"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "head_dim": 8},
        tolerance=1e-4,  # the logits reach 33
    ),
    "falcon_7b": Family(
        "litgpt_falcon",
        "falcon-7b",
        "copy_weights_falcon",
        "FalconForCausalLM",
        {"new_decoder_architecture": False, "multi_query": True, "num_kv_heads": 1, **FALCON},
        {"n_query_groups": 1},
        {"tie_word_embeddings": False},
        ("intermediate_size", "num_key_value_heads"),
    ),
    # LitGPT 0.5.13 cannot export OLMo 2: `copy_weights_olmo2` looks for a norm_2 that its model does not have.
    "olmo2": Family(
        "litgpt_olmo2",
        "OLMo-2-1124-7B",
        "copy_weights_olmo2",
        "Olmo2ForCausalLM",
        {"rms_norm_eps": 1e-6, "rope_theta": 500000.0},
        backwards=True,
    ),
    "olmo1": Family(
        "litgpt_olmo",
        "OLMo-1B-hf",
        "copy_weights_llama",
        "OlmoForCausalLM",
        {"rope_theta": 10000.0, "pad_token_id": None},
    ),
    "stablelm": Family(
        "litgpt_stablelm",
        "stablelm-3b-4e1t",
        "copy_weights_llama",
        "StableLmForCausalLM",
        {"layer_norm_eps": 1e-5, "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "pad_token_id": None},
        {"rotary_percentage": 0.5},
    ),
    "phi2": Family(
        "litgpt_phi",
        "phi-2",
        "copy_weights_phi",
        "PhiForCausalLM",
        {"layer_norm_eps": 1e-5, "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "hidden_act": "gelu_new"},
        {"rotary_percentage": 0.5},
    ),
}


def main() -> None:
    options = recording.arguments(__doc__ or "")
    for case, family in FAMILIES.items():
        config = Config.from_name(family.name, **SMALL | SIZES | family.changes)
        standard = {n: v for n, v in DENSE.items() if n not in family.omitted} | family.config
        model = recording.seed_weights(GPT(config), options.seed)
        if "Gemma" in family.name:  # which ties its head, as its converter takes for granted
            model.lm_head.weight.data.copy_(model.transformer.wte.weight.data)
        target: dict[str, torch.Tensor] = {}
        if family.backwards:
            target = recording.halves(recording.seeded_class(family.model_class, standard, options.seed).state_dict())
            state: dict[str, torch.Tensor] = {}
            getattr(from_hf, family.copy)(config, {}, state, dict(target))
            model.load_state_dict({n: t.float() for n, t in state.items()})
        else:
            state = recording.halves(model.state_dict())
            untie = {"untie_weights": True} if family.name == "Gemma-2b" else {}
            getattr(to_hf, family.copy)(config, target, dict(state), **untie)
        input_ids = recording.ids(40, options.seed)
        with torch.no_grad():
            logits = model(input_ids)

        def save(source: Path, config: Config = config, state: dict[str, torch.Tensor] = state) -> None:
            torch.save(state, source / "lit_model.pth")
            save_config(config, source)

        recording.record(
            options.out / "litgpt" / case,
            {"spec": family.spec, "config": "model_config.yaml", "set": family.assigned, "tolerance": family.tolerance},
            save=save,
            target=target,
            model_class=family.model_class,
            config=standard,
            input_ids=input_ids,
            logits=logits,
            notes={"litgpt": version("litgpt"), "config": family.name, "converter": family.copy},
        )


if __name__ == "__main__":
    main()
