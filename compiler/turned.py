"""Which weights of a class lie as [in, out], the transpose of what a linear layer holds (`Conv1D` of Transformers).

Takes the target of a spec and a config; returns names of weights. A program that adapts a layer speaks of its inputs and
outputs, however the weight lies. Code of a spec's own has linear layers only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compiler.spec import Target
from compiler.target import build, class_of


def turned(target: Target, config: Mapping[str, Any]) -> frozenset[str]:
    """The names. Raises Refusal: `missing-package`, `unknown-class`, `unbuildable-target`."""
    if target.model is None:
        return frozenset()
    modules = build(class_of(target.model.value), config).named_modules()
    return frozenset(f"{name}.weight" for name, module in modules if type(module).__name__ == "Conv1D")
