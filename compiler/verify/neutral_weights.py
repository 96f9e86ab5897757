"""Weights that a wrong conversion cannot spoil: what is put in the place of a rule's tensors to see if it is guilty.

If two models agree once the tensors of one rule are replaced by such values on both sides, all other rules are right.
Takes and returns tensors of torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What is alike, from the least to the most that is taken from a model: every tensor of one shape; moreover the rows of
# each; or its columns; or all of its elements. Exchanged names do not change the first, heads in another order the
# second, a layout of the inputs the third, a transposition the last.
LEVELS = ("names", "rows", "columns", "elements")


def neutral(tensors: Mapping[str, Any], level: str) -> dict[str, Any]:
    """Values for the tensors (float32, of any shape), drawn with the mean and deviation of those of one shape.

    They are the same in every process, and no rounding to a narrower floating type changes them.
    """
    import torch

    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, tensor in tensors.items():
        by_shape.setdefault(tuple(tensor.shape), []).append(name)
    found: dict[str, Any] = {}
    for shape, names in sorted(by_shape.items()):
        pooled = torch.stack([tensors[name].float() for name in names])
        mean, deviation = pooled.mean(), pooled.std(unbiased=False)
        drawn = mean + deviation * torch.randn(_varied(shape, level), generator=torch.Generator().manual_seed(0))
        if level == "elements":
            drawn = mean + deviation
        value = drawn.bfloat16().float().expand(shape)
        found |= {name: value.clone() for name in names}
    return found


def _varied(shape: tuple[int, ...], level: str) -> tuple[int, ...]:
    """The shape of what varies, which is repeated to fill `shape`."""
    if level == "names":
        return shape
    if level == "columns" and len(shape) > 1:
        return (*shape[:-1], 1)
    return (1,) * (len(shape) - 1) + shape[-1:] if level == "rows" and len(shape) > 1 else (1,) * len(shape)
