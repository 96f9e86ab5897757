"""Small checkpoints of several sources, made by seed: their tensors, their configs and the model that they make together.

The models are written after the published code of their trainers, in plain torch, and read no code of this project.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]


def numbers(shapes: Mapping[str, tuple[int, ...]], seed: int, scale: float = 0.3) -> State:
    """Normal numbers for each name; what scales a norm is near one."""
    random = torch.Generator().manual_seed(seed)
    state = {name: scale * torch.randn(shape, generator=random) for name, shape in shapes.items()}
    return {n: t + 1 if "norm" in n and n.endswith("weight") else t for n, t in state.items()}


def save(folder: Path, state: State, config: Mapping[str, Any] | None = None, name: str = "pytorch_model.bin") -> Path:
    """Write a checkpoint and its config; returns the folder, or the file where there is no config."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / name)
    if config is None:
        return folder / name
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def encoder_shapes(width: int, inner: int, layers: int, positions: int, patch: int) -> dict[str, tuple[int, ...]]:
    """The layers of a transformer of images that CLIP and SigLIP share."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.position_embedding.weight": (positions, width),
        "post_layernorm.weight": (width,),
        "post_layernorm.bias": (width,),
    }
    for i in range(layers):
        at = f"encoder.layers.{i}"
        for part, (out, into) in {
            **{f"self_attn.{p}_proj": (width, width) for p in ("q", "k", "v", "out")},
            "mlp.fc1": (inner, width),
            "mlp.fc2": (width, inner),
        }.items():
            shapes |= {f"{at}.{part}.weight": (out, into), f"{at}.{part}.bias": (out,)}
        shapes |= {f"{at}.layer_norm{n}.{t}": (width,) for n in (1, 2) for t in ("weight", "bias")}
    return {f"vision_model.{name}": shape for name, shape in shapes.items()}


def decoder_shapes(
    rows: int, width: int, inner: int, layers: int, heads: int, groups: int, head: int, norms: bool, experts: int = 0
) -> dict[str, tuple[int, ...]]:
    """A Llama-like decoder; `norms`: with a norm of each head; `experts`: in each layer, 0 for a dense one."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (rows, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (rows, width),
    }
    feed = {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
    for i in range(layers):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.{n}_layernorm.weight": (width,) for n in ("input", "post_attention")}
        attention = {"q": (heads * head, width), "k": (groups * head, width), "v": (groups * head, width)}
        attention["o"] = (width, heads * head)
        shapes |= {f"{at}.self_attn.{p}_proj.weight": shape for p, shape in attention.items()}
        shapes |= {f"{at}.self_attn.{p}_norm.weight": (head,) for p in ("q", "k") if norms}
        places = [f"{at}.mlp.experts.{e}" for e in range(experts)] or [f"{at}.mlp"]
        shapes |= {f"{place}.{p}.weight": shape for place in places for p, shape in feed.items()}
        shapes |= {f"{at}.mlp.gate.weight": (experts, width)} if experts else {}
    return shapes


# ---------------------------------------------------------------------------------------------------------------------
# The two kinds of transformers


def encode(state: State, pixels: Tensor, heads: int, eps: float, activation: Any, layers: int) -> Tensor:
    """What `layers` layers of an encoder return for images: [images, positions, width]. CLIP has a class token and a norm
    before the first layer, SigLIP does not."""
    at = {name.removeprefix("vision_model."): tensor for name, tensor in state.items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, at[f"{name}.weight"], at[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], at[f"{name}.weight"], at[f"{name}.bias"], eps)

    kernel = at["embeddings.patch_embedding.weight"]
    x = F.conv2d(pixels, kernel, at.get("embeddings.patch_embedding.bias"), stride=kernel.shape[-1]).flatten(2).mT
    if "embeddings.class_embedding" in at:
        x = torch.cat((at["embeddings.class_embedding"].expand(len(x), 1, -1), x), 1)
    x = x + at["embeddings.position_embedding.weight"]
    x = norm(x, "pre_layrnorm") if "pre_layrnorm.weight" in at else x
    for i in range(layers):
        place = f"encoder.layers.{i}"
        y = norm(x, f"{place}.layer_norm1")
        q, k, v = (linear(y, f"{place}.self_attn.{p}_proj").unflatten(-1, (heads, -1)).transpose(1, 2) for p in "qkv")
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + linear(mixed, f"{place}.self_attn.out_proj")
        y = activation(linear(norm(x, f"{place}.layer_norm2"), f"{place}.mlp.fc1"))
        x = x + linear(y, f"{place}.mlp.fc2")
    return x


def decode(state: State, x: Tensor, heads: int, groups: int, eps: float, theta: float, chosen: int = 0) -> Tensor:
    """The logits of a decoder for embeddings [texts, tokens, width]; `chosen`: experts of each token."""

    def rms(x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * state[f"{name}.weight"]

    def feed(x: Tensor, place: str) -> Tensor:
        gate, up, down = (state[f"{place}.{p}_proj.weight"] for p in ("gate", "up", "down"))
        return (F.silu(x @ gate.mT) * (x @ up.mT)) @ down.mT

    layers = sum(name.endswith(".input_layernorm.weight") for name in state)
    for i in range(layers):
        at = f"model.layers.{i}"
        y = rms(x, f"{at}.input_layernorm")
        q, k, v = (
            (y @ state[f"{at}.self_attn.{p}_proj.weight"].mT).unflatten(-1, (n, -1)).transpose(1, 2)
            for p, n in (("q", heads), ("k", groups), ("v", groups))
        )
        if f"{at}.self_attn.q_norm.weight" in state:
            q, k = (rms(t, f"{at}.self_attn.{p}_norm") for t, p in ((q, "q"), (k, "k")))
        half = q.shape[-1] // 2
        angles = torch.outer(torch.arange(x.shape[1]).float(), theta ** -(torch.arange(half).float() / half))
        cos, sin = angles.cos(), angles.sin()
        q, k = (
            torch.cat((t[..., :half] * cos - t[..., half:] * sin, t[..., half:] * cos + t[..., :half] * sin), -1)
            for t in (q, k)
        )
        k, v = (t.repeat_interleave(heads // groups, 1) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + mixed @ state[f"{at}.self_attn.o_proj.weight"].mT
        y = rms(x, f"{at}.post_attention_layernorm")
        if f"{at}.mlp.gate.weight" not in state:
            x = x + feed(y, f"{at}.mlp")
            continue
        weights = (y @ state[f"{at}.mlp.gate.weight"].mT).softmax(-1)
        kept, indices = weights.topk(chosen, -1)
        kept = kept / kept.sum(-1, keepdim=True)
        share = torch.zeros_like(weights).scatter(-1, indices, kept)
        experts = [feed(y, f"{at}.mlp.experts.{e}") for e in range(weights.shape[-1])]
        x = x + sum(share[..., e : e + 1] * made for e, made in enumerate(experts))
    return rms(x, "model.norm") @ state["lm_head.weight"].mT


# ---------------------------------------------------------------------------------------------------------------------
# LLaVA 1.5

LLAVA = {"rows": 70, "width": 32, "inner": 56, "layers": 2, "heads": 4, "groups": 2, "head": 8}
CLIP = {"width": 24, "inner": 40, "layers": 3, "positions": 10, "patch": 4}
CLIP_HEADS = 3


def llava(place: Path, vision_width: int = 24) -> dict[str, Path]:
    """The folders `text` and `vision` of a LLaVA checkpoint; the file `projector` has other values for the projector."""
    clip = CLIP | {"width": vision_width}
    shapes = encoder_shapes(**clip) | {
        f"vision_model.{n}": (vision_width,)
        for n in ("embeddings.class_embedding", "pre_layrnorm.weight", "pre_layrnorm.bias")
    }
    projector = {"model.mm_projector.0": (32, 24), "model.mm_projector.2": (32, 32)}
    linear = {f"{n}.weight": shape for n, shape in projector.items()}
    linear |= {f"{n}.bias": shape[:1] for n, shape in projector.items()}
    text = numbers(decoder_shapes(**LLAVA, norms=False) | linear, 1)
    config = {
        "model_type": "llava",
        "architectures": ["LlavaLlamaForCausalLM"],
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "vocab_size": 70,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "hidden_act": "silu",
        "mm_hidden_size": 24,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_start_end": False,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "tune_mm_mlp_adapter": False,
        "rope_scaling": None,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": vision_width,
        "intermediate_size": 40,
        "num_attention_heads": CLIP_HEADS,
        "num_hidden_layers": 3,
        "image_size": 12,
        "patch_size": 4,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }
    whole = {"model_type": "clip", "vision_config": vision, "text_config": {"model_type": "clip_text_model"}}
    encoder = numbers(shapes, 2) | {"logit_scale": torch.tensor(4.6), "text_model.final_layer_norm.bias": torch.ones(8)}
    return {
        "text": save(place / "text", text, config),
        "vision": save(place / "vision", encoder, whole),
        "projector": save(place / "projector", numbers(linear, 3), name="mm_projector.bin"),
    }


def llava_logits(text: State, vision: State, before: Tensor, pixels: Tensor, after: Tensor) -> Tensor:
    """The logits of one image between two texts: the second last layer of the encoder without its class token."""
    features = encode(vision, pixels, CLIP_HEADS, 1e-5, lambda x: x * torch.sigmoid(1.702 * x), CLIP["layers"] - 1)[
        :, 1:
    ]
    linear = [(text[f"model.mm_projector.{n}.weight"], text[f"model.mm_projector.{n}.bias"]) for n in (0, 2)]
    image = F.linear(F.gelu(F.linear(features, *linear[0])), *linear[1])
    words = text["model.embed_tokens.weight"]
    x = torch.cat((words[before], image, words[after]), 1)
    return decode(text, x, LLAVA["heads"], LLAVA["groups"], 1e-5, 10000.0)


# ---------------------------------------------------------------------------------------------------------------------
# MiniMind-V of June 2026

MINIMIND = {"rows": 80, "width": 32, "layers": 2, "heads": 4, "groups": 2, "head": 10}
SIGLIP = {"width": 36, "inner": 52, "layers": 2, "positions": 9, "patch": 4}
SIGLIP_HEADS, EXPERTS, CHOSEN, IMAGE = 3, 4, 2, 12


def minimind_v(place: Path, experts: int = 0) -> dict[str, Path]:
    """The file `text` with its config beside it, and the folder `vision`. A dense model has the encoder with its head."""
    sizes = MINIMIND | {"inner": 24 if experts else 56, "experts": experts}
    shapes = decoder_shapes(**sizes, norms=True) | {  # type: ignore[arg-type]
        "vision_proj.mlp.0.weight": (36,),
        "vision_proj.mlp.0.bias": (36,),
        "vision_proj.mlp.1.weight": (32, 36),
        "vision_proj.mlp.1.bias": (32,),
        "vision_proj.mlp.3.weight": (32, 32),
        "vision_proj.mlp.3.bias": (32,),
    }
    text = numbers(shapes, 4)
    text["lm_head.weight"] = text["model.embed_tokens.weight"]
    text["vision_proj.mlp.0.weight"] += 1
    config = {
        "model_type": "minimind-v",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "vocab_size": 80,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 32768,
        "inference_rope_scaling": False,
        "rope_scaling": None,
        "use_moe": bool(experts),
        "num_experts": 4,
        "num_experts_per_tok": CHOSEN,
        "norm_topk_prob": True,
        "image_ids": [IMAGE],
        "image_hidden_size": 36,
        "image_token_len": 9,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
    shapes = encoder_shapes(**SIGLIP) | {"vision_model.embeddings.patch_embedding.bias": (36,)}
    if not experts:
        shapes |= {
            "vision_model.head.probe": (1, 1, 36),
            "vision_model.head.attention.in_proj_weight": (108, 36),
            "vision_model.head.attention.in_proj_bias": (108,),
            "vision_model.head.attention.out_proj.weight": (36, 36),
            "vision_model.head.attention.out_proj.bias": (36,),
            "vision_model.head.layernorm.weight": (36,),
            "vision_model.head.layernorm.bias": (36,),
            "vision_model.head.mlp.fc1.weight": (52, 36),
            "vision_model.head.mlp.fc1.bias": (52,),
            "vision_model.head.mlp.fc2.weight": (36, 52),
            "vision_model.head.mlp.fc2.bias": (36,),
        }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 36,
        "intermediate_size": 52,
        "num_hidden_layers": 2,
        "num_attention_heads": SIGLIP_HEADS,
        "image_size": 12,
        "patch_size": 4,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    }
    save(place / "text", text, config, "sft_vlm_32.pth")
    return {
        "text": place / "text" / "sft_vlm_32.pth",
        "vision": save(place / "vision", numbers(shapes, 5), vision),
    }


def minimind_v_logits(text: State, vision: State, before: Tensor, pixels: Tensor, after: Tensor) -> Tensor:
    """The logits of one image between two texts: what the encoder returns, normalised, through the projector."""

    def norm(x: Tensor, state: State, name: str, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    gelu = lambda x: F.gelu(x, approximate="tanh")  # noqa: E731
    features = encode(vision, pixels, SIGLIP_HEADS, 1e-6, gelu, SIGLIP["layers"])
    features = norm(features, vision, "vision_model.post_layernorm", 1e-6)
    features = norm(features, text, "vision_proj.mlp.0", 1e-5)
    linear = [(text[f"vision_proj.mlp.{n}.weight"], text[f"vision_proj.mlp.{n}.bias"]) for n in (1, 3)]
    image = F.linear(F.gelu(F.linear(features, *linear[0])), *linear[1])
    words = text["model.embed_tokens.weight"]
    x = torch.cat((words[before], image, words[after]), 1)
    return decode(text, x, MINIMIND["heads"], MINIMIND["groups"], 1e-6, 1e6, CHOSEN)


def patches(pixels: Tensor, patch: int) -> Tensor:
    """Images as rows of patches, whose channels are last: [images, patches, patch * patch * channels]."""
    cut = pixels.unfold(2, patch, patch).unfold(3, patch, patch)  # images, channels, rows, columns, patch, patch
    return cut.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
