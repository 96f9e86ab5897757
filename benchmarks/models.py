"""Whole conversions: what people do today, to hold `compile run` against.

    python -m benchmarks.models {prepare,tensors,pretrained} FOLDER [LAYERS]

`prepare` writes `meta/consolidated.00.pth` (a trainer's names and interleaved rotary order, bfloat16) with its config, and
`hf/`, which Transformers loads; their contents are unrelated.
`tensors`: torch.load(mmap), the same rearrangement in torch, safetensors.save_file. `pretrained`: from_pretrained,
then save_pretrained, which converts nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HIDDEN, INNER, HEADS, KV_HEADS, VOCABULARY = 2048, 8192, 16, 4, 32_000


OUTER = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
INNER_NAMES = {
    **{f"attention.w{p}": f"self_attn.{p}_proj" for p in "qkvo"},
    **{f"feed_forward.w{n}": f"mlp.{p}_proj" for n, p in ((1, "gate"), (2, "down"), (3, "up"))},
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def config(layers: int) -> object:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=layers,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, tie_word_embeddings=False,
    )  # fmt: skip


def layers_for(size: int) -> int:
    """As many layers as make about so many bytes."""
    layer = HIDDEN * (2 * HIDDEN + 2 * HIDDEN * KV_HEADS // HEADS + 3 * INNER) * 2
    return max(1, round((size - 2 * VOCABULARY * HIDDEN * 2) / layer))


def prepare(folder: Path, layers: int) -> None:
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in LlamaForCausalLM(config(layers)).state_dict().items()}
    noise = torch.randn(1 << 24).bfloat16() * 0.02
    tensors = {}
    for name, shape in shapes.items():
        count = shape.numel()
        tensors[name] = (
            noise.repeat(-(-count // len(noise)))[:count].clone().reshape(shape)
        )  # a storage of its own, without the rest
    layer = [f"layers.{i}.{name}" for i in range(layers) for name in INNER_NAMES]
    source = {f"{name}.weight": tensors[renamed(f"{name}.weight")] for name in (*OUTER, *layer)}
    (folder / "meta").mkdir()
    torch.save(source, folder / "meta" / "consolidated.00.pth")
    fields = {"dim": HIDDEN, "n_heads": HEADS, "n_kv_heads": KV_HEADS, "n_layers": layers, "norm_eps": 1e-5}
    (folder / "meta" / "params.json").write_text(json.dumps(fields))
    model = LlamaForCausalLM.from_pretrained(None, config=config(layers), state_dict=tensors, dtype=torch.bfloat16)
    model.save_pretrained(folder / "hf")


def renamed(name: str) -> str:
    """What Transformers calls a tensor of the trainer's."""
    word = name.removesuffix(".weight")
    if not word.startswith("layers."):
        return f"{OUTER[word]}.weight"
    _, number, inner = word.split(".", 2)
    return f"model.layers.{number}.{INNER_NAMES[inner]}.weight"


def tensors(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    source = torch.load(folder / "meta" / "consolidated.00.pth", mmap=True, weights_only=True)
    made = {}
    for name, tensor in source.items():
        made[renamed(name)] = tensor
        if name.endswith((".wq.weight", ".wk.weight")):
            heads = tensor.shape[0] // (HIDDEN // HEADS)
            made[renamed(name)] = tensor.view(heads, -1, 2, HIDDEN).transpose(1, 2).reshape(tensor.shape)
    (folder / "out").mkdir()
    save_file(made, folder / "out" / "model.safetensors")


def pretrained(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.bfloat16)
    model.save_pretrained(folder / "out")


if __name__ == "__main__":
    word, place, *more = sys.argv[1:]
    if word == "prepare":
        prepare(Path(place), int(more[0]))
    else:
        {"tensors": tensors, "pretrained": pretrained}[word](Path(place))
