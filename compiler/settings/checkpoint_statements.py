"""What a checkpoint states about its model besides tensors: the key-values of a GGUF file, a trainer's args in a `.pth`.

Takes a Program and the plain objects of a checkpoint. A statement is read if the spec has an argument or a fact of its
name. Of the others, those that the spec does not list under `source.unread` are returned, to be reported once; those that
are known to change what the model computes are refused (`unread-statement`). Sources of the meanings:
the package gguf 0.19 and the hyperparameters that the C++ runtime of such files loads; the TransformerConfig and the
command line of the trainer whose args they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from compiler.diagnostics import Diagnostic, Refusal, Span
from compiler.program.program import Program
from compiler.settings.arguments import BAGGAGE, OBJECTS

# Statement -> the values under which it changes nothing; an absent or empty value never does.
_GGUF: dict[str, tuple[Any, ...]] = {
    "activation_sparsity_scale": (0,),
    "attention_causal": (True,),
    "attention_clamp_kqv": (0,),
    "attention_key_length_swa": (),
    "attention_max_alibi_bias": (0,),
    "attention_output_scale": (0, 1),
    "attention_scale": (0,),
    "attention_shared_kv_layers": (0,),
    "attention_sliding_window": (0,),
    "attention_sliding_window_pattern": (0,),
    "attention_temperature_length": (0,),
    "attention_temperature_scale": (0,),
    "attention_value_length_swa": (),
    "attn_logit_softcapping": (0,),
    "embedding_length_out": (),
    "embedding_scale": (0, 1),
    "expert_count": (0,),
    "expert_gating_func": (0, 1),  # softmax
    "expert_group_count": (0, 1),
    "expert_group_scale": (0, 1),
    "expert_shared_count": (0,),
    "expert_weights_norm": (False,),
    "expert_weights_scale": (0, 1),
    "final_logit_softcapping": (0,),
    "full_attention_interval": (0, 1),
    "interleave_moe_layer_step": (0, 1),
    "leading_dense_block_count": (0,),
    "logit_scale": (0, 1),
    "moe_every_n_layers": (0, 1),
    "n_deepstack_layers": (0,),
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    "residual_scale": (0, 1),
    "rope_dimension_count_swa": (),
    "rope_dimension_sections": (),
    "rope_freq_base_swa": (),
    "rope_scale_linear": (0, 1),  # the first name of rope_scaling_factor
    "rope_scaling_alpha": (0,),
    "rope_scaling_attn_factor": (1,),
    "rope_scaling_factor": (0, 1),
    "rope_scaling_type": ("none", "linear"),
    "rope_scaling_yarn_attn_factor": (1,),
    "rope_scaling_yarn_beta_fast": (32,),
    "rope_scaling_yarn_beta_slow": (1,),
    "rope_scaling_yarn_ext_factor": (-1, 1),
    "rope_scaling_yarn_log_multiplier": (0,),
    "router_logit_softcapping": (0,),
    "swiglu_clamp_exp": (0,),
    "swiglu_clamp_shexp": (0,),
    "use_parallel_residual": (False,),
}
_ARGS: dict[str, tuple[Any, ...]] = {
    "activation_func_clamp_value": (),
    "apply_layernorm_1p": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "attention_output_gate": (False,),
    "enable_mhc_connections": (False,),
    "experimental_attention_variant": (),
    "glu_linear_offset": (0,),
    "heterogeneous_block_specs": (False,),
    "hybrid_layer_pattern": (),
    "hybrid_override_pattern": (),
    "is_hybrid_model": (False,),
    "layernorm_zero_centered_gamma": (False,),
    "linear_attention_freq": (),
    "mrope_section": (),
    "mtp_num_layers": (0,),
    "multi_latent_attention": (False,),
    "no_rope_freq": (),
    "qk_l2_norm": (False,),
    "quick_geglu": (False,),
    "quick_gelu": (False,),
    "rotary_interleaved": (False,),
    "rotary_percent": (1,),
    "rotary_seq_len_interpolation_factor": (1,),
    "softmax_scale": (),
    "softmax_type": ("vanilla",),
    "squared_relu": (False,),
    "use_mup": (False,),
    "use_rope_scaling": (False,),
    "window_size": (),
}
_ARGS_OF_EXPERTS: dict[str, tuple[Any, ...]] = {
    "moe_apply_probs_on_input": (False,),
    "moe_expert_capacity_factor": (),
    "moe_latent_size": (),
    "moe_layer_freq": (1,),
    "moe_router_enable_expert_bias": (False,),
    "moe_router_group_topk": (0,),
    "moe_router_num_groups": (0, 1),
    "moe_router_pre_softmax": (True,),
    "moe_router_score_function": ("softmax",),
    "moe_router_topk_limited_devices": (0,),
    "moe_router_topk_scaling_factor": (1,),
    "moe_shared_expert_gate": (False,),
    "moe_shared_expert_intermediate_size": (0,),
}


# What says how, where and on what a model was trained: it does not change what the trained model computes.
_TRAINING = re.compile(
    "(min_|decoupled_|head_)?lr(_.*)?|learning_rate|(adam|sgd|lion|muon|train|eval|rampup|clip|grad|gradient|warmup)(_.*)?|"
    "(.*_)?(weight_decay|optimizer|optim|scheduler|schedule|loss_scale|loss_scaling|dropout|seed|epochs?)(_.*)?|(.*_)?batch_size|"
    "(.*_)?(iters|iterations?|steps|samples|interval|path|dir|file|workers|threads|dataset|dataloader|wandb|tensorboard)(_.*)?|"
    "(.*_)?(parallel|parallelism|ddp|fsdp2?|nccl|overlap|bucket|bucket_size|rng_tracker|offload|memory|mmap)(_.*)?|"
    "(save|load|no_save|no_load|log|logger|one_logger|ckpt|dist_ckpt|checkpoint|exit|profile|inprocess|data|split|async)(_.*)?|"
    "(fp16|bf16|fp8|fp4|tf32|recompute|cuda_graph|compile|device|dtype|amp|autocast|backend|deterministic)(_.*)?|"
    "(.*_)?(fusion|fused|params_dtype|params_dtypes|grads_dtype|checkpointing)|"
    "(init_method|(inference|rl|grpo|ddp|tp_comm|overlap|distributed|align|barrier|manual_gc|high_priority)_.*).*"
)


def unread_statements(program: Program, objects: Mapping[str, object], path: str) -> list[str]:
    """The names of the statements that nobody reads and the spec does not list as harmless. Raises Refusal."""
    spec = program.spec
    known = {*spec.arguments, *spec.facts, *spec.fixed} | BAGGAGE
    unread: dict[str, None] = {}
    changing: list[Diagnostic] = []
    for values in _containers(objects):
        neutral = _neutral(values)
        for name, value in values.items():
            if not isinstance(name, str) or name in known or value in (None, False, "", [], {}):
                continue
            if name in neutral and value not in neutral[name]:
                message = (
                    f"it states {name} = {value!r}, which changes the model and which {spec.name.value} does not read"
                )
                hint = "its rules are for models without it"
                changing.append(Diagnostic(Span(path), message, "unread-statement", hint))
            elif name not in neutral and not (program.passes_over(name) or _TRAINING.fullmatch(name)):
                unread[name] = None
    if changing:
        raise Refusal(changing)
    return list(unread)


def neutral_values(program: Program) -> Mapping[str, tuple[Any, ...]]:
    """The statements that nobody reads, and the values under which they change nothing, in the checkpoints of a spec."""
    spec = program.spec
    known = {*spec.arguments, *spec.facts, *spec.fixed} | BAGGAGE
    table = _neutral(dict.fromkeys(known & {"general_architecture", "padded_vocab_size", "num_experts"}, 1))
    unread = {name: values for name, values in table.items() if name not in known and not program.passes_over(name)}
    return {name: (*values, None) if values else (False, None) for name, values in unread.items()}


def _containers(objects: Mapping[str, object]) -> Iterator[Mapping[Any, Any]]:
    """The mappings in which trainers keep the arguments of a model."""
    for key in OBJECTS:
        values = objects.get(key)
        if isinstance(values, Mapping):
            yield values


def _neutral(values: Mapping[Any, Any]) -> Mapping[str, tuple[Any, ...]]:
    """The table for this kind of container; empty for a trainer whose arguments are not known."""
    if "general_architecture" in values:
        return _GGUF
    if "padded_vocab_size" in values or "tensor_model_parallel_size" in values:
        experts = values.get("num_experts") or values.get("num_moe_experts")
        return _ARGS | _ARGS_OF_EXPERTS if experts else _ARGS
    return {}
