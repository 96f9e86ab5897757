"""The ops on torch tensors. Generated converters contain the text of the functions in `KERNELS`.

Imports torch; it is imported only when tensors are computed, never to plan or to compile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from compiler.layout.kernel_op import KernelOp
from compiler.quantized import folder_kernels
from compiler.quantized.ggml_kernels import dequantize_ggml


class TorchAlgebra:
    """The algebra of torch tensors on any device. Returns views where torch can."""

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

    def compute(self, op: KernelOp, tensors: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
        return KERNELS[op.kernel](*tensors, *op.values)


def full(shape: Sequence[int], fill: float, dtype: str) -> Tensor:
    """A tensor of one value."""
    return torch.full(tuple(shape), fill, dtype=getattr(torch, dtype))


def pad(tensor: Tensor, axis: int, length: int, fill: float) -> Tensor:
    """As many positions of `fill` at the end of an axis as make it `length` long."""
    shape = list(tensor.shape)
    shape[axis] = length - shape[axis]
    return torch.cat([tensor, tensor.new_full(shape, fill)], dim=axis)


def affine(tensor: Tensor, scale: float, shift: float) -> Tensor:
    """scale * tensor + shift, computed in float32 or wider and rounded once."""
    wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    return (scale * wide + shift).to(tensor.dtype)


def normalize(tensor: Tensor, axis: int) -> Tensor:
    """What stands along an axis, divided by its Euclidean length: in float32 or wider, rounded once."""
    # A sum has the same bits only over elements that lie the same.
    wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32)).contiguous()
    return torch.nn.functional.normalize(wide, dim=axis, eps=1e-12).to(tensor.dtype)


def add_parts(tensor: Tensor, parts: int, scale: float) -> Tensor:
    """The sum of equal parts of the first axis, times `scale`: in float64, rounded once."""
    return (tensor.double().unflatten(0, (parts, -1)).sum(0) * scale).to(tensor.dtype)


def dequantize_blocks(weight: Tensor, scale: Tensor, rows: int, columns: int, dtype: str) -> Tensor:
    """Each block of `rows` by `columns` elements times its scale; blocks at the edges may be smaller."""
    spread = scale.to(torch.float32).repeat_interleave(rows, dim=-2).repeat_interleave(columns, dim=-1)
    wide = weight.to(torch.float32) * spread[..., : weight.shape[-2], : weight.shape[-1]]
    return wide.to(getattr(torch, dtype))


def dequantize_mxfp4(blocks: Tensor, scales: Tensor, dtype: str) -> Tensor:
    """OCP MXFP4: two FP4 (E2M1) numbers to a byte, the low half first; 32 of them share a power of two (E8M0)."""
    half = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], device=blocks.device)
    numbers = torch.cat([half, -half])
    # ... group byte -> ... group (byte two)
    pairs = torch.stack([numbers[(blocks & 15).long()], numbers[(blocks >> 4).long()]], dim=-1).flatten(-2)
    powers = scales.to(torch.int32) - 127
    return torch.ldexp(pairs, powers.unsqueeze(-1)).flatten(-2).to(getattr(torch, dtype))


def add_low_rank(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """weight + scale * up @ down: the product in float32, rounded to the weight's type, then added."""
    delta = scale * (up.to(torch.float32) @ down.to(torch.float32))  # (out rank) (rank in) -> out in
    return weight + delta.to(weight.dtype)


def quantize_q8_0(rows: Tensor) -> Tensor:
    """Blocks of 32 elements as a float16 scale, their largest magnitude / 127, and 32 int8. Halves round away from zero.
    Bit for bit what `gguf.quants.Q8_0` of the package gguf computes."""
    blocks = rows.reshape(-1, 32)
    scale = blocks.abs().amax(dim=1, keepdim=True) / 127
    inverse = 1 / scale
    quotients = blocks * inverse.masked_fill(inverse.isinf(), 0.0)
    size = quotients.abs()
    down = size.floor()
    numbers = quotients.sign() * (down + (2 * (size - down)).floor())
    packed = torch.cat([scale.to(torch.float16).view(torch.uint8), numbers.to(torch.int8).view(torch.uint8)], dim=1)
    return packed.reshape(*rows.shape[:-1], -1)


KERNELS: dict[str, Callable[..., Tensor]] = {
    function.__name__: function
    for function in (
        full,
        pad,
        affine,
        normalize,
        add_parts,
        dequantize_blocks,
        dequantize_mxfp4,
        dequantize_ggml,
        add_low_rank,
        quantize_q8_0,
    )
} | folder_kernels.KERNELS


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
    if flat.stride(0) != 1:  # one element of a larger tensor counts as contiguous, whatever its stride
        flat = flat.clone(memory_format=torch.contiguous_format)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def empty(shape: Sequence[int], dtype: str) -> Tensor:
    """A tensor in host memory with uninitialized elements."""
    return torch.empty(tuple(shape), dtype=getattr(torch, dtype))


def dtype_of(tensor: Tensor) -> str:
    """The name of a tensor's dtype."""
    return str(tensor.dtype).removeprefix("torch.")


def device_named(name: str) -> torch.device:
    """The device of that name. Raises LookupError if this torch cannot use it."""
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise LookupError("this torch sees no CUDA device")
    return device
