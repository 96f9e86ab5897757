"""The quantized layouts of Transformers' folders, as one table: the names of the stored tensors and what is made of them.

A layout takes the stored tensors of one weight, by the end of their names, and the settings that config.json has under
`quantization_config`; it returns the tensor that the weight becomes. Reads no numbers except the JSON and the shapes that
two layouts store as tensors. Raises `Misfit`.

Sources: compressed-tensors 0.20 (`compressors`), transformers 5.24 (`integrations/finegrained_fp8.py`), gptqmodel 7.7 and
auto-gptq 0.7 (`qlinear`), autoawq 0.2 (`utils/packing_utils.py`), bitsandbytes 0.50 (`functional.QuantState`), mlx 0.32
(`mlx.core.dequantize`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from compiler import strict_json
from compiler.checkpoints.formats.stored_tensor import AnyTensor, Encoded, Tensor, dense_strides, read_bytes
from compiler.diagnostics import listed
from compiler.dtypes import FLOATING
from compiler.quantized import folder_ops as ops

WIDE = frozenset(["float16", "bfloat16", "float32"])  # the types of weights that are not quantized, and of their scales
FP8 = frozenset(["float8_e4m3fn", "float8_e5m2"])
E8M0 = "float8_e8m0fnu"
NF4, FP4 = ".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4"


class Misfit(ValueError):
    """The stored tensors of a weight do not fit together. `kind` is a kind of diagnostics."""

    def __init__(self, message: str, kind: str = "quantized-weights") -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Parts:
    """The stored tensors of one weight, by the end of their names after `stem`; `dtype` of the result, empty for that of
    its layout."""

    stem: str
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    dtype: str

    def need(self, end: str, rank: int = 0, *dtypes: str) -> Tensor:
        """The tensor of that end, with so many axes if `rank` is not 0 and one of the dtypes. Raises Misfit."""
        tensor = self.tensors.get(end)
        if tensor is None:
            there = listed(self.stem + e for e in self.tensors)
            raise Misfit(f"there is {there}, but no {self.stem}{end}", "missing-tensor")
        if rank and len(tensor.shape) != rank:
            raise Misfit(f"{tensor.name} has the shape {list(tensor.shape)}, not {rank} axes", "wrong-shape")
        if dtypes and tensor.dtype not in dtypes:
            raise Misfit(f"{tensor.name} is {tensor.dtype}, not {' or '.join(dtypes)}")
        return tensor

    def setting(self, *names: str, default: object = None) -> Any:
        """The first of these settings that is there."""
        return next((self.settings[name] for name in names if self.settings.get(name) is not None), default)

    def refuse_shape(self, end: str, *wanted: tuple[int, ...]) -> NoReturn:
        shapes = " or ".join(str(list(shape)) for shape in wanted)
        raise Misfit(f"{self.stem}{end} has the shape {list(self.tensors[end].shape)}, not {shapes}", "wrong-shape")


def _turned(tensor: Tensor) -> Tensor:
    """A matrix transposed, as a view of the same bytes."""
    return replace(tensor, shape=tensor.shape[::-1], strides=tensor.strides[::-1])


def _shaped(tensor: Tensor, *shape: int) -> Tensor:
    """A dense tensor under another shape of as many elements, of which the last may be -1."""
    if not tensor.contiguous:
        raise Misfit(f"{tensor.name} is not stored in one piece")
    if shape[-1] == -1:
        shape = (*shape[:-1], _size(tensor) // shape[0])
    return replace(tensor, shape=shape, strides=dense_strides(shape))


def _groups(width: int, count: int, name: str) -> int:
    """The size of `count` equal groups of a row."""
    if not count or width % count:
        raise Misfit(f"{name} has {count} groups, which do not divide the {width} columns of the weight", "wrong-shape")
    return width // count


# ---------------------------------------------------------------------------------------------------------------------
# Scales of blocks


def _inverse_scale(parts: Parts) -> Encoded:
    """FP8 with a scale for each block, or for all; experts in one tensor have the blocks of each."""
    weight = parts.need("", 0, *FP8)
    scale = parts.need("_scale_inv", 0, *WIDE, E8M0)
    dtype = parts.dtype or (scale.dtype if scale.dtype in WIDE else "bfloat16")
    if len(weight.shape) < 2:
        raise Misfit(f"{weight.name} has the shape {list(weight.shape)}, which is no matrix", "wrong-shape")
    *outer, height, width = weight.shape
    block = parts.setting("weight_block_size")
    if _size(scale) == 1:
        op, scale = ops.Scaled("FP8", dtype, 0, 0, "float32"), _shaped(scale, 1, 1)
    else:
        rows, columns = _block(block) if block is not None else (height, 0)
        wanted = (*outer, -(-height // rows), -(-width // columns) if columns else 1)
        if scale.shape != wanted:
            parts.refuse_shape("_scale_inv", wanted)
        if outer and height % rows:
            raise Misfit(f"blocks of {rows} rows do not divide the {height} of {weight.name}", "wrong-shape")
        op = ops.Scaled("FP8 blocks", dtype, rows, columns, "float32")
    flat = (_shaped(t, _height(t), t.shape[-1]) for t in (weight, scale))
    return Encoded(parts.stem, dtype, weight.shape, op, tuple(flat))


def _block(block: object) -> tuple[int, int]:
    match block:
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
    raise Misfit(f"the block size is {block!r}, not two positive numbers")


def _height(tensor: Tensor) -> int:
    count = 1
    for size in tensor.shape[:-1]:
        count *= size
    return count


# ---------------------------------------------------------------------------------------------------------------------
# compressed-tensors


def _compressed(parts: Parts) -> Encoded:
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
    zero = _shaped(parts.need(".weight_zero_point", 0, "int8"), *scale.shape)
    return Encoded(f"{parts.stem}.weight", values[1], weight.shape, ops.Shifted(*values), (weight, scale, zero))


def _compressed_scale(parts: Parts, shape: tuple[int, ...]) -> tuple[int, int, Tensor]:
    """The rows and columns of a block (0: all), and the scales as a matrix."""
    scale = parts.need(".weight_scale", 0, *WIDE)
    height, width = shape
    if scale.shape in ((), (1,), (1, 1)):
        return 0, 0, _shaped(scale, 1, 1)
    if len(scale.shape) == 1:
        scale = _shaped(scale, *scale.shape, 1)
    if scale.shape == (height, 1):
        return 1, 0, scale
    blocks = [_block(size) for size in _weights(parts, "block_structure")]
    fits = [(r, c) for r, c in blocks if scale.shape == (-(-height // r), -(-width // c))]
    if fits:
        return *fits[0], scale
    if len(scale.shape) != 2 or scale.shape[0] != height:
        parts.refuse_shape(".weight_scale", (), (height, 1), (height, -1))
    size = _groups(width, scale.shape[1], scale.name)
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
    operands = packed, scale, _shaped(divisor, 1, 1)
    return Encoded(f"{parts.stem}.weight", dtype, (height, width), ops.Fp4("NVFP4", dtype), operands)


# ---------------------------------------------------------------------------------------------------------------------
# GPTQ and AWQ


def _gptq(parts: Parts) -> Encoded:
    bits = parts.setting("bits")
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
    operands: tuple[Tensor, ...] = _turned(words), _turned(zeros), _turned(scales)
    if ".g_idx" not in parts.tensors:
        _groups(inputs, count, scales.name)
        op: ops.Gptq = ops.GptqInOrder(*values)
    else:
        groups = parts.need(".g_idx", 1, "int32", "int64")
        if groups.shape != (inputs,):
            parts.refuse_shape(".g_idx", (inputs,))
        op = ops.Gptq(*values)
        operands += (_shaped(groups, 1, inputs),)
    return Encoded(f"{parts.stem}.weight", dtype, (outputs, inputs), op, operands)


def _awq(parts: Parts) -> Encoded:
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
    _groups(inputs, count, scales.name)
    dtype = parts.dtype or scales.dtype
    operands = _turned(words), _turned(zeros), _turned(scales)
    return Encoded(f"{parts.stem}.weight", dtype, (outputs, inputs), ops.Awq("AWQ int4", dtype), operands)


# ---------------------------------------------------------------------------------------------------------------------
# bitsandbytes


def _code_book(parts: Parts) -> Encoded:
    kinds = [end for end in (NF4, FP4) if end in parts.tensors]
    state = _json(parts.need(kinds[0] if kinds else NF4, 1, "uint8"))
    match state:
        case {"shape": [*shape], "blocksize": int(block), "dtype": str(rounding)}:
            sizes = tuple(n for n in shape if isinstance(n, int) and n > 0)
        case _:
            raise Misfit(f"{parts.stem}: its quant_state is malformed")
    count = 1
    for size in sizes:
        count *= size
    if len(sizes) != len(shape) or len(sizes) != 2 or block < 1 or rounding not in WIDE:
        raise Misfit(
            f"{parts.stem}: its quant_state has the shape {shape!r}, blocks of {block} and the dtype {rounding!r}"
        )
    pairs, table = parts.need("", 0, "uint8"), parts.need(".quant_map", 0, "float32")
    if _size(pairs) != -(-count // 2):
        raise Misfit(f"{parts.stem} has {_size(pairs):,} bytes, not half of {count:,} numbers", "wrong-shape")
    if table.shape != (16,):
        parts.refuse_shape(".quant_map", (16,))
    height, width = sizes
    apart = width % block == 0 and width % 2 == 0
    scales = _absmax(parts, state, -(-count // block), (height, width // block) if apart else (1, -(-count // block)))
    dtype = parts.dtype or rounding
    op = ops.CodeBook(f"bitsandbytes {(kinds[0] if kinds else NF4)[-3:]}", dtype, block, width, rounding, apart)
    pairs = _shaped(pairs, height, width // 2) if apart else _shaped(pairs, 1, _size(pairs))
    return Encoded(parts.stem, dtype, sizes, op, (pairs, scales, _shaped(table, 1, 16)))


def _absmax(parts: Parts, state: Mapping[str, Any], count: int, shape: tuple[int, int]) -> AnyTensor:
    """The largest value of each block, which may be quantized itself."""
    if ".nested_absmax" not in parts.tensors:
        scales = parts.need(".absmax", 1, "float32")
        if scales.shape != (count,):
            parts.refuse_shape(".absmax", (count,))
        return _shaped(scales, *shape)
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
    operands = _shaped(places, rows, count // rows), _shaped(nested, rows, -1), _shaped(table, 1, 256)
    return Encoded(places.name, "float32", shape, op, operands, (rows, count // rows))


def _json(tensor: Tensor) -> Mapping[str, Any]:
    try:
        found = strict_json.parse(bytes(read_bytes(tensor)))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Misfit(f"{tensor.name} holds no JSON object")
    return found


def _size(tensor: Tensor) -> int:
    return _height(tensor) * (tensor.shape[-1] if tensor.shape else 1)


def _rowwise_int8(parts: Parts) -> Encoded:
    weight, largest = parts.need(".weight", 2, "int8"), parts.need(".SCB", 1, "float32")
    if largest.shape != weight.shape[:1]:
        parts.refuse_shape(".SCB", weight.shape[:1])
    dtype = parts.dtype or "float16"
    op = ops.RowwiseInt8("bitsandbytes int8", dtype)
    return Encoded(f"{parts.stem}.weight", dtype, weight.shape, op, (weight, _shaped(largest, *largest.shape, 1)))


# ---------------------------------------------------------------------------------------------------------------------
# MLX


def _mlx(parts: Parts) -> Encoded:
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
    operands = tuple(_shaped(t, _height(t), t.shape[-1]) for t in (words, scales, biases))
    return Encoded(
        f"{parts.stem}.weight", dtype, (*outer, width), ops.ScaledBiased(f"MLX int{bits}", dtype, bits), operands
    )


# ---------------------------------------------------------------------------------------------------------------------
# The table


@dataclass(frozen=True)
class Layout:
    """`marks`: the ends of names that only tensors of this layout have; `plain`: those of its other tensors. `unused`: ends
    of tensors that only activations need, which are dropped."""

    method: str
    marks: tuple[str, ...]
    plain: tuple[str, ...]
    build: Callable[[Parts], Encoded]
    unused: tuple[str, ...] = ()


_STATIC = (".input_scale", ".input_zero_point", ".input_global_scale", ".output_scale", ".output_zero_point",
           ".q_scale", ".k_scale", ".v_scale", ".q_zero_point", ".k_zero_point", ".v_zero_point")  # fmt: skip
LAYOUTS = (
    Layout(
        "fp8", ("_scale_inv",), ("",), _inverse_scale, (".activation_scale", ".activation_scale_inv", ".input_scale")
    ),
    Layout(
        "compressed-tensors",
        (
            ".weight_packed",
            ".weight_scale",
            ".weight_shape",
            ".weight_global_scale",
            ".weight_zero_point",
            ".weight_g_idx",
        ),
        (".weight",),
        _compressed,
        _STATIC,
    ),
    Layout("gptq", (".qweight", ".qzeros", ".scales", ".g_idx"), (), _gptq),
    Layout("awq", (".qweight", ".qzeros", ".scales"), (), _awq),
    Layout(
        "bitsandbytes",
        (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", NF4, FP4),
        ("",),
        _code_book,
    ),
    Layout("bitsandbytes", (".SCB",), (".weight",), _rowwise_int8, (".weight_format",)),
    Layout("mlx", (".scales", ".biases"), (".weight",), _mlx),
)
METHODS = tuple(dict.fromkeys(layout.method for layout in LAYOUTS))


def quantized_ends(method: str) -> frozenset[str]:
    """The ends of names that show a method."""
    return frozenset(end for layout in LAYOUTS if layout.method == method for end in layout.marks)


def result_dtype(config: Mapping[str, Any]) -> str:
    """The dtype that a config gives to weights; empty where it gives none."""
    for name in ("dtype", "torch_dtype"):
        value = config.get(name)
        if isinstance(value, str) and value.removeprefix("torch.") in FLOATING & WIDE:
            return value.removeprefix("torch.")
    return ""
