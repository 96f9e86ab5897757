"""Record what TransformerLens' HookedTransformer makes of a small seeded GPT-2 that its own function brought over.

TransformerLens reads Hugging Face's models and writes none, so the case is asked from the standard class's side, with
a head of its own, since a HookedTransformer never ties it.

Usage: python run_transformer_lens.py OUT [--seed N], with transformer-lens 2 installed; writes OUT/transformer_lens/CASE.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import recording
import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights

STANDARD = {
    "vocab_size": recording.VOCABULARY,
    "n_embd": 32,
    "n_positions": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": 48,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "tie_word_embeddings": False,
}
OWN = {
    "n_layers": 2,
    "d_model": 32,
    "n_ctx": 64,
    "d_head": 8,
    "n_heads": 4,
    "d_mlp": 48,
    "d_vocab": recording.VOCABULARY,
    "act_fn": "gelu_new",
    "normalization_type": "LN",
    "eps": 1e-5,
    "device": "cpu",
}


def main() -> None:
    options = recording.arguments(__doc__ or "")
    standard = recording.seeded_class("GPT2LMHeadModel", STANDARD, options.seed)
    target = recording.halves(standard.state_dict())
    model = HookedTransformer(HookedTransformerConfig(**OWN)).eval()
    brought = convert_gpt2_weights(standard, model.cfg)
    model.load_state_dict({**model.state_dict(), **brought})
    state = {n: t if t.dtype == torch.bool else t.half() for n, t in model.state_dict().items()}
    input_ids = recording.ids(40, options.seed)
    with torch.no_grad():
        logits = model(input_ids)

    def save(source: Path, state: dict[str, Tensor] = state) -> None:
        torch.save(state, source / "model.pt")

    recording.record(
        options.out / "transformer_lens" / "gpt2",
        {"spec": "transformer_lens_gpt2", "set": {"b_U_is_zero": True}, "tolerance": 2e-5},
        save=save,
        target={n: t.contiguous() for n, t in target.items()},
        model_class="GPT2LMHeadModel",
        config=STANDARD,
        input_ids=input_ids,
        logits=logits,
        notes={"transformer-lens": version("transformer-lens"), "function": "convert_gpt2_weights"},
    )


if __name__ == "__main__":
    main()
