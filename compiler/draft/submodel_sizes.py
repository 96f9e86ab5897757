"""Models of two towers, such as an encoder and a decoder: the sizes of each, told from its own tensors.

Takes the forms of a checkpoint and what a config says; returns fields of the target's config that sizes of the whole
cannot fill, and adds to the measures how a shape tells them. What the config says itself stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from compiler.draft.sizes import Measures, measure
from compiler.draft.tensor_roles import NameFamily

# A field's ending -> the word for it; and what the positions of a tower are called.
_FLAT = {"layers": "num_hidden_layers", "attention_heads": "num_attention_heads", "ffn_dim": "intermediate_size"}
_POSITIONS = {"encoder": "max_source_positions", "decoder": "max_target_positions"}
_SEEING = re.compile(r"visual|vision")


def towers(
    forms: Sequence[NameFamily], given: Mapping[str, Any], fields: Collection[str], sizes: Measures
) -> dict[str, Any]:
    """Fields of the target's config for each tower that the target and the checkpoint have."""
    found: dict[str, Any] = {}
    for tower, positions in _POSITIONS.items():
        own = [form for form in forms if re.search(rf"(^|\.){tower}s?\.", form.text)]
        if f"{tower}_layers" not in fields or not own:
            continue
        part = measure(own, given)
        words = {f"{tower}_{ending}": word for ending, word in _FLAT.items()} | {positions: "max_position_embeddings"}
        for field, word in words.items():
            if field in fields and part[word]:
                found[field] = part[word]
                _tell(sizes, field, part[word], part.expressions.get(word))
        waves = next((form for form in own if form.level == 0 and len(form.shape) == 3), None)
        if waves is not None and "num_mel_bins" in fields:
            found.setdefault("num_mel_bins", waves.shape[1])
            _tell(sizes, "num_mel_bins", waves.shape[1], f'dim("{waves.first()}", 1)')
    if {"vision_config", "text_config"} <= {*fields}:
        for field, sees in (("vision_config", True), ("text_config", False)):
            part = measure([form for form in forms if bool(_SEEING.search(form.text)) == sees], given)
            found[field] = {
                word: value for word, value in part.values.items() if word not in ("head_dim", "num_labels")
            }
        joint = next((f for f in forms if f.level == 0 and len(f.shape) == 2 and "proj" in f.text), None)
        if joint is not None and "projection_dim" in fields:
            axis = int(
                joint.shape[0] in (found["text_config"].get("hidden_size"), found["vision_config"].get("hidden_size"))
            )
            found["projection_dim"] = joint.shape[axis]
            _tell(sizes, "projection_dim", joint.shape[axis], f'dim("{joint.first()}", {axis})')
    return {field: value for field, value in found.items() if field not in given}


def _tell(sizes: Measures, field: str, value: int, expression: str | None) -> None:
    if expression is not None and re.match(r"(dim|count)\([^()]*\)$", expression):
        sizes.tell(field, value, expression)
