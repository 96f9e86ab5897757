"""Applies a rule to torch tensors, for checks that need no speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compiler.checkpoints.formats.stored_tensor import Joined, Tensor, read_bytes
from compiler.ops.algebra import Bundle
from compiler.plan.plan import Group


def loaded(tensor: Tensor | Joined) -> Any:
    """A tensor of a checkpoint, in its own dtype."""
    from compiler.ops.kernels import tensor_of

    return tensor_of(read_bytes(tensor), tensor.dtype, tuple(tensor.shape))


def transformed(group: Group, load: Callable[[str], Any]) -> Bundle[Any]:
    """What the ops of a group make of the tensors that `load` returns for the source names."""
    from compiler.ops.kernels import TorchAlgebra

    return group.apply(load, TorchAlgebra())


def applied(group: Group, load: Callable[[str], Any]) -> dict[str, Any]:
    """Target name -> tensor, from the tensors that `load` returns for the source names."""
    slots = zip(transformed(group, load).slots, group.targets.slots, strict=True)
    return {target.name: slot[key].contiguous() for slot, targets in slots for key, target in targets.items()}
