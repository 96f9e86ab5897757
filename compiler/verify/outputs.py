"""The outputs of two models, paired and compared.

Outputs of the same name are paired, then those of the same shape. Logits may differ in length, where one model returns
the last positions only, and in vocabulary, where one pads it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from types import SimpleNamespace
from typing import Any

CLOSE = 1e-4  # of the largest value: float32 sums in another order differ by a hundredth of that
# A run with a narrow dtype: rounding errors of single values, in units in the last place, that add up to a difference.
ROUNDINGS = {"bfloat16": 8 * 2**-8, "float16": 8 * 2**-11}
CHUNK = 256  # positions that are compared at a time


@dataclass(frozen=True)
class OutputDifference:
    """One output: the largest `difference`, the largest value `scale` of the source's, whether they agree. Of logits
    also the mean KL `divergence` in nats and the share `argmax` of places with the same best class; of sequences the
    `first` position that differs."""

    name: str
    difference: float
    scale: float
    agrees: bool
    divergence: float | None = None
    argmax: float | None = None
    first: int | None = None


def tolerance(narrow: tuple[str, ...]) -> float:
    """The difference that is allowed, relative to the largest value, of a source that computes in these dtypes."""
    return max([CLOSE, *(ROUNDINGS[name] for name in narrow)])


def compare_outputs(
    source: Mapping[str, Any], converted: Mapping[str, Any], close: float = CLOSE
) -> tuple[OutputDifference, ...]:
    """Every pair of outputs; none where no output of the one has the name or the shape of one of the other."""
    pairs: list[tuple[str, Any, Any]] = []
    left = dict(converted)
    unnamed = []
    for name, tensor in source.items():
        if name in left and (pair := aligned(name, tensor, left[name])):
            pairs.append((name, *pair))
            del left[name]
        else:
            unnamed.append(tensor)
    for tensor in unnamed:
        found = {n: pair for n, other in left.items() if (pair := aligned(n, tensor, other))}
        if found:
            chosen = min(found, key=lambda n: largest_difference(*found[n]))
            pairs.append((chosen, *found[chosen]))
            del left[chosen]
    return tuple(_compared(name, a, b, close) for name, a, b in pairs)


def aligned(name: str, a: Any, b: Any) -> tuple[Any, Any] | None:
    """Both tensors in one shape: axes of length 1 left out; of logits the last positions that both have and the words
    that both know. None where they cannot be compared."""
    if "logits" in name and a.dim() == b.dim() == 3 and a.shape[0] == b.shape[0]:
        length, words = min(a.shape[1], b.shape[1]), min(a.shape[2], b.shape[2])
        return a[:, -length:, :words], b[:, -length:, :words]
    a, b = (t if t.dim() == 0 else t.squeeze() for t in (a, b)) if a.shape != b.shape else (a, b)
    return (a, b) if a.shape == b.shape and a.numel() else None


def _compared(name: str, a: Any, b: Any, close: float) -> OutputDifference:
    scale = float(a.abs().max())
    allowed = close * scale
    difference = largest_difference(a, b)
    agrees = difference <= allowed
    first = None
    if not agrees and a.dim() == 3:
        errors = (a - b).abs().amax(2).amax(0)
        first = int((~(errors <= allowed)).double().argmax())
    if "logits" not in name or a.dim() < 2:
        return OutputDifference(name, difference, scale, agrees, first=first)
    divergence = same = 0.0
    rows, others = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    for start in range(0, len(rows), CHUNK):
        p, q = (t[start : start + CHUNK].double().log_softmax(-1) for t in (rows, others))
        divergence += float((p.exp() * (p - q)).sum())
        same += float((p.argmax(-1) == q.argmax(-1)).sum())
    return OutputDifference(name, difference, scale, agrees, divergence / len(rows), same / len(rows), first)


def largest_difference(a: Any, b: Any) -> float:
    """Of two tensors of one shape; infinite where either has a NaN."""
    if not a.numel():
        return 0.0
    rows = zip(a.reshape(-1).split(1 << 24), b.reshape(-1).split(1 << 24), strict=True)
    found = [float((x.double() - y.double()).abs().max()) for x, y in rows]  # max() of torch keeps a NaN
    return math.inf if any(math.isnan(value) for value in found) else max(found)


def named_tensors(output: Any, name: str = "") -> dict[str, Any]:
    """The floating tensors of what a model returns, in float32: a tensor, or mappings, sequences and dataclasses. The parts of a sequence are named by their numbers; caches are left out."""
    import torch

    if isinstance(output, torch.Tensor):
        return {name or "0": output.detach().float().clone()} if output.is_floating_point() else {}
    if isinstance(output, Mapping):
        parts = dict(output)
    elif isinstance(output, list | tuple):
        parts = {str(n): part for n, part in enumerate(output)}
    elif is_dataclass(output) or isinstance(output, SimpleNamespace):
        parts = dict(vars(output))
    else:  # such as a cache
        return {}
    found: dict[str, Any] = {}
    for key, part in parts.items():
        if key not in ("past_key_values", "hidden_states", "attentions", "cross_attentions"):
            found |= named_tensors(part, f"{name}.{key}" if name else str(key))
    return found
