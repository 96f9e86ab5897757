"""The stored tensors of one quantized weight, and how they are looked at. Raises `Misfit`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from compiler.checkpoints.formats.stored_tensor import Tensor, dense_strides
from compiler.diagnostics import listed

WIDE = frozenset(["float16", "bfloat16", "float32"])  # the types of weights that are not quantized, and of their scales
FP8 = frozenset(["float8_e4m3fn", "float8_e5m2"])
E8M0 = "float8_e8m0fnu"


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


def turned(tensor: Tensor) -> Tensor:
    """A matrix transposed, as a view of the same bytes."""
    return replace(tensor, shape=tensor.shape[::-1], strides=tensor.strides[::-1])


def shaped(tensor: Tensor, *shape: int) -> Tensor:
    """A dense tensor under another shape of as many elements, of which the last may be -1."""
    if not tensor.contiguous:
        raise Misfit(f"{tensor.name} is not stored in one piece")
    if shape[-1] == -1:
        shape = (*shape[:-1], size_of(tensor) // shape[0])
    return replace(tensor, shape=shape, strides=dense_strides(shape))


def group_size(width: int, count: int, name: str) -> int:
    """The size of `count` equal groups of a row."""
    if not count or width % count:
        raise Misfit(f"{name} has {count} groups, which do not divide the {width} columns of the weight", "wrong-shape")
    return width // count


def block_size(block: object) -> tuple[int, int]:
    match block:
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
    raise Misfit(f"the block size is {block!r}, not two positive numbers")


def height_of(tensor: Tensor) -> int:
    """The rows of a tensor, those of all its matrices."""
    return math.prod(tensor.shape[:-1])


def size_of(tensor: Tensor) -> int:
    """The number of its elements."""
    return math.prod(tensor.shape)
