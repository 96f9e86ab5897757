"""Checks the values of config fields by their meaning, without importing Transformers.

A field's name determines its meaning across model classes: a `..._theta` is a positive number, a `hidden_act` names an
activation. Config classes accept nearly any value and fail, or compute something else, only when the model runs. The
names of activations and of rotary scalings are read from the source text of the installed transformers, or from `class_registry`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from compiler.diagnostics import Diagnostic, Refusal, Span, nearest
from compiler.target import class_registry
from compiler.target.model_class import package_folder


@dataclass(frozen=True)
class ValueFault:
    """A field, by its path from the config (`text_config`, `hidden_act`), and why its value is rejected."""

    path: tuple[str, ...]
    value: Any
    expected: str
    hint: str = ""

    def at(self, place: str) -> Diagnostic:
        """The fault as a `wrong-type` of the config file `place`."""
        message = f"{'.'.join(self.path)} is {json.dumps(self.value, default=str)}, but must be {self.expected}"
        return Diagnostic(Span(place), message, "wrong-type", self.hint)


@dataclass(frozen=True)
class _Range:
    """The values that fields of one meaning may have; `names` matches the whole field name. `typed`: whether a value is of
    the right type at least. `shown`: shapes of tensors depend on the field, so a class that is built of a wrong value has
    other tensors, or none."""

    names: re.Pattern[str]
    accepts: Callable[[Any], bool]
    expected: str
    typed: Callable[[Any], bool]
    shown: bool = False


def type_faults(config: Mapping[str, Any]) -> Iterator[ValueFault]:
    """The fields of a config.json, and of the mappings in it, that have another JSON type than the class's: a text for a
    number, 2.0 for 2, one name for a list of names. Null is always accepted: the class, or a spec, decides what it means."""
    for name, value in config.items():
        if name == "architectures" and value is not None and not _are_texts(value):
            wanted = [value] if isinstance(value, str) else ["SomethingForCausalLM"]
            yield ValueFault((name,), value, "a list of class names", f"write {json.dumps(wanted)}")
        elif name == "model_type" and value is not None and not isinstance(value, str):
            yield ValueFault((name,), value, "a text")
    yield from value_faults(config, types_only=True)


def null_faults(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[ValueFault]:
    """The sizes, base frequencies and epsilons that are null in a config of a class whose `defaults` have a number."""
    for name, value in config.items():
        inside = name == "rope_theta" and config.get("rope_parameters")  # which has its own
        if value is None and _NEVER_NULL.fullmatch(name) and _number(defaults.get(name)) and not inside:
            yield ValueFault((name,), value, expected_value(name))


def value_faults(
    config: Mapping[str, Any], path: tuple[str, ...] = (), *, types_only: bool = False
) -> Iterator[ValueFault]:
    """The fields of a config, and of the mappings in it, whose values no class can use, or only those of another type. None
    is always accepted."""
    for name, value in config.items():
        here = (*path, name)
        if value is None:
            continue
        known = [known for known in _RANGES if known.names.fullmatch(name)]
        if isinstance(value, Mapping) and not known:
            if name != "quantization_config":
                yield from value_faults(value, here, types_only=types_only)
            continue
        if _MAPPING.fullmatch(name):
            yield ValueFault(here, value, "a mapping", "or null")
            continue
        text = _ACTIVATION.fullmatch(name) or (name in ("rope_type", "type") and _ROPE & {*path[-1:]})
        if text and not isinstance(value, str):
            yield ValueFault(here, value, "a text")
        elif types_only:
            pass
        elif _ACTIVATION.fullmatch(name) and (names := _activations()):
            yield from _unknown(here, value, names, "an activation of Transformers")
        elif text and (names := _rope_types()):
            yield from _unknown(here, value, names, "a rotary scaling of Transformers")
        elif name == "factor" and _ROPE & {*path[-1:]} and _kind(config) == "default" and value != 1:
            expected = "1 without a rope_type, which says how it scales"
            yield ValueFault(here, value, expected, "name the kind, such as linear")
        for one in known:
            if not (one.typed if types_only else one.accepts)(value):
                yield ValueFault(here, value, one.expected)


def is_positive(name: str) -> bool:
    """Whether a field of this name must be a positive number, which no shape shows."""
    return _accepts(name, 2) and not _accepts(name, 0)


def is_fraction(name: str) -> bool:
    """Whether a field of this name must be a number from 0 to 1; which of the two it may be does not matter here."""
    return _accepts(name, 0.5) and not _accepts(name, 2)


def _accepts(name: str, value: float) -> bool:
    known = [known for known in _RANGES if known.names.fullmatch(name) and not known.shown]
    return bool(known) and all(one.accepts(value) for one in known)


def _kind(scaling: Mapping[str, Any]) -> Any:
    """The kind of a rotary scaling under either of its names."""
    kinds = [scaling[word] for word in ("rope_type", "type") if scaling.get(word) not in (None, "default")]
    return kinds[0] if kinds else "default"


def expected_value(name: str) -> str:
    """What a top-level field must be that no class computes by itself; empty for a field that may be null."""
    if name == "hidden_act":
        return "an activation of Transformers"
    return next((r.expected for r in _RANGES if r.names.fullmatch(name)), "") if _NEVER_NULL.fullmatch(name) else ""


def _unknown(path: tuple[str, ...], value: Any, names: Collection[str], expected: str) -> Iterator[ValueFault]:
    if value not in names:
        yield ValueFault(path, value, expected, nearest(str(value), names) or f"such as {', '.join(sorted(names)[:6])}")


# ---------------------------------------------------------------------------------------------------------------------
# Ranges


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: Any) -> bool:
    return _whole(value) and value >= 1


def _counts(value: Any) -> bool:
    return _count(value) or (isinstance(value, list | tuple) and all(map(_count, value)))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _all_whole(value: Any) -> bool:
    return all(map(_whole, _items(value)))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


# Sizes that are one number; others may be a list with one for each layer.
_ONE_SIZE = r"vocab_size|hidden_size|d_model|n_embd|n_layer|num_hidden_layers"
_RANGES = (
    _Range(
        re.compile(r"\w*theta|rotary_emb_base|rope_local_base_freq"),
        lambda v: _number(v) and v > 0,
        "a positive number",
        _number,
    ),
    _Range(
        re.compile(r"\w*_(eps|epsilon)"), lambda v: _number(v) and 0 <= v < 1, "a number from 0 to below 1", _number
    ),
    _Range(
        re.compile(r"\w*(dropout|_pdrop|layerdrop)"),
        lambda v: _number(v) and 0 <= v <= 1,
        "a number from 0 to 1",
        _number,
    ),
    _Range(
        re.compile(r"partial_rotary_factor|rotary_pct"),
        lambda v: _number(v) and 0 < v <= 1,
        "a number above 0 and at most 1",
        _number,
    ),
    _Range(
        re.compile(
            r"head_dim|d_kv|d_ff|n_head|intermediate_size|num_(attention_heads|key_value_heads|experts|local_experts|channels)"
            r"|moe_intermediate_size|image_size|patch_size|(encoder|decoder)_(layers|attention_heads|ffn_dim)"
        ),
        _counts,
        "a positive integer",
        _all_whole,
        shown=True,
    ),
    _Range(
        re.compile(r"num_experts_per_tok|max_position_embeddings|original_max_position_embeddings|n_positions"),
        _counts,
        "a positive integer",
        _all_whole,
    ),
    _Range(re.compile(_ONE_SIZE), _count, "a positive integer", _whole, shown=True),
    _Range(
        re.compile(r"sliding_window"),
        lambda v: _count(v) or v is False,
        "a positive integer or null",
        lambda v: _whole(v) or v is False,
    ),
    _Range(re.compile(r"factor|(low|high)_freq_factor"), lambda v: _number(v) and v > 0, "a positive number", _number),
    _Range(
        re.compile(r"\w*_token_id"),
        lambda v: all(_whole(n) and n >= -1 for n in _items(v)),
        "a token id: an integer from 0 on, or -1 for none",
        _all_whole,
    ),
    _Range(
        re.compile(r"tie_word_embeddings|attention_bias|mlp_bias|qkv_bias|norm_topk_prob|use_cache"),
        lambda v: isinstance(v, bool),
        "true or false",
        lambda v: isinstance(v, bool),
    ),
)
_ACTIVATION = re.compile(r"(\w+_)?hidden_act|hidden_activation|activation(_function|_fn)?")
# A null in these is no word for a default: the model does not load, or has a default that nobody stated.
_NEVER_NULL = re.compile(
    rf"{_ONE_SIZE}|n_head|intermediate_size|num_attention_heads|max_position_embeddings|rope_theta|\w*_(eps|epsilon)"
)
_MAPPING = re.compile(r"rope_(scaling|parameters)|(text|vision|audio|quantization)_config|auto_map")
_ROPE = {"rope_scaling", "rope_parameters", "full_attention", "sliding_attention"}  # mappings that name a scaling


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


# ---------------------------------------------------------------------------------------------------------------------
# Names in the source text of transformers


def _activations() -> frozenset[str]:
    return table_keys("ACT2CLS")


def _rope_types() -> frozenset[str]:
    found = table_keys("ROPE_INIT_FUNCTIONS")
    return found | {"default", "su", "mrope"} if found else found


# Table of names -> the file that has it.
TABLES = {"ACT2CLS": "activations.py", "ROPE_INIT_FUNCTIONS": "modeling_rope_utils.py"}


def table_keys(table: str) -> frozenset[str]:
    """The keys of a table of Transformers; nothing where the release has no such table."""
    if recorded := class_registry.record():
        return frozenset(recorded["tables"][table])
    try:
        return _table_keys(package_folder() / TABLES[table], table)
    except (Refusal, OSError, SyntaxError):
        return frozenset()


@cache
def _table_keys(path: Path, table: str) -> frozenset[str]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Dict(keys=keys)) if name == table:
                pass
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Dict(keys=keys)) if name == table:
                pass
            case _:
                continue
        return frozenset(key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str))
    return frozenset()
