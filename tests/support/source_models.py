"""Source models as trainers write them, short and plain, for `compile verify --source-model`.

`Interleaved`: the names and the rotary embedding of Meta's Llama, which turns neighbouring channels together
(arXiv 2104.09864). `Grouped`: InternLM2, whose queries, key and value of one group lie side by side in one matrix, and
which turns the halves of a head. Written from the published formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass
class Args:
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    hidden_dim: int
    vocab_size: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0


class Norm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


def angles(length: int, size: int, theta: float) -> Tensor:
    """(length, size / 2)"""
    return torch.arange(length)[:, None] / theta ** (torch.arange(0, size, 2) / size)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(batch, length, heads, size) and fewer key heads -> (batch, length, heads * size), each token to those before it"""
    groups = query.shape[2] // key.shape[2]
    key, value = (t.repeat_interleave(groups, dim=2).transpose(1, 2) for t in (key, value))
    mixed = functional.scaled_dot_product_attention(query.transpose(1, 2), key, value, is_causal=True)
    return mixed.transpose(1, 2).flatten(2)


class InterleavedAttention(nn.Module):
    def __init__(self, args: Args) -> None:
        super().__init__()
        self.args, size = args, args.dim // args.n_heads
        self.wq = nn.Linear(args.dim, args.n_heads * size, bias=False)
        self.wk = nn.Linear(args.dim, args.n_kv_heads * size, bias=False)
        self.wv = nn.Linear(args.dim, args.n_kv_heads * size, bias=False)
        self.wo = nn.Linear(args.n_heads * size, args.dim, bias=False)

    def turn(self, x: Tensor) -> Tensor:
        turned = angles(x.shape[1], x.shape[-1], self.args.rope_theta)[:, None]
        even, odd = x[..., ::2], x[..., 1::2]
        parts = even * turned.cos() - odd * turned.sin(), even * turned.sin() + odd * turned.cos()
        return torch.stack(parts, dim=-1).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            w(x).unflatten(-1, (-1, self.args.dim // self.args.n_heads)) for w in (self.wq, self.wk, self.wv)
        )
        return self.wo(attend(self.turn(query), self.turn(key), value))


class GroupedAttention(nn.Module):
    def __init__(self, args: Args) -> None:
        super().__init__()
        self.args, size = args, args.dim // args.n_heads
        self.wqkv = nn.Linear(args.dim, (args.n_heads + 2 * args.n_kv_heads) * size, bias=False)
        self.wo = nn.Linear(args.n_heads * size, args.dim, bias=False)

    def turn(self, x: Tensor) -> Tensor:
        turned = angles(x.shape[1], x.shape[-1], self.args.rope_theta).repeat(1, 2)[:, None]
        first, second = x.chunk(2, dim=-1)
        return x * turned.cos() + torch.cat((-second, first), dim=-1) * turned.sin()

    def forward(self, x: Tensor) -> Tensor:
        # batch length (group row size) -> batch length group row size
        rows = self.wqkv(x).unflatten(-1, (self.args.n_kv_heads, -1, self.args.dim // self.args.n_heads))
        query, key, value = rows[..., :-2, :].flatten(2, 3), rows[..., -2, :], rows[..., -1, :]
        return self.wo(attend(self.turn(query), self.turn(key), value))


class FeedForward(nn.Module):
    def __init__(self, args: Args) -> None:
        super().__init__()
        self.w1 = nn.Linear(args.dim, args.hidden_dim, bias=False)
        self.w2 = nn.Linear(args.hidden_dim, args.dim, bias=False)
        self.w3 = nn.Linear(args.dim, args.hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, args: Args, attention: type[nn.Module]) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention(args), FeedForward(args)
        self.attention_norm, self.ffn_norm = Norm(args.dim, args.norm_eps), Norm(args.dim, args.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class Decoder(nn.Module):
    def __init__(self, args: Args, attention: type[nn.Module]) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(args.vocab_size, args.dim)
        self.layers = nn.ModuleList([Block(args, attention) for _ in range(args.n_layers)])
        self.norm = Norm(args.dim, args.norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tok_embeddings(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Interleaved(Decoder):
    def __init__(self, args: Args) -> None:
        super().__init__(args, InterleavedAttention)
        self.output = nn.Linear(args.dim, args.vocab_size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.output(super().forward(tokens))


class Grouped(nn.Module):
    def __init__(self, args: Args) -> None:
        super().__init__()
        self.model = Decoder(args, GroupedAttention)
        self.output = nn.Linear(args.dim, args.vocab_size, bias=False)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        return {"logits": self.output(self.model(tokens))}


# ---------------------------------------------------------------------------------------------------------------------
# Images and sound: functions that take the source's config, for `--source-model FILE:FUNCTION`


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int, names: tuple[str, str], activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.names, self.activation = names, activation
        for name, sizes in zip(names, ((width, hidden), (hidden, width)), strict=True):
            self.add_module(name, nn.Linear(*sizes))

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.get_submodule(name) for name in self.names)
        return second(self.activation(first(x)))


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


class FusedAttention(nn.Module):
    """timm's: queries, keys and values of all heads in one matrix."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.proj(functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class VisionBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn = FusedAttention(width, heads)
        self.mlp = MLP(width, hidden, ("fc1", "fc2"), functional.gelu)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionClassifier(nn.Module):
    """Names and layout of timm's VisionTransformer."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, patch, eps = config["embed_dim"], config["patch_size"], config["layer_norm_eps"]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config["side"] ** 2 + 1, width))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(config["channels"], width, patch, patch)
        blocks = (VisionBlock(width, config["num_heads"], config["mlp_width"], eps) for _ in range(config["depth"]))
        self.blocks = nn.ModuleList(blocks)
        self.norm, self.head = nn.LayerNorm(width, eps), nn.Linear(width, config["num_classes"])

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def vision_classifier(config: dict[str, Any]) -> nn.Module:
    return VisionClassifier(config)


class ResidualBlock(nn.Module):
    """A block of OpenAI's CLIP."""

    def __init__(self, width: int, heads: int, hidden: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = MLP(width, hidden, ("c_fc", "c_proj"), activation)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Residuals(nn.Module):
    def __init__(self, count: int, width: int, hidden: int, heads: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualBlock(width, heads, hidden, activation) for _ in range(count))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class ImageAndText(nn.Module):
    """Names and layout of OpenAI's CLIP; `forward(image, text)` returns the logits per image and per text."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        c, activation = config, quick_gelu if config["hidden_act"] == "quick_gelu" else functional.gelu
        self.visual = nn.Module()
        width = c["vision_width"]
        self.visual.class_embedding = nn.Parameter(torch.zeros(width))
        self.visual.positional_embedding = nn.Parameter(torch.zeros(c["side"] ** 2 + 1, width))
        self.visual.conv1 = nn.Conv2d(3, width, c["patch_size"], c["patch_size"], bias=False)
        self.visual.ln_pre, self.visual.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        heads = width // c["vision_head_width"]
        self.visual.transformer = Residuals(c["vision_layers"], width, c["vision_ffn"], heads, activation)
        self.visual.proj = nn.Parameter(torch.zeros(width, c["embed_dim"]))
        width = c["text_width"]
        self.token_embedding = nn.Embedding(c["vocab_size"], width)
        self.positional_embedding = nn.Parameter(torch.zeros(c["context_length"], width))
        self.transformer = Residuals(c["text_layers"], width, c["text_ffn"], width // c["text_head_width"], activation)
        self.ln_final, self.logit_scale = nn.LayerNorm(width), nn.Parameter(torch.zeros(()))
        self.text_projection = nn.Parameter(torch.zeros(width, c["embed_dim"]))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        v = self.visual
        x = v.conv1(image).flatten(2).transpose(1, 2)
        x = torch.cat((v.class_embedding.expand(len(x), 1, -1), x), dim=1) + v.positional_embedding
        images = v.ln_post(v.transformer(v.ln_pre(x))[:, 0]) @ v.proj
        length = text.shape[1]
        mask = torch.full((length, length), float("-inf")).triu(1)
        y = self.transformer(self.token_embedding(text) + self.positional_embedding[:length], mask)
        texts = self.ln_final(y)[torch.arange(len(y)), text.argmax(-1)] @ self.text_projection
        images, texts = (t / t.norm(dim=-1, keepdim=True) for t in (images, texts))
        logits = self.logit_scale.exp() * images @ texts.T
        return logits, logits.T


def image_and_text(config: dict[str, Any]) -> nn.Module:
    return ImageAndText(config)


class SpeechAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.value, self.out = (nn.Linear(width, width) for _ in range(3))
        self.key = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, other: Tensor | None = None, causal: bool = False) -> Tensor:
        other = x if other is None else other
        query, key, value = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in (self.query(x), self.key(other), self.value(other))
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


class SpeechBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, crossed: bool) -> None:
        super().__init__()
        self.attn, self.attn_ln = SpeechAttention(width, heads), nn.LayerNorm(width)
        self.cross_attn = SpeechAttention(width, heads) if crossed else None
        self.cross_attn_ln = nn.LayerNorm(width) if crossed else None
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.mlp_ln = nn.LayerNorm(width)

    def forward(self, x: Tensor, sound: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.attn_ln(x), causal=sound is not None)
        if self.cross_attn is not None and self.cross_attn_ln is not None:
            x = x + self.cross_attn(self.cross_attn_ln(x), sound)
        return x + self.mlp(self.mlp_ln(x))


class SpeechToText(nn.Module):
    """Names and layout of OpenAI's Whisper; `forward(mel, tokens)` returns logits."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        c, width = config, config["n_audio_state"]
        e = self.encoder = nn.Module()
        e.conv1, e.conv2 = nn.Conv1d(c["n_mels"], width, 3, 1, 1), nn.Conv1d(width, width, 3, 2, 1)
        e.register_buffer("positional_embedding", torch.zeros(c["n_audio_ctx"], width))
        layers = (SpeechBlock(width, c["n_audio_head"], c["ffn"], False) for _ in range(c["n_audio_layer"]))
        e.blocks, e.ln_post = nn.ModuleList(layers), nn.LayerNorm(width)
        d = self.decoder = nn.Module()
        d.token_embedding = nn.Embedding(c["n_vocab"], width)
        d.positional_embedding = nn.Parameter(torch.zeros(c["n_text_ctx"], width))
        layers = (SpeechBlock(width, c["n_text_head"], c["ffn"], True) for _ in range(c["n_text_layer"]))
        d.blocks, d.ln = nn.ModuleList(layers), nn.LayerNorm(width)

    def forward(self, mel: Tensor, tokens: Tensor) -> Tensor:
        e, d = self.encoder, self.decoder
        x = functional.gelu(e.conv2(functional.gelu(e.conv1(mel)))).transpose(1, 2) + e.positional_embedding
        for block in e.blocks:
            x = block(x)
        x = e.ln_post(x)
        y = d.token_embedding(tokens) + d.positional_embedding[: tokens.shape[1]]
        for block in d.blocks:
            y = block(y, x)
        return d.ln(y) @ d.token_embedding.weight.T


def speech_to_text(config: dict[str, Any]) -> nn.Module:
    return SpeechToText(config)
