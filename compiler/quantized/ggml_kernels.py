"""Blocks of GGUF files to float32, bit for bit as `gguf.quants.dequantize` of the package gguf computes them.

Each function takes blocks [block, byte] and returns [block, element]. Every product and difference is rounded to float32
once, in the order of that package, so any device gives the same bits.
Source of the layouts: ggml-common.h and ggml-quants.c (https://github.com/ggml-org/ggml).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compiler.quantized.ggml_blocks import BLOCKS

IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # E2M1, doubled


def dequantize_ggml(rows: Tensor, type: str) -> Tensor:
    """Rows of blocks of this type [row, byte] to float32 [row, element]."""
    nbytes = next(blocks.nbytes for blocks in BLOCKS.values() if blocks.name == type)
    return KERNELS[type](rows.reshape(-1, nbytes)).reshape(rows.shape[0], -1)


def _half(blocks: Tensor, start: int) -> Tensor:
    """The float16 at byte `start` of each block, in float32: [block, 1]."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).to(torch.float32)


def _bits(data: Tensor, width: int, run: int) -> Tensor:
    """Fields of `width` bits: of `run` bytes first the lowest field of each, then the next. [block, byte] -> [block, field]."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=data.device)
    fields = data.reshape(len(data), -1, 1, run) >> shifts.view(-1, 1)
    return fields.bitwise_and_((1 << width) - 1).flatten(1)


def _times(numbers: Tensor, scales: Tensor) -> Tensor:
    """Integers [block, element] times float32 scales [block, group]: [block, group, element]."""
    return numbers.view(len(numbers), scales.shape[1], -1) * scales.unsqueeze(-1)


def _looked_up(fields: Tensor, table: tuple[int, ...]) -> Tensor:
    numbers = torch.tensor(table, dtype=torch.float32, device=fields.device)
    return numbers.index_select(0, fields.flatten().to(torch.int32)).view(fields.shape)


def _six_bit_pairs(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight minima of six bits from 12 bytes, in float32."""
    low, high, both = packed.unflatten(1, (3, 4)).unbind(1)
    scales = torch.cat([low & 63, (both & 15) | (low >> 2 & 48)], 1)
    minima = torch.cat([high & 63, (both >> 4) | (high >> 2 & 48)], 1)
    return scales.to(torch.float32), minima.to(torch.float32)


def _q4_0(blocks: Tensor) -> Tensor:
    return _times(_bits(blocks[:, 2:], 4, 16).view(torch.int8).sub_(8), _half(blocks, 0))


def _q4_1(blocks: Tensor) -> Tensor:
    return _times(_bits(blocks[:, 4:], 4, 16), _half(blocks, 0)).add_(_half(blocks, 2).unsqueeze(-1))


def _five_bits(blocks: Tensor, start: int) -> Tensor:
    """32 numbers: their fifth bits in four bytes, then their lower halves."""
    fifth = _bits(blocks[:, start : start + 4], 1, 1)
    return _bits(blocks[:, start + 4 :], 4, 16).bitwise_or_(fifth.bitwise_left_shift_(4))


def _q5_0(blocks: Tensor) -> Tensor:
    return _times(_five_bits(blocks, 2).view(torch.int8).sub_(16), _half(blocks, 0))


def _q5_1(blocks: Tensor) -> Tensor:
    return _times(_five_bits(blocks, 4), _half(blocks, 0)).add_(_half(blocks, 2).unsqueeze(-1))


def _q8_0(blocks: Tensor) -> Tensor:
    return _times(blocks[:, 2:].contiguous().view(torch.int8), _half(blocks, 0))


def _q2_k(blocks: Tensor) -> Tensor:
    scales = blocks[:, :16]
    minima = _half(blocks, 82) * (scales >> 4).to(torch.float32)
    numbers = _times(_bits(blocks[:, 16:80], 2, 32), _half(blocks, 80) * (scales & 15).to(torch.float32))
    return numbers.sub_(minima.unsqueeze(-1))


def _q3_k(blocks: Tensor) -> Tensor:
    third = _bits(blocks[:, :32], 1, 32).bitwise_xor_(1).bitwise_left_shift_(2)  # a bit that is set takes nothing away
    numbers = _bits(blocks[:, 32:96], 2, 32).view(torch.int8).sub_(third.view(torch.int8))
    scales = _bits(blocks[:, 96:104], 4, 8) | _bits(blocks[:, 104:108], 2, 4) << 4
    return _times(numbers, _half(blocks, 108) * scales.view(torch.int8).sub_(32).to(torch.float32))


def _q4_k(blocks: Tensor) -> Tensor:
    scales, minima = _six_bit_pairs(blocks[:, 4:16])
    numbers = _times(_bits(blocks[:, 16:], 4, 32), _half(blocks, 0) * scales)
    return numbers.sub_((_half(blocks, 2) * minima).unsqueeze(-1))


def _q5_k(blocks: Tensor) -> Tensor:
    scales, minima = _six_bit_pairs(blocks[:, 4:16])
    fifth = _bits(blocks[:, 16:48], 1, 32).bitwise_left_shift_(4)
    numbers = _times(_bits(blocks[:, 48:], 4, 32).bitwise_or_(fifth), _half(blocks, 0) * scales)
    return numbers.sub_((_half(blocks, 2) * minima).unsqueeze(-1))


def _q6_k(blocks: Tensor) -> Tensor:
    upper = _bits(blocks[:, 128:192], 2, 32).bitwise_left_shift_(4)
    numbers = _bits(blocks[:, :128], 4, 64).bitwise_or_(upper).view(torch.int8).sub_(32)
    scales = blocks[:, 192:208].contiguous().view(torch.int8).to(torch.float32)
    return _times(numbers, _half(blocks, 208) * scales)


def _iq4_nl(blocks: Tensor) -> Tensor:
    return _times(_looked_up(_bits(blocks[:, 2:], 4, 16), IQ4), _half(blocks, 0))


def _iq4_xs(blocks: Tensor) -> Tensor:
    scales = _bits(blocks[:, 4:8], 4, 1) | _bits(blocks[:, 2:4], 2, 1) << 4
    factors = _half(blocks, 0) * scales.view(torch.int8).sub_(32).to(torch.float32)
    return _times(_looked_up(_bits(blocks[:, 8:], 4, 16), IQ4), factors)


def _tq1_0(blocks: Tensor) -> Tensor:
    """Five numbers to a byte, as digits to the base of three of the fraction byte / 256."""
    powers = torch.tensor([1, 3, 9, 27, 81], dtype=torch.uint8, device=blocks.device).view(-1, 1)
    runs = (blocks[:, :32], powers), (blocks[:, 32:48], powers), (blocks[:, 48:52], powers[:4])
    digits = torch.cat(
        [(run.unsqueeze(1) * power).flatten(1) for run, power in runs], 1
    )  # products of bytes wrap around
    return _times((digits.to(torch.int16) * 3 >> 8) - 1, _half(blocks, 52))


def _tq2_0(blocks: Tensor) -> Tensor:
    return _times(_bits(blocks[:, :64], 2, 32).view(torch.int8).sub_(1), _half(blocks, 64))


def _mxfp4(blocks: Tensor) -> Tensor:
    exponents = blocks[:, :1].to(torch.int32)
    # Half of a power of two: its table is doubled. The two smallest are subnormal.
    bits = torch.where(exponents < 2, 0x00200000 << exponents.clamp(max=1), (exponents - 1) << 23)
    return _times(_looked_up(_bits(blocks[:, 1:], 4, 16), FP4), bits.view(torch.float32))


KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
    "MXFP4": _mxfp4,
}
