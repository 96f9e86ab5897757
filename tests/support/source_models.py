"""Two source models as trainers write them, short and plain, for `compile verify --source-model`.

`Interleaved`: the names and the rotary embedding of Meta's Llama, which turns neighbouring channels together
(arXiv 2104.09864). `Grouped`: InternLM2, whose queries, key and value of one group lie side by side in one matrix, and
which turns the halves of a head. Written from the published formulas.
"""

from __future__ import annotations

from dataclasses import dataclass

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
