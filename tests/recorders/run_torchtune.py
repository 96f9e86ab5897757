"""Record what torchtune's own models and its own `*_tune_to_hf` make of small seeded checkpoints.

Usage: python run_torchtune.py OUT [--seed N], with torchtune 0.6.1 installed; writes OUT/torchtune/CASE.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import recording
import torch
from torch import Tensor, nn
from torchtune.models.convert_weights import tune_to_hf
from torchtune.models.llama3_1 import llama3_1
from torchtune.models.llama3_2._component_builders import llama3_2
from torchtune.models.mistral import mistral
from torchtune.models.phi3 import phi3
from torchtune.models.phi3._convert_weights import phi3_tune_to_hf
from torchtune.models.qwen2 import qwen2
from torchtune.models.qwen2._convert_weights import qwen2_tune_to_hf

BUILD = {
    "vocab_size": recording.VOCABULARY,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "embed_dim": 32,
    "intermediate_dim": 48,
    "max_seq_len": 64,
}
HEADS = {"num_heads": 4, "num_kv_heads": 2, "dim": 32}
STANDARD = {
    "vocab_size": recording.VOCABULARY,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
LLAMA = {"head_dim": 8, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "bos_token_id": 128000, "eos_token_id": 128001}


def scaling(factor: float) -> dict[str, Any]:
    numbers = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return {"rope_scaling": {"rope_type": "llama3", "factor": factor, **numbers}}


@dataclass(frozen=True)
class Family:
    spec: str
    build: Callable[..., nn.Module]
    convert: Callable[..., Mapping[str, Tensor]]
    model_class: str
    config: dict[str, Any]
    assigned: dict[str, Any] = field(default_factory=dict)
    length: int = 40
    max_seq_len: int = 64


FAMILIES = {
    # Long enough that the scaling of frequencies shows: 600 positions of the 8192 that it starts from.
    "llama31_scaled": Family(
        "torchtune_llama",
        llama3_1,
        lambda state: tune_to_hf(state, **HEADS),
        "LlamaForCausalLM",
        {**LLAMA, **scaling(8.0), "tie_word_embeddings": False, "max_position_embeddings": 1024},
        {"rope_base": 500000.0, "scale_factor": 8, "bos_token_id": 128000, "eos_token_id": 128001},
        600,
        1024,
    ),
    "llama32_tied": Family(
        "torchtune_llama",
        llama3_2,
        lambda state: tune_to_hf(state, **HEADS),
        "LlamaForCausalLM",
        {**LLAMA, **scaling(32.0), "tie_word_embeddings": True},
        {"rope_base": 500000.0, "scale_factor": 32, "bos_token_id": 128000, "eos_token_id": 128001},
    ),
    "mistral": Family(
        "torchtune_mistral",
        mistral,
        lambda state: tune_to_hf(state, **HEADS),
        "MistralForCausalLM",
        {"head_dim": 8, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": None},
    ),
    "qwen2": Family(
        "torchtune_qwen2",
        qwen2,
        lambda state: qwen2_tune_to_hf(state, **HEADS),
        "Qwen2ForCausalLM",
        {
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "use_sliding_window": False,
            "sliding_window": None,
            "bos_token_id": 151643,
            "eos_token_id": 151643,
        },
        {"norm_eps": 1e-6},
    ),
    "phi3": Family(
        "torchtune_phi3",
        phi3,
        phi3_tune_to_hf,
        "Phi3ForCausalLM",
        {
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "sliding_window": None,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "original_max_position_embeddings": 64,
        },
        {"rope_base": 10000.0, "eos_token_id": 2, "pad_token_id": 0},
    ),
}


def main() -> None:
    options = recording.arguments(__doc__ or "")
    for case, family in FAMILIES.items():
        epsilon = {"norm_eps": family.assigned["norm_eps"]} if "norm_eps" in family.assigned else {}
        scale = {"scale_factor": family.assigned["scale_factor"]} if "scale_factor" in family.assigned else {}
        model = family.build(**BUILD | {"max_seq_len": family.max_seq_len} | epsilon | scale)
        model = recording.seed_weights(model, options.seed)
        state = recording.halves(model.state_dict())
        input_ids = recording.ids(family.length, options.seed)
        with torch.no_grad():
            logits = model(input_ids)

        def save(source: Path, state: dict[str, Tensor] = state) -> None:
            torch.save(state, source / "model.pt")

        assigned = {"num_heads": 4, "max_seq_len": family.max_seq_len, **family.assigned}
        recording.record(
            options.out / "torchtune" / case,
            {"spec": family.spec, "set": assigned, "tolerance": 2e-5},
            save=save,
            target={n: t.contiguous() for n, t in family.convert(dict(state)).items()},
            model_class=family.model_class,
            config=STANDARD | family.config,
            input_ids=input_ids,
            logits=logits,
            notes={"torchtune": version("torchtune"), "builder": family.build.__name__},
        )


if __name__ == "__main__":
    main()
