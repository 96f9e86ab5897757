"""The kernels of the quantized layouts in folders of Transformers; `folder_ops` says what each takes.

Each computes what the package that owns the layout computes, in the same element types and order, and casts at the end.
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


def _spread(blocks: Tensor, rows: int, columns: int, shape: tuple[int, ...]) -> Tensor:
    """Values of blocks as values of elements; an axis that all share stays one position."""
    if rows > 1:
        blocks = blocks.repeat_interleave(rows, 0)[: shape[0]]
    if columns > 1:
        blocks = blocks.repeat_interleave(columns, 1)[:, : shape[1]]
    return blocks


def dequantize_scaled(numbers: Tensor, scale: Tensor, rows: int, columns: int, arithmetic: str, dtype: str) -> Tensor:
    factors = _spread(scale.to(_type(arithmetic)), rows, columns, numbers.shape)
    return numbers.to(_type(arithmetic)).mul_(factors).to(_type(dtype))


def dequantize_shifted(
    numbers: Tensor, scale: Tensor, zero: Tensor, rows: int, columns: int, arithmetic: str, dtype: str
) -> Tensor:
    shift = _spread(zero.to(_type(arithmetic)), rows, columns, numbers.shape)
    return dequantize_scaled(numbers.to(_type(arithmetic)) - shift, scale, rows, columns, arithmetic, dtype)


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
    points = _fields(zeros + offset, bits, 0)
    numbers = _fields(words, bits, 1) - points[:, place]
    return (scales[:, place] * numbers).to(_type(dtype))


def dequantize_gptq_in_order(
    words: Tensor, zeros: Tensor, scales: Tensor, bits: int, offset: int, dtype: str
) -> Tensor:
    numbers = _fields(words, bits, 1).unflatten(1, (scales.shape[1], -1))
    points = _fields(zeros + offset, bits, 0)
    return (scales.unsqueeze(-1) * (numbers - points.unsqueeze(-1))).flatten(1).to(_type(dtype))


def dequantize_awq(words: Tensor, zeros: Tensor, scales: Tensor, dtype: str) -> Tensor:
    order = torch.tensor(AWQ_ORDER, device=words.device)
    numbers, points = (_fields(packed, 4, 0).unflatten(0, (-1, 8))[:, order].flatten(0, 1) for packed in (words, zeros))
    differences = numbers.unflatten(1, (scales.shape[1], -1)) - points.unsqueeze(-1)
    return (differences * scales.unsqueeze(-1)).flatten(1).to(_type(dtype))


def dequantize_code_book(
    pairs: Tensor, scales: Tensor, table: Tensor, block: int, width: int, rounding: str, dtype: str
) -> Tensor:
    places = torch.stack([pairs >> 4, pairs & 15], -1).flatten()
    numbers = table.flatten().index_select(0, places.to(torch.int32))
    factors = scales.flatten().repeat_interleave(block)[: len(numbers)]
    return numbers.mul_(factors).to(_type(rounding)).view(-1, width).to(_type(dtype))


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
