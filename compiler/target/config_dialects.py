"""The two dialects of config.json: one file that both generations of Transformers read alike.

Generation 4 reads `rope_theta`, `rope_scaling`, `num_experts` and `torch_dtype`; generation 5 writes `rope_parameters`,
`num_local_experts` and `dtype`; each silently ignores the other's fields. `config_json` takes fields in
either dialect and returns both; `read_config` takes a file of either and returns the flat one of generation 4. Raises
Refusal for values that contradict each other and values that JSON cannot represent.

Sources: `configuration_utils.py`, `modeling_rope_utils.py` and the config classes of transformers 4.57.6, 5.0.0 and
5.24.0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from compiler.diagnostics import refuse

Fields = dict[str, Any]

EXPERTS = ("num_experts", "num_local_experts")
# Names of one thing beside `rope_parameters`; the second of each is what one family of configs calls it.
THETA = ("rope_theta", "rotary_emb_base")
SHARE = ("partial_rotary_factor", "rotary_pct")
# Where layers are of two kinds, generation 5 nests the parameters; generation 4 has a second theta instead.
FULL, SLIDING, SLIDING_THETA = "full_attention", "sliding_attention", "rope_local_base_freq"
# Name -> another name that some classes have for it.
SYNONYMS = (THETA, SHARE, (THETA[0], "global_rope_theta"), (SLIDING_THETA, "local_rope_theta"))
ORIGINAL = "original_max_position_embeddings"
# The kinds of scaling that generation 4 does not have.
NEW_KINDS = ("axial", "proportional")
# What generation 5 states of other kinds of layers beside a theta; no field of generation 4 holds it.
BY_LAYER = "rope_scaling_by_layer_type"
_BESIDE = (("rope_type", "default"), ("rope_theta", None))
# The flat fields that `rope_parameters` states, without theta, which every spec reads.
ROTARY = ("rope_scaling", SHARE[0], SLIDING_THETA, BY_LAYER)
# Former names of a kind of scaling, which only some classes still translate.
FORMER_KINDS = {"su": "longrope", "mrope": "default"}
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def config_json(fields: Mapping[str, Any], *, model_class: str, model_type: str, dtype: str) -> Fields:
    """The content of config.json for `fields` in either dialect; `dtype` is the element type of the weights file.

    Raises Refusal: `contradictory-field` where two names of one thing differ, `wrong-type` where a nested field is not a
    mapping, `unwritable-value` for a value that JSON cannot represent.
    """
    config = _both(fields)
    config |= {"architectures": [model_class], "model_type": model_type, "dtype": dtype, "torch_dtype": dtype}
    return {key: _plain(config[key], key) for key in sorted(config, key=str)}


def generation_json(fields: Mapping[str, Any]) -> Fields:
    """The content of generation_config.json: the special tokens' ids among the fields; empty where there are none."""
    return {name: _plain(fields[name], name) for name in TOKEN_IDS if fields.get(name) is not None}


def json_text(content: Mapping[str, Any]) -> str:
    """The text of either file: sorted keys and a last newline, so that the same content gives the same bytes."""
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"


def read_config(config: Mapping[str, Any]) -> Fields:
    """The flat fields of a config.json of either dialect: `rope_theta`, `rope_scaling` (None where nothing is scaled),
    `dtype`, and the number of experts under both its names; neither `rope_parameters` nor `torch_dtype`. What only
    `rope_parameters` can state is under `rope_scaling_by_layer_type`.

    Raises Refusal (`contradictory-field`) where the two dialects of one file differ.
    """
    fields = _flat(config)
    fields |= {name: read_config(part) for name, part in _nested(fields)}
    old = fields.pop("torch_dtype", None)
    if (dtype := fields.get("dtype") or old) is not None:
        fields["dtype"] = dtype
    if fields.get(SHARE[0]) is not None:
        for flat, other in (THETA, SHARE):
            fields |= {other: fields[flat]} if flat in fields else {}
    return fields


def has_kinds(parameters: Any) -> bool:
    """Whether `rope_parameters` has a part for each kind of layers."""
    return isinstance(parameters, Mapping) and any(isinstance(part, Mapping) for part in parameters.values())


def _kinds(parameters: Mapping[str, Any]) -> Fields:
    """The parts for kinds of layers. 5.0 leaves a plain kind and a null theta beside them, which say nothing."""
    return {name: part for name, part in parameters.items() if (name, part) not in _BESIDE}


def own_names(config: Mapping[str, Any], declared: Collection[str]) -> Fields:
    """The flat fields of `config` under those names among `declared` that only some classes have for them."""
    flat = _flat(config)
    return {other: flat[name] for name, other in SYNONYMS if other in declared and flat.get(name) is not None}


# ---------------------------------------------------------------------------------------------------------------------
# Rotary embeddings


def _both(fields: Mapping[str, Any]) -> Fields:
    """`fields`, and the nested configs among them, in both dialects."""
    config = _flat(fields)
    config.pop(BY_LAYER, None)
    if (parameters := _parameters(config, fields.get("rope_parameters") or {})) is not None:
        config["rope_parameters"] = parameters
        if has_kinds(parameters):  # of flat fields that generation 4 has no use for, 5 would apply them to all kinds
            new = (config.get("rope_scaling") or {}).get("rope_type") in NEW_KINDS
            absent = {name for name in ("rope_scaling", SHARE[0]) if new or (name in fields and fields[name] is None)}
            config = {name: value for name, value in config.items() if name not in absent}
    return config | {name: _both(part) for name, part in _nested(config)}


