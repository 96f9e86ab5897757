"""Runs a Plan. Byte ranges are copied without torch; torch computes only what is not a copy.

Memory is bounded: by a few windows for copies, by a few blocks where rows are computed separately, else by the largest
group of tensors. With a GPU, every group that is not a plain copy goes through it.
Raises Refusal: what `transfer` raises, a device that torch does not have, and an op that fails on its tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler import packages
from compiler.checkpoints.checkpoint import Checkpoint
from compiler.checkpoints.formats.stored_tensor import AnyTensor, Encoded, Joined, Tensor
from compiler.diagnostics import Diagnostic, Refusal, listed, nearest, refuse
from compiler.executor.apply_rule import decoded
from compiler.executor.computed_tasks import MemoryGate, Place, tasks_of
from compiler.layout import array as layout
from compiler.layout.computed import Formulas
from compiler.layout.moves import Move, lower
from compiler.ops.algebra import Bundle, OpError
from compiler.output.safetensors_layout import OutFile
from compiler.plan.plan import Group, Plan, TargetTensor
from compiler.process import uncollected
from compiler.transfer.checksummed_source import opener
from compiler.transfer.engine import Ledger, Portion, Targets, Task, TransferFile, transfer
from compiler.transfer.worker import Worker

if TYPE_CHECKING:
    from compiler.executor.gpu_pipeline import Pipeline, Sender

Progress = Callable[[int], None]


def write_folder(
    plan: Plan,
    checkpoint: Checkpoint,
    files: Sequence[OutFile],
    folder: Path,
    *,
    device: str,
    jobs: int,
    progress: Progress,
    ledger: Ledger | None = None,
) -> None:
    """Write these weights files into `folder`. Raises Refusal for a damaged source, OSError for a failing disk.

    With a `ledger`, bytes that it lists are not written again, and an error leaves what is written.
    """
    for file in files:
        (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
    made, others = _tasks(plan, checkpoint, files, folder, _pipeline(device) if device != "cpu" else None)
    sources = {str(path): path for path in checkpoint.files}
    transfer(made, sources, opener=opener(checkpoint), others=others, jobs=jobs, progress=progress, ledger=ledger)
    for file in files:
        if file.finish:
            file.finish(folder / file.name)


def outputs(
    plan: Plan, checkpoint: Checkpoint, files: Sequence[OutFile], folder: Path
) -> tuple[list[TransferFile], list[Task]]:
    """What `write_folder` transfers on the CPU: byte ranges, and tasks that compute the rest."""
    return _tasks(plan, checkpoint, files, folder, None)


@uncollected()
def _tasks(
    plan: Plan, checkpoint: Checkpoint, files: Sequence[OutFile], folder: Path, pipeline: Pipeline | None
) -> tuple[list[TransferFile], list[Task]]:
    wanted: dict[str, list[OutFile]] = {}
    for file in files:
        for name in file.offsets:
            wanted.setdefault(name, []).append(file)
    places = {name: (folder / first.name, first.offsets[name]) for name, (first, *_) in wanted.items()}
    moves: dict[str, list[Move]] = {file.name: [] for file in files}
    gaps = {file.name: list(file.gaps) for file in files}
    others: list[Task] = []
    gate = MemoryGate()
    if pipeline and any(file.cut for file in files):  # a device writes complete tensors, each to one place
        pipeline = None
    for group in plan.groups:
        formulas, arrays = _formulate(group, checkpoint)
        computed: list[Place] = []
        for name, array, file in [(t.name, array, file) for t, array in arrays for file in wanted.get(t.name, ())]:
            part, offset = file.cut(name, array) if file.cut else array, file.offsets[name]
            moved = [] if formulas.is_computed(part) else lower(part, offset)
            if formulas.is_computed(part) or (pipeline and not all(move.plain for move in moved)):
                computed.append(Place(folder / file.name, offset, part))
                gaps[file.name].append((offset, computed[-1].nbytes))
            else:
                moves[file.name] += moved
        if computed:
            packages.need(f"the rule {group.rule.name or group.rule.kind}, which computes,", "torch")
        if computed and pipeline and not any(node.op.host_only for node in formulas.nodes.values()):
            others.append(_on_device(group, checkpoint, [places.get(t.name) for t, _ in arrays], pipeline))
        elif computed:
            others += tasks_of(computed, formulas.nodes, partial(_failure, group, checkpoint), gate)
    made = [
        TransferFile(
            folder / file.name,
            file.size,
            file.header,
            sorted(moves[file.name], key=lambda m: m.target),
            gaps[file.name],
        )
        for file in files
    ]
    return made, others


def _formulate(group: Group, checkpoint: Checkpoint) -> tuple[Formulas, list[tuple[TargetTensor, layout.Array]]]:
    """The targets of a group as arrangements of stored and computed bytes. Raises Refusal."""
    formulas = Formulas()
    arrays = group.apply(lambda name: array_of(checkpoint.tensors[name], formulas), formulas)
    arrays_by_target = list(zip(group.target_list, _in_order(group, arrays), strict=True))
    for target, array in arrays_by_target:
        if (array.shape, array.dtype) != target.stored:
            message = (
                f"{target.name} becomes {array.dtype} {list(array.shape)}, not {target.dtype} {list(target.shape)}"
            )
            raise Refusal([_failure(group, checkpoint, message)])
    return formulas, arrays_by_target


def arrange_group(group: Group, checkpoint: Checkpoint) -> Bundle[layout.Array]:
    """The targets of a group as arrangements of source bytes. Raises NotImplementedError if an op computes."""
    algebra = layout.LayoutAlgebra()
    return group.apply(lambda name: array_of(checkpoint.tensors[name], algebra), algebra)


def _sources(group: Group, checkpoint: Checkpoint) -> list[layout.Array]:
    """What is read for a group: each source, or what it is computed from."""
    algebra, tensors = layout.LayoutAlgebra(), [checkpoint.tensors[name] for name in group.source_names]
    return [array_of(stored, algebra) for tensor in tensors for stored in _stored(tensor)]


def _stored(tensor: AnyTensor) -> Iterator[Tensor | Joined]:
    """The tensor itself, or those that it is computed from."""
    if isinstance(tensor, Encoded):
        for operand in tensor.stored:
            yield from _stored(operand)
    else:
        yield tensor


def array_of(tensor: AnyTensor, algebra: layout.LayoutAlgebra) -> layout.Array:
    """A tensor as an arrangement of stored and computed bytes. Raises what `algebra.compute` raises."""
    if isinstance(tensor, Joined):
        return layout.concat([array_of(member, algebra) for member in tensor.members], tensor.axis)
    if isinstance(tensor, Encoded):
        rows = algebra.compute(tensor.op, [array_of(stored, algebra) for stored in tensor.stored], tensor.matrix)
        return layout.reshape(rows, tensor.shape)
    return layout.source(str(tensor.path), tensor.dtype, tensor.shape, tensor.offset, tensor.strides)


def _failure(group: Group, checkpoint: Checkpoint, message: str) -> Diagnostic:
    shapes = listed(f"{name} {list(checkpoint.tensors[name].shape)}" for name in group.source_names)
    rule = group.rule.name or group.rule.kind
    return Diagnostic(group.rule.span, f"the rule {rule} failed on {shapes}: {message}", "failed-step")


# ---------------------------------------------------------------------------------------------------------------------
# On a device


def tensors(plan: Plan, checkpoint: Checkpoint, device: str) -> Iterator[tuple[str, Any]]:
    """Each target's name and torch tensor on `device`, group by group, in the order of the plan. Raises Refusal."""
    return _tensors(plan, checkpoint, _pipeline("cpu").sender, _pipeline(device).sender)


