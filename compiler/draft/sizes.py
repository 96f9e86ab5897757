"""The sizes of a model, told from the forms of its checkpoint and from what a config says; each with its expression.

Takes forms with their roles; returns `Measures`: for each size its value, and where a shape tells it the expression of
the spec language that measures it. What no shape tells (the number of heads) must be given, else it is a guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compiler.draft.tensor_roles import NameFamily

# What a size is called: in the spec that is drafted first, then in configs of all kinds.
WORDS = {
    "vocab_size": ("vocab_size", "padded_vocab_size", "n_vocab"),
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim", "embed_dim", "width", "embedding_length"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "block_count"),
    "num_attention_heads": (
        "num_attention_heads",
        "n_head",
        "n_heads",
        "num_heads",
        "num_attn_heads",
        "nheads",
        "attention_head_count",
        "n_text_head",
        "encoder_attention_heads",
    ),
    "num_key_value_heads": (
        "num_key_value_heads",
        "num_kv_heads",
        "n_kv_heads",
        "kvheads",
        "n_query_groups",
        "n_kv_head",
        "attention_head_count_kv",
    ),
    "head_dim": ("head_dim", "head_size", "kv_channels", "head_width"),
    "intermediate_size": (
        "intermediate_size",
        "n_inner",
        "ffn_dim",
        "hidden_dim",
        "ffn_hidden_size",
        "feed_forward_length",
    ),
    "moe_intermediate_size": ("moe_intermediate_size", "moe_ffn_hidden_size"),
    "num_experts": ("num_local_experts", "num_experts", "n_expert", "n_routed_experts", "expert_count"),
    "max_position_embeddings": (
        "max_position_embeddings",
        "n_positions",
        "block_size",
        "max_seq_len",
        "context_length",
    ),
    "patch_size": ("patch_size",),
    "image_size": ("image_size",),
    "num_channels": ("num_channels",),
    "num_labels": ("num_labels",),
}
# Values that are no sizes, under the words of configs of all kinds.
SETTINGS = (
    ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "norm_eps", "norm_epsilon", "rms_eps", "eps",
     "attention_layer_norm_rms_epsilon"),
    ("rope_theta", "rope_base", "rotary_emb_base", "rotary_base", "rope_freq_base"),
    ("hidden_act", "activation_function", "hidden_activation", "activation"),
    ("num_experts_per_tok", "moe_top_k", "top_k", "n_expert_per_token", "moe_router_topk", "num_experts_per_token"),
)  # fmt: skip
USUAL_HEAD = 64  # a guess, where nothing tells the number of heads


@dataclass
class Measures:
    """`values` by the spec's word; `expressions` of those that the checkpoint tells; `guessed` words; `named`: what the
    source's config calls a word or a field of the target."""

    values: dict[str, int] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)
    expressions: dict[str, str] = field(default_factory=dict)
    guessed: set[str] = field(default_factory=set)

    def tell(self, word: str, value: int, expression: str) -> None:
        """A measured value; where the config says another, the config is right and the expression is not."""
        if value > 0 and self.values.setdefault(word, value) == value:
            self.expressions.setdefault(word, expression)

    def __getitem__(self, word: str) -> int:
        return self.values.get(word, 0)


def measure(forms: Sequence[NameFamily], given: Mapping[str, Any]) -> Measures:
    """The sizes of the checkpoint that these are the forms of."""
    found = Measures()
    for word, names in WORDS.items():
        name = next((n for n in names if isinstance(given.get(n), int) and given[n] > 0), None)
        if name is not None:
            found.values[word], found.named[word] = given[name], name
    by = {(form.role, form.part): form for form in reversed(forms)}

    def form(*roles: str) -> NameFamily | None:
        return next((by[role, "weight"] for role in roles if (role, "weight") in by), None)

    embedding, norm = form("embedding", "head"), form("final_norm", "norm_1")
    if embedding is not None and len(embedding.shape) == 2:
        # A norm is as long as the model is wide; without one, a vocabulary is larger than that.
        wide = norm.shape[0] if norm is not None and norm.shape and norm.shape[0] in embedding.shape else 0
        flip = int(
            embedding.shape[0] == wide != embedding.shape[1] if wide else embedding.shape[0] < embedding.shape[1]
        )
        rows, columns = embedding.shape[:: -1 if flip else 1]
        found.tell("vocab_size", rows, f'dim("{embedding.first()}", {flip})')
        found.tell("hidden_size", columns, f'dim("{embedding.first()}", {1 - flip})')
    elif norm is not None:
        found.tell("hidden_size", norm.shape[0], f'dim("{norm.first()}", 0)')
    positions = form("positions")
    if positions is not None and len(positions.shape) == 2:
        found.tell("max_position_embeddings", positions.shape[0], f'dim("{positions.first()}", 0)')
    patches = next((f for f in forms if f.level == 0 and len(f.shape) == 4), None)
    if patches is not None:
        _pixels(found, patches, positions, form("head"))
    layered = next((f for f in forms if f.level == 1), None)
    if layered is not None:
        found.tell("num_hidden_layers", len(layered.numbers[0]), f'count("{layered.text}")')
    if (router := form("router")) is not None:
        found.tell("num_experts", router.shape[0], f'dim("{router.first()}", 0)')
    for role, word in (("down", "intermediate_size"), ("expert_down", "moe_intermediate_size")):
        _inner(found, form(role), word)
    if "intermediate_size" not in found.values and found["moe_intermediate_size"]:
        found.values["intermediate_size"] = found["moe_intermediate_size"]
        if (expression := found.expressions.get("moe_intermediate_size")) is not None:
            found.expressions["intermediate_size"] = expression
    _heads(found, form)
    return found


