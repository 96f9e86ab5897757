"""Runs a Plan. Byte ranges move without torch; what has to be computed, or is asked of a GPU, is computed in torch.

Memory is bounded: by a few windows where bytes move, by the largest group of tensors where torch computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from compiler import layout
from compiler.algebra import Bundle, OpError
from compiler.checkpoint import Checkpoint, Joined, read_bytes
from compiler.diagnostics import Diagnostic, Refusal, listed, refuse
from compiler.files import Target as TargetFile
from compiler.moves import Move, lower
from compiler.outfiles import OutFile
from compiler.plan import Group, Plan, Target
from compiler.transfer import Ledger, Output, transfer

Progress = Callable[[int], None]
Layouts = list[tuple[Target, layout.Array]]


def check_ties(plan: Plan, checkpoint: Checkpoint) -> None:
    """Compare each alias with its owner, bit for bit, before anything is written. Raises Refusal."""
    spec = plan.program.spec
    for alias, owner in plan.ties:
        a, b = checkpoint.tensors[alias], checkpoint.tensors[owner]
        if a.region == b.region or ((a.dtype, a.shape) == (b.dtype, b.shape) and read_bytes(a) == read_bytes(b)):
            continue
        tie = next(t for t in plan.program.ties if t.alias.match(alias) is not None)
        free = tie.when.text if tie.when is not None and tie.when.text in spec.arguments else ""
        refuse(
            tie.alias.span,
            f"{alias} should equal {owner} but differs from it; written once, it would be lost",
            "untied-weights",
            f"if the two are meant to differ: --set {free}=false" if free else "the source was not trained with a tie",
        )


def write_folder(
    plan: Plan,
    checkpoint: Checkpoint,
    files: list[OutFile],
    folder: Path,
    *,
    device: str,
    jobs: int,
    progress: Progress,
    ledger: Ledger | None = None,
) -> None:
    """Write the weights files into `folder`. Raises Refusal where a source or the disk fails; OSError with the file.

    With a `ledger`, what it has already is not written again, and an error leaves what there is.
    """
    layouts = None if device != "cpu" else arrange(plan, checkpoint)
    if layouts is None:
        _compute_folder(plan, checkpoint, files, folder, device, progress, ledger)
        return
    arrays = {target.name: array for target, array in layouts}
    outputs = [
        Output(folder / file.name, file.size, file.header, _moves(arrays, file))
        for file in files
    ]  # fmt: skip
    transfer(outputs, {str(path): path for path in checkpoint.files}, jobs=jobs, progress=progress, ledger=ledger)


def _moves(arrays: Mapping[str, layout.Array], file: OutFile) -> list[Move]:
    places = sorted(file.offsets.items(), key=lambda item: item[1])
    return [move for name, offset in places for move in lower(arrays[name], offset)]


def arrange(plan: Plan, checkpoint: Checkpoint) -> Layouts | None:
    """Each target as an arrangement of source bytes; None where an op has to compute."""
    found: Layouts = []
    try:
        for group in plan.groups:
            arrays = arrange_group(group, checkpoint)
            for slot, targets in zip(arrays.slots, group.targets.slots, strict=True):
                found += [(target, slot[key]) for key, target in targets.items()]
    except NotImplementedError:
        return None
    return found


def arrange_group(group: Group, checkpoint: Checkpoint) -> Bundle[layout.Array]:
    """The same for one group. Raises NotImplementedError where an op has to compute."""
    sources: Bundle[Any] = group.sources.map(lambda name: _array(checkpoint, name))  # type: ignore[arg-type,return-value]
    return _apply(group, sources, layout.LayoutAlgebra())


def _array(checkpoint: Checkpoint, name: str) -> layout.Array:
    tensor = checkpoint.tensors[name]
    parts = [layout.source(str(t.path), t.dtype, t.shape, t.offset, t.strides) for t in tensor.parts]
    return layout.concat(parts, tensor.axis) if isinstance(tensor, Joined) else parts[0]


def _apply(group: Group, bundle: Bundle[Any], algebra: Any) -> Bundle[Any]:
    for op in group.ops:
        bundle = op.apply(bundle, algebra)
    return bundle


# ---------------------------------------------------------------------------------------------------------------------
# In torch


def compute(
    plan: Plan, checkpoint: Checkpoint, device: str, done: Callable[[Target], bool] = lambda target: False
) -> Iterator[tuple[Target, Any]]:
    """Each target with its torch tensor on `device`, group by group, in the order of the plan. Raises Refusal.

    A group whose targets are all `done` is left out.
    """
    from compiler import kernels

    try:
        place = kernels.device_named(device)
    except (LookupError, RuntimeError) as error:
        refuse("--device", f"{device!r} cannot be used: {error}", "no-device", "leave --device out to run on the CPU")

    def load(name: str) -> Any:
        tensor = checkpoint.tensors[name]
        return kernels.tensor_of(read_bytes(tensor), tensor.dtype, tensor.shape).to(place)

    for group in plan.groups:
        if all(map(done, group.target_list)):
            continue
        try:
            tensors = _apply(group, group.sources.map(load), kernels.TorchAlgebra())
        except (RuntimeError, MemoryError, OpError) as error:
            raise Refusal([_failure(group, checkpoint, str(error))]) from error
        for slot, targets in zip(tensors.slots, group.targets.slots, strict=True):
            for key, target in targets.items():
                if tuple(slot[key].shape) != target.shape:
                    message = f"{target.name} came out as {list(slot[key].shape)}, not {list(target.shape)}"
                    raise Refusal([_failure(group, checkpoint, message)])
                yield target, slot[key]


def _failure(group: Group, checkpoint: Checkpoint, message: str) -> Diagnostic:
    shapes = listed(f"{name} {list(checkpoint.tensors[name].shape)}" for name in group.source_names)
    rule = group.rule.name or group.rule.kind
    return Diagnostic(group.rule.span, f"the rule {rule} failed on {shapes}: {message}", "failed-step")


def _compute_folder(
    plan: Plan,
    checkpoint: Checkpoint,
    files: list[OutFile],
    folder: Path,
    device: str,
    progress: Progress,
    ledger: Ledger | None,
) -> None:
    from contextlib import ExitStack

    from compiler import kernels

    with ExitStack() as stack:
        places: dict[str, tuple[TargetFile, int]] = {}
        for file in files:
            opened = stack.enter_context(TargetFile(folder / file.name, file.size, ledger is not None))
            opened.write(memoryview(file.header), 0)
            places |= {name: (opened, offset) for name, offset in file.offsets.items()}

        def done(target: Target) -> bool:
            opened, offset = places[target.name]
            return ledger is not None and ledger.has(Path(opened.path), offset, offset + target.nbytes)

        for target, tensor in compute(plan, checkpoint, device, done):
            data = kernels.bytes_of(tensor)
            opened, offset = places[target.name]
            opened.write(data, offset)
            progress(len(data))
            if ledger:
                ledger.wrote(Path(opened.path), offset, offset + len(data))


def write_state_dict(plan: Plan, checkpoint: Checkpoint, path: Path, device: str, progress: Progress) -> None:
    """Write a `.pth` that holds a flat state_dict, as torch.save does; one tensor in memory at a time."""
    from compiler.pthfile import PthWriter

    with PthWriter(path) as writer:
        for target, tensor in compute(plan, checkpoint, device):
            writer.add(target.name, tensor)
            progress(target.nbytes)
