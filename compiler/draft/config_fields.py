"""Fields of a target class's config that no config file gives: measured where shapes reveal them, else asked about.

`TargetClass` answers what the class writes for a config. `find_fields` returns a `Field` for each field that the code of
the class reads: with the expression that measures it, or with the question that a person has to decide. Fields that only
training or generation uses are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from compiler.diagnostics import Refusal
from compiler.draft.config_fit import Axis, ConfigFit, Path, get, leaves
from compiler.draft.rules import Draft
from compiler.draft.tensor_roles import NameFamily, name_families
from compiler.settings.arguments import BAGGAGE
from compiler.target import config_dialects, model_class

ASKED = "shapes do not reveal it and no config gives it; {default} is the default of the class: look it up in the source's code"
REQUIRED = "shapes do not reveal it and no config gives it: look it up in the source's code"
SMALL_SLOPE = 8  # a larger factor between a field and a length is a size itself
LABELS = "num_labels"  # stands for the names of the classes that a model tells apart
ROPE = {"rope_theta": 10000.0, "rope_scaling": None}
_UNUSED = re.compile(
    r"dropout|drop_path|drop_rate|layerdrop|initializer|init_|_init|layerscale_value|_token_id|_token_index|loss|aux_|output_att"
    r"|output_hidden|output_router|return_|use_cache|gradient|(?<!num_)label|problem_type|mask_time|mask_feature|apply_spec_augment|jitter"
    r"|chunk_size_feed|torch|transformers|attn_impl|_commit|name_or_path|out_features|out_indices|stage_names|layer_types"
    r"|tie_word_embeddings|pretraining_tp|_config$"
)


def used(name: str) -> bool:
    """Whether a field of this name may change what a model computes."""
    return name not in BAGGAGE and not name.startswith("_") and not _UNUSED.search(name)


@dataclass(frozen=True)
class TargetClass:
    """A class of Transformers, by its name."""

    name: str

    @cached_property
    def accepted(self) -> frozenset[str]:
        """The names of fields that config.json may give. Raises Refusal."""
        schema = model_class.config_schema(self.name)
        return frozenset({*schema.declared, *schema.looked_for, *schema.synonyms, *schema.nested, "id2label"})

    def written(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config.json with these fields."""
        kind = model_class.model_type(self.name)
        return config_dialects.config_json(config, model_class=self.name, model_type=kind, dtype="float32")

    def signature(self, config: Mapping[str, Any]) -> model_class.ClassSignature:
        """Raises Refusal."""
        return model_class.signature(self.name, self.written(config))

    def families(self, config: Mapping[str, Any]) -> list[NameFamily]:
        """The tensors that the class writes. Raises Refusal."""
        return name_families({n: (tuple(s), "float32") for n, s in self.signature(config).shapes.items()})

    def complete(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Every field of the config that config.json may give: not those that the config class computes from others.
        Raises Refusal."""
        fields = model_class.complete_config(self.name, self.written(config))
        for name in fields.keys() - self.accepted:
            del fields[name]
        rope = fields.get("rope_parameters")
        if isinstance(rope, Mapping):
            theta = rope.get("rope_theta") or get(rope, ("full_attention", "rope_theta"))
            fields = {**fields, "rope_theta": theta or ROPE["rope_theta"], "rope_scaling": config.get("rope_scaling")}
        labels = fields.get("id2label")
        return {**fields, LABELS: len(labels)} if isinstance(labels, Mapping) else fields


@dataclass(frozen=True)
class Field:
    """A field of the config that no config file gives. `expression` measures it; otherwise it is an argument with `value`
    as its default, or `required` without one. `question` is what a person has to decide."""

    value: Any
    expression: str = ""
    required: bool = False
    question: str = ""


def argument_name(path: Path) -> str:
    """The name of a field as an argument or fact: `vision_hidden_size` for `hidden_size` of `vision_config`."""
    return "_".join(str(key).removesuffix("_config") for key in path)


def start_fit(
    target: TargetClass, sources: Sequence[NameFamily], config: dict[str, Any], fixed: frozenset[Path]
) -> ConfigFit:
    return ConfigFit(sources, target.families, target.complete, config, fixed, used)


def find_fields(fit: ConfigFit, target: TargetClass, draft: Draft, sources: Sequence[NameFamily]) -> dict[Path, Field]:
    """The fields that are not known, at the config of `fit`. Raises Refusal for a class that rejects its config."""
    complete = fit.complete(fit.config)
    read = model_class.fields_read(target.name)
    partners = _partners(draft, sources)
    found: dict[Path, Field] = {}
    for path, value in leaves(complete, used):
        known = any(path[:n] in fit.fixed for n in range(1, len(path) + 1))
        if known or not (path[-1] in read or (path[-1] in ROPE and "rope_parameters" in read)):
            continue
        found[path] = _field(fit, path, value, partners)
    sizes = {field.value: argument_name(path) for path, field in found.items()
             if field.expression and type(field.value) is int}  # fmt: skip
    for path, field in found.items():
        if not field.expression and not field.question and type(field.value) in (int, float):
            axes = fit.probe(path, field.value).axes
            found[path] = Field(field.value, _expression(field.value, axes, partners, sizes))
    return {path: field for path, field in found.items() if path[-1] != LABELS or not field.question}


def _field(fit: ConfigFit, path: Path, value: Any, partners: Mapping[str, NameFamily]) -> Field:
    """Where a field comes from: a shape, the elements of a list each from one, or a question."""
    heads = any("heads" in str(key) for key in path[-2:])
    if isinstance(value, list | tuple):
        items = [_field(fit, (*path, n), one, partners) for n, one in enumerate(value) if type(one) in (int, float)]
        if len(items) < len(value) or not items or all(item.question for item in items):
            whole = any(fit.odd_layers and tuple(value) == layers for layers in fit.odd_layers)
            if whole:
                return Field([*value])
            if heads:
                return Field([*value], required=True, question=REQUIRED)
            return Field([*value], question=ASKED.format(default=[*value]))
        if all(item.expression for item in items):
            return Field([*value], f"[{', '.join(item.expression for item in items)}]")
        return Field([*value])
    if type(value) in (int, float, bool):
        result = fit.probe(path, value)
        direct = any((axis.slope, axis.length) == (1, value) for axis in result.axes)
        # Rows of heads are heads times width: they reveal neither.
        if result.revealed and (direct or not heads):
            return Field(value, _expression(value, result.axes, partners, {}))
    if type(value) is int and heads:
        return Field(value, required=True, question=REQUIRED)
    return Field(value, question=ASKED.format(default="null" if value is None else value))


def _partners(draft: Draft, sources: Sequence[NameFamily]) -> dict[str, NameFamily]:
    """Name pattern of a target tensor -> the source tensors that become it without a change of shape."""
    by_text = {family.text: family for family in sources}
    found: dict[str, NameFamily] = {}
    for guess in draft.guesses:
        source = by_text.get(guess.sources[0])
        same = guess.kind in ("keep", "rename") or (guess.shape and source is not None and guess.shape == source.shape)
        if source is not None and same and len(guess.sources) == len(guess.targets) == 1:
            found[guess.targets[0]] = source
    return found


def _expression(value: Any, axes: Sequence[Axis], partners: Mapping[str, NameFamily], sizes: Mapping[Any, str]) -> str:
    """The expression that measures a field by one of its axes, the simplest one; empty if there is none."""
    best: list[tuple[int, str]] = []
    for axis in axes:
        source = partners.get(axis.text)
        if source is None or source.mixed:
            continue
        if axis.number < len(source.shape):
            length, text = source.shape[axis.number], source.dim(axis.number)
        elif source.level == 1:
            length, text = len(source.names), source.count()
        else:
            continue
        if length != axis.length or axis.slope != int(axis.slope) or axis.slope < 1:
            continue
        slope, more = int(axis.slope), round(axis.length - axis.slope * value)
        if isinstance(value, float):
            if slope in sizes and more == 0:
                best.append((2, f"{text} / {sizes[slope]}"))
        elif slope <= SMALL_SLOPE:
            text = text if not more else f"({text} {'-' if more > 0 else '+'} {abs(more)})"
            best.append(((slope > 1) + 2 * bool(more), text if slope == 1 else f"{text} // {slope}"))
        elif slope in sizes and more == 0:
            best.append((2, f"{text} // {sizes[slope]}"))
    return min(best, default=(0, ""))[1]


def class_families(target: TargetClass, config: dict[str, Any], given: Mapping[str, Any]) -> list[NameFamily]:
    """The tensors that the class writes. Removes from `config` what is not given and the class rejects: values of another
    type, a `head_dim` that the class computes itself, or else all sizes that names suggest. Raises Refusal."""
    while True:
        try:
            return target.families(config)
        except Refusal as refusal:
            named = re.search(r"[Ff]ield '(\w+)'", str(refusal))
            if named and (named[1] in config.keys() - given.keys() or isinstance(config.get(named[1]), str)):
                del config[named[1]]
            elif "head_dim" in config and "head_dim" not in given:
                del config["head_dim"]
            elif suggested := config.keys() - given.keys():
                for name in suggested:
                    del config[name]
            else:
                raise
