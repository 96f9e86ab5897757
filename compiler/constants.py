"""Reversed, what `create` made is left behind; it may only hold the value that it was made with.

Takes a Plan and its Checkpoint, reads those tensors, refuses one that training has changed.
"""

from __future__ import annotations

from compiler.checkpoint import Checkpoint, read_bytes
from compiler.diagnostics import Report
from compiler.plan import Plan


def check_made(plan: Plan, checkpoint: Checkpoint) -> None:
    """Compare each with its one value. Raises Refusal with all that differ."""
    report = Report()
    for name, fill in plan.made:
        tensor = checkpoint.tensors[name]
        if not _holds(tensor.dtype, tensor.shape, read_bytes(tensor), fill):
            rule = next(r for r in plan.program.created if r.targets[0].match(name) is not None)
            report.add(
                rule.span,
                f"{name} should hold {fill} everywhere; the source has no place for other values",
                "lost-values",
                "the model was trained on since it was converted, and cannot go back",
            )
    report.settle()


def _holds(dtype: str, shape: tuple[int, ...], data: bytearray, fill: float) -> bool:
    from compiler import kernels

    tensor = kernels.tensor_of(data, dtype, shape)
    return bool((tensor == fill).all())
