"""Checks before anything is written: tied tensors are equal, and dropped constants have their value.

Compares the stored bytes of a Plan's sources. Raises Refusal.
"""

from __future__ import annotations

from collections.abc import Iterator

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.checkpoints.formats.stored_tensor import Tensor, read_bytes
from compiler.diagnostics import Report, Span, refuse
from compiler.plan.plan import Plan

_CHUNK = 4 << 20


def check_constants(plan: Plan, checkpoint: Checkpoint) -> None:
    """Compare each tensor that the reverse drops with its constant. Raises Refusal with every one that differs."""
    report = Report()
    for name, fill in plan.made:
        tensor = checkpoint.tensors[name]
        if not _is_constant(tensor.dtype, tensor.shape, read_bytes(tensor), fill):
            rule = next(r for r in plan.program.created if r.targets[0].match(name) is not None)
            report.add(
                rule.span,
                f"{name} must be {fill} everywhere, because the source layout cannot store it",
                "lost-values",
                "was the model trained after the conversion? Then it cannot be converted back",
            )
    report.settle()


def _is_constant(dtype: str, shape: tuple[int, ...], data: bytearray, fill: float) -> bool:
    from compiler.ops import kernels

    tensor = kernels.tensor_of(data, dtype, shape)
    return bool((tensor == fill).all())


def equal_tensors(checkpoint: Checkpoint, one: str, other: str) -> bool:
    """Whether two tensors of a checkpoint have the same dtype, shape and bytes."""
    a, b = checkpoint.tensors[one], checkpoint.tensors[other]
    return a.region == b.region or ((a.dtype, a.shape) == (b.dtype, b.shape) and read_bytes(a) == read_bytes(b))


def check_replicas(checkpoint: Checkpoint) -> None:
    """Compare what several ranks hold alike, a chunk at a time. Raises Refusal with every tensor that differs."""
    report = Report()
    for one, other in checkpoint.replicas:
        if any(a != b for a, b in zip(_chunks(one), _chunks(other), strict=True)):
            message = f"{one.name} should be the same in {one.path.name} and {other.path.name}, but differs"
            report.add(Span(str(other.path)), message, "unfit-parts", "copy all files of one step again")
    report.settle()


def _chunks(tensor: Tensor) -> Iterator[bytearray]:
    """The bytes of a stored tensor, in order."""
    rows = tensor.shape[0] if tensor.shape else 1
    step = max(1, rows * _CHUNK // max(1, tensor.nbytes))
    if not tensor.shape or step >= rows:
        yield read_bytes(tensor)
        return
    for start in range(0, rows, step):
        yield read_bytes(tensor.narrow(0, start, min(step, rows - start)))


def check_ties(plan: Plan, checkpoint: Checkpoint) -> None:
    """Compare each alias with its owner, bit for bit. Raises Refusal."""
    spec = plan.program.spec
    for alias, owner in plan.ties:
        if equal_tensors(checkpoint, alias, owner):
            continue
        tie = next(t for t in plan.program.ties if t.alias.match(alias) is not None)
        free = tie.when.text if tie.when is not None and tie.when.text in spec.arguments else ""
        refuse(
            tie.alias.span,
            f"{alias} differs from {owner}, but the spec ties them, so that only one would be written",
            "untied-weights",
            f"if they are not tied: --set {free}=false" if free else "the source was trained without the tie",
        )
