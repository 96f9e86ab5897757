"""Record what the Foundation Model Stack's LLaMA makes of a small seeded checkpoint that its own adapter brought over.

FMS has an importer from Hugging Face's names and no exporter, so the cases are asked from the standard class's side.
Its projections are fused unless it is told `fused_weights=False`.

Usage: python run_fms.py OUT [--seed N], with ibm-fms installed; writes OUT/fms/CASE.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import recording
import torch
from fms.models.llama import LLaMA, LLaMAConfig
from fms.utils import serialization
from torch import Tensor

STANDARD = {
    "vocab_size": recording.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OWN = {
    "src_vocab_size": recording.VOCABULARY,
    "emb_dim": 32,
    "nheads": 4,
    "kvheads": 2,
    "nlayers": 2,
    "hidden_grow_factor": 1.5,
    "multiple_of": 1,
    "max_expected_seq_len": 64,
}


def main() -> None:
    options = recording.arguments(__doc__ or "")
    for name, fused, seed in (("llama_unfused", False, options.seed), ("llama_fused", True, options.seed + 1)):
        config = LLaMAConfig(**OWN, fused_weights=fused)
        target = recording.halves(recording.seeded_class("LlamaForCausalLM", STANDARD, seed).state_dict())
        adapted = serialization.get_adapted("llama", "hf", dict(target), {"model_config": config})
        state = {n: t for n, t in recording.halves(adapted).items() if "rotary" not in n}
        model = LLaMA(config)
        model.load_state_dict({n: t.float() for n, t in state.items()})
        input_ids = recording.ids(40, seed)
        with torch.no_grad():
            logits = model.eval()(input_ids)

        said = {"rope_theta": 10000.0} | ({} if fused else {"fused_weights": False})  # so that the way back knows

        def save(source: Path, state: dict[str, Tensor] = state) -> None:
            torch.save(state, source / "model.pth")

        recording.record(
            options.out / "fms" / name,
            {"spec": "fms_llama", "set": {**said, "nheads": 4, "max_expected_seq_len": 64}, "tolerance": 2e-5},
            save=save,
            target=target,
            model_class="LlamaForCausalLM",
            config=STANDARD,
            input_ids=input_ids,
            logits=logits,
            notes={"ibm-fms": version("ibm-fms"), "adapter": "serialization.get_adapted('llama', 'hf')"},
        )


if __name__ == "__main__":
    main()
