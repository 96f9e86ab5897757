"""Measures the sizes of a model from the shapes of its checkpoint and the fields of its config.

`measure` takes name families with their roles and returns `Sizes`: the value of each size and, where a shape gives it,
the expression of the spec language that measures it. Sizes that shapes do not reveal, such as the number of heads, must
be given; otherwise they are listed as guessed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compiler.draft.tensor_roles import NameFamily

# Name of a size in the drafted spec -> its names in configs.
SIZE_FIELDS = {
    "vocab_size": ("vocab_size", "padded_vocab_size", "n_vocab", "vocab"),
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
        "d_ff",
        "ffn",
    ),
    "moe_intermediate_size": ("moe_intermediate_size", "moe_ffn_hidden_size"),
    "num_experts": ("num_local_experts", "num_experts", "n_expert", "n_routed_experts", "expert_count"),
    "max_position_embeddings": (
        "max_position_embeddings",
        "n_positions",
        "block_size",
        "max_seq_len",
        "context_length",
        "context",
        "n_ctx",
        "max_len",
    ),
    "patch_size": ("patch_size",),
    "image_size": ("image_size",),
    "num_channels": ("num_channels",),
    "num_labels": ("num_labels",),
}
# Settings that are not sizes: the names that configs have for each.
SETTING_FIELDS = (
    ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "norm_eps", "norm_epsilon", "rms_eps", "eps",
     "ln_eps", "attention_layer_norm_rms_epsilon"),
    ("rope_theta", "rope_base", "rotary_emb_base", "rotary_base", "rope_freq_base"),
    ("hidden_act", "activation_function", "hidden_activation", "activation"),
    ("num_experts_per_tok", "moe_top_k", "top_k", "n_expert_per_token", "moe_router_topk", "num_experts_per_token"),
)  # fmt: skip
USUAL_HEAD_DIM = 64  # assumed where nothing gives the number of heads


@dataclass
class Sizes:
    """`values` by the size's name in the spec; `expressions` that measure them; `guessed`: sizes that nothing gives;
    `named`: what the source's config calls a size or a field of the target."""

    values: dict[str, int] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)
    expressions: dict[str, str] = field(default_factory=dict)
    guessed: set[str] = field(default_factory=set)

    def record(self, word: str, value: int, expression: str) -> None:
        """Records a measured size. If the config gives another value, that value is kept and the expression is dropped."""
        if value > 0 and self.values.setdefault(word, value) == value:
            self.expressions.setdefault(word, expression)

    def __getitem__(self, word: str) -> int:
        return self.values.get(word, 0)


def measure(families: Sequence[NameFamily], given: Mapping[str, Any]) -> Sizes:
    """The sizes of the checkpoint with these name families. `given`: the fields of its config."""
    sizes = Sizes()
    for word, names in SIZE_FIELDS.items():
        name = next((n for n in names if type(given.get(n)) is int and given[n] > 0), None)
        if name is not None:
            sizes.values[word], sizes.named[word] = given[name], name
    by = {(family.role, family.part): family for family in reversed(families) if family.shape}

    def family(*roles: str) -> NameFamily | None:
        return next((by[role, "weight"] for role in roles if (role, "weight") in by), None)

    embedding, norm = family("embedding", "head"), family("final_norm", "norm_1")
    if embedding is not None and len(embedding.shape) == 2:
        # A norm has the length hidden_size. Without a norm, the vocabulary is assumed to be the longer axis.
        wide = norm.shape[0] if norm is not None and norm.shape[0] in embedding.shape else 0
        flip = int(
            embedding.shape[0] == wide != embedding.shape[1] if wide else embedding.shape[0] < embedding.shape[1]
        )
        rows, columns = embedding.shape[:: -1 if flip else 1]
        sizes.record("vocab_size", rows, embedding.dim(flip))
        sizes.record("hidden_size", columns, embedding.dim(1 - flip))
    elif norm is not None:
        sizes.record("hidden_size", norm.shape[0], norm.dim(0))
    positions = family("positions")
    if positions is not None and len(positions.shape) == 2:
        sizes.record("max_position_embeddings", positions.shape[0], positions.dim(0))
    patches = next((f for f in families if f.level == 0 and len(f.shape) == 4), None)
    if patches is not None:
        _measure_images(sizes, patches, positions, family("head"))
    layered = next((f for f in families if f.level == 1), None)
    if layered is not None:
        sizes.record("num_hidden_layers", len(layered.numbers[0]), layered.count())
    if (router := family("router")) is not None:
        sizes.record("num_experts", router.shape[0], router.dim(0))
    for role, word in (("down", "intermediate_size"), ("expert_down", "moe_intermediate_size")):
        _measure_mlp(sizes, family(role), word)
    if "intermediate_size" not in sizes.values and sizes["moe_intermediate_size"]:
        sizes.values["intermediate_size"] = sizes["moe_intermediate_size"]
        if (expression := sizes.expressions.get("moe_intermediate_size")) is not None:
            sizes.expressions["intermediate_size"] = expression
    _measure_heads(sizes, family)
    return sizes


