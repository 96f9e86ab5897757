"""compressed-tensors: numbers of a byte, packed integers and pairs of FP4. Source: compressed-tensors 0.20 (`compressors`)."""

from __future__ import annotations

import struct
from typing import Any

from compiler.checkpoints.formats.stored_tensor import Encoded, Tensor, read_bytes
from compiler.checkpoints.layouts.parts import FP8, WIDE, Misfit, Parts, block_size, group_size, shaped
from compiler.diagnostics import listed
from compiler.quantized import folder_ops as ops


def compressed(parts: Parts) -> Encoded:
    """Numbers of a byte, packed integers or pairs of FP4, with scales for rows, groups, blocks or all."""
    if ".weight_g_idx" in parts.tensors:
        raise Misfit(f"{parts.stem}.weight_g_idx: groups in the order of activations are not read")
    if ".weight_packed" not in parts.tensors:
        weight = parts.need(".weight", 2)
        if weight.dtype in WIDE:
            raise Misfit(f"{weight.name} is {weight.dtype}, so the folder is not compressed (`quantization_status`)")
        return _compressed_numbers(parts, weight)
    packed = parts.need(".weight_packed", 2, "int32", "uint8")
    return _compressed_pairs(parts, packed) if packed.dtype == "uint8" else _compressed_words(parts, packed)


def _compressed_numbers(parts: Parts, weight: Tensor) -> Encoded:
    weight = parts.need(".weight", 2, "int8", *FP8)
    rows, columns, scale = _compressed_scale(parts, weight.shape)
    name = "int8" if weight.dtype == "int8" else "FP8"
    values = f"compressed-tensors {name}", parts.dtype or scale.dtype, rows, columns, scale.dtype
    if ".weight_zero_point" not in parts.tensors:
        return Encoded(f"{parts.stem}.weight", values[1], weight.shape, ops.Scaled(*values), (weight, scale))
    zero = shaped(parts.need(".weight_zero_point", 0, "int8"), *scale.shape)
    return Encoded(f"{parts.stem}.weight", values[1], weight.shape, ops.Shifted(*values), (weight, scale, zero))


def _compressed_scale(parts: Parts, shape: tuple[int, ...]) -> tuple[int, int, Tensor]:
    """The rows and columns of a block (0: all), and the scales as a matrix."""
    scale = parts.need(".weight_scale", 0, *WIDE)
    height, width = shape
    if scale.shape in ((), (1,), (1, 1)):
        return 0, 0, shaped(scale, 1, 1)
    if len(scale.shape) == 1:
        scale = shaped(scale, *scale.shape, 1)
    if scale.shape == (height, 1):
        return 1, 0, scale
    blocks = [block_size(size) for size in _weights(parts, "block_structure")]
    fits = [(r, c) for r, c in blocks if scale.shape == (-(-height // r), -(-width // c))]
    if fits:
        return *fits[0], scale
    if len(scale.shape) != 2 or scale.shape[0] != height:
        parts.refuse_shape(".weight_scale", (), (height, 1), (height, -1))
    size = group_size(width, scale.shape[1], scale.name)
    if size not in _weights(parts, "group_size"):
        raise Misfit(f"{scale.name} has groups of {size}, which no `config_groups` has", "wrong-shape")
    return 1, size, scale


def _weights(parts: Parts, field: str) -> list[Any]:
    """What the `config_groups` say of weights."""
    groups = parts.settings.get("config_groups")
    weights = (
        [g.get("weights") for g in (groups or {}).values() if isinstance(g, dict)] if isinstance(groups, dict) else []
    )
    return [w[field] for w in weights if isinstance(w, dict) and w.get(field) is not None]


def _compressed_words(parts: Parts, packed: Tensor) -> Encoded:
    stored = parts.need(".weight_shape", 0, "int64", "int32")
    code = "q" if stored.dtype == "int64" else "i"
    shape = tuple(size for (size,) in struct.iter_unpack(f"<{code}", read_bytes(stored)))
    if len(shape) != 2 or min(shape) < 1 or shape[0] != packed.shape[0]:
        raise Misfit(f"{stored.name} says {list(shape)}, but {packed.name} is {list(packed.shape)}", "wrong-shape")
    height, width = shape
    bits = next((b for b in (1, 2, 4, 8) if packed.shape[1] == -(-width * b // 32)), 0)
    if bits not in _weights(parts, "num_bits"):
        known = listed(f"{n}" for n in _weights(parts, "num_bits"))
        raise Misfit(
            f"{packed.name} has {packed.shape[1]} words for {width} columns; 1, 2, 4 and 8 bits are read ({known})"
        )
    rows, columns, scale = _compressed_scale(parts, shape)
    values = f"compressed-tensors int{bits}", parts.dtype or scale.dtype, rows, columns, scale.dtype, bits, width
    name = f"{parts.stem}.weight"
    if ".weight_zero_point" not in parts.tensors:
        if _weights(parts, "symmetric") and not any(_weights(parts, "symmetric")):
            parts.need(".weight_zero_point")
        return Encoded(name, values[1], shape, ops.Packed(*values), (packed, scale))
    zero = parts.need(".weight_zero_point", 2, "int32")
    if zero.shape != (wanted := (-(-height * bits // 32), scale.shape[1])):
        parts.refuse_shape(".weight_zero_point", wanted)
    return Encoded(name, values[1], shape, ops.PackedShifted(*values), (packed, scale, zero))


def _compressed_pairs(parts: Parts, packed: Tensor) -> Encoded:
    scale = parts.need(".weight_scale", 2, "float8_e4m3fn")
    divisor = parts.need(".weight_global_scale", 0, "float32")
    height, width = packed.shape[0], 2 * packed.shape[1]
    if scale.shape != (height, width // 16) or width % 16:
        parts.refuse_shape(".weight_scale", (height, width // 16))
    if divisor.shape not in ((), (1,)):
        parts.refuse_shape(".weight_global_scale", (1,))
    dtype = parts.dtype or "bfloat16"
    operands = packed, scale, shaped(divisor, 1, 1)
    return Encoded(f"{parts.stem}.weight", dtype, (height, width), ops.Fp4("NVFP4", dtype), operands)
