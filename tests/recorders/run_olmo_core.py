"""Record what OLMo-core's own models and its own `convert_state_to_hf` make of small seeded checkpoints.

Usage: python run_olmo_core.py OUT [--seed N], with ai2-olmo-core 3 installed; writes OUT/olmo_core/CASE.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import recording
import torch
from olmo_core.nn.attention import AttentionBackendName, SlidingWindowAttentionConfig
from olmo_core.nn.hf.convert import convert_state_to_hf
from olmo_core.nn.transformer import TransformerBlockType, TransformerConfig
from torch import Tensor

COMMON = {
    "d_model": 32,
    "vocab_size": recording.VOCABULARY,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "hidden_size_multiplier": 1.5,
    "hidden_size_multiple_of": 16,
    "attn_backend": AttentionBackendName.torch,
}
STANDARD = {
    "vocab_size": recording.VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
}
OLMO = {
    "block_name": TransformerBlockType.reordered_norm,
    "qk_norm": True,
    "rope_theta": 500000,
    "layer_norm_eps": 1e-6,
}


@dataclass(frozen=True)
class Family:
    spec: str
    build: dict[str, Any]
    model_class: str
    standard: dict[str, Any]
    assigned: dict[str, Any] = field(default_factory=dict)


TOKENS = {"bos_token_id": None, "eos_token_id": 100257, "pad_token_id": 0, "rope_theta": 500000.0}
FAMILIES = {
    "olmo2": Family("olmo_core_olmo2", OLMO, "Olmo2ForCausalLM", TOKENS, {"pad_token_id": 0}),
    "olmo3_window": Family(
        "olmo_core_olmo3",
        OLMO
        | {
            "n_layers": 4,
            "sliding_window": SlidingWindowAttentionConfig(
                force_full_attention_on_first_layer=False,
                force_full_attention_on_last_layer=True,
                pattern=[8, 8, 8, -1],
            ),
        },
        "Olmo3ForCausalLM",
        TOKENS | {"num_hidden_layers": 4, "sliding_window": 8},
        {"pad_token_id": 0, "sliding_window": 8},
    ),
    "llama": Family(
        "olmo_core_llama",
        {"rope_theta": 10000, "layer_norm_eps": 1e-6},
        "LlamaForCausalLM",
        {"bos_token_id": None, "eos_token_id": None, "rope_theta": 10000.0, "head_dim": 8},
        {"rope_theta": 10000.0},
    ),
    "qwen3": Family(
        "olmo_core_qwen3",
        {"qk_norm": True, "use_head_qk_norm": True, "rope_theta": 1000000, "layer_norm_eps": 1e-6, "head_dim": 12},
        "Qwen3ForCausalLM",
        {
            "bos_token_id": 151643,
            "eos_token_id": 151645,
            "rope_theta": 1000000.0,
            "head_dim": 12,
            "sliding_window": None,
        },
    ),
}


def main() -> None:
    import transformers

    options = recording.arguments(__doc__ or "")
    for case, family in FAMILIES.items():
        model = TransformerConfig.llama_like(**COMMON | family.build).build(init_device="cpu")
        model = recording.seed_weights(model, options.seed)
        state = recording.halves(model.state_dict())
        mlp = state["blocks.0.feed_forward.w1.weight"].shape[0]
        standard = STANDARD | family.standard | {"intermediate_size": mlp}
        config = getattr(transformers, family.model_class).config_class(**standard)
        target = convert_state_to_hf(config, dict(state))
        input_ids = recording.ids(40, options.seed)
        with torch.no_grad():
            logits = model(input_ids)

        def save(source: Path, state: dict[str, Tensor] = state) -> None:
            torch.save(state, source / "model.pt")

        assigned = {"n_heads": 4, "max_sequence_length": 64, **family.assigned}
        recording.record(
            options.out / "olmo_core" / case,
            {"spec": family.spec, "set": assigned, "tolerance": 2e-5},
            save=save,
            target={n: t.contiguous() for n, t in target.items()},
            model_class=family.model_class,
            config=standard,
            input_ids=input_ids,
            logits=logits,
            notes={"ai2-olmo-core": version("ai2-olmo-core")},
        )


if __name__ == "__main__":
    main()