def _measure_images(sizes: Sizes, patches: NameFamily, positions: NameFamily | None, head: NameFamily | None) -> None:
    """Sizes of an image encoder: channels and patch size of its first convolution, image size, number of classes."""
    side = patches.shape[3]
    sizes.record("num_channels", patches.shape[1], patches.dim(1))
    sizes.record("patch_size", side, patches.dim(3))
    # One position belongs to the class token.
    count = positions.shape[-2] - 1 if positions is not None and len(positions.shape) > 1 else 0
    if count > 0 and math.isqrt(count) ** 2 == count:
        sizes.values.setdefault("image_size", math.isqrt(count) * side)
    if head is not None:
        sizes.record("num_labels", head.shape[0], head.dim(0))


def _measure_mlp(sizes: Sizes, down: NameFamily | None, word: str) -> None:
    """The inner width of an MLP: the axis of its last matrix that is not the hidden size."""
    if down is None or len(down.shape) < 2:
        return
    axes = range(len(down.shape) - 2, len(down.shape))
    axis = next((a for a in reversed(axes) if down.shape[a] != sizes["hidden_size"]), len(down.shape) - 1)
    experts = sizes["num_experts"]
    if word.startswith("moe") and down.level == 1 and len(down.shape) == 2 and experts:  # all experts in one matrix
        sizes.record(word, down.shape[axis] // experts, f"{down.dim(axis)} // num_experts")
        return
    sizes.record(word, down.shape[axis], down.dim(axis))


def _measure_heads(sizes: Sizes, family: Callable[..., NameFamily | None]) -> None:
    query, key, fused, out = family("q"), family("k"), family("qkv"), family("o")
    if query is not None and len(query.shape) == 3 and sizes["hidden_size"] in query.shape[1:]:
        sizes.record("num_attention_heads", query.shape[0], query.dim(0))
    norm, frequencies = family("q_norm"), family("frequencies")
    if norm is not None and len(norm.shape) == 1 and query is not None and query.shape[0] % max(1, norm.shape[0]) == 0:
        if norm.shape[0] < query.shape[0]:  # one norm for the queries of each head
            sizes.record("head_dim", norm.shape[0], norm.dim(0))
    elif frequencies is not None and len(frequencies.shape) == 1:
        sizes.record("head_dim", 2 * frequencies.shape[0], f"2 * {frequencies.dim(0)}")
    width, known = sizes["head_dim"], sizes["num_attention_heads"]
    if not known and width and out is not None and len(out.shape) == 2 and out.shape[1] % width == 0:
        sizes.record("num_attention_heads", out.shape[1] // width, f"{out.dim(1)} // head_dim")
    if not sizes["num_attention_heads"]:
        sizes.values["num_attention_heads"] = _possible_heads(sizes["hidden_size"], query, key)
        sizes.guessed.add("num_attention_heads")
    heads = sizes["num_attention_heads"]
    if "head_dim" in sizes.expressions.get("num_attention_heads", ""):
        pass  # num_attention_heads is computed from head_dim already
    elif out is not None and len(out.shape) == 2 and out.shape[1] % heads == 0:
        sizes.record("head_dim", out.shape[1] // heads, f"{out.dim(1)} // num_attention_heads")
    elif query is not None and len(query.shape) == 3:
        sizes.record("head_dim", min(query.shape[1:]), query.dim(query.shape.index(min(query.shape[1:]))))
    width = sizes["head_dim"] or max(1, sizes["hidden_size"] // heads)
    sizes.values.setdefault("head_dim", width)
    if key is not None and len(key.shape) == 2 and key.shape[0] % width == 0:
        sizes.record("num_key_value_heads", key.shape[0] // width, f"{key.dim(0)} // head_dim")
    elif fused is not None and (groups := (fused.shape[0] // width - heads) // 2) > 0 and fused.shape[0] % width == 0:
        expression = f"({fused.dim(0)} // head_dim - num_attention_heads) // 2"
        sizes.record("num_key_value_heads", groups, expression)
    sizes.values.setdefault("num_key_value_heads", heads)


def _possible_heads(hidden: int, query: NameFamily | None, key: NameFamily | None) -> int:
    """A number of heads that the rows of queries and keys allow, with heads of at most the usual width."""
    rows = query.shape[0] if query is not None and len(query.shape) == 2 and query.shape[0] else max(1, hidden)
    width = math.gcd(rows, key.shape[0]) if key is not None and len(key.shape) == 2 and key.shape[0] else rows
    while width > USUAL_HEAD_DIM and width % 2 == 0:
        width //= 2
    return max(1, rows // width)


def with_synonyms(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values also under every other name that configs have for them."""
    values_by_name: dict[str, Any] = {}
    for names in (*SIZE_FIELDS.values(), *SETTING_FIELDS):
        given = next((name for name in names if name in values), None)
        values_by_name |= dict.fromkeys(names, values[given]) if given is not None else {}
    return values_by_name | dict(values)


def target_config(measured: Sizes, given: Mapping[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """Fields of the target's config: those given under its own names, and sizes and settings under the names it has."""
    sizes = {name for names in SIZE_FIELDS.values() for name in names}
    usable = {n: v for n, v in given.items() if n not in sizes or isinstance(v, list) or (isinstance(v, int) and v > 0)}
    config = {n: v for n, v in usable.items() if n in fields}
    for word, names in SIZE_FIELDS.items():
        known = [name for name in names if name in fields]
        if known and word in measured.values and not any(name in config for name in known):
            config[known[0]] = measured.values[word]
    for names in SETTING_FIELDS:
        for source in [name for name in names if name in given][:1]:
            for name in names:
                if name in fields and name not in config:
                    config[name], measured.named[name] = given[source], source
    return config


# ---------------------------------------------------------------------------------------------------------------------
# Submodels, such as encoder and decoder, each measured from its own tensors

# Ending of a config field -> name of the size; and the field that holds a submodel's positions.
_PREFIXED_FIELDS = {
    "layers": "num_hidden_layers",
    "attention_heads": "num_attention_heads",
    "ffn_dim": "intermediate_size",
}
_POSITION_FIELDS = {"encoder": "max_source_positions", "decoder": "max_target_positions"}
_VISION = re.compile(r"visual|vision")


def submodel_fields(
    families: Sequence[NameFamily], given: Mapping[str, Any], fields: Collection[str], sizes: Sizes
) -> dict[str, Any]:
    """Fields of the target's config for each submodel that both the target and the checkpoint have."""
    found: dict[str, Any] = {}
    for tower, positions in _POSITION_FIELDS.items():
        own = [family for family in families if re.search(rf"(^|\.){tower}s?\.", family.text)]
        if f"{tower}_layers" not in fields or not own:
            continue
        part = measure(own, given)
        words = {f"{tower}_{ending}": word for ending, word in _PREFIXED_FIELDS.items()} | {
            positions: "max_position_embeddings"
        }
        for name, word in words.items():
            if name in fields and part[word]:
                found[name] = part[word]
                _record(sizes, name, part[word], part.expressions.get(word))
        waves = next((family for family in own if family.level == 0 and len(family.shape) == 3), None)
        if waves is not None and "num_mel_bins" in fields:
            found.setdefault("num_mel_bins", waves.shape[1])
            _record(sizes, "num_mel_bins", waves.shape[1], waves.dim(1))
    if {"vision_config", "text_config"} <= {*fields}:
        for name, sees in (("vision_config", True), ("text_config", False)):
            part = measure([family for family in families if bool(_VISION.search(family.text)) == sees], given)
            found[name] = {word: value for word, value in part.values.items() if word not in ("head_dim", "num_labels")}
        joint = next((f for f in families if f.level == 0 and len(f.shape) == 2 and "proj" in f.text), None)
        if joint is not None and "projection_dim" in fields:
            axis = int(
                joint.shape[0] in (found["text_config"].get("hidden_size"), found["vision_config"].get("hidden_size"))
            )
            found["projection_dim"] = joint.shape[axis]
            _record(sizes, "projection_dim", joint.shape[axis], joint.dim(axis))
    return {name: value for name, value in found.items() if name not in given}


def _record(sizes: Sizes, field: str, value: int, expression: str | None) -> None:
    if expression is not None and re.match(r"(dim|count)\([^()]*\)$", expression):
        sizes.record(field, value, expression)
