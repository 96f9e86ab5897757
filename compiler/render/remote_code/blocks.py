"""The closed vocabulary of custom architectures: which blocks there are, and what each of them needs.

`BLOCKS` is the vocabulary as a JSON Schema; `filled` completes a value that fits it with the defaults, and
`required_fields` says which config fields the blocks read, `tensor_plan` and `pipeline_plan` how they may be spread over
devices. Nothing here renders or refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NAMES = {
    "base": ("model", "the decoder without its head"),
    "embedding": ("embed_tokens", "the token embedding"),
    "positions": ("embed_positions", "the embedding of positions, where they are learned"),
    "embedding_dropout": ("dropout", "the dropout on the embeddings; it has no tensors"),
    "layers": ("layers", "the list of decoder layers"),
    "attention_norm": ("input_layernorm", "the norm before the attention"),
    "attention": ("self_attn", "the attention"),
    "q": ("q_proj", "the projection to queries"),
    "k": ("k_proj", "the projection to keys"),
    "v": ("v_proj", "the projection to values"),
    "qkv": ("qkv_proj", "the fused projection to queries, keys and values"),
    "o": ("o_proj", "the projection after the attention"),
    "q_norm": ("q_norm", "the norm of each query"),
    "k_norm": ("k_norm", "the norm of each key"),
    "mlp_norm": ("post_attention_layernorm", "the norm before the feed-forward block"),
    "mlp": ("mlp", "the feed-forward block"),
    "gate": ("gate_proj", "the projection that gates"),
    "up": ("up_proj", "the projection up"),
    "down": ("down_proj", "the projection down"),
    "router": ("gate", "the router of a mixture of experts"),
    "experts": ("experts", "the list of experts"),
    "shared_experts": ("shared_experts", "the list of experts that every token goes through"),
    "final_norm": ("norm", "the norm after the last layer"),
}

_BIAS = {
    "description": "Whether the projections have a bias: true, false, or the boolean config field that says so.",
    "type": ["boolean", "string"],
    "default": False,
}
_DROPOUT = {
    "description": "Whether the block ends in a dropout of the config's `dropout`, which acts in training only.",
    "type": "boolean",
    "default": False,
}


def _choice(description: str, *words: str) -> dict[str, Any]:
    return {"description": description, "enum": list(words), "default": words[0]}


def _block(description: str, required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "description": description,
        "additionalProperties": False,
        "required": list(required),
        "properties": properties,
    }


BLOCKS: dict[str, Any] = _block(
    "The blocks of a decoder, from the embedding to the head. Each is a template of its own.",
    ("norm", "attention", "mlp"),
    embedding=_block(
        "How token ids become hidden states.",
        positions=_choice("Whether an embedding of the position is learned and added.", "none", "learned"),
        dropout=_DROPOUT,
    ),
    norm={
        "description": "The norm before each block and after the last layer: rms (root mean square; reads rms_norm_eps), layer "
        "(mean and variance; reads layer_norm_eps), or an object that also says whether a layer norm has a bias.",
        "oneOf": [
            {"enum": ["rms", "layer"], "description": "The kind alone."},
            _block(
                "The kind and whether there is a bias.",
                ("kind",),
                kind={"enum": ["layer"], "description": "layer: over mean and variance."},
                bias={
                    **_BIAS,
                    "description": "Whether the norm has a bias: true, false, or a boolean config field.",
                    "default": True,
                },
            ),
        ],
    },
    attention=_block(
        "Causal self-attention.",
        ("kind",),
        kind=_choice(
            "grouped_query: four projections, groups of heads share keys and values. fused: one projection to queries, keys "
            "and values, as many of each.",
            "grouped_query",
            "fused",
        ),
        qk_norm=_choice("Whether each query and key is normed over its head's channels.", "none", "per_head"),
        rope=_choice(
            "Rotary positions: half rotates channel i with channel i + head_dim / 2, with YaRN scaling where the config asks for it.",
            "none",
            "half",
        ),
        bias=_BIAS,
        dropout={
            **_DROPOUT,
            "description": "Whether the attention weights and the output are dropped with the config's `dropout` in training.",
        },
    ),
    mlp=_block(
        "The feed-forward block; its activation is the config's `hidden_act`.",
        ("kind",),
        kind=_choice("gated: down(act(gate(x)) * up(x)). plain: down(act(up(x))).", "gated", "plain"),
        bias=_BIAS,
        dropout=_DROPOUT,
    ),
    moe=_block(
        "A mixture of experts in the place of the feed-forward block, each of which is one; without it there is none.",
        ("kind",),
        kind=_choice(
            "softmax_topk: softmax over all experts, the most likely ones chosen. softmax_topk_shared: the same, and shared experts "
            "for every token, a balancing loss per sequence, and a single choice that keeps its probability as its weight.",
            "softmax_topk",
            "softmax_topk_shared",
        ),
        when={
            "type": "string",
            "description": "The boolean config field that chooses the mixture; without it there always is one.",
        },
    ),
    names=_block(
        "What the modules are called, where that differs from the usual: the names of the checkpoint's tensors."
    )
    | {
        "properties": {
            key: {
                "type": "string",
                "pattern": "^[A-Za-z_][A-Za-z0-9_]*$",
                "description": f"The name of {what}.",
                "default": default,
            }
            for key, (default, what) in NAMES.items()
        }
    },
)


@dataclass(frozen=True)
class Blocks:
    """The blocks with every default in place; `moe` is None where there is no mixture of experts."""

    embedding: Mapping[str, Any]
    norm: Mapping[str, Any]
    attention: Mapping[str, Any]
    mlp: Mapping[str, Any]
    moe: Mapping[str, Any] | None
    names: Mapping[str, str]


def filled(blocks: Mapping[str, Any]) -> Blocks:
    """`blocks`, which fits the schema, with the defaults."""

    def block(name: str) -> dict[str, Any]:
        defaults = {
            key: part["default"] for key, part in BLOCKS["properties"][name]["properties"].items() if "default" in part
        }
        return defaults | dict(blocks.get(name, {}))

    norm = blocks["norm"]
    kind = {"kind": norm} if isinstance(norm, str) else dict(norm)
    moe = {"when": None} | block("moe") if "moe" in blocks else None
    return Blocks(block("embedding"), {"bias": True} | kind, block("attention"), block("mlp"), moe, block("names"))


def required_fields(blocks: Blocks) -> dict[str, str]:
    """The config fields that the blocks read: the field, and which block reads it."""
    fields = dict.fromkeys(("vocab_size", "hidden_size", "num_hidden_layers", "tie_word_embeddings"), "every model")
    fields |= dict.fromkeys(("num_attention_heads", "head_dim"), "the attention") | {"hidden_act": "the mlp"}
    fields |= {"rms_norm_eps" if blocks.norm["kind"] == "rms" else "layer_norm_eps": "the norm"}
    if blocks.attention["kind"] == "grouped_query":
        fields["num_key_value_heads"] = "the attention"
    if blocks.attention["rope"] == "half":
        fields |= dict.fromkeys(("rope_theta", "rope_scaling", "max_position_embeddings"), "the rotary embedding")
    if blocks.embedding["positions"] == "learned":
        fields["max_position_embeddings"] = "the embedding"
    if blocks.moe is None or blocks.moe["when"]:
        fields["intermediate_size"] = "the mlp"
    if blocks.moe is not None:
        own = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "router_aux_loss_coef")
        shared = ("n_shared_experts", "seq_aux") if blocks.moe["kind"] == "softmax_topk_shared" else ()
        chosen = (blocks.moe["when"],) if blocks.moe["when"] else ()
        fields |= dict.fromkeys((*own, *shared, *chosen), "the mixture of experts")
    for name in ("embedding", "attention", "mlp"):
        if getattr(blocks, name)["dropout"]:
            fields["dropout"] = f"the {name}"
    for name in ("norm", "attention", "mlp"):
        bias = getattr(blocks, name).get("bias")
        if isinstance(bias, str) and not (name == "norm" and blocks.norm["kind"] == "rms"):
            fields[bias] = f"the {name}"
    return fields


def tensor_plan(blocks: Blocks) -> list[tuple[str, str]]:
    """How tensor parallelism cuts the layers: projections up by columns, those down by rows.

    A fused projection is not cut, since an even cut would not give each device its queries, keys and values.
    """
    names = blocks.names
    layer = f"{names['layers']}.*."
    plan = []
    if blocks.attention["kind"] == "grouped_query":
        plan += [(f"{layer}{names['attention']}.{names[part]}", "colwise") for part in "qkv"]
        plan.append((f"{layer}{names['attention']}.{names['o']}", "rowwise"))
    places = [names["mlp"]] if blocks.moe is None or blocks.moe["when"] else []
    if blocks.moe:
        places.append(f"{names['mlp']}.{names['experts']}.*")
        places += [f"{names['mlp']}.{names['shared_experts']}.*"] if blocks.moe["kind"] == "softmax_topk_shared" else []
    ups = ["gate", "up"] if blocks.mlp["kind"] == "gated" else ["up"]
    for place in places:
        plan += [(f"{layer}{place}.{names[part]}", "colwise") for part in ups]
        plan.append((f"{layer}{place}.{names['down']}", "rowwise"))
    return plan


def pipeline_plan(blocks: Blocks) -> list[tuple[str, str, str]]:
    """What each part of the decoder takes and gives, in the order in which a pipeline runs them."""
    names = blocks.names
    positions = (
        [(names["positions"], "['position_ids']", "['position_embeds']")]
        if blocks.embedding["positions"] == "learned"
        else []
    )
    return [
        (names["embedding"], "['input_ids']", "['inputs_embeds']"),
        *positions,
        (names["layers"], "['hidden_states', 'attention_mask']", "['hidden_states']"),
        (names["final_norm"], "['hidden_states']", "['hidden_states']"),
    ]
