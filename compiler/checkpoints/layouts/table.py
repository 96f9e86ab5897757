"""The table: the names of the stored tensors of each layout, and the function that makes one tensor of them.

The function takes the stored tensors of one weight, by the end of their names, and the settings that config.json has under
`quantization_config`. It reads no numbers except the JSON and the shapes that two layouts store as tensors. Raises `Misfit`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from compiler.checkpoints.formats.stored_tensor import Encoded
from compiler.checkpoints.layouts.code_books import FP4, NF4, code_book, rowwise_int8
from compiler.checkpoints.layouts.compressed_tensors import compressed
from compiler.checkpoints.layouts.packed import affine, awq, gptq
from compiler.checkpoints.layouts.parts import WIDE, Parts
from compiler.checkpoints.layouts.scaled import inverse_scale, modelopt
from compiler.dtypes import FLOATING


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
        "fp8", ("_scale_inv",), ("",), inverse_scale, (".activation_scale", ".activation_scale_inv", ".input_scale")
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
        compressed,
        _STATIC,
    ),
    Layout(
        "modelopt",
        (".weight_scale", ".weight_scale_2", ".pre_quant_scale"),
        (".weight",),
        modelopt,
        (".input_scale", ".k_scale", ".v_scale", ".k_proj.output_scale", ".v_proj.output_scale"),
    ),
    Layout("gptq", (".qweight", ".qzeros", ".scales", ".g_idx"), (), gptq),
    Layout("awq", (".qweight", ".qzeros", ".scales"), (), awq),
    Layout(
        "bitsandbytes",
        (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", NF4, FP4),
        ("",),
        code_book,
    ),
    Layout("bitsandbytes", (".SCB",), (".weight",), rowwise_int8, (".weight_format",)),
    Layout("mlx", (".scales", ".biases"), (".weight",), affine),
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
