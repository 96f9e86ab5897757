"""Checks the values of config fields by their meaning, without importing Transformers.

A field's name determines its meaning across model classes: a `..._theta` is a positive number, a `hidden_act` names an
activation. Config classes accept nearly any value and fail, or compute something else, only when the model runs. The
names of activations and of rotary scalings are read from the source text of the installed transformers, or from `class_registry`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from compiler.diagnostics import Refusal, nearest
from compiler.target import class_registry
from compiler.target.model_class import package_folder


@dataclass(frozen=True)
class ValueFault:
    """A field, by its path from the config (`text_config`, `hidden_act`), and why its value is rejected."""

    path: tuple[str, ...]
    value: Any
    expected: str
    hint: str = ""


@dataclass(frozen=True)
class _Range:
    """The values that fields of one meaning may have; `names` matches the whole field name."""

    names: re.Pattern[str]
    accepts: Callable[[Any], bool]
    expected: str


def value_faults(config: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[ValueFault]:
    """The fields of a config, and of the mappings in it, whose values no class can use. None is always accepted."""
    for name, value in config.items():
        here = (*path, name)
        if value is None:
            continue
        if isinstance(value, Mapping):
            if name != "quantization_config":
                yield from value_faults(value, here)
            continue
        if _ACTIVATION.fullmatch(name) and (names := _activations()):
            yield from _unknown(here, value, names, "an activation of Transformers")
        elif name in ("rope_type", "type") and _ROPE & {*path[-1:]} and (names := _rope_types()):
            yield from _unknown(here, value, names, "a rotary scaling of Transformers")
        elif name == "factor" and _ROPE & {*path[-1:]} and _kind(config) == "default" and value != 1:
            yield ValueFault(
                here, value, "1 without a rope_type, which says how it scales", "name the kind, such as linear"
            )
        for known in _RANGES:
            if known.names.fullmatch(name) and not known.accepts(value):
                yield ValueFault(here, value, known.expected)


def _kind(scaling: Mapping[str, Any]) -> Any:
    """The kind of a rotary scaling under either of its names."""
    kinds = [scaling[word] for word in ("rope_type", "type") if scaling.get(word) not in (None, "default")]
    return kinds[0] if kinds else "default"


def expected_value(name: str) -> str:
    """What a top-level field must be that no class computes by itself; empty for a field that may be null."""
    if name == "hidden_act":
        return "an activation of Transformers"
    return (
        next((known.expected for known in _RANGES if known.names.fullmatch(name)), "")
        if _NEEDED.fullmatch(name)
        else ""
    )


def _unknown(path: tuple[str, ...], value: Any, names: Collection[str], expected: str) -> Iterator[ValueFault]:
    if value not in names:
        yield ValueFault(path, value, expected, nearest(str(value), names) or f"such as {', '.join(sorted(names)[:6])}")


# ---------------------------------------------------------------------------------------------------------------------
# Ranges


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


_RANGES = (
    _Range(
        re.compile(r"\w*theta|rotary_emb_base|rope_local_base_freq"),
        lambda v: _number(v) and v > 0,
        "a positive number",
    ),
    _Range(re.compile(r"\w*_(eps|epsilon)"), lambda v: _number(v) and 0 <= v < 1, "a number from 0 to below 1"),
    _Range(re.compile(r"\w*(dropout|_pdrop|layerdrop)"), lambda v: _number(v) and 0 <= v <= 1, "a number from 0 to 1"),
    _Range(
        re.compile(r"partial_rotary_factor|rotary_pct"),
        lambda v: _number(v) and 0 < v <= 1,
        "a number above 0 and at most 1",
    ),
    _Range(
        re.compile(
            r"vocab_size|hidden_size|head_dim|d_model|d_kv|d_ff|n_embd|n_head|n_layer|n_positions|intermediate_size"
            r"|num_(hidden_layers|attention_heads|key_value_heads|experts|local_experts|experts_per_tok|channels)"
            r"|max_position_embeddings|original_max_position_embeddings|moe_intermediate_size|image_size|patch_size"
            r"|(encoder|decoder)_(layers|attention_heads|ffn_dim)"
        ),
        lambda v: _count(v) or (isinstance(v, list | tuple) and all(map(_count, v))),
        "a positive integer",
    ),
    _Range(re.compile(r"sliding_window"), lambda v: _count(v) or v is False, "a positive integer or null"),
    _Range(re.compile(r"factor|(low|high)_freq_factor"), lambda v: _number(v) and v > 0, "a positive number"),
    _Range(
        re.compile(r"\w*_token_id"),
        lambda v: all(isinstance(n, int) and not isinstance(n, bool) and n >= -1 for n in _items(v)),
        "a token id: an integer from 0 on, or -1 for none",
    ),
    _Range(
        re.compile(r"tie_word_embeddings|attention_bias|mlp_bias|qkv_bias|norm_topk_prob|use_cache"),
        lambda v: isinstance(v, bool),
        "true or false",
    ),
)
# A null in these is no word for a default: the model does not load, or has a default that nobody stated.
_NEEDED = re.compile(
    r"rope_theta|\w*_(eps|epsilon)|vocab_size|hidden_size|num_hidden_layers|num_attention_heads|max_position_embeddings"
)
_ACTIVATION = re.compile(r"(\w+_)?hidden_act|hidden_activation|activation(_function|_fn)?")
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
