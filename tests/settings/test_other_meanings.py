"""Folders of a target class whose config says that the model computes something else than the trainer's layout can.

Names and shapes are those that the spec itself writes for its example; only config.json is another. `--reverse` must
reject each, and convert the folder as it was. `test_config_guard.py` has the same for plain decoders.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.synthetic import saved, synthetic

from compiler.diagnostics import Refusal
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.program.loading import load_program
from compiler.program.program import Program
from compiler.proof.class_check import config_written

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
HALF = {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 0.5}
PHI3 = {
    "a_part_rotated": {"partial_rotary_factor": 0.5},
    "a_part_rotated_in_generation_5": {"rope_parameters": HALF},
    "yarn": {"rope_scaling": YARN},
    "gelu": {"hidden_act": "gelu"},
    "phi": {"model_type": "phi", "architectures": ["PhiForCausalLM"]},
    "phimoe": {"model_type": "phimoe"},
    "phi4_multimodal": {"model_type": "phi4_multimodal"},
}
QWEN2 = {
    "window_on_some_layers": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    "layers_of_two_kinds": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16},
    "yarn": {"rope_scaling": YARN},
    "gelu": {"hidden_act": "gelu"},
    "qwen2_moe": {"model_type": "qwen2_moe"},
    "qwen2_vl_text": {"model_type": "qwen2_vl_text"},
    "dream": {"model_type": "Dream", "architectures": ["DreamModel"]},
}
MIXTRAL = {
    "top_k_by_another_name": {"num_experts_per_token": 4},
    "top_k_as_of_other_families": {"moe_top_k": 4},
    "top_k_experts": {"top_k_experts": 4},
    "scaled_router": {"routed_scaling_factor": 2.5},
    "shared_expert": {"n_shared_experts": 1},
    "yarn": {"rope_scaling": YARN},
    "gelu": {"hidden_act": "gelu"},
    "phimoe": {"model_type": "phimoe"},
    "minimax": {"model_type": "minimax"},
    "qwen3_moe": {"model_type": "qwen3_moe", "norm_topk_prob": False},
}
GEMMA = {
    "plain_gelu": {"hidden_act": "gelu", "hidden_activation": "gelu"},
    "bidirectional": {"use_bidirectional_attention": True},
    "biases": {"attention_bias": True},
    "yarn": {"rope_scaling": YARN},
}
OLMO_CORE = {
    "biases": {"attention_bias": True},
    "gelu": {"hidden_act": "gelu"},
    "llama": {"model_type": "llama"},
}
OLMO = OLMO_CORE | {"yarn": {"rope_scaling": YARN}}
GRANITE = {
    "embedding_multiplier": {"embedding_multiplier": 12.0},
    "logits_scaling": {"logits_scaling": 8.0},
    "residual_multiplier": {"residual_multiplier": 0.22},
    "attention_multiplier": {"attention_multiplier": 0.015625},
    "granitemoe": {"model_type": "granitemoe"},
    "granitemoehybrid": {"model_type": "granitemoehybrid", "layer_types": ["mamba", "attention"]},
    "position_embedding_type": {"position_embedding_type": "nope"},
    "gelu": {"hidden_act": "gelu"},
}
QWEN3 = {
    "window": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    "biases": {"attention_bias": True},
    "gelu": {"hidden_act": "gelu"},
    "exaone4": {"model_type": "exaone4"},
    "hunyuan": {"model_type": "hunyuan_v1_dense"},
    "qwen3_next": {"model_type": "qwen3_next"},
}
LLAMA = {
    "cohere2": {"model_type": "cohere2", "logit_scale": 0.25, "sliding_window": 16},
    "glm_with_interleaved_rotary": {"model_type": "glm", "partial_rotary_factor": 0.5},
    "glm4": {"model_type": "glm4", "rope_parameters": HALF},
    "olmo2_norms_behind": {"model_type": "olmo2"},
    "gemma2": {"model_type": "gemma2", "query_pre_attn_scalar": 16},
    "gemma3": {"model_type": "gemma3_text", "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {"model_type": "phi3"},
    "diffllama": {"model_type": "diffllama"},
    "ernie4_5": {"model_type": "ernie4_5", "use_bias": False},
    "apertus": {"model_type": "apertus", "hidden_act": "xielu"},
    "minicpm_of_remote_code": {"model_type": "minicpm", "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256},
    "internlm_of_remote_code": {"model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"]},
    "baichuan_of_remote_code": {"model_type": "baichuan", "architectures": ["BaichuanForCausalLM"]},
    "a_part_rotated_in_generation_5": {"rope_parameters": HALF},
    "interleaved": {"rope_interleave": True},
    "nope_layers": {"no_rope_layer_interval": 2},
    "window": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "chunks": {"attention_chunk_size": 16},
    "temperature": {"attn_temperature_tuning": True},
    "soft_cap": {"attn_logit_softcapping": 50.0},
    "norms_of_queries_and_keys": {"use_qk_norm": True},
    "nested_text_config": {"model_type": "llava", "text_config": {"model_type": "gemma"}},
}
# Spec -> the folders that its reverse must reject.
FOLDERS: Mapping[str, Mapping[str, dict[str, Any]]] = {
    "llama2c_llama": LLAMA,
    "mcore_llama": LLAMA,
    "torchtune_phi3": PHI3,
    "litgpt_phi3": PHI3,
    "torchtune_qwen2": QWEN2,
    "litgpt_qwen2": QWEN2,
    "mcore_qwen2": QWEN2,
    "litgpt_qwen3": QWEN3 | {"seed_oss": {"model_type": "seed_oss"}},
    "mcore_qwen3": QWEN3,
    "torchtitan_qwen3_moe": {
        "dense_steps": {"decoder_sparse_step": 2},
        "dense_layers": {"mlp_only_layers": [0]},
        "qwen2_moe": {"model_type": "qwen2_moe"},
        "glm4_moe": {"model_type": "glm4_moe", "n_group": 2, "topk_group": 1},
        "scaled_router": {"routed_scaling_factor": 2.5},
    },
    "mistral_mixtral": MIXTRAL,
    "litgpt_mixtral": MIXTRAL,
    "gemma_gemma": GEMMA | {"gemma2": {"model_type": "gemma2"}},
    "litgpt_gemma": GEMMA | {"vaultgemma": {"model_type": "vaultgemma"}},
    "litgpt_gemma2": GEMMA
    | {
        "gemma": {"model_type": "gemma"},
        "windows_on_all_layers": {"layer_types": ["sliding_attention"] * 2},
        "windows_the_other_way": {"layer_types": ["full_attention", "sliding_attention"]},
    },
    "litgpt_gemma3": {
        "gemma3_with_images": {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]},
        "gemma3n": {"model_type": "gemma3n_text"},
        "another_pattern": {"layer_types": ["full_attention", "sliding_attention"]},
        "soft_cap": {"final_logit_softcapping": 30.0},
        "plain_gelu": {"hidden_activation": "gelu"},
        "bidirectional": {"use_bidirectional_attention": True},
    },
    "olmo_core_olmo2": OLMO_CORE | {"olmo": {"model_type": "olmo"}, "window": {"sliding_window": 16}},
    "litgpt_olmo2": OLMO
    | {"olmo3": {"model_type": "olmo3"}, "layer_types": {"layer_types": ["sliding_attention"] * 2}},
    "olmo_core_olmo3": OLMO_CORE | {"olmo2": {"model_type": "olmo2"}},
    "olmo1_olmo": {
        "biases": {"attention_bias": True},
        "gelu": {"hidden_act": "gelu"},
        "olmo2": {"model_type": "olmo2"},
    },
    "minimind1_granite_moe_shared": GRANITE,
    "minimind2_granite_moe_shared": {name: change for name, change in GRANITE.items() if name != "gelu"},
    "litgpt_falcon": {
        "alibi": {"alibi": True},
        "one_after_the_other": {"parallel_attn": False},
        "relu": {"activation": "relu"},
        "falcon_mamba": {"model_type": "falcon_mamba"},
        "falcon_h1": {"model_type": "falcon_h1"},
    },
    "litgpt_stablelm": {
        "parallel": {"use_parallel_residual": True},
        "norms_of_heads": {"qk_layernorm": True},
        "gelu": {"hidden_act": "gelu"},
        "stablelm_epoch": {"model_type": "phi"},
    },
    "litgpt_gpt_neox": {
        "gpt_neox_japanese": {"model_type": "gpt_neox_japanese"},
        "relu": {"hidden_act": "relu"},
        "yarn": {"rope_scaling": YARN},
    },
    "megatron_gpt2": {
        "scores_by_layer": {"scale_attn_by_inverse_layer_idx": True},
        "unscaled": {"scale_attn_weights": False},
        "relu": {"activation_function": "relu"},
        "gpt_bigcode": {"model_type": "gpt_bigcode"},
        "imagegpt": {"model_type": "imagegpt", "activation_function": "quick_gelu"},
    },
    "persimmon_persimmon": {"silu": {"hidden_act": "silu"}, "fuyu": {"model_type": "fuyu"}},
    "opt_opt": {"xglm": {"model_type": "xglm"}, "biogpt": {"model_type": "biogpt"}},
}
FOLDER_CASES = [(spec, name) for spec, folders in FOLDERS.items() for name in folders]


@cache
def program(spec: str) -> Program:
    return load_program(spec)


@cache
def folder_of(spec: str) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]:
    """The tensors (zeros) and the config.json that a spec writes for its first example, and the example's arguments."""
    import tempfile

    made = synthetic(program(spec), 0)
    with tempfile.TemporaryDirectory() as place:
        request = Request([saved(made, Path(place), program(spec))], assigned=made.arguments, compare=False)
        plan = prepare(program(spec), request).plan
    tensors = {target.name: torch.zeros(target.shape) for target in plan.targets}
    return tensors, config_written(program(spec), plan.config), dict(made.arguments)


def reversed_plan(spec: str, folder: Path, changes: Mapping[str, Any]) -> None:
    tensors, config, arguments = folder_of(spec)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config | changes))
    written = {field.carried for field in program(spec).spec.config}
    given = {name: value for name, value in arguments.items() if name not in written}
    prepare(program(spec), Request([folder], reverse=True, assigned=given, compare=False))


@pytest.mark.parametrize("spec", FOLDERS)
def test_the_folder_as_it_was_is_reversed(tmp_path: Path, spec: str) -> None:
    """Else the tests below would prove nothing."""
    reversed_plan(spec, tmp_path, {})


@pytest.mark.parametrize(("spec", "name"), FOLDER_CASES)
def test_a_folder_that_means_something_else_is_rejected(tmp_path: Path, spec: str, name: str) -> None:
    with pytest.raises(Refusal) as refusal:
        reversed_plan(spec, tmp_path, FOLDERS[spec][name])
    kinds = {diagnostic.kind for diagnostic in refusal.value.diagnostics}
    assert kinds <= {"other-architecture", "unconverted-field", "config-mismatch", "contradictory-field"}
