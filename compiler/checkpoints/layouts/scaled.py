"""FP8 with scales of blocks (`weight_scale_inv`), and ModelOpt's FP8 and NVFP4.

Sources: transformers 5.24 (`integrations/finegrained_fp8.py`), nvidia-modelopt 0.47 (`torch/quantization/qtensor`).
"""

from __future__ import annotations

from compiler.checkpoints.formats.stored_tensor import Encoded
from compiler.checkpoints.layouts.parts import E8M0, FP8, WIDE, Misfit, Parts, block_size, height_of, shaped, size_of
from compiler.quantized import folder_ops as ops


def inverse_scale(parts: Parts) -> Encoded:
    """FP8 with a scale for each block, or for all; experts in one tensor have the blocks of each."""
    weight = parts.need("", 0, *FP8)
    scale = parts.need("_scale_inv", 0, *WIDE, E8M0)
    dtype = parts.dtype or (scale.dtype if scale.dtype in WIDE else "bfloat16")
    if len(weight.shape) < 2:
        raise Misfit(f"{weight.name} has the shape {list(weight.shape)}, which is no matrix", "wrong-shape")
    *outer, height, width = weight.shape
    block = parts.setting("weight_block_size")
    if size_of(scale) == 1:
        op, scale = ops.Scaled("FP8", dtype, 0, 0, "float32"), shaped(scale, 1, 1)
    else:
        rows, columns = block_size(block) if block is not None else (height, 0)
        wanted = (*outer, -(-height // rows), -(-width // columns) if columns else 1)
        if scale.shape != wanted:
            parts.refuse_shape("_scale_inv", wanted)
        if outer and height % rows:
            raise Misfit(f"blocks of {rows} rows do not divide the {height} of {weight.name}", "wrong-shape")
        op = ops.Scaled("FP8 blocks", dtype, rows, columns, "float32")
    flat = (shaped(t, height_of(t), t.shape[-1]) for t in (weight, scale))
    return Encoded(parts.stem, dtype, weight.shape, op, tuple(flat))


def modelopt(parts: Parts) -> Encoded:
    """FP8 with a scale for rows or all, or pairs of FP4 with scales of groups and one of all."""
    if ".pre_quant_scale" in parts.tensors:
        raise Misfit(f"{parts.stem}.pre_quant_scale: weights that are scaled before they are quantized are not read")
    weight, dtype = parts.need(".weight", 2, "uint8", *FP8), parts.dtype or "bfloat16"
    name, (height, width) = f"{parts.stem}.weight", weight.shape
    if weight.dtype != "uint8":
        scale = parts.need(".weight_scale", 0, "float32")
        if size_of(scale) != 1 and scale.shape not in ((height,), (height, 1)):
            parts.refuse_shape(".weight_scale", (), (height,))
        rows = 0 if size_of(scale) == 1 else 1
        op = ops.Scaled("ModelOpt FP8", dtype, rows, 0, dtype)
        return Encoded(name, dtype, weight.shape, op, (weight, shaped(scale, size_of(scale), 1)))
    scale, factor = parts.need(".weight_scale", 2, "float8_e4m3fn"), parts.need(".weight_scale_2", 0, "float32")
    if scale.shape != (height, width // 8) or width % 8:
        parts.refuse_shape(".weight_scale", (height, width // 8))
    if size_of(factor) != 1:
        parts.refuse_shape(".weight_scale_2", ())
    pairs = ops.Fp4Multiplied("ModelOpt NVFP4", dtype)
    return Encoded(name, dtype, (height, 2 * width), pairs, (weight, scale, shaped(factor, 1, 1)))
