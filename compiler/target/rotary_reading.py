"""Compares what a config class reads of a config's rotary fields with what it reads of the config.json that is written.

A class ignores rotary fields under names or in a nesting that it does not know, and takes its defaults instead. Written in
both dialects, such a field can take effect, so that the folder would mean something else than its source. The config
classes of either generation of Transformers answer for themselves; generation 4 does not know `rope_parameters`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from compiler.target.config_dialects import (
    BY_LAYER,
    FORMER_KINDS,
    FULL,
    SHARE,
    SLIDING,
    SLIDING_THETA,
    SYNONYMS,
    THETA,
    has_kinds,
    own_names,
    read_config,
)
from compiler.target.declared_fields import assigned, declared

_PARAMETERS = "rope_parameters"
_ROTARY = re.compile(
    r"rope_(parameters|scaling)|\w*rope_theta|rope_local_base_freq|rotary_(emb_base|pct)|partial_rotary_factor"
)
_SCALES_ALL = "local_rope_theta"  # a class with this field applies `rope_scaling` to all kinds of layers
_SECOND_THETAS = {SLIDING_THETA, _SCALES_ALL}


def complete(config: Mapping[str, Any], held: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """Rotary fields to write beside those of `config`: under the names that only its class has; where the class has two
    kinds of layers, the base frequencies that it takes for absent fields; where generation 4 does not have the class, nulls
    for what would apply to all kinds of layers. `held` and `own` as in `Held`: fields, and those of the class itself."""
    added: dict[str, Any] = {}
    parts = held.get(_PARAMETERS) or {}
    if _SECOND_THETAS & {*own}:
        flat = read_config(config)
        for theta, kind in ((THETA[0], FULL), (SLIDING_THETA, SLIDING)):
            names = {theta} | {other for one, other in SYNONYMS if one == theta}
            values = [held[other] for other in sorted(names & {*own} & {*held})]
            if isinstance(part := parts.get(kind), Mapping):
                values = [part.get("rope_theta")]
            if flat.get(theta) is None and values:
                added[theta] = values[0]
    elif has_kinds(config.get(_PARAMETERS)):
        return {"rope_scaling": None, SHARE[0]: None}
    return added | own_names({**config, **added}, own)


@dataclass(frozen=True)
class Held:
    """What a config object holds: its `fields`, those that its class `own`s (declares itself), and the `parts` of submodels,
    which are config objects too."""

    fields: Mapping[str, Any]
    own: Collection[str]
    parts: Mapping[str, Held] = field(default_factory=dict)


def held(config: Any) -> Held:
    """What a config object holds, and those of its submodels."""
    own = {name for base in type(config).__mro__[:-1] for name in (*declared(base), *assigned(base))}
    parts = {name: value for name, value in vars(config).items() if hasattr(value, "attribute_map")}
    return Held(config.to_dict(), own, {name: held(part) for name, part in parts.items()})


def misread(given: Mapping[str, Any], held: Held, written: Held, knows: bool) -> dict[str, tuple[Any, Any]]:
    """Field -> (its meaning in the config `given`, what the class reads of the one that is written), where they differ; of
    submodels at every depth.

    `held` and `written`: the config objects that the class makes of either; `knows`: whether this generation reads
    `rope_parameters`.
    """
    found = _misread(given, held, written, knows)
    for name in held.parts.keys() & written.parts.keys():
        if isinstance(part := given.get(name), Mapping):
            inside = misread(part, held.parts[name], written.parts[name], knows)
            found |= {f"{name}.{path}": values for path, values in inside.items()}
    return dict(sorted(found.items()))


def _misread(given: Mapping[str, Any], held: Held, written: Held, knows: bool) -> dict[str, tuple[Any, Any]]:
    """The same without submodels."""
    own, flat, second = held.own, read_config(given), bool(_SECOND_THETAS & {*held.own})
    if second and (others := flat.get(BY_LAYER)):  # generation 4 has another theta for them, and no more
        return {f"{_PARAMETERS}.{kind}": (part, None) for kind, part in others.items()}
    meant = {name: value for name, value in held.fields.items() if name in own and name not in held.parts}
    if not knows:
        parameters = given.get(_PARAMETERS)
        rotates = any(_ROTARY.fullmatch(name) for name in own)
        if rotates and not second and flat.get(SLIDING_THETA) is not None:
            return {SLIDING_THETA: (None, flat[SLIDING_THETA])}
        if parameters and (has_kinds(parameters) != second or (_SCALES_ALL in own and flat.get("rope_scaling"))):
            return {_PARAMETERS: (None, parameters)}
        # Nested configs that are no objects are left out: whether they are of this generation is not known.
        meant = {
            name: value for name, value in meant.items() if not isinstance(value, Mapping) or _ROTARY.fullmatch(name)
        }
        if parameters:
            flat |= {other: flat[name] for name, other in SYNONYMS if name in flat}
            meant |= {name: value for name, value in flat.items() if name in meant}
    read, meant = dict(_rotary(_like(written.fields, meant))), dict(_rotary(meant))
    both = {path: (meant.get(path), read.get(path)) for path in sorted(meant.keys() | read.keys())}
    return {path: values for path, values in both.items() if not _agree(path, *values)}


def _like(written: Mapping[str, Any], held: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `written` that `held` has too, also in nested configs: a class keeps those it does not know."""
    both = {name: value for name, value in written.items() if name in held}
    parts = {n: v for n, v in both.items() if not _ROTARY.fullmatch(str(n)) and isinstance(v, Mapping)}
    return both | {n: _like(v, held[n]) for n, v in parts.items() if isinstance(held[n], Mapping)}


def _rotary(fields: Mapping[str, Any], path: str = "", inside: bool = False) -> Iterator[tuple[str, Any]]:
    """Each rotary field by its path, also in nested configs; without nulls and in one spelling."""
    for name, value in fields.items():
        here = f"{path}.{name}" if path else name
        rotary = inside or _ROTARY.fullmatch(str(name)) is not None
        if isinstance(value, Mapping):
            kind = {"rope_type": value["type"]} if rotary and "type" in value else {}
            yield from _rotary({**kind, **value}, here, rotary)
        elif rotary and value is not None and name != "type":
            spelled = FORMER_KINDS.get(value, value) if isinstance(value, str) else value
            if (name, spelled) != ("rope_type", "default"):
                yield here, spelled


def _agree(path: str, one: Any, other: Any) -> bool:
    """Whether two values of a field mean the same; an absent rotary share is 1."""
    absent = 1.0 if path.rpartition(".")[2] in SHARE else None
    return bool((absent if one is None else one) == (absent if other is None else other))
