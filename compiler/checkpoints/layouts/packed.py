"""Integers in 32-bit words: GPTQ, AWQ and MLX.

Sources: gptqmodel 7.7 and auto-gptq 0.7 (`qlinear`), autoawq 0.2 (`utils/packing_utils.py`), mlx 0.32 (`mlx.core.dequantize`).
"""

from __future__ import annotations

from compiler.checkpoints.formats.stored_tensor import Encoded, Tensor
from compiler.checkpoints.layouts.parts import WIDE, Misfit, Parts, group_size, height_of, shaped, turned
from compiler.quantized import folder_ops as ops


def gptq(parts: Parts) -> Encoded:
    bits = parts.setting("bits")
    if parts.setting("dynamic"):  # modules have bits of their own, which the words of zero points show
        bits = _stored_bits(parts.need(".qzeros", 2, "int32"), parts.need(".scales", 2, *WIDE))
    if bits not in (2, 4, 8):
        raise Misfit(f"GPTQ with {bits!r} bits; 2, 4 and 8 are read")
    form = parts.setting("checkpoint_format", "format", default="gptq")
    if form not in ("gptq", "gptq_v2"):
        raise Misfit(f"GPTQ in the format {form!r}; gptq and gptq_v2 are read")
    words, zeros = parts.need(".qweight", 2, "int32"), parts.need(".qzeros", 2, "int32")
    scales, pack = parts.need(".scales", 2, *WIDE), 32 // bits
    inputs, (count, outputs) = words.shape[0] * pack, scales.shape
    if words.shape[1] != outputs:
        parts.refuse_shape(".scales", (count, words.shape[1]))
    if outputs % pack or zeros.shape != (count, outputs // pack):
        parts.refuse_shape(".qzeros", (count, outputs // pack))
    offset = sum(1 << n for n in range(0, 32, bits)) if form == "gptq" else 0  # the first format stores them less one
    dtype = parts.dtype or scales.dtype
    values = f"GPTQ int{bits}", dtype, bits, offset
    operands: tuple[Tensor, ...] = turned(words), turned(zeros), turned(scales)
    ordered = parts.setting("desc_act") and count > 1  # by activations: without the table, inputs are in other groups
    if ".g_idx" not in parts.tensors and not ordered:
        group_size(inputs, count, scales.name)
        op: ops.Gptq = ops.GptqInOrder(*values)
    else:
        groups = parts.need(".g_idx", 1, "int32", "int64")
        if groups.shape != (inputs,):
            parts.refuse_shape(".g_idx", (inputs,))
        op = ops.Gptq(*values)
        operands += (shaped(groups, 1, inputs),)
    return Encoded(f"{parts.stem}.weight", dtype, (outputs, inputs), op, operands)


def _stored_bits(zeros: Tensor, scales: Tensor) -> int:
    """The bits of a zero point, of which one is stored for each scale."""
    return 32 * zeros.shape[1] // max(1, scales.shape[1])


def awq(parts: Parts) -> Encoded:
    bits, version = parts.setting("bits", "w_bit"), parts.setting("version", "format", default="gemm")
    if bits != 4 or str(version).lower() != "gemm":
        raise Misfit(f"AWQ of the version {version!r} with {bits!r} bits; gemm with 4 is read")
    words, zeros = parts.need(".qweight", 2, "int32"), parts.need(".qzeros", 2, "int32")
    scales = parts.need(".scales", 2, *WIDE)
    inputs, outputs, count = words.shape[0], 8 * words.shape[1], scales.shape[0]
    if scales.shape[1] != outputs:
        parts.refuse_shape(".scales", (count, outputs))
    if zeros.shape != (count, outputs // 8):
        parts.refuse_shape(".qzeros", (count, outputs // 8))
    group_size(inputs, count, scales.name)
    dtype = parts.dtype or scales.dtype
    operands = turned(words), turned(zeros), turned(scales)
    return Encoded(f"{parts.stem}.weight", dtype, (outputs, inputs), ops.Awq("AWQ int4", dtype), operands)


def affine(parts: Parts) -> Encoded:
    words = parts.need(".weight", 0, "uint32")
    scales, biases = parts.need(".scales", len(words.shape), *WIDE), parts.need(".biases", len(words.shape), *WIDE)
    module = parts.settings.get(parts.stem)
    settings = module if isinstance(module, dict) else parts.settings  # a module may have settings of its own
    bits, group, mode = settings.get("bits"), settings.get("group_size"), settings.get("mode", "affine")
    if bits not in (2, 4, 8) or not isinstance(group, int) or group < 1 or mode != "affine":
        raise Misfit(
            f"{parts.stem}: MLX in the mode {mode!r} with {bits!r} bits in groups of {group!r}; affine with 2, 4 or 8 is read"
        )
    *outer, columns = words.shape
    width = columns * 32 // bits
    wanted = (*outer, width // group)
    if width % group or scales.shape != wanted:
        parts.refuse_shape(".scales", wanted)
    if biases.shape != wanted or biases.dtype != scales.dtype:
        parts.refuse_shape(".biases", wanted)
    dtype = parts.dtype or scales.dtype
    operands = tuple(shaped(t, height_of(t), t.shape[-1]) for t in (words, scales, biases))
    return Encoded(
        f"{parts.stem}.weight", dtype, (*outer, width), ops.ScaledBiased(f"MLX int{bits}", dtype, bits), operands
    )
