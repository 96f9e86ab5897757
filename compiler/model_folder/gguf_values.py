"""The key-values of a GGUF file that describe the model, from the fields of its spec.

Takes the fields of `source.reverse` (underscores in place of dots); returns key -> type and value. The tokenizer's are made by
`gguf_tokenizer`. Source: the package gguf 0.19 (constants.py).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from compiler.checkpoints.formats.gguf_header import STRING
from compiler.diagnostics import refuse
from compiler.dtypes import BLOCKS
from compiler.output.gguf_layout import FLOAT32, UINT32, Typed

# Keys of the model, which begin with the architecture's name in the file.
_KEYS: dict[str, int] = {
    "context_length": UINT32,
    "embedding_length": UINT32,
    "block_count": UINT32,
    "feed_forward_length": UINT32,
    "expert_feed_forward_length": UINT32,
    "expert_count": UINT32,
    "expert_used_count": UINT32,
    "vocab_size": UINT32,
    "attention.head_count": UINT32,
    "attention.head_count_kv": UINT32,
    "attention.key_length": UINT32,
    "attention.value_length": UINT32,
    "attention.layer_norm_rms_epsilon": FLOAT32,
    "attention.layer_norm_epsilon": FLOAT32,
    "attention.sliding_window": UINT32,
    "rope.dimension_count": UINT32,
    "rope.freq_base": FLOAT32,
    "rope.scaling.type": STRING,
    "rope.scaling.factor": FLOAT32,
    "rope.scaling.original_context_length": UINT32,
}
_REQUIRED = ("context_length", "embedding_length", "block_count")  # the runtime of such files does not load one without
_FILE_TYPES = {"float32": 0, "float16": 1, "q8_0": 7, "bfloat16": 32}
_QUANTIZATION_VERSION = 2  # of the layouts of blocks
_MOST = 2**32 - 1


def model_values(fields: Mapping[str, Any], name: str, dtype: str) -> dict[str, Typed]:
    """The key-values that describe the model. `name` is shown to people; `dtype`: of most matrices. Raises Refusal for a
    field without a key, and for a value that the type of its key cannot hold."""
    architecture = fields["general_architecture"]
    values: dict[str, Typed] = {
        "general.architecture": (STRING, architecture),
        "general.type": (STRING, "model"),
        "general.name": (STRING, name),
        "general.file_type": (UINT32, _FILE_TYPES.get(dtype, 0)),
    }
    if dtype in BLOCKS:
        values["general.quantization_version"] = (UINT32, _QUANTIZATION_VERSION)
    keys = {key.replace(".", "_"): key for key in _KEYS}
    for field, value in fields.items():
        if field in keys:
            key = keys[field]
            values[f"{architecture}.{key}"] = (_KEYS[key], _held(key, _KEYS[key], value))
        elif field != "general_architecture" and not field.startswith("tokenizer_"):
            refuse("general.architecture", f"a GGUF file has no key for {field!r}", "unconverted-field")
    for field in _REQUIRED:
        if field in keys and f"{architecture}.{keys[field]}" not in values:
            refuse(f"{architecture}.{keys[field]}", "config.json has no value for it", "missing-argument",
                   f"give it with --set {field}=VALUE")  # fmt: skip
    return values


def token_ids(fields: Mapping[str, Any]) -> dict[str, list[int]]:
    """Role (bos, eos) -> the ids that the fields have, of which a config may list several. Raises Refusal."""
    found: dict[str, list[int]] = {}
    for role in ("bos", "eos"):
        value = fields.get(f"tokenizer_ggml_{role}_token_id")
        several = value if isinstance(value, list) else [] if value is None else [value]
        found[role] = [_held(f"tokenizer.ggml.{role}_token_id", UINT32, number) for number in several]
    return found


def _held(key: str, kind: int, value: Any) -> Any:
    """A value that a key of this type can hold. Raises Refusal: `unwritable-value`."""
    if kind == STRING:
        fits = isinstance(value, str)
    elif kind == UINT32:
        fits = type(value) is int and 0 <= value <= _MOST
    else:
        fits = type(value) in (int, float) and _survives(value)
    if not fits:
        what = {STRING: "a string", UINT32: "a whole number of 32 bits without a sign"}.get(kind, "a number of 32 bits")
        refuse(key, f"{value!r} is not {what}, which a GGUF file has for it", "unwritable-value")
    return value


def _survives(value: float) -> bool:
    """Whether a number is neither infinite nor zero in float32, unless it is zero already."""
    try:
        return (struct.unpack("<f", struct.pack("<f", value))[0] == 0) == (value == 0)
    except OverflowError:
        return False
