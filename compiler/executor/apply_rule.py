"""Applies a rule to torch tensors, for checks that need no speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compiler.checkpoints.formats.stored_tensor import AnyTensor, Encoded, Joined, Tensor, read_bytes
from compiler.ops.algebra import Bundle
from compiler.plan.plan import Group


def loaded(tensor: AnyTensor) -> Any:
    """A tensor of a checkpoint, in its own dtype; a quantized one in that of its op."""
    from compiler.ops.kernels import tensor_of

    return decoded(tensor, lambda stored: tensor_of(read_bytes(stored), stored.dtype, tuple(stored.shape)))


def decoded(tensor: AnyTensor, read: Callable[[Tensor | Joined], Any]) -> Any:
    """The torch tensor of a source. `read` gives those of its stored tensors, in their order."""
    from compiler.ops.kernels import TorchAlgebra

    if not isinstance(tensor, Encoded):
        return read(tensor)
    operands = [decoded(stored, read) for stored in tensor.stored]
    return TorchAlgebra().compute(tensor.op, operands, tensor.matrix).reshape(tensor.shape)


def transformed(group: Group, load: Callable[[str], Any]) -> Bundle[Any]:
    """What the ops of a group make of the tensors that `load` returns for the source names."""
    from compiler.ops.kernels import TorchAlgebra

    return group.apply(load, TorchAlgebra())


def applied(group: Group, load: Callable[[str], Any]) -> dict[str, Any]:
    """Target name -> tensor, from the tensors that `load` returns for the source names."""
    slots = zip(transformed(group, load).slots, group.targets.slots, strict=True)
    return {target.name: slot[key].contiguous() for slot, targets in slots for key, target in targets.items()}
