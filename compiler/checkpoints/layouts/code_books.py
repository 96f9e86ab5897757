"""bitsandbytes: places in a table of four bits, and int8 with a scale for each row. Source: bitsandbytes 0.50
(`functional.QuantState`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from compiler import strict_json
from compiler.checkpoints.formats.stored_tensor import AnyTensor, Encoded, Tensor, read_bytes
from compiler.checkpoints.layouts.parts import WIDE, Misfit, Parts, shaped, size_of
from compiler.quantized import folder_ops as ops

NF4, FP4 = ".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4"


def code_book(parts: Parts) -> Encoded:
    kinds = [end for end in (NF4, FP4) if end in parts.tensors]
    state = _json(parts.need(kinds[0] if kinds else NF4, 1, "uint8"))
    match state:
        case {"shape": [*shape], "blocksize": int(block), "dtype": str(rounding)}:
            sizes = tuple(n for n in shape if isinstance(n, int) and n > 0)
        case _:
            raise Misfit(f"{parts.stem}: its quant_state is malformed")
    count = math.prod(sizes)
    if len(sizes) != len(shape) or len(sizes) != 2 or block < 1 or rounding not in WIDE:
        raise Misfit(
            f"{parts.stem}: its quant_state has the shape {shape!r}, blocks of {block} and the dtype {rounding!r}"
        )
    pairs, table = parts.need("", 0, "uint8"), parts.need(".quant_map", 0, "float32")
    if size_of(pairs) != -(-count // 2):
        raise Misfit(f"{parts.stem} has {size_of(pairs):,} bytes, not half of {count:,} numbers", "wrong-shape")
    if table.shape != (16,):
        parts.refuse_shape(".quant_map", (16,))
    height, width = sizes
    apart = width % block == 0 and width % 2 == 0
    scales = _absmax(parts, state, -(-count // block), (height, width // block) if apart else (1, -(-count // block)))
    dtype = parts.dtype or rounding
    op = ops.CodeBook(f"bitsandbytes {(kinds[0] if kinds else NF4)[-3:]}", dtype, block, width, rounding, apart)
    pairs = shaped(pairs, height, width // 2) if apart else shaped(pairs, 1, size_of(pairs))
    return Encoded(parts.stem, dtype, sizes, op, (pairs, scales, shaped(table, 1, 16)))


def _absmax(parts: Parts, state: Mapping[str, Any], count: int, shape: tuple[int, int]) -> AnyTensor:
    """The largest value of each block, which may be quantized itself."""
    if ".nested_absmax" not in parts.tensors:
        scales = parts.need(".absmax", 1, "float32")
        if scales.shape != (count,):
            parts.refuse_shape(".absmax", (count,))
        return shaped(scales, *shape)
    places, nested = parts.need(".absmax", 1, "uint8"), parts.need(".nested_absmax", 1, "float32")
    table = parts.need(".nested_quant_map", 1, "float32")
    offset, block = state.get("nested_offset"), state.get("nested_blocksize")
    if not isinstance(offset, float) or not isinstance(block, int) or block < 1 or table.shape != (256,):
        raise Misfit(f"{parts.stem}: its quant_state has the nested offset {offset!r} and blocks of {block!r}")
    if places.shape != (count,):
        parts.refuse_shape(".absmax", (count,))
    if nested.shape != (-(-count // block),):
        parts.refuse_shape(".nested_absmax", (-(-count // block),))
    rows = 1 if count % block else count // block
    op = ops.NestedScales("bitsandbytes scales", "float32", offset, block, rows > 1)
    operands = shaped(places, rows, count // rows), shaped(nested, rows, -1), shaped(table, 1, 256)
    return Encoded(places.name, "float32", shape, op, operands, (rows, count // rows))


def _json(tensor: Tensor) -> Mapping[str, Any]:
    try:
        found = strict_json.parse(bytes(read_bytes(tensor)))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Misfit(f"{tensor.name} holds no JSON object")
    return found


def rowwise_int8(parts: Parts) -> Encoded:
    weight, largest = parts.need(".weight", 2, "int8"), parts.need(".SCB", 1, "float32")
    if largest.shape != weight.shape[:1]:
        parts.refuse_shape(".SCB", weight.shape[:1])
    dtype = parts.dtype or "float16"
    op = ops.RowwiseInt8("bitsandbytes int8", dtype)
    return Encoded(f"{parts.stem}.weight", dtype, weight.shape, op, (weight, shaped(largest, *largest.shape, 1)))
