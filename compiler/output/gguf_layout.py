"""Computes the layout of a GGUF file, before any tensor is written: its complete header, and where each tensor's bytes go.

Format, version 3: magic, counts, key-values, one entry for each tensor (the innermost axis first), then the data, each
tensor at a multiple of 32 bytes (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). Takes targets, key-values and
small tensors that are not computed from the source; returns an `OutFile`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from compiler import dtypes
from compiler.checkpoints.formats.gguf_header import ARRAY, MAGIC, MOST_AXES, SCALARS, STRING
from compiler.diagnostics import listed, refuse
from compiler.output.safetensors_layout import OutFile
from compiler.plan.plan import TargetTensor
from compiler.quantized.ggml_blocks import BLOCKS, PLAIN

ALIGNMENT = 32
UINT32, INT32, FLOAT32, BOOL = 4, 5, 6, 7
_CODES = {name: code for code, name in PLAIN.items()}
_CODES |= {blocks.name.lower(): code for code, blocks in BLOCKS.items() if blocks.name.lower() in dtypes.BLOCKS}

Typed = tuple[int, Any]  # the type of a value, or of the elements of a list, and the value


def lay_out(
    name: str, targets: Sequence[TargetTensor], values: Mapping[str, Typed], constants: Mapping[str, Sequence[float]]
) -> OutFile:
    """The file of that name. `values`: key -> type and value; `constants`: name -> the float32 numbers of a vector, which
    are first in the data. Raises Refusal: `unsupported-tensor` for a dtype or a number of axes that no such file has."""
    for target in targets:
        if target.dtype not in _CODES:
            hint = (
                "cast it with --dtype" if target.dtype in dtypes.FLOATING else f"the types are {listed(sorted(_CODES))}"
            )
            refuse(name, f"{target.name} is {target.dtype}, which no GGUF file holds", "unsupported-tensor", hint)
        if len(target.shape) > MOST_AXES:
            message = f"{target.name} has {len(target.shape)} axes, a GGUF file at most {MOST_AXES}"
            refuse(name, message, "unsupported-tensor")
    tensors = [TargetTensor(n, (len(numbers),), "float32") for n, numbers in constants.items()] + [*targets]
    places: dict[str, int] = {}
    end = 0
    for tensor in tensors:
        places[tensor.name] = -(-end // ALIGNMENT) * ALIGNMENT
        end = places[tensor.name] + tensor.nbytes
    head = MAGIC + struct.pack("<IQQ", 3, len(tensors), len(values))
    head += b"".join(_text(key) + _typed(*value) for key, value in values.items())
    head += b"".join(_entry(tensor, places[tensor.name]) for tensor in tensors)
    base = -(-len(head) // ALIGNMENT) * ALIGNMENT
    written = bytearray(head.ljust(base, b"\0"))
    for constant, numbers in constants.items():
        written += bytes(base + places[constant] - len(written)) + struct.pack(f"<{len(numbers)}f", *numbers)
    offsets = {target.name: base + places[target.name] for target in targets}
    gaps, position = [], len(written)
    for target in targets:
        if offsets[target.name] > position:
            gaps.append((position, offsets[target.name] - position))
        position = offsets[target.name] + target.nbytes
    return OutFile(name, bytes(written), offsets, position, tuple(gaps))


def _entry(tensor: TargetTensor, offset: int) -> bytes:
    shape = tuple(reversed(tensor.shape))
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return _text(tensor.name) + sizes + struct.pack("<IQ", _CODES[tensor.dtype], offset)


def _typed(kind: int, value: Any) -> bytes:
    if isinstance(value, list):
        return struct.pack("<IIQ", ARRAY, kind, len(value)) + b"".join(_value(kind, item) for item in value)
    return struct.pack("<I", kind) + _value(kind, value)


def _value(kind: int, value: Any) -> bytes:
    return _text(value) if kind == STRING else struct.pack(f"<{SCALARS[kind]}", value)


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data