def _tensors(plan: Plan, checkpoint: Checkpoint, host: Sender, there: Sender) -> Iterator[tuple[str, Any]]:
    with ExitStack() as stack:
        opened = opener(checkpoint)
        worker = Worker({str(path): stack.enter_context(opened(path)) for path in checkpoint.files})
        for group in plan.groups:
            sources = _sources(group, checkpoint)
            sender = host if any(op.host_only for op in group.all_ops) else there
            with _failing(group, checkpoint):
                made, _ = sender.compute(partial(_call, group, checkpoint), sources, worker.fill)
                sender.engine.hand_over(made)
                results = [tensor.to(there.engine.device) for tensor in made]
            yield from zip((target.name for target in group.target_list), results, strict=True)


def _pipeline(device: str) -> Pipeline:
    from compiler.executor.gpu_pipeline import Pipeline, engine_of

    try:
        return Pipeline(engine_of(device))
    except (LookupError, RuntimeError) as error:
        hint = nearest(device, ["cpu", "cuda"]) or "run on the CPU: leave out --device"
        refuse("--device", f"{device!r} cannot be used: {error}", "no-device", hint)


def _on_device(
    group: Group, checkpoint: Checkpoint, places: Sequence[tuple[Path, int] | None], pipeline: Pipeline
) -> Task:
    """The task that computes a group on the device and writes its targets. A target whose place is None is skipped."""

    def run(worker: Worker, targets: Targets) -> Iterator[int]:
        arrays = _sources(group, checkpoint)
        with _failing(group, checkpoint):
            for number, start, data in pipeline.run(partial(_call, group, checkpoint), arrays, worker.fill):
                if (place := places[number]) is not None:
                    targets[place[0]].write(data, place[1] + start)
                    yield len(data)

    placed = zip(group.target_list, places, strict=True)
    return Task(run, tuple(Portion(p[0], p[1], p[1] + target.nbytes) for target, p in placed if p is not None))


@contextmanager
def _failing(group: Group, checkpoint: Checkpoint) -> Iterator[None]:
    """Turn errors of torch into a Refusal that names the rule."""
    try:
        yield
    except (RuntimeError, MemoryError, OpError) as error:
        raise Refusal([_failure(group, checkpoint, str(error))]) from error


def _in_order(group: Group, bundle: Bundle[Any]) -> list[Any]:
    """The results of a group's ops, in the order of its targets."""
    return [slot[key] for slot, targets in zip(bundle.slots, group.targets.slots, strict=True) for key in targets]


def _call(group: Group, checkpoint: Checkpoint, tensors: list[Any]) -> list[Any]:
    """The targets of a group in their order, from what `_sources` reads; in one pass if no op computes."""
    from compiler.executor.torch_layout import MOST_PIECES, arranged, stored
    from compiler.ops.kernels import TorchAlgebra

    read = iter(tensors)
    named = {name: decoded(checkpoint.tensors[name], lambda _: next(read)) for name in group.source_names}
    try:
        arrays = _in_order(group, group.apply(lambda name: stored(name, named[name]), layout.LayoutAlgebra()))
        if sum(len(array.pieces) for array in arrays) <= MOST_PIECES:
            return [arranged(array, named, tensors[0].device) for array in arrays]
    except NotImplementedError:  # an op computes
        pass
    return _in_order(group, group.apply(named.__getitem__, TorchAlgebra()))