def _nested(fields: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The configs of submodels inside of a config, such as `text_config`: those that state their model type."""
    return [(name, part) for name, part in fields.items() if isinstance(part, Mapping) and part.get("model_type")]


def _flat(given: Mapping[str, Any]) -> Fields:
    """Every field of `given` in the flat dialect, including values given only by `rope_parameters` or a synonym."""
    fields = {key: value for key, value in given.items() if key != "rope_parameters"}
    parameters = _mapping("rope_parameters", given.get("rope_parameters"))
    nested = has_kinds(parameters)
    parameters = _kinds(parameters) if nested else parameters
    main = _mapping(FULL, parameters.get(FULL)) if nested else parameters
    for names in (EXPERTS, EXPERTS[::-1]):
        _agree(fields, names[0], fields.get(names[1]))
    old = _mapping("rope_scaling", fields.pop("rope_scaling", None))
    for names in SYNONYMS:
        _agree(fields, names[0], fields.get(names[1]))
    for name in (THETA[0], SHARE[0]):
        _agree(fields, name, main.get(name))
        _agree(fields, name, old.get(name))
    if nested:
        _agree(fields, SLIDING_THETA, _mapping(SLIDING, parameters.get(SLIDING)).get("rope_theta"))
        if others := _other_kinds(parameters, main.get(SHARE[0])):
            fields[BY_LAYER] = others
    if main and _scaling(main) is None and _scaling(old) is not None:
        text = "rope_scaling scales the rotary embedding, and rope_parameters does not"
        refuse("config.json", text, "contradictory-field", "give one of them; the other is derived")
    for part in (old, main):
        scaling = _scaling(part)
        if scaling and scaling["rope_type"] == "longrope":
            # Generation 4 calls this kind `type`, wants the original length beside it, and some classes count the keys.
            _agree(fields, ORIGINAL, scaling.pop(ORIGINAL, None))
            scaling["type"] = scaling.pop("rope_type")
        _agree(fields, "rope_scaling", scaling)
    if THETA[0] in fields or "rope_scaling" in given:
        fields.setdefault("rope_scaling", None)
    return fields


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    """A nested mapping; None counts as empty. Raises Refusal: `wrong-type`."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        refuse("config.json", f"{name} is {value!r}, but must be a mapping", "wrong-type", "or null")
    return value


def _scaling(parameters: Mapping[str, Any]) -> Fields | None:
    """`parameters` without theta and the rotary share; None for the plain embedding."""
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    rest = {k: v for k, v in parameters.items() if k not in ("rope_type", "type", THETA[0], SHARE[0])}
    kind = FORMER_KINDS.get(kind, kind)
    return {"rope_type": kind} | rest if rest or kind != "default" else None


def _other_kinds(parameters: Mapping[str, Any], share: Any) -> Fields:
    """Kind of layers -> its scaling and rotary share, as far as they are not plain or not those of the full layers."""
    found: Fields = {}
    for kind in parameters.keys() - {FULL}:
        part = _mapping(kind, parameters[kind])
        own = part.get(SHARE[0])
        stated = (_scaling(part) or {}) | ({} if own in (None, share) else {SHARE[0]: own})
        if stated or kind != SLIDING:
            found[kind] = stated
    return found


def _parameters(flat: Mapping[str, Any], given: Mapping[str, Any]) -> Fields | None:
    """`rope_parameters` for flat fields and the `given` ones; None if theta is unknown, so that the class uses its own
    default."""
    kinds = _kinds(given) if has_kinds(given) else {}
    if flat.get(THETA[0]) is None:
        return kinds or None
    scaling = dict(flat.get("rope_scaling") or {})
    kind = scaling.pop("rope_type", None) or scaling.pop("type", "default")
    if kind == "longrope" and flat.get(ORIGINAL) is not None:
        scaling[ORIGINAL] = flat[ORIGINAL]
    share = {SHARE[0]: flat[SHARE[0]]} if flat.get(SHARE[0]) is not None else {}
    main = {"rope_theta": flat[THETA[0]], "rope_type": kind} | share | scaling
    if flat.get(SLIDING_THETA) is not None:
        sliding = kinds.get(SLIDING) or {"rope_type": "default"} | share
        kinds[SLIDING] = {"rope_theta": flat[SLIDING_THETA]} | sliding
    if not kinds:
        return main
    return kinds | ({FULL: main} if kinds.get(FULL, main) is not None else {})  # null: layers without positions


def _agree(fields: Fields, name: str, value: Any) -> None:
    """Set `fields[name]`. Raises Refusal if it has another value already."""
    if value is None:
        return
    held = fields.get(name)
    if held is not None and held != value:
        refuse("config.json", f"{name} has two values, {held!r} and {value!r}", "contradictory-field",
               "give it once; its other names are derived")  # fmt: skip
    fields[name] = value


# ---------------------------------------------------------------------------------------------------------------------
# JSON


def _plain(value: Any, where: str) -> Any:
    """`value` as JSON returns it: sorted string keys, lists for tuples. Raises Refusal: `unwritable-value`."""
    match value:
        case None | bool() | int() | str():
            return value
        case float() if math.isfinite(value):
            return value
        case Mapping():
            pairs = sorted((str(key), item) for key, item in value.items())
            return {key: _plain(item, f"{where}: {key}") for key, item in pairs}
        case list() | tuple():
            return [_plain(item, where) for item in value]
    return refuse(
        "config.json",
        f"{where} is {value!r}, which cannot be written as JSON",
        "unwritable-value",
        "a config value is a finite number, a string, true, false, null, a list or a mapping",
    )
