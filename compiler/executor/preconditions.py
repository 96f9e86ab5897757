"""What must hold before a byte is written: tied tensors are equal, and tensors that the target computes itself have
the values that it computes. Compares the stored bytes of a Plan's sources; raises Refusal with every difference.
"""

from __future__ import annotations

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.checkpoints.formats.stored_tensor import read_bytes
from compiler.diagnostics import Report, refuse
from compiler.plan.plan import Plan


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
    from compiler.ops import kernels

    tensor = kernels.tensor_of(data, dtype, shape)
    return bool((tensor == fill).all())


def equal_tensors(checkpoint: Checkpoint, one: str, other: str) -> bool:
    """Whether two tensors of a checkpoint have the same dtype, shape and bytes."""
    a, b = checkpoint.tensors[one], checkpoint.tensors[other]
    return a.region == b.region or ((a.dtype, a.shape) == (b.dtype, b.shape) and read_bytes(a) == read_bytes(b))


def check_ties(plan: Plan, checkpoint: Checkpoint) -> None:
    """Compare each alias with its owner, bit for bit, before anything is written. Raises Refusal."""
    spec = plan.program.spec
    for alias, owner in plan.ties:
        if equal_tensors(checkpoint, alias, owner):
            continue
        tie = next(t for t in plan.program.ties if t.alias.match(alias) is not None)
        free = tie.when.text if tie.when is not None and tie.when.text in spec.arguments else ""
        refuse(
            tie.alias.span,
            f"{alias} should equal {owner} but differs from it; written once, it would be lost",
            "untied-weights",
            f"if the two are meant to differ: --set {free}=false" if free else "the source was not trained with a tie",
        )
