"""Measures the submodels of a model, such as encoder and decoder, each from its own tensors.

`submodel_fields` takes the name families of a checkpoint and the fields of its config; it returns fields of the target's
config and records which axis of which tensor gives each size. Fields that the config gives are not changed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from compiler.draft.sizes import Sizes, measure
from compiler.draft.tensor_roles import NameFamily

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
        for field, word in words.items():
            if field in fields and part[word]:
                found[field] = part[word]
                _record(sizes, field, part[word], part.expressions.get(word))
        waves = next((family for family in own if family.level == 0 and len(family.shape) == 3), None)
        if waves is not None and "num_mel_bins" in fields:
            found.setdefault("num_mel_bins", waves.shape[1])
            _record(sizes, "num_mel_bins", waves.shape[1], waves.dim(1))
    if {"vision_config", "text_config"} <= {*fields}:
        for field, sees in (("vision_config", True), ("text_config", False)):
            part = measure([family for family in families if bool(_VISION.search(family.text)) == sees], given)
            found[field] = {
                word: value for word, value in part.values.items() if word not in ("head_dim", "num_labels")
            }
        joint = next((f for f in families if f.level == 0 and len(f.shape) == 2 and "proj" in f.text), None)
        if joint is not None and "projection_dim" in fields:
            axis = int(
                joint.shape[0] in (found["text_config"].get("hidden_size"), found["vision_config"].get("hidden_size"))
            )
            found["projection_dim"] = joint.shape[axis]
            _record(sizes, "projection_dim", joint.shape[axis], joint.dim(axis))
    return {field: value for field, value in found.items() if field not in given}


def _record(sizes: Sizes, field: str, value: int, expression: str | None) -> None:
    if expression is not None and re.match(r"(dim|count)\([^()]*\)$", expression):
        sizes.record(field, value, expression)
