"""Random chains of layout ops, done to torch tensors and to arrays alike."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from hypothesis import strategies as st

from compiler.layout import array as layout
from compiler.layout.array import Array

MAX_AXES = 4
Pair = tuple[torch.Tensor, Array]


def factored(draw: Callable, number: int) -> list[int]:
    """A random shape of `number` elements."""
    shape: list[int] = []
    while number > 1 and len(shape) < MAX_AXES - 1:
        factor = draw(st.sampled_from([n for n in range(1, number + 1) if number % n == 0]))
        shape.append(factor)
        number //= factor
    return [*shape, number]


def widths(tensor: torch.Tensor) -> list[int]:
    """The numbers of columns, three or more, of the matrices of two rows or more that have the tensor's elements."""
    number = tensor.numel()
    return [n for n in range(3, number // 2 + 1) if number % n == 0]


def columns(draw: Callable, pair: Pair, sizes: list[int]) -> Pair:
    """Some columns of a tensor as a matrix, as of a fused one that is taken apart: two or more, but not all."""
    tensor, array = pair
    wide = draw(st.sampled_from(sizes))
    length = draw(st.integers(2, wide - 1))
    first = draw(st.integers(0, wide - length))
    matrix = layout.reshape(array, (tensor.numel() // wide, wide))
    return tensor.reshape(-1, wide)[:, first : first + length], layout.narrow(matrix, 1, first, length)


@st.composite
def programs(draw: Callable) -> tuple[Pair, dict[str, bytes]]:
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    count = draw(st.integers(1, 3))
    offset = draw(st.integers(0, 3))
    pool: list[Pair] = []
    files: dict[str, bytes] = {}
    for n in range(count):
        tensor = torch.arange(math.prod(shape), dtype=torch.int16).reshape(shape) + 1000 * n
        array = layout.source(f"s{n}", "int16", shape, offset)
        files[f"s{n}"] = bytes(offset) + tensor.numpy().tobytes()
        if draw(st.booleans()):  # a transposed view, as a pickle may hold one
            tensor = tensor.permute(*range(len(shape) - 1, -1, -1))
            array = layout.source(f"s{n}", "int16", tensor.shape, offset, tensor.stride())
        pool.append((tensor, array))
    for _ in range(draw(st.integers(0, 7))):
        tensor, array = draw(st.sampled_from(pool))
        word = draw(
            st.sampled_from(
                [
                    "split",
                    "concat",
                    "stack",
                    "unstack",
                    "rearrange",
                    "permute",
                    "reshape",
                    "expand",
                    "columns",
                    "columns",
                ]
            )
        )
        rank = tensor.dim()
        axis = draw(st.integers(0, rank - 1)) if rank else 0
        if word == "split" and rank and tensor.shape[axis] > 1:
            cut = draw(st.integers(1, tensor.shape[axis] - 1))
            sizes = [cut, tensor.shape[axis] - cut]
            pool += zip(tensor.split(sizes, axis), layout.split(array, axis, sizes), strict=True)
        elif word == "columns" and (sizes := widths(tensor)):
            pool.append(columns(draw, (tensor, array), sizes))
        elif word == "concat" and rank:
            rest = [n for k, n in enumerate(tensor.shape) if k != axis]
            fits = [
                p for p in pool if p[0].dim() == rank and [n for k, n in enumerate(p[0].shape) if k != axis] == rest
            ]
            parts = draw(st.lists(st.sampled_from(fits), min_size=1, max_size=3))
            pool.append((torch.cat([t for t, _ in parts], axis), layout.concat([a for _, a in parts], axis)))
        elif word == "stack" and rank < MAX_AXES:
            fits = [p for p in pool if p[0].shape == tensor.shape]
            parts = draw(st.lists(st.sampled_from(fits), min_size=1, max_size=3))
            axis = draw(st.integers(0, rank))
            pool.append((torch.stack([t for t, _ in parts], axis), layout.stack([a for _, a in parts], axis)))
        elif word == "unstack" and rank:
            pool += zip(tensor.unbind(axis), layout.unstack(array, axis), strict=True)
        elif word == "rearrange":
            inner = factored(draw, tensor.numel())
            order = draw(st.permutations(range(len(inner))))
            outer = factored(draw, tensor.numel())
            result = tensor.reshape(inner).permute(order).reshape(outer)
            pool.append((result, layout.rearrange(array, inner, order, outer)))
        elif word == "permute" and rank:
            order = draw(st.permutations(range(rank)))
            pool.append((tensor.permute(order), layout.permute(array, order)))
        elif word == "reshape":
            target = factored(draw, tensor.numel())
            pool.append((tensor.reshape(target), layout.reshape(array, target)))
        elif word == "expand":
            repeated = layout.source("s0", "int16", (3, 2), offset, (0, 0))
            pool.append((torch.zeros(3, 2, dtype=torch.int16), repeated))
    result = draw(st.sampled_from(pool))
    if draw(st.booleans()) and (sizes := widths(result[0])):
        result = columns(draw, result, sizes)
    return result, files
