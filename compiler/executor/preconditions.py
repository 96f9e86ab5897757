"""Checks before anything is written: tied tensors and copies are equal, dropped constants and vectors have their value.

Compares the stored bytes of a Plan's sources. Raises Refusal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import starmap
from operator import eq
from typing import Any

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.checkpoints.formats.stored_tensor import AnyTensor, Encoded, Joined, read_bytes
from compiler.diagnostics import Report, Span, listed, refuse
from compiler.executor.apply_rule import applied, loaded, transformed
from compiler.ops.structural import Cast, Copy
from compiler.plan.plan import Group, Plan
from compiler.program.environment import Environment

BLOCK = 4 << 20  # bytes of each of two tensors that are compared at a time


def check_constants(plan: Plan, checkpoint: Checkpoint) -> None:
    """Compare each tensor that the reverse drops with its constant. Raises Refusal with every one that differs."""
    report = Report()
    for name, fill in plan.made:
        if not _is_constant(plan, checkpoint, name, fill):
            rule = next(r for r in plan.program.created if r.targets[0].match(name) is not None)
            report.add(
                rule.span,
                f"{name} must be {fill} everywhere, because the source layout cannot store it",
                "lost-values",
                "was the model trained after the conversion? Then it cannot be converted back",
            )
    report.settle()


def check_vectors(env: Environment, checkpoint: Checkpoint) -> None:
    """Compare each vector that the reverse computes from arguments with the one that the source has. Raises Refusal with
    every one that differs by more than rounding."""
    report = Report()
    for field in env.spec.layout.constants:
        stored = checkpoint.tensors.get(field.name)
        if field.expr is None or stored is None:
            continue
        wanted, values = env.evaluate(field.expr), loaded(stored).double().flatten().tolist()
        same = wanted is not None and len(wanted) == len(values)
        if not same or not all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(wanted, values, strict=True)):
            given = {name: env[name] for name in sorted(field.expr.names) if name in env.spec.arguments}
            stated = listed(f"{name} = {value!r}" for name, value in given.items())
            message = f"{field.name} of the checkpoint is not what {stated} give"
            report.add(field.span, message, "unmet-requirement", "give other values with --set")
    report.settle()


def check_shared(checkpoint: Checkpoint, pairs: Sequence[tuple[str, str]], model_class: str) -> None:
    """Compare, bit for bit, the pairs (alias, owner) of a folder that its class shares. Raises Refusal: one generation of
    Transformers would load the owner for both, another each as it is."""
    for alias, owner in pairs:
        if not equal_tensors(checkpoint, alias, owner):
            message = f"{alias} differs from {owner}, but {model_class} with this config.json shares them"
            hint = "if the model was trained without the tie, its config.json needs tie_word_embeddings: false"
            refuse(str(checkpoint.path), message, "untied-weights", hint)


def check_copies(plan: Plan, checkpoint: Checkpoint) -> None:
    """Compare, bit for bit, the tensors that the reverse makes one of. Raises Refusal with all that differ."""
    report = Report()
    for group in plan.groups:
        for n, op in enumerate(group.ops):
            if isinstance(op, Copy) and op.back:
                for one, other in _unequal_copies(replace(group, ops=group.ops[:n]), checkpoint):
                    report.add(
                        group.rule.span,
                        f"{other} differs from {one}, but the rule {group.rule.name} makes both of one tensor",
                        "unequal-copies",
                        "was the model trained after the conversion? Then it cannot be converted back",
                    )
    report.settle()


def _unequal_copies(group: Group, checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """The names of a first and of another tensor that the ops of a group leave different."""
    names = group.sources.slots
    if not group.through and all(isinstance(op, Cast) for op in group.ops):
        pairs = [(names[0][key], name) for slot in names[1:] for key, name in slot.items()]
        yield from ((one, other) for one, other in pairs if not equal_tensors(checkpoint, one, other))
        return
    from compiler.ops import kernels

    first, *others = transformed(group, lambda name: loaded(checkpoint.tensors[name])).slots
    if len(names) != len(others) + 1:  # parts of one tensor
        names = tuple(dict.fromkeys(first, f"part {n} of {group.source_names[0]}") for n in range(len(others) + 1))
    for slot, label in zip(others, names[1:], strict=True):
        for key, tensor in slot.items():
            if kernels.bytes_of(first[key]) != kernels.bytes_of(tensor):
                yield names[0].get(key, listed(names[0].values())), label.get(key, listed(label.values()))


def _is_constant(plan: Plan, checkpoint: Checkpoint, name: str, fill: float) -> bool:
    def load(source: str) -> Any:
        return loaded(checkpoint.tensors[source])

    if plan.first is None:
        return bool((load(name) == fill).all())
    group = next(group for group in plan.first.groups if any(t.name == name for t in group.target_list))
    return bool((applied(group, load)[name] == fill).all())


def equal_tensors(checkpoint: Checkpoint, one: str, other: str) -> bool:
    """Whether two tensors of a checkpoint have the same dtype, shape and bytes."""
    a, b = checkpoint.tensors[one], checkpoint.tensors[other]
    if a.region == b.region:
        return True
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    pairs: Iterable[tuple[AnyTensor, AnyTensor]] = [(a, b)]
    if isinstance(a, Encoded) and isinstance(b, Encoded) and a.op == b.op:
        pairs = zip(a.stored, b.stored, strict=True)
    return all(all(starmap(eq, zip(_blocks(one), _blocks(other), strict=True))) for one, other in pairs)


def _blocks(tensor: AnyTensor) -> Iterator[bytes | bytearray | memoryview]:
    """The bytes of a tensor, some of its rows at a time; those of a joined or computed tensor at once."""
    if isinstance(tensor, Encoded):
        from compiler.ops import kernels

        yield kernels.bytes_of(loaded(tensor))
        return
    if isinstance(tensor, Joined) or not tensor.shape:
        yield read_bytes(tensor)
        return
    height = tensor.shape[0]
    rows = max(1, BLOCK * height // max(1, tensor.nbytes))
    for start in range(0, height, rows):
        yield read_bytes(tensor.narrow(0, start, min(rows, height - start)))


def check_replicas(checkpoint: Checkpoint) -> None:
    """Compare what several ranks hold alike, some rows at a time. Raises Refusal with every tensor that differs."""
    report = Report()
    for one, other in checkpoint.replicas:
        if any(a != b for a, b in zip(_blocks(one), _blocks(other), strict=True)):
            message = f"{one.name} should be the same in {one.path.name} and {other.path.name}, but differs"
            report.add(Span(str(other.path)), message, "unfit-parts", "copy all files of one step again")
    report.settle()


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
