"""Runs a Plan: reads each group's bytes, applies its ops, writes each target where its file has it.

Memory is bounded by the largest group, never by the checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from compiler.algebra import Bundle
from compiler.checkpoint import Checkpoint, read_bytes
from compiler.diagnostics import Refusal, Span, listed, refuse
from compiler.outfiles import OutFile
from compiler.plan import Group, Plan, Target

Progress = Callable[[int], None]


def check_ties(plan: Plan, checkpoint: Checkpoint) -> None:
    """Compare each alias with its owner, bit for bit, before anything is written. Raises Refusal."""
    spec = plan.program.spec
    for alias, owner in plan.ties:
        a, b = checkpoint.tensors[alias], checkpoint.tensors[owner]
        same_place = (a.path, a.offset, a.shape, a.strides) == (b.path, b.offset, b.shape, b.strides)
        if same_place or ((a.dtype, a.shape) == (b.dtype, b.shape) and read_bytes(a) == read_bytes(b)):
            continue
        tie = next(t for t in plan.program.ties if t.alias.match(alias) is not None)
        free = tie.when.text if tie.when is not None and tie.when.text in spec.arguments else ""
        hint = (
            f"if the two are meant to differ: --set {free}=false"
            if free
            else "the checkpoint was not trained with tied weights"
        )
        refuse(
            tie.alias.span,
            f"{alias} should equal {owner} but differs from it; written once, it would be lost",
            "untied-weights",
            hint,
        )


def outputs(plan: Plan, checkpoint: Checkpoint, device: str, progress: Progress) -> Iterator[tuple[Target, memoryview]]:
    """Each target with its C-contiguous bytes, group by group, in the order of the plan. Raises Refusal."""
    from compiler import kernels

    try:
        place = kernels.device_named(device)
    except (LookupError, RuntimeError) as error:
        refuse("--device", f"{device!r} cannot be used: {error}", "no-device", "leave --device out to run on the CPU")
    algebra = kernels.TorchAlgebra()
    for group in plan.groups:
        loaded: Bundle = group.sources.map(lambda name: _load(checkpoint, name, place))  # type: ignore[arg-type,return-value]
        try:
            for op in group.ops:
                loaded = op.apply(loaded, algebra)
        except (RuntimeError, ValueError, MemoryError) as error:
            raise Refusal([_failure(group, checkpoint, error)]) from error
        for slot, targets in zip(loaded.slots, group.targets.slots, strict=True):
            for key, target in targets.items():
                data = kernels.bytes_of(slot[key])
                if len(data) != target.nbytes or tuple(slot[key].shape) != target.shape:
                    raise Refusal(
                        [_failure(group, checkpoint, ValueError(f"{target.name} came out as {list(slot[key].shape)}"))]
                    )
                progress(len(data))
                yield target, data


def _load(checkpoint: Checkpoint, name: str, device: object) -> object:
    from compiler import kernels

    tensor = checkpoint.tensors[name]
    return kernels.tensor_of(read_bytes(tensor), tensor.dtype, tensor.shape).to(device)  # type: ignore[call-overload]


def _failure(group: Group, checkpoint: Checkpoint, error: Exception):  # type: ignore[no-untyped-def]
    from compiler.diagnostics import Diagnostic

    shapes = listed(f"{name} {list(checkpoint.tensors[name].shape)}" for name in group.source_names)
    return Diagnostic(
        group.rule.span, f"the rule {group.rule.name or group.rule.kind} failed on {shapes}: {error}", "failed-step"
    )


def write_folder(
    plan: Plan, checkpoint: Checkpoint, shards: list[OutFile], folder: Path, device: str, progress: Progress
) -> None:
    """Write the weights files into `folder`. Raises Refusal where the disk does not take them."""
    where = {name: shard for shard in shards for name in shard.offsets}
    with ExitStack() as stack:
        handles: dict[str, int] = {}
        for shard in shards:
            handle = os.open(folder / shard.name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
            stack.callback(os.close, handle)
            handles[shard.name] = handle
            try:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(handle, 0, shard.size)
                _write(handle, memoryview(shard.header), 0)
            except OSError as error:
                refuse(
                    Span(str(folder)),
                    f"{shard.name} of {shard.size:,} bytes cannot be written: {error.strerror}",
                    "disk-full",
                )
        for target, data in outputs(plan, checkpoint, device, progress):
            shard = where[target.name]
            try:
                _write(handles[shard.name], data, shard.offsets[target.name])
            except OSError as error:
                refuse(Span(str(folder)), f"{shard.name} cannot be written: {error.strerror}", "disk-full")


def _write(handle: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(handle, data, offset)
        data, offset = data[written:], offset + written


def write_state_dict(plan: Plan, checkpoint: Checkpoint, path: Path, device: str, progress: Progress) -> None:
    """Write a `.pth` that holds a flat state_dict, as torch.save does."""
    import torch

    from compiler import kernels

    state = {
        target.name: kernels.tensor_of(bytearray(data), target.dtype, target.shape)
        for target, data in outputs(plan, checkpoint, device, progress)
    }
    torch.save(state, path)
