"""Record a small seeded Baichuan2 (the 7B's kind) as a short model of its layout computes it.

The original is remote code of generation 4 that nothing installs, so that its forward stands here once more, after
`modeling_baichuan.py` of baichuan-inc/Baichuan2-7B-Base: W_pack holds queries, keys and values one behind the other, the
halves of a head turn together, and NormHead divides each row of the head by its length before it multiplies.

Usage: python run_baichuan2.py OUT [--seed N]; writes OUT/baichuan2/CASE.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import recording
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

HIDDEN, MIDDLE, LAYERS, HEADS = 32, 48, 2, 4
CONFIG = {
    "vocab_size": recording.VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": MIDDLE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + CONFIG["rms_norm_eps"])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.W_pack = nn.Linear(HIDDEN, 3 * HIDDEN, bias=False)
        self.o_proj = nn.Linear(HIDDEN, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # batch length (three head size) -> three of batch head length size
        query, key, value = self.W_pack(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        size = query.shape[-1]
        angles = torch.arange(x.shape[1])[:, None] / 10000.0 ** (torch.arange(0, size, 2) / size)
        angles = angles.repeat(1, 2)

        def turned(t: Tensor) -> Tensor:
            first, second = t.chunk(2, dim=-1)
            return t * angles.cos() + torch.cat((-second, first), dim=-1) * angles.sin()

        mixed = functional.scaled_dot_product_attention(turned(query), turned(key), value, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(HIDDEN, MIDDLE, bias=False)
        self.down_proj = nn.Linear(MIDDLE, HIDDEN, bias=False)
        self.up_proj = nn.Linear(HIDDEN, MIDDLE, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(), MLP()
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(), RMSNorm()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class NormHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(recording.VOCABULARY, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, functional.normalize(self.weight))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(recording.VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = RMSNorm()

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Baichuan2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model, self.lm_head = Decoder(), NormHead()

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.lm_head(self.model(input_ids))


def llama(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Thirds of W_pack, and the head's rows divided by their lengths, one by one."""
    target: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if "W_pack" in name:
            for n, part in enumerate(("q_proj", "k_proj", "v_proj")):
                target[name.replace("W_pack", part)] = tensor[n * HIDDEN : (n + 1) * HIDDEN].contiguous()
        elif name == "lm_head.weight":
            target[name] = torch.stack([row / torch.tensor(math.hypot(*row.tolist())) for row in tensor])
        else:
            target[name] = tensor
    return target


def main() -> None:
    options = recording.arguments(__doc__ or "")
    model = recording.seed_weights(Baichuan2(), options.seed)
    # Rows of many lengths; whole numbers, so that the sums of their squares have the same bits on every processor.
    random = torch.Generator().manual_seed(options.seed)
    rows = torch.randint(-9, 10, (recording.VOCABULARY, HIDDEN), generator=random)
    model.lm_head.weight.data.copy_(torch.ldexp(rows, torch.randint(-6, 0, (len(rows), 1), generator=random)))
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    input_ids = recording.ids(40, options.seed)
    with torch.no_grad():
        logits = model(input_ids)

    def save(source: Path) -> None:
        save_file(state, source / "model.safetensors", {"format": "pt"})
        written = {**CONFIG, "model_type": "baichuan", "architectures": ["BaichuanForCausalLM"], "model_max_length": 64}
        (source / "config.json").write_text(json.dumps(written, indent=1) + "\n")

    lossy = "the lengths of the head's rows are lost"
    recording.record(
        options.out / "baichuan2" / "norm_head",
        {"spec": "baichuan2_llama", "config": "config.json", "tolerance": 2e-5, "lossy": lossy},
        save=save,
        target=llama(state),
        model_class="LlamaForCausalLM",
        config={**CONFIG, "num_key_value_heads": HEADS, "head_dim": HIDDEN // HEADS},
        input_ids=input_ids,
        logits=logits,
        notes={"original": "a model of its own in Baichuan2's layout"},
    )


if __name__ == "__main__":
    main()