def _pixels(found: Measures, patches: NameFamily, positions: NameFamily | None, head: NameFamily | None) -> None:
    """Of a model that looks at pictures: the patches that its first convolution takes, and how many there are."""
    name, side = patches.first(), patches.shape[3]
    found.tell("num_channels", patches.shape[1], f'dim("{name}", 1)')
    found.tell("patch_size", side, f'dim("{name}", 3)')
    count = positions.shape[-2] - 1 if positions is not None else 0  # one position is that of the class
    if count > 0 and math.isqrt(count) ** 2 == count:
        found.values.setdefault("image_size", math.isqrt(count) * side)
    if head is not None:
        found.tell("num_labels", head.shape[0], f'dim("{head.first()}", 0)')


def _inner(found: Measures, down: NameFamily | None, word: str) -> None:
    """The width inside an MLP: the axis of its last matrix that is not the width of the model."""
    if down is None or len(down.shape) < 2:
        return
    axes = range(len(down.shape) - 2, len(down.shape))
    axis = next((a for a in reversed(axes) if down.shape[a] != found["hidden_size"]), len(down.shape) - 1)
    experts = found["num_experts"]
    if word.startswith("moe") and down.level == 1 and len(down.shape) == 2 and experts:  # all experts in one matrix
        found.tell(word, down.shape[axis] // experts, f'dim("{down.first()}", {axis}) // num_experts')
        return
    found.tell(word, down.shape[axis], f'dim("{down.first()}", {axis})')


def _heads(found: Measures, form: Callable[..., NameFamily | None]) -> None:
    query, key, fused, out = form("q"), form("k"), form("qkv"), form("o")
    if query is not None and len(query.shape) == 3 and found["hidden_size"] in query.shape[1:]:
        found.tell("num_attention_heads", query.shape[0], f'dim("{query.first()}", 0)')
    width, known = found["head_dim"], found["num_attention_heads"]
    if not known and width and out is not None and len(out.shape) == 2 and out.shape[1] % width == 0:
        found.tell("num_attention_heads", out.shape[1] // width, f'dim("{out.first()}", 1) // head_dim')
    if not found["num_attention_heads"]:
        found.values["num_attention_heads"] = max(1, found["hidden_size"] // USUAL_HEAD)
        found.guessed.add("num_attention_heads")
    heads = found["num_attention_heads"]
    if "head_dim" in found.expressions.get("num_attention_heads", ""):
        pass  # the one is told from the other already
    elif out is not None and len(out.shape) == 2 and out.shape[1] % heads == 0:
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


def in_all_words(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values also under every other word that configs have for them."""
    found: dict[str, Any] = {}
    for names in (*WORDS.values(), *SETTINGS):
        told = next((name for name in names if name in values), None)
        found |= dict.fromkeys(names, values[told]) if told is not None else {}
    return found | dict(values)


def target_config(found: Measures, given: Mapping[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """Fields of the target's config: what is given under the target's own names, and sizes and settings under its words."""
    sizes = {name for names in WORDS.values() for name in names}
    config = {n: v for n, v in given.items() if n in fields and not (n in sizes and (not isinstance(v, int) or v < 1))}
    for word, names in WORDS.items():
        known = [name for name in names if name in fields]
        if known and word in found.values and not any(name in config for name in known):
            config[known[0]] = found.values[word]
    for names in SETTINGS:
        for told in [name for name in names if name in given][:1]:
            for name in names:
                if name in fields and name not in config:
                    config[name], found.named[name] = given[told], told
    return config
