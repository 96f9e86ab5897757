"""Element types: one name, the name torch gives them, their size in bytes, and their code in safetensors files.

Codes: https://github.com/huggingface/safetensors (`Dtype` in safetensors/src/tensor.rs). Blocks: `block_q8_0` in
ggml-common.h (https://github.com/ggml-org/ggml).
"""

from __future__ import annotations

SAFETENSORS_CODES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
}
NAMES_BY_CODE = {code: name for name, code in SAFETENSORS_CODES.items()}
ITEM_SIZES = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "uint16": 2,
    "int16": 2,
    "uint32": 4,
    "int32": 4,
    "uint64": 8,
    "int64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex64": 8,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e8m0fnu": 1,
}
# Types that only containers know -> how many elements of a row make a block, and the bytes of a block.
BLOCKS = {"q8_0": (32, 34)}
FLOATING = frozenset(n for n in SAFETENSORS_CODES if n.startswith(("float", "bfloat")))
