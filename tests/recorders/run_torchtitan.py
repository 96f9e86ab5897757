"""Record what torchtitan's own models and its own state dict adapters make of small seeded checkpoints.

Usage: python run_torchtitan.py OUT [--seed N], with torchtitan 0.3 and triton installed; writes OUT/torchtitan/CASE.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import recording
import torch
from torch import Tensor
from torchtitan.models import llama3, qwen3
from torchtitan.models.common import ComplexRoPE, CosSinRoPE, Embedding, Linear
from torchtitan.models.common.attention import ScaledDotProductAttention
from torchtitan.models.common.nn_modules import RMSNorm
from torchtitan.models.llama3.model import Llama3Model
from torchtitan.models.llama3.state_dict_adapter import Llama3StateDictAdapter
from torchtitan.models.qwen3.model import Qwen3Model
from torchtitan.models.qwen3.state_dict_adapter import Qwen3StateDictAdapter

WIDTH, HEADS, GROUPS, MLP, LAYERS, LENGTH = 32, 4, 2, 48, 2, 64
EXPERTS, ACTIVE, EXPERT_MLP = 12, 3, 16
STANDARD = {
    "vocab_size": recording.VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "max_position_embeddings": LENGTH,
}


def llama() -> Any:
    """Llama 3 with its scaled rotary embedding, projections fused in memory as torchtitan has them by default."""
    scaled = {"scaling": "llama", "scaling_factor": 4.0, "original_max_position_embeddings": 16}
    rope = ComplexRoPE.Config(dim=WIDTH // HEADS, max_seq_len=LENGTH, theta=500000.0, **scaled)
    sizes = {"n_layers": LAYERS, "dim": WIDTH, "n_heads": HEADS, "n_kv_heads": GROUPS, "hidden_dim": MLP}
    layers = llama3._build_llama3_layers(**sizes, rope=rope, attn_backend="flex")
    return Llama3Model.Config(dim=WIDTH, vocab_size=recording.VOCABULARY, **_ends(RMSNorm.Config), layers=layers)


def qwen(tied: bool) -> Any:
    rope = CosSinRoPE.Config(dim=12, max_seq_len=LENGTH, theta=1000000.0)
    sizes = {"n_layers": LAYERS, "dim": WIDTH, "n_heads": HEADS, "n_kv_heads": GROUPS, "head_dim": 12}
    layers = qwen3._build_qwen3_layers(**sizes, hidden_dim=MLP, rope=rope, attn_backend="flex")
    norm = RMSNorm.Config(normalized_shape=WIDTH, eps=1e-6)
    ends = _ends(RMSNorm.Config) | {"norm": norm}
    return Qwen3Model.Config(
        dim=WIDTH, vocab_size=recording.VOCABULARY, **ends, enable_weight_tying=tied, layers=layers
    )


def qwen_moe() -> Any:
    rope = CosSinRoPE.Config(dim=12, max_seq_len=LENGTH, theta=1000000.0)
    sizes = {"n_layers": LAYERS, "dim": WIDTH, "n_heads": HEADS, "n_kv_heads": GROUPS, "head_dim": 12}
    experts = {"moe_hidden_dim": EXPERT_MLP, "num_experts": EXPERTS, "top_k": ACTIVE, "moe_comm_backend": "standard"}
    layers = qwen3._build_qwen3_moe_layers(**sizes, **experts, rope=rope, attn_backend="flex")
    ends = _ends(RMSNorm.Config) | {"norm": RMSNorm.Config(normalized_shape=WIDTH, eps=1e-6)}
    return Qwen3Model.Config(dim=WIDTH, vocab_size=recording.VOCABULARY, **ends, layers=layers)


def _ends(norm: Any) -> dict[str, Any]:
    return {
        "tok_embeddings": Embedding.Config(num_embeddings=recording.VOCABULARY, embedding_dim=WIDTH),
        "norm": norm(normalized_shape=WIDTH),
        "lm_head": Linear.Config(in_features=WIDTH, out_features=recording.VOCABULARY),
    }


@dataclass(frozen=True)
class Family:
    spec: str
    config: Callable[[], Any]
    adapter: type
    model_class: str
    standard: dict[str, Any]
    assigned: dict[str, Any] = field(default_factory=dict)


QWEN = {
    "head_dim": 12,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "sliding_window": None,
}
FAMILIES = {
    "llama3_scaled": Family(
        "torchtitan_llama",
        llama,
        Llama3StateDictAdapter,
        "LlamaForCausalLM",
        {
            "head_dim": 8,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "bos_token_id": 128000,
            "eos_token_id": 128001,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
        {"scaling": "llama", "scaling_factor": 4.0, "original_max_position_embeddings": 16},
    ),
    "qwen3_tied": Family(
        "torchtitan_qwen3",
        lambda: qwen(tied=True),
        Qwen3StateDictAdapter,
        "Qwen3ForCausalLM",
        {**QWEN, "tie_word_embeddings": True},
        {"enable_weight_tying": True},
    ),
    "qwen3_moe": Family(
        "torchtitan_qwen3_moe",
        qwen_moe,
        Qwen3StateDictAdapter,
        "Qwen3MoeForCausalLM",
        {
            **QWEN,
            "num_experts": EXPERTS,
            "num_experts_per_tok": ACTIVE,
            "moe_intermediate_size": EXPERT_MLP,
            "intermediate_size": EXPERT_MLP,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
        {"top_k": ACTIVE},
    ),
}


def main() -> None:
    options = recording.arguments(__doc__ or "")
    ScaledDotProductAttention.sdpa_backends = [torch.nn.attention.SDPBackend.MATH]
    for case, family in FAMILIES.items():
        config = family.config()
        for layer in config.layers:
            layer.attention.inner_attention = ScaledDotProductAttention.Config()
            if layer.moe is not None:
                layer.moe.load_balance_coeff = None
        model = recording.seed_weights(config.build(), options.seed)
        state = recording.halves(model.state_dict())
        target = family.adapter(config, None).to_hf(dict(state))
        input_ids = recording.ids(40, options.seed)
        logits = None
        if "moe" not in case:  # torchtitan's experts compute in bfloat16
            with torch.no_grad():
                logits = model(input_ids, positions=torch.arange(40)[None])

        def save(source: Path, state: dict[str, Tensor] = state) -> None:
            torch.save(state, source / "model.pt")

        recording.record(
            options.out / "torchtitan" / case,
            {
                "spec": family.spec,
                "set": {"n_heads": HEADS, "max_seq_len": LENGTH, **family.assigned},
                "tolerance": 5e-5,
            },
            save=save,
            target={n: t.contiguous() for n, t in target.items()},
            model_class=family.model_class,
            config=STANDARD | family.standard,
            input_ids=input_ids,
            logits=logits,
            notes={"torchtitan": version("torchtitan"), "adapter": family.adapter.__name__},
        )


if __name__ == "__main__":
    main()
