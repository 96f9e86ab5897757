"""Record what fairseq2's own LLaMA and its own Hugging Face converter make of small seeded checkpoints.

fairseq2's native library is built for few releases of torch; nothing of it is asked here, and a stand-in takes its
place, so that the Python package alone suffices.

Usage: python run_fairseq2.py OUT [--seed N], with fairseq2 0.8 installed; writes OUT/fairseq2/CASE.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

sys.modules |= {"fairseq2n": MagicMock(), "fairseq2n.bindings": MagicMock()}

import recording  # noqa: E402
import torch  # noqa: E402
from fairseq2.models.llama import LLaMAConfig  # noqa: E402
from fairseq2.models.llama.config import LLaMARoPEScaleConfig  # noqa: E402
from fairseq2.models.llama.factory import create_llama_model  # noqa: E402
from fairseq2.models.llama.interop import _LLaMAHuggingFaceConverter  # noqa: E402
from fairseq2.nn import BatchLayout  # noqa: E402
from torch import Tensor  # noqa: E402

OWN: dict[str, Any] = {
    "model_dim": 32,
    "max_seq_len": 64,
    "vocab_size": recording.VOCABULARY,
    "num_layers": 2,
    "num_attn_heads": 4,
    "num_key_value_heads": 2,
    "ffn_inner_dim": 72,
    "ffn_inner_dim_multiple_of": 16,
}
CASES: dict[str, dict[str, Any]] = {
    "llama3_scaled": {
        "rope_theta": 500000.0,
        "use_scaled_rope": True,
        "rope_scale": LLaMARoPEScaleConfig(factor=8.0, frequency_factors=(1.0, 4.0), original_context_length=16),
    },
    "llama_tied": {"tied_embeddings": True, "shard_embed_dim": False},
}


def main() -> None:
    options = recording.arguments(__doc__ or "")
    for case, changes in CASES.items():
        config = LLaMAConfig(**OWN | changes)
        model = recording.seed_weights(create_llama_model(config), options.seed)
        state = recording.halves(model.state_dict())
        converter = _LLaMAHuggingFaceConverter()
        target = converter.to_hg_state_dict(dict(state), config)
        # Its own config takes the sizes of the full models for granted; those of the tensors are right.
        mlp = state["decoder.layers.0.ffn.gate_proj.weight"].shape[0]
        standard = {**converter.to_hg_config(config).data, "intermediate_size": mlp}
        standard.pop("model_type")
        input_ids = recording.ids(40, options.seed)
        with torch.no_grad():
            logits = model(input_ids, BatchLayout.of(input_ids))

        def save(source: Path, state: dict[str, Tensor] = state) -> None:
            torch.save(state, source / "model.pt")

        scale = {"rope_scale": {"factor": 8.0, "frequency_factors": [1.0, 4.0], "original_context_length": 16}}
        assigned = (
            {"rope_theta": 10000.0, "use_scaled_rope": False}
            | {n: v for n, v in changes.items() if n not in ("rope_scale", "shard_embed_dim")}
            | (scale if "rope_scale" in changes else {})
        )
        recording.record(
            options.out / "fairseq2" / case,
            {"spec": "fairseq2_llama", "set": {"num_attn_heads": 4, "max_seq_len": 64, **assigned}, "tolerance": 5e-5},
            save=save,
            target={n: t.contiguous() for n, t in target.items()},  # type: ignore[attr-defined]
            model_class="LlamaForCausalLM",
            config=standard,
            input_ids=input_ids,
            logits=logits,
            notes={"fairseq2": version("fairseq2")},
        )


if __name__ == "__main__":
    main()
