"""Record what gpt-fast's Transformer, which torchao carried up to 0.13, makes of small seeded checkpoints.

The package has the model and not gpt-fast's converter, so what the names and the order of rows mean is written here, and
the standard class's logits are held to the model's. The file itself is loaded: what it imports has moved in torchao since.

Usage: python run_gpt_fast.py OUT [--seed N], with torchao 0.16 installed, and 0.13 in the folder `torchao-0.13` beside the
interpreter's `bin`; writes OUT/gpt_fast/CASE.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import recording
import torch
from torch import Tensor

FILE = Path(sys.prefix) / "torchao-0.13" / "torchao" / "_models" / "llama" / "model.py"
GROUPED = {"n_layer": 2, "n_head": 4, "n_local_heads": 2, "dim": 32, "intermediate_size": 48, "block_size": 64}
SCALED = {"n_layer": 2, "n_head": 2, "n_local_heads": 1, "dim": 32, "intermediate_size": 48, "block_size": 128}
CASES: dict[str, dict[str, Any]] = {
    "llama_grouped": GROUPED,
    "llama_scaled_tied": {**SCALED, "use_scaled_rope": True, "tie_word_embeddings": True},
}
SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def gpt_fast() -> ModuleType:
    """torchao 0.13's `_models/llama/model.py`."""
    spec = spec_from_file_location("gpt_fast_model", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def standard(state: dict[str, Tensor], args: Any) -> dict[str, Tensor]:
    """The standard class's names; a head's rotary pairs, which stand side by side, come apart into its halves."""
    words = {
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
    }
    made = {
        "model.embed_tokens.weight": state["tok_embeddings.weight"],
        "model.norm.weight": state["norm.weight"],
        "lm_head.weight": state["output.weight"],
    }
    for n in range(args.n_layer):
        here, there = f"layers.{n}.", f"model.layers.{n}."
        made |= {f"{there}{theirs}.weight": state[f"{here}{own}.weight"] for own, theirs in words.items()}
        heads = state[f"{here}attention.wqkv.weight"].unflatten(0, (-1, args.head_dim // 2, 2))
        ends = (args.n_head, args.n_head + args.n_local_heads)
        for word, part in zip("qkv", heads.tensor_split(ends), strict=True):
            rotated = part if word == "v" else part.transpose(1, 2)
            made[f"{there}self_attn.{word}_proj.weight"] = rotated.flatten(0, 2)
    return made


def main() -> None:
    options = recording.arguments(__doc__ or "")
    package = gpt_fast()
    for number, (name, settings) in enumerate(CASES.items()):
        args = package.ModelArgs(vocab_size=recording.VOCABULARY, **settings)
        model = recording.seed_weights(package.Transformer(args), options.seed + number)
        if args.tie_word_embeddings:  # the converter writes the embedding twice
            model.output.weight.data.copy_(model.tok_embeddings.weight)
        state = recording.halves(model.state_dict())
        input_ids = recording.ids(40, options.seed)
        model.setup_caches(1, 64, training=True)
        with torch.no_grad():
            logits = model(input_ids)

        def save(source: Path, state: dict[str, Tensor] = state) -> None:
            torch.save(state, source / "model.pth")

        said = {"rope_base": 10000.0, "use_scaled_rope": False}
        said |= {word: settings[word] for word in ("use_scaled_rope", "tie_word_embeddings") if word in settings}
        recording.record(
            options.out / "gpt_fast" / name,
            {
                "spec": "gpt_fast_llama",
                "set": {"n_head": args.n_head, "block_size": args.block_size, **said},
                "tolerance": 2e-5,
            },
            save=save,
            target=standard(state, args),
            model_class="LlamaForCausalLM",
            config={
                "vocab_size": recording.VOCABULARY,
                "hidden_size": args.dim,
                "intermediate_size": args.intermediate_size,
                "num_hidden_layers": args.n_layer,
                "num_attention_heads": args.n_head,
                "num_key_value_heads": args.n_local_heads,
                "head_dim": args.head_dim,
                "max_position_embeddings": args.block_size,
                "rms_norm_eps": args.norm_eps,
                "rope_theta": args.rope_base,
                "rope_scaling": SCALING if args.use_scaled_rope else None,
                "tie_word_embeddings": args.tie_word_embeddings,
                "bos_token_id": 1,
                "eos_token_id": 2,
            },
            input_ids=input_ids,
            logits=logits,
            notes={"torchao": "0.13.0", "file": "torchao/_models/llama/model.py"},
        )


if __name__ == "__main__":
    main()
