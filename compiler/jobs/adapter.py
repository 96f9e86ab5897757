"""Converts a LoRA by the rules of the weights that it changes.

Takes the Plan of the base model and the pairs of an adapter (`peft_format`); returns the pairs of the plan's targets.
W + B A becomes f(W) + f(B) A if a rule rearranges rows only, and f(W) + A' f(B) if it also transposes the matrix (A' is
A transposed); both are compared with f(B A) in numbers. A rule that joins matrices joins their adapters, whose ranks add
up. Rejects rules that do more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.checkpoints.formats.stored_tensor import Joined, Tensor, dense, read_bytes
from compiler.diagnostics import listed, nearest, refuse
from compiler.executor.apply_rule import applied, loaded
from compiler.jobs.peft_format import MERGE, Adapter, Pair
from compiler.ops.algebra import OpError
from compiler.ops.structural import Cast, Copy
from compiler.plan.plan import Group, Plan
from compiler.program.environment import TensorTable


def check_copies(base: Checkpoint, adapter: Adapter, path: str) -> None:
    """Raises Refusal if the adapter has base weights that differ from those of BASE: the conversion would lose them."""
    for name, copy in adapter.copies.items():
        tensor = base.tensors.get(name)
        if tensor is None or not _equal_values(dense(tensor), copy):
            message = f"it contains base weights for {name} that differ from those of BASE"
            refuse(path, message, "unsupported-adapter", MERGE)


def _equal_values(base: Tensor | Joined, copy: Tensor | Joined) -> bool:
    """Whether two tensors are equal; of two floating types, after either is cast to that of the other: the base may have
    been loaded in another type for the training, which rounds nothing but the types themselves."""
    if base.shape != copy.shape:
        return False
    if base.dtype == copy.dtype:
        return read_bytes(base) == read_bytes(copy)
    one, other = loaded(base), loaded(copy)
    if not (one.is_floating_point() and other.is_floating_point()):
        return False
    return one.equal(other.to(one.dtype)) or other.equal(one.to(other.dtype))


def carry(plan: Plan, base: TensorTable, pairs: Mapping[str, Pair], path: str) -> dict[str, Pair]:
    """The pairs of the plan's targets. `base` has the shapes of its sources. Raises Refusal: `unknown-tensor`,
    `shape-mismatch`, `unsupported-adapter`."""
    known = {name for group in plan.groups for name in group.source_names}
    if unknown := [name for name in pairs if name not in known]:
        hint = nearest(unknown[0], known) or "BASE is a different model"
        refuse(path, f"it adapts tensors that BASE does not have: {listed(unknown, 4)}", "unknown-tensor", hint)
    for name, pair in pairs.items():
        adds, shape = (pair.b.shape[0], pair.a.shape[1]), tuple(base[name].shape)
        if adds != shape:
            message = f"it adds {list(adds)} to {name}, which is {list(shape)}"
            refuse(path, message, "shape-mismatch", "BASE is a different model")
    converted: dict[str, Pair] = {}
    for group in plan.groups:
        if any(name in pairs for name in group.source_names) and not _is_alias(plan, group):
            converted |= _convert_group(group, base, pairs)
    return converted


def _is_alias(plan: Plan, group: Group) -> bool:
    """Whether a reversed group writes a tied tensor under its second name. An adapter changes one module only, so the
    alias gets none."""
    names = [target.name for target in group.target_list]
    return plan.reverse and any(tie.alias.match(name) is not None for tie in plan.program.ties for name in names)


def _convert_group(group: Group, base: TensorTable, pairs: Mapping[str, Pair]) -> dict[str, Pair]:
    import torch

    bare = replace(group, ops=tuple(op for op in group.ops if not isinstance(op, Cast)))
    adapted = [name for name in group.source_names if name in pairs]
    if any(isinstance(op, Copy) and op.back for op in group.ops) and not _all_equal(group, pairs):
        _refuse(group, "it makes one matrix of several, whose adapters differ")
    ranks = [pairs[name].a.shape[0] for name in adapted]
    starts = dict(zip(adapted, (sum(ranks[:n]) for n in range(len(ranks))), strict=True))
    if any(pairs[name].a.shape[1] != base[adapted[0]].shape[1] for name in adapted):
        _refuse(group, "the matrices that it joins have inputs of different sizes")
    joined = torch.cat([pairs[name].a for name in adapted])

    def factor(name: str, function: Any) -> Any:
        """`function(b)` in its own columns, so that joined matrices do not share any."""
        wide = torch.zeros(base[name].shape[0], sum(ranks), dtype=torch.float64)
        if name in pairs:
            wide[:, starts[name] : starts[name] + pairs[name].b.shape[1]] = function(pairs[name].b.double())
        return wide

    try:
        made = applied(bare, lambda name: factor(name, lambda b: b))
        used = applied(bare, lambda name: factor(name, torch.ones_like))
        update = applied(bare, lambda name: factor(name, lambda b: b) @ joined.double())
    except (OpError, RuntimeError) as error:
        _refuse(group, str(error).splitlines()[0])
    converted: dict[str, Pair] = {}
    for name, b in made.items():
        transposed = b.ndim == 2 and _equal(_product(b.T, joined.double()), update[name].T)
        if not transposed and (b.ndim != 2 or not _equal(_product(b, joined.double()), update[name])):
            _refuse(group, "the rule does more than reorder rows or transpose")
        columns = used[name].ne(0).any(1 if transposed else 0)
        if bool(columns.any()):
            rows = (b.T if transposed else b)[:, columns].to(pairs[adapted[0]].b.dtype).contiguous()
            pair = Pair(joined[columns].contiguous(), rows)
            converted[name] = pair.transposed if transposed else pair
    return converted


def _all_equal(group: Group, pairs: Mapping[str, Pair]) -> bool:
    """Whether every source of a group has the same adapter."""
    first, *others = (pairs.get(name) for name in group.source_names)
    return all(one is not None and first is not None and _same(one, first) for one in others)


def _same(one: Pair, other: Pair) -> bool:
    return one.a.equal(other.a) and one.b.equal(other.b)


def _product(b: Any, a: Any) -> Any:
    """`b` [rows, rank] times `a` [rank, columns]; empty if the ranks differ."""
    return b @ a if b.shape[1] == a.shape[0] else b[:0]


def _equal(a: Any, b: Any) -> bool:
    return a.shape == b.shape and bool(((a - b).abs() <= 1e-9 * b.abs().max().clamp(min=1e-30)).all())


def _refuse(group: Group, why: str) -> NoReturn:
    name = group.rule.name or group.rule.kind
    refuse(group.rule.span, f"an adapter cannot be converted by the rule {name}: {why}", "unsupported-adapter",
           MERGE)  # fmt: skip
