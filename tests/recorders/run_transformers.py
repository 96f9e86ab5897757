"""Record the logits of a small seeded Phi-3 as Transformers has it, with the same tensors cut apart by hand.

The class that reads the source is itself the original here; Llama, which reads the target, is another class.

Usage: python run_transformers.py OUT [--seed N]; writes OUT/phi3/CASE.
"""

from __future__ import annotations

import json
from pathlib import Path

import recording
import torch
from safetensors.torch import save_file
from torch import Tensor

SIZES = {
    "vocab_size": recording.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def cut(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rows of qkv_proj: 32 of queries, 16 of keys, 16 of values; of gate_up_proj: 48 of each."""
    target: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if "qkv_proj" in name:
            rows = {"q_proj": tensor[:32], "k_proj": tensor[32:48], "v_proj": tensor[48:]}
            target |= {name.replace("qkv_proj", part): piece for part, piece in rows.items()}
        elif "gate_up_proj" in name:
            rows = {"gate_proj": tensor[:48], "up_proj": tensor[48:]}
            target |= {name.replace("gate_up_proj", part): piece for part, piece in rows.items()}
        else:
            target[name] = tensor
    return {name: tensor.contiguous() for name, tensor in target.items()}


def main() -> None:
    options = recording.arguments(__doc__ or "")
    model = recording.seeded_class("Phi3ForCausalLM", SIZES, options.seed)
    state = recording.halves(model.state_dict())
    input_ids = recording.ids(40, options.seed)
    with torch.no_grad():
        logits = model(input_ids=input_ids).logits

    def save(source: Path) -> None:
        save_file(state, source / "model.safetensors", {"format": "pt"})
        written = {**SIZES, "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "tie_word_embeddings": False}
        (source / "config.json").write_text(json.dumps(written, indent=1) + "\n")

    recording.record(
        options.out / "phi3" / "fused",
        {"spec": "phi3_llama", "config": "config.json", "tolerance": 2e-5},
        save=save,
        target=cut(state),
        model_class="LlamaForCausalLM",
        config={**SIZES, "head_dim": 8},
        input_ids=input_ids,
        logits=logits,
        notes={"original": "Phi3ForCausalLM"},
    )


if __name__ == "__main__":
    main()
