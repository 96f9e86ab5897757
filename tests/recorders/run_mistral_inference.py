"""Record what mistral-inference's own Transformer makes of small seeded Mixtrals, read from their files by its own loader.

Of xformers, which needs a GPU, stands here what a first pass asks of it: the causal mask of sequences one after the
other, in a window of the cache's size, and attention under it by torch. The rest, cache included, is the package's.

Usage: python run_mistral_inference.py OUT [--seed N], with mistral-inference and simple-parsing installed; writes
OUT/mistral_inference/CASE.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import recording
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

HEADS, GROUPS = 4, 2
SIZES = {
    "dim": 24,
    "n_layers": 2,
    "head_dim": 8,
    "n_heads": HEADS,
    "n_kv_heads": GROUPS,
    "norm_eps": 1e-5,
    "vocab_size": recording.VOCABULARY,
}


@dataclass(frozen=True)
class Causal:
    """Sequences one behind the other, of which each position sees what came before it in its own, as far as a window."""

    lengths: list[int]
    window: int | None = None

    @classmethod
    def from_seqlens(cls, lengths: list[int]) -> Causal:
        return cls(lengths)

    def make_local_attention(self, window: int) -> Causal:
        return Causal(self.lengths, window)

    def seen(self) -> Tensor:
        """(query x key, bool)"""
        owner = torch.repeat_interleave(torch.tensor(self.lengths))
        place = torch.arange(len(owner))
        ago = place[:, None] - place
        return (owner[:, None] == owner) & (ago >= 0) & (ago < (self.window or len(owner)))


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Causal) -> Tensor:
    """batch x length x head x size, all four, as xformers has them."""
    parts = (part.transpose(1, 2) for part in (query, key, value))
    return scaled_dot_product_attention(*parts, attn_mask=bias.seen()).transpose(1, 2)


def _xformers() -> None:
    unasked = ("AttentionBias", "BlockDiagonalMask", "BlockDiagonalCausalWithOffsetPaddedKeysMask")
    for name in ("xformers", "xformers.ops"):
        recording.stand_in(name)
    recording.stand_in("xformers.ops.fmha", memory_efficient_attention=attention)
    kinds = {"BlockDiagonalCausalMask": Causal, **{name: type(name, (), {}) for name in unasked}}
    recording.stand_in("xformers.ops.fmha.attn_bias", **kinds)


def mixtral(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The standard class's names; a head's rotary pairs, which stand side by side, come apart into its halves."""
    ends = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
    parts = {
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attention.wq": "self_attn.q_proj",
        "attention.wk": "self_attn.k_proj",
        "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj",
    }
    target: dict[str, Tensor] = {}
    for name, tensor in state.items():
        path = name.removesuffix(".weight")
        if path in ends:
            target[f"{ends[path]}.weight"] = tensor
            continue
        _, layer, part = path.split(".", 2)
        new = parts.get(part, part.replace("feed_forward", "block_sparse_moe"))
        if part in ("attention.wq", "attention.wk"):
            pairs = tensor.unflatten(0, (-1, SIZES["head_dim"] // 2, 2))  # head x pair x two x width
            halves = torch.cat((pairs[:, :, 0], pairs[:, :, 1]), dim=1)
            target[f"model.layers.{layer}.{new}.weight"] = halves.flatten(0, 1)
        else:
            target[f"model.layers.{layer}.{new}.weight"] = tensor
    return target


def save(params: dict[str, Any], state: dict[str, Tensor], source: Path) -> None:
    """Both kinds of file that its loader reads."""
    if params.get("sliding_window"):
        torch.save(state, source / "consolidated.00.pth")
    else:
        save_file(state, source / "consolidated.safetensors")
    (source / "params.json").write_text(json.dumps(params, indent=1) + "\n")


CASES: dict[str, dict[str, Any]] = {
    "mixtral": {"hidden_dim": 20, "moe": {"num_experts_per_tok": 2, "num_experts": 11}},
    "mixtral_window": {
        "hidden_dim": 40,
        "moe": {"num_experts_per_tok": 3, "num_experts": 4},
        "rope_theta": 10000.0,
        "sliding_window": 9,
    },
}


def main() -> None:
    options = recording.arguments(__doc__ or "")
    _xformers()
    from mistral_inference.args import TransformerArgs
    from mistral_inference.cache import BufferCache
    from mistral_inference.transformer import Transformer

    for case, changes in CASES.items():
        params = SIZES | changes
        seeded = recording.seed_weights(Transformer(TransformerArgs.from_dict(params)), options.seed)
        state = recording.halves(seeded.state_dict())
        with tempfile.TemporaryDirectory() as place:
            save(params, state, Path(place))
            model = Transformer.from_folder(place, device="cpu", dtype=torch.float32)
        input_ids = recording.ids(40, options.seed)
        places = (params["n_kv_heads"], params["head_dim"], params.get("sliding_window"))
        cache = BufferCache(params["n_layers"], 1, input_ids.shape[1], *places)
        with torch.no_grad():
            logits = model(input_ids[0], [input_ids.shape[1]], cache=cache)[None]
        recording.record(
            options.out / "mistral_inference" / case,
            {"spec": "mistral_mixtral", "config": "params.json", "tolerance": 2e-5},
            save=partial(save, params, state),
            target=mixtral(state),
            model_class="MixtralForCausalLM",
            config={
                "vocab_size": params["vocab_size"],
                "hidden_size": params["dim"],
                "intermediate_size": params["hidden_dim"],
                "num_hidden_layers": params["n_layers"],
                "num_attention_heads": HEADS,
                "num_key_value_heads": GROUPS,
                "head_dim": params["head_dim"],
                "num_local_experts": params["moe"]["num_experts"],
                "num_experts_per_tok": params["moe"]["num_experts_per_tok"],
                "rms_norm_eps": params["norm_eps"],
                "rope_theta": params.get("rope_theta", 1000000.0),
                "sliding_window": params.get("sliding_window"),
                "max_position_embeddings": 32768,
                "bos_token_id": 1,
                "eos_token_id": 2,
            },
            input_ids=input_ids,
            logits=logits,
            notes={"mistral_inference": version("mistral-inference"), "attention": "torch's, for that of xformers"},
        )


if __name__ == "__main__":
    main()
