"""The ops on torch tensors. The functions here are the ones that generated converters hold as text.

This room alone computes with torch; it is imported when a tensor has to be touched, never to plan or to compile.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class TorchAlgebra:
    """`ops.Algebra` on tensors of any device; views wherever torch can give one."""

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        return tuple(tensor.shape)

    def split(self, tensor: Tensor, axis: int, sizes: Sequence[int]) -> Sequence[Tensor]:
        return tensor.split(list(sizes), dim=axis)

    def concat(self, tensors: Sequence[Tensor], axis: int) -> Tensor:
        return torch.cat(list(tensors), dim=axis)

    def stack(self, tensors: Sequence[Tensor], axis: int) -> Tensor:
        return torch.stack(list(tensors), dim=axis)

    def unstack(self, tensor: Tensor, axis: int) -> Sequence[Tensor]:
        return tensor.unbind(axis)

    def rearrange(self, tensor: Tensor, inner: Sequence[int], order: Sequence[int], outer: Sequence[int]) -> Tensor:
        return tensor.reshape(tuple(inner)).permute(tuple(order)).reshape(tuple(outer))

    def cast(self, tensor: Tensor, dtype: str) -> Tensor:
        return tensor.to(getattr(torch, dtype))


def tensor_of(data: bytearray, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor over `data`, which it shares: C-contiguous elements of the named type."""
    if not data:
        return torch.empty(shape, dtype=getattr(torch, dtype))
    return torch.frombuffer(data, dtype=getattr(torch, dtype)).reshape(shape)


def bytes_of(tensor: Tensor) -> memoryview:
    """The C-contiguous bytes of a tensor, in host memory."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if not flat.numel():
        return memoryview(b"")
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def device_named(name: str) -> torch.device:
    """The device of that name; LookupError with the reason where this torch cannot use it."""
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise LookupError("this torch sees no CUDA device")
    return device
