"""The sizes of a model, told from the forms of its checkpoint and from what a config says; each with its expression.

Takes forms with their roles; returns `Measures`: for each size its value, and where a shape tells it the expression of
the spec language that measures it. What no shape tells (the number of heads) must be given, else it is a guess.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compiler.roles import Form

# What a size is called: in the spec that is drafted first, then in configs of all kinds.
WORDS = {
    "vocab_size": ("vocab_size", "padded_vocab_size", "n_vocab"),
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim", "embed_dim", "width"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth"),
    "num_attention_heads": (
        "num_attention_heads",
        "n_head",
        "n_heads",
        "num_heads",
        "num_attn_heads",
        "nheads",
        "encoder_attention_heads",
    ),
    "num_key_value_heads": (
        "num_key_value_heads",
        "num_kv_heads",
        "n_kv_heads",
        "kvheads",
        "n_query_groups",
        "n_kv_head",
    ),
    "head_dim": ("head_dim", "head_size", "kv_channels"),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim", "ffn_hidden_size"),
    "moe_intermediate_size": ("moe_intermediate_size", "moe_ffn_hidden_size"),
    "num_experts": ("num_local_experts", "num_experts", "n_expert", "n_routed_experts"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "block_size", "max_seq_len"),
}
USUAL_HEAD = 64  # a guess, where nothing tells the number of heads


@dataclass
class Measures:
    """`values` by the spec's word; `expressions` of those that the checkpoint tells; `guessed` words."""

    values: dict[str, int] = field(default_factory=dict)
    expressions: dict[str, str] = field(default_factory=dict)
    guessed: set[str] = field(default_factory=set)

    def tell(self, word: str, value: int, expression: str) -> None:
        """A measured value; where the config says another, the config is right and the expression is not."""
        if value > 0 and self.values.setdefault(word, value) == value:
            self.expressions.setdefault(word, expression)

    def __getitem__(self, word: str) -> int:
        return self.values.get(word, 0)


def measure(forms: Sequence[Form], given: Mapping[str, Any]) -> Measures:
    """The sizes of the checkpoint that these are the forms of."""
    found = Measures()
    for word, names in WORDS.items():
        value = next((given[n] for n in names if isinstance(given.get(n), int) and given[n] > 0), None)
        if value is not None:
            found.values[word] = value
    by = {(form.role, form.part): form for form in reversed(forms)}

    def form(*roles: str) -> Form | None:
        return next((by[role, "weight"] for role in roles if (role, "weight") in by), None)

    embedding = form("embedding", "head")
    if embedding is not None and len(embedding.shape) == 2:
        rows, columns = embedding.shape if embedding.shape[0] >= embedding.shape[1] else embedding.shape[::-1]
        flip = int(embedding.shape[0] < embedding.shape[1])
        found.tell("vocab_size", rows, f'dim("{embedding.first()}", {flip})')
        found.tell("hidden_size", columns, f'dim("{embedding.first()}", {1 - flip})')
    if (positions := form("positions")) is not None:
        found.tell("max_position_embeddings", positions.shape[0], f'dim("{positions.first()}", 0)')
    layered = next((f for f in forms if f.level == 1), None)
    if layered is not None:
        found.tell("num_hidden_layers", len(layered.numbers[0]), f'count("{layered.text}")')
    for role, word in (("down", "intermediate_size"), ("expert_down", "moe_intermediate_size")):
        _inner(found, form(role), word)
    if "intermediate_size" not in found.values and found["moe_intermediate_size"]:
        found.values["intermediate_size"] = found["moe_intermediate_size"]
        if (expression := found.expressions.get("moe_intermediate_size")) is not None:
            found.expressions["intermediate_size"] = expression
    if (router := form("router")) is not None:
        found.tell("num_experts", router.shape[0], f'dim("{router.first()}", 0)')
    _heads(found, form)
    return found


def _inner(found: Measures, down: Form | None, word: str) -> None:
    """The width inside an MLP: the axis of its last matrix that is not the width of the model."""
    if down is None or len(down.shape) < 2:
        return
    axes = range(len(down.shape) - 2, len(down.shape))
    axis = next((a for a in reversed(axes) if down.shape[a] != found["hidden_size"]), len(down.shape) - 1)
    found.tell(word, down.shape[axis], f'dim("{down.first()}", {axis})')


def _heads(found: Measures, form: Any) -> None:
    query, key, fused, out = form("q"), form("k"), form("qkv"), form("o")
    if not found["num_attention_heads"]:
        found.values["num_attention_heads"] = max(1, found["hidden_size"] // USUAL_HEAD)
        found.guessed.add("num_attention_heads")
    heads = found["num_attention_heads"]
    if out is not None and len(out.shape) == 2 and out.shape[1] % heads == 0:
        found.tell("head_dim", out.shape[1] // heads, f'dim("{out.first()}", 1) // num_attention_heads')
    elif query is not None and len(query.shape) == 3:
        found.tell(
            "head_dim", min(query.shape[1:]), f'dim("{query.first()}", {query.shape.index(min(query.shape[1:]))})'
        )
    width = found["head_dim"] or max(1, found["hidden_size"] // heads)
    found.values.setdefault("head_dim", width)
    if key is not None and len(key.shape) == 2 and key.shape[0] % width == 0:
        found.tell("num_key_value_heads", key.shape[0] // width, f'dim("{key.first()}", 0) // head_dim')
    elif fused is not None and (groups := (fused.shape[0] // width - heads) // 2) > 0 and fused.shape[0] % width == 0:
        expression = f'(dim("{fused.first()}", 0) // head_dim - num_attention_heads) // 2'
        found.tell("num_key_value_heads", groups, expression)
    found.values.setdefault("num_key_value_heads", heads)


def target_config(found: Measures, given: Mapping[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """Fields of the target's config: what is given under the target's own names, and the sizes under its words."""
    sizes = {name for names in WORDS.values() for name in names}
    config = {n: v for n, v in given.items() if n in fields and not (n in sizes and (not isinstance(v, int) or v < 1))}
    for word, names in WORDS.items():
        known = [name for name in names if name in fields]
        if known and word in found.values and not any(name in config for name in known):
            config[known[0]] = found.values[word]
    return config
