"""The kernels of the quantized layouts in folders of Transformers; `folder_ops` says what each takes.

Each computes what the package that owns the layout computes, and casts at the end. A product of two numbers of 16 bits is
computed in float32 and rounded once, which gives the bits that torch and MLX give.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # the place of output n among the eight of a word


def _type(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _fields(words: Tensor, bits: int, axis: int) -> Tensor:
    """The fields of `bits` bits in 32-bit words along an axis of a matrix, lowest first, as int32."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    spread = words.view(torch.int32).unsqueeze(axis + 1) >> (shifts if axis else shifts.view(-1, 1))
    return spread.bitwise_and_((1 << bits) - 1).flatten(axis, axis + 1)


def _by_blocks(numbers: Tensor, blocks: Tensor, rows: int, columns: int, change: Callable[..., Tensor]) -> Tensor:
    """Change a float32 matrix in place by the values of its blocks; an axis that all share has one position and size 0."""
    factors = blocks.to(torch.float32)
    if rows > 1:
        factors = factors.repeat_interleave(rows, 0)[: len(numbers)]
    if columns > 1 and numbers.shape[1] % columns == 0:
        change(numbers.unflatten(1, (-1, columns)), factors.unsqueeze(-1))
    elif columns > 1:
        change(numbers, factors.repeat_interleave(columns, 1)[:, : numbers.shape[1]])
    else:
        change(numbers, factors)
    return numbers


def dequantize_scaled(numbers: Tensor, scale: Tensor, rows: int, columns: int, arithmetic: str, dtype: str) -> Tensor:
    product = _by_blocks(numbers.to(torch.float32), scale, rows, columns, Tensor.mul_)
    return product.to(_type(arithmetic)).to(_type(dtype))


def dequantize_shifted(
    numbers: Tensor, scale: Tensor, zero: Tensor, rows: int, columns: int, arithmetic: str, dtype: str
) -> Tensor:
    differences = _by_blocks(numbers.to(torch.float32), zero, rows, columns, Tensor.sub_)
    return dequantize_scaled(differences, scale, rows, columns, arithmetic, dtype)


def dequantize_packed(
    words: Tensor, scale: Tensor, rows: int, columns: int, arithmetic: str, dtype: str, bits: int, width: int
) -> Tensor:
    numbers = _fields(words, bits, 1)[:, :width] - (1 << (bits - 1))
    return dequantize_scaled(numbers, scale, rows, columns, arithmetic, dtype)


def dequantize_packed_shifted(
    words: Tensor,
    scale: Tensor,
    zero: Tensor,
    rows: int,
    columns: int,
    arithmetic: str,
    dtype: str,
    bits: int,
    width: int,
) -> Tensor:
    numbers = _fields(words, bits, 1)[:, :width]
    zeros = _fields(zero, bits, 0)[: len(scale)]
    return dequantize_shifted(numbers, scale, zeros, rows, columns, arithmetic, dtype)


def dequantize_nvfp4(pairs: Tensor, scale: Tensor, divisor: Tensor, dtype: str) -> Tensor:
    table = torch.tensor(E2M1, dtype=torch.float32, device=pairs.device)
    places = torch.stack([pairs & 15, pairs >> 4], -1).flatten(1)
    numbers = table.index_select(0, places.flatten().to(torch.int32)).view(len(pairs), scale.shape[1], -1)
    factors = scale.to(torch.bfloat16).to(torch.float32) / divisor
    return numbers.mul_(factors.unsqueeze(-1)).flatten(1).to(torch.bfloat16).to(_type(dtype))


def dequantize_gptq(
    words: Tensor, zeros: Tensor, scales: Tensor, groups: Tensor, bits: int, offset: int, dtype: str
) -> Tensor:
    place = groups.flatten().to(torch.int64)
    if place.numel() and not 0 <= int(place.min()) <= int(place.max()) < scales.shape[1]:
        raise ValueError(f"g_idx has the groups {place.min()} to {place.max()}, but there are {scales.shape[1]}")
    points = _fields(zeros + offset, bits, 0).to(torch.float32).index_select(1, place)
    numbers = _fields(words, bits, 1) - points
    product = numbers.mul_(scales.to(torch.float32).index_select(1, place))
    return product.to(scales.dtype).to(_type(dtype))


def dequantize_gptq_in_order(
    words: Tensor, zeros: Tensor, scales: Tensor, bits: int, offset: int, dtype: str
) -> Tensor:
    points = _fields(zeros + offset, bits, 0)
    return _product(_fields(words, bits, 1), points, scales).to(_type(dtype))


def dequantize_awq(words: Tensor, zeros: Tensor, scales: Tensor, dtype: str) -> Tensor:
    order = torch.tensor(AWQ_ORDER, device=words.device)
    numbers, points = (_fields(packed, 4, 0).unflatten(0, (-1, 8))[:, order].flatten(0, 1) for packed in (words, zeros))
    return _product(numbers, points, scales).to(_type(dtype))


def _product(numbers: Tensor, points: Tensor, scales: Tensor) -> Tensor:
    """(number - zero point) * scale for groups of consecutive columns, in the type of the scales."""
    differences = numbers.unflatten(1, (scales.shape[1], -1)) - points.unsqueeze(-1)
    return (differences * scales.to(torch.float32).unsqueeze(-1)).to(scales.dtype).flatten(1)


def dequantize_code_book(
    pairs: Tensor, scales: Tensor, table: Tensor, block: int, width: int, rounding: str, dtype: str
) -> Tensor:
    places = torch.stack([pairs >> 4, pairs & 15], -1).flatten()
    numbers = table.flatten().index_select(0, places.to(torch.int32))
    product = _by_blocks(numbers.view(1, -1), scales.view(1, -1), 0, block, Tensor.mul_)
    return product.to(_type(rounding)).view(-1, width).to(_type(dtype))


def dequantize_nested_scales(places: Tensor, scales: Tensor, table: Tensor, block: int, offset: float) -> Tensor:
    numbers = table.flatten().index_select(0, places.flatten().to(torch.int32))
    factors = scales.flatten().repeat_interleave(block)[: len(numbers)]
    shift = torch.tensor(offset, dtype=torch.float32, device=scales.device)
    return numbers.mul_(factors).add_(shift).view(places.shape)


def dequantize_rowwise_int8(numbers: Tensor, largest: Tensor, dtype: str) -> Tensor:
    return (numbers * largest).mul_(7.874015718698502e-3).to(_type(dtype))  # 1 / 127


def dequantize_biased(words: Tensor, scales: Tensor, biases: Tensor, bits: int, dtype: str) -> Tensor:
    numbers = _fields(words, bits, 1).to(scales.dtype).unflatten(1, (scales.shape[1], -1))
    return numbers.mul_(scales.unsqueeze(-1)).add_(biases.unsqueeze(-1)).flatten(1).to(_type(dtype))


KERNELS: dict[str, Callable[..., Tensor]] = {
    function.__name__: function
    for function in (
        dequantize_scaled,
        dequantize_shifted,
        dequantize_packed,
        dequantize_packed_shifted,
        dequantize_nvfp4,
        dequantize_gptq,
        dequantize_gptq_in_order,
        dequantize_awq,
        dequantize_code_book,
        dequantize_nested_scales,
        dequantize_rowwise_int8,
        dequantize_biased,
    )
}
