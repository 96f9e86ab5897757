"""Replacement weights that a fault of a given kind cannot change, used to test whether a rule is at fault.

If two models agree once the tensors of one rule are replaced in both, every other rule is right. Takes and returns
torch tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What the replacement makes equal, from the weakest to the strongest: all tensors of one shape; also the rows of each;
# or its columns; or all its elements. Exchanged names do not change the first, a permutation of heads the second, a
# permutation of input channels the third, a transposition the fourth.
LEVELS = ("names", "rows", "columns", "elements")


def neutral(tensors: Mapping[str, Any], level: str) -> dict[str, Any]:
    """Replacements for the tensors (float32, any shape), drawn with the mean and deviation of those of one shape.

    They are the same in every process, and rounding to a narrower floating dtype does not change them.
    """
    import torch

    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, tensor in tensors.items():
        by_shape.setdefault(tuple(tensor.shape), []).append(name)
    replacements: dict[str, Any] = {}
    for shape, names in sorted(by_shape.items()):
        pooled = torch.stack([tensors[name].float() for name in names])
        mean, deviation = pooled.mean(), pooled.std(unbiased=False)
        drawn = mean + deviation * torch.randn(_varied(shape, level), generator=torch.Generator().manual_seed(0))
        if level == "elements":
            drawn = mean + deviation
        value = drawn.bfloat16().float().expand(shape)
        replacements |= {name: value.clone() for name in names}
    return replacements


def _varied(shape: tuple[int, ...], level: str) -> tuple[int, ...]:
    """The shape of the values that are drawn; broadcasting it to `shape` makes the rest equal."""
    if level == "names":
        return shape
    if level == "columns" and len(shape) > 1:
        return (*shape[:-1], 1)
    return (1,) * (len(shape) - 1) + shape[-1:] if level == "rows" and len(shape) > 1 else (1,) * len(shape)
