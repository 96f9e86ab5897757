"""Which fields of a config.json change the function that a model computes, and which do not.

A conversion that neither reads nor writes a field may pass over it only where its value makes no difference: `HARMLESS`
holds the fields that never do, with the reason; `NEUTRAL` the values with which a field has no effect. Names as in the
config classes of transformers 4.57.6 and 5.24.0, and in remote code on the Hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TRAINING = "changes training only"
_TOKENS = "the id of a token: generation reads it, the weights do not depend on it"
_SPEED = "chooses an implementation of the same function"
_HEADS = "belongs to a head that a language model does not have"

HARMLESS: Mapping[str, str] = {
    **dict.fromkeys(
        [
            "activation_dropout", "attention_dropout", "attention_probs_dropout_prob", "attn_dropout", "attn_pdrop",
            "aux_loss_alpha", "classifier_dropout", "decoder_layerdrop", "dropout", "embd_dropout", "embd_pdrop",
            "embedding_dropout", "encoder_layerdrop", "ffn_dropout", "gradient_checkpointing", "hidden_dropout",
            "hidden_dropout_prob", "init_std", "initializer_factor", "initializer_range", "layerdrop",
            "logit_scale_init_value", "mask_feature_length", "mask_feature_min_masks", "mask_feature_prob",
            "mask_time_length", "mask_time_min_masks", "mask_time_prob", "apply_spec_augment", "output_router_logits",
            "resid_dropout", "resid_pdrop", "router_aux_loss_coef", "router_jitter_noise", "router_z_loss_coef",
            "seq_aux", "summary_first_dropout", "num_mtp_layers", "num_nextn_predict_layers", "ep_size",
        ],
        _TRAINING,
    ),
    **dict.fromkeys(["bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "unk_token_id"], _TOKENS),
    **dict.fromkeys(
        [
            "_attn_implementation", "_attn_implementation_autoset", "attn_implementation", "cache_implementation",
            "flash_attn", "fp32_residual", "pretraining_tp", "reorder_and_upcast_attn", "slow_but_exact",
            "use_flash_attn", "use_flash_attention", "unsloth_version", "unsloth_fixed",
        ],
        _SPEED,
    ),
    **dict.fromkeys(
        [
            "classifier_proj_size", "encoder_stride", "median_filter_width", "num_labels", "pooler_act",
            "pooler_output_size", "summary_activation", "summary_proj_to_labels", "summary_type", "summary_use_proj",
            "use_weighted_layer_sum",
        ],
        _HEADS,
    ),
    "max_position_embeddings": "a limit for whoever generates: no weight has its size where positions are rotary",
    "max_window_layers": "read only where use_sliding_window is true",
    "original_max_position_embeddings": "read only by a scaling of rotary embeddings",
    "rope_type": "a default of the rotary parameters, which are compared on their own",
}  # fmt: skip

_OFF = (None, False)
_ONE = (None, 1)
_NO_EXPERTS = (None, 0, 1)

# Field -> the field whose value it repeats in other families of configs.
REPEATED = dict.fromkeys(
    ["experts_per_token", "moe_k", "moe_top_k", "moe_topk", "num_experts_per_token", "num_selected_experts", "top_k_experts"],
    "num_experts_per_tok",
)  # fmt: skip

# Field -> the values that leave the function of a plain decoder as it is.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        [
            "add_bias_linear", "add_qkv_bias", "alibi", "apply_layernorm_1p", "attention_bias", "attention_out_bias",
            "attn_temperature_tuning", "bias", "enable_bias", "mlp_bias", "multi_query", "multi_query_attention",
            "no_bias", "normalize_embedding", "parallel_attn", "parallel_residual", "qk_layernorm", "qk_norm",
            "qkv_bias", "rope_interleave", "rope_interleaved", "rotary_interleaved", "scale_attn_by_inverse_layer_idx",
            "scale_embedding", "scale_embeddings", "use_bias", "use_bidirectional_attention", "use_mrope", "use_mup",
            "use_nope", "use_parallel_residual", "use_qk_layernorm", "use_qk_norm", "use_qkv_bias",
            "use_sliding_window", "use_logn_attn", "_remove_final_layer_norm",
        ],
        _OFF,
    ),
    **dict.fromkeys(
        [
            "attention_chunk_size", "attention_multiplier", "attention_scores_scalar", "attention_window_size",
            "attn_logit_softcapping", "attention_logit_softcapping", "clip_qkv", "dim_model_base",
            "final_logit_softcapping", "logits_soft_cap", "output_logits_soft_cap", "quantization_config",
            "query_pre_attn_scalar", "rope_local_base_freq", "rope_scaling", "rope_scaling_by_layer_type", "scale_depth", "sliding_window",
            "sliding_window_pattern", "global_attn_every_n_layers", "softmax_scale", "cross_attention_layers",
        ],
        (None,),
    ),
    **dict.fromkeys(
        [
            "decoder_sparse_step", "embedding_multiplier", "embedding_scale", "logit_scale", "logits_scaling",
            "lm_head_multiplier", "attention_in_multiplier", "attention_out_multiplier", "key_multiplier",
            "mup_width_multiplier", "partial_rotary_factor", "residual_multiplier", "rope_ratio", "rotary_pct",
            "routed_scaling_factor", "scale_emb", "width_scale",
        ],
        _ONE,
    ),
    **dict.fromkeys(["n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts"], _NO_EXPERTS),
    **dict.fromkeys(["n_group", "topk_group"], _NO_EXPERTS),
    **dict.fromkeys(["n_shared_experts", "num_shared_experts"], (None, 0)),
    "no_rope_layer_interval": (None, 0),
    "position_embedding_type": (None, "absolute", "rope", "rotary"),
    "scale_attn_weights": (None, True),
    "is_causal": (None, True),
    "mlp_only_layers": (None, []),
    "mlp_multipliers": (None, [1.0, 1.0]),
}  # fmt: skip

ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "activation")
# Words for one activation.
_ACTIVATION_NAMES = {"swish": "silu", "gelu_python": "gelu", "gelu_fast": "gelu_new", "gelu_pytorch_tanh": "gelu_new"}


def same_value(name: str, one: Any, other: Any) -> bool:
    """Whether two values of a field mean the same: also two words for one activation."""
    if name in ACTIVATIONS and isinstance(one, str) and isinstance(other, str):
        return _ACTIVATION_NAMES.get(one, one) == _ACTIVATION_NAMES.get(other, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_value("", one[key], other[key]) for key in one)
    return bool(one == other)


def is_neutral(name: str, value: Any, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> bool | None:
    """Whether a field with this value leaves the function as it is; None where nothing is known of the field.

    `config`: all fields of the file, in the flat dialect. `defaults`: those of the target's config class.
    """
    if name in HARMLESS:
        return True
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    match name:
        case "head_dim" if name in defaults:  # a class without it has heads of the width over their number
            return None if value is not None and not (heads and width) else value is None or value * heads == width
        case "num_key_value_heads":
            return value in (None, heads)
        case "rope_local_base_freq" if value == config.get("rope_theta"):
            return True
        case "layer_types":
            return value is None or (isinstance(value, list) and set(value) <= {"full_attention"})
        case "no_rope_layers":
            return not value or (isinstance(value, list) and all(value))
    if name in defaults and same_value(name, value, defaults[name]):
        return True
    if name in REPEATED and name not in defaults:
        one = config.get(REPEATED[name], defaults.get(REPEATED[name]))
        return not value or value == one
    if name in NEUTRAL:  # without the field, the class has its default
        return _without_effect(name, value) and _without_effect(name, defaults.get(name))
    return False if name in defaults else None


def has_no_effect(name: str, values: Mapping[str, Any]) -> bool:
    """Whether a field is harmless, or has a value among `values` with which it does nothing."""
    return name in HARMLESS or (name in NEUTRAL and name in values and _without_effect(name, values[name]))


def _without_effect(name: str, value: Any) -> bool:
    return any(type(value) in (type(one), int, float) and value == one for one in NEUTRAL[name])
