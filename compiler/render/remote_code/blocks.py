"""The block vocabulary of custom architectures, and the config fields and parallel plans that follow from it.

`BLOCKS` is the vocabulary: the JSON Schema of a spec's `target.blocks`. `with_defaults` turns a value that fits it into
`Blocks`; `required_fields` lists the config fields that those blocks read; `tensor_plan` and `pipeline_plan` describe how
Transformers may spread the model over devices. Nothing here renders text or raises errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compiler.language.schema import schema

BLOCKS: Mapping[str, Any] = schema()["properties"]["target"]["properties"]["blocks"]
# Key of `names` -> the default module name.
NAMES: Mapping[str, str] = {key: part["default"] for key, part in BLOCKS["properties"]["names"]["properties"].items()}


@dataclass(frozen=True)
class Blocks:
    """The blocks of one architecture with all defaults filled in; `moe` is None without a mixture of experts."""

    embedding: Mapping[str, Any]
    norm: Mapping[str, Any]
    attention: Mapping[str, Any]
    mlp: Mapping[str, Any]
    moe: Mapping[str, Any] | None
    residual: Mapping[str, Any]
    head: Mapping[str, Any]
    names: Mapping[str, str]


def with_defaults(blocks: Mapping[str, Any]) -> Blocks:
    """`blocks`, a value that fits `BLOCKS`, with all defaults filled in."""

    def block(name: str) -> dict[str, Any]:
        defaults = {
            key: part["default"] for key, part in BLOCKS["properties"][name]["properties"].items() if "default" in part
        }
        return defaults | dict(blocks.get(name, {}))

    given = {"kind": blocks["norm"]} if isinstance(blocks["norm"], str) else dict(blocks["norm"])
    weight = given.get("weight", True)
    norm = {"weight": weight, "bias": given["kind"] == "layer" and weight} | given
    attention = {"scale": None} | block("attention")
    moe = {"when": None} | block("moe") if "moe" in blocks else None
    parts = [block(name) for name in ("residual", "head", "names")]
    return Blocks(block("embedding"), norm, attention, block("mlp"), moe, *parts)


def required_fields(blocks: Blocks) -> dict[str, str]:
    """Config field -> the block that reads it."""
    fields = dict.fromkeys(("vocab_size", "hidden_size", "num_hidden_layers", "tie_word_embeddings"), "every model")
    fields |= dict.fromkeys(("num_attention_heads", "head_dim"), "the attention") | {"hidden_act": "the mlp"}
    fields |= {"rms_norm_eps" if blocks.norm["kind"] == "rms" else "layer_norm_eps": "the norm"}
    if blocks.attention["kind"] == "grouped_query":
        fields["num_key_value_heads"] = "the attention"
    if blocks.attention["rope"] != "none":
        fields |= dict.fromkeys(("rope_theta", "rope_scaling", "max_position_embeddings"), "the rotary embedding")
    if blocks.embedding["positions"] == "learned":
        fields["max_position_embeddings"] = "the embedding"
    if blocks.attention["window"]:
        fields |= dict.fromkeys(("layer_types", "sliding_window"), "the attention")
    if blocks.attention["value_embedding"] != "none":
        fields["value_embedding_layers"] = "the attention"
    if blocks.attention["value_embedding"] == "gated":
        fields |= dict.fromkeys(("value_gate_channels", "value_gate_scale"), "the attention")
    if blocks.embedding["smear"]:
        fields["smear_gate_channels"] = "the embedding"
    if blocks.residual["subtract"]:
        fields["subtracted_layer"] = "the residual"
    if scale := blocks.attention["scale"]:
        fields[scale] = "the attention"
    if blocks.head["softcap"]:
        fields["final_logit_softcapping"] = "the head"
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
        if isinstance(bias, str):
            fields[bias] = f"the {name}"
    return fields


def tensor_plan(blocks: Blocks, sparse: bool) -> list[tuple[str, str]]:
    """How tensor parallelism splits the Linear modules of the layers, `sparse` or dense: module pattern and style.

    Up projections are split by output columns, down projections by input rows. A fused projection is not split, because
    an even split would mix queries, keys and values; nor is an attention with value embeddings, which have all heads.
    Empty where the blocks have no such layers.
    """
    names = blocks.names
    if (sparse and not blocks.moe) or (not sparse and blocks.moe and not blocks.moe["when"]):
        return []
    layer = f"{names['layers']}.*."
    plan = []
    if splits_attention(blocks):
        plan += [(f"{layer}{names['attention']}.{names[part]}", "colwise") for part in "qkv"]
        plan.append((f"{layer}{names['attention']}.{names['o']}", "rowwise"))
    places = [names["mlp"]]
    if sparse and blocks.moe:
        places = [f"{names['mlp']}.{names['experts']}.*"]
        places += [f"{names['mlp']}.{names['shared_experts']}.*"] if blocks.moe["kind"] == "softmax_topk_shared" else []
    ups = ["gate", "up"] if blocks.mlp["kind"] == "gated" else ["up"]
    for place in places:
        plan += [(f"{layer}{place}.{names[part]}", "colwise") for part in ups]
        plan.append((f"{layer}{place}.{names['down']}", "rowwise"))
    return plan


def splits_attention(blocks: Blocks) -> bool:
    """Whether tensor parallelism divides the heads of the attention among ranks."""
    return blocks.attention["kind"] == "grouped_query" and blocks.attention["value_embedding"] == "none"


def split_norms(blocks: Blocks) -> list[str]:
    """Module patterns of norms that see only the heads of their own rank under tensor parallelism."""
    names = blocks.names
    has_weight = blocks.attention["qk_norm"] != "none" and blocks.norm["weight"]
    if not splits_attention(blocks) or not has_weight:
        return []
    return [f"{names['layers']}.*.{names['attention']}.{names[norm]}" for norm in ("q_norm", "k_norm")]


def pipeline_plan(blocks: Blocks) -> list[tuple[str, str, str]]:
    """Inputs and outputs of each part of the decoder, in the order in which a pipeline runs them. Empty where a part needs
    more than the output of the one before it."""
    names = blocks.names
    if any(blocks.residual.values()) or blocks.embedding["smear"] or blocks.attention["value_embedding"] != "none":
        return []
    positions = blocks.embedding["positions"] == "learned"
    learned = [(names["positions"], "['position_ids']", "['position_embeds']")] if positions else []
    norm = [(names["embedding_norm"], "['inputs_embeds']", "['hidden_states']")] if blocks.embedding["norm"] else []
    return [
        (names["embedding"], "['input_ids']", "['inputs_embeds']"),
        *learned,
        *norm,
        (names["layers"], "['hidden_states', 'attention_mask']", "['hidden_states']"),
        (names["final_norm"], "['hidden_states']", "['hidden_states']"),
    ]
