"""Runs a Plan. Byte ranges move without torch; only what has to be computed is computed in torch, beside them.

Memory is bounded: by a few windows where bytes move, by a few blocks where rows are computed one by one, by the largest
group of tensors where they cannot be. On a GPU, what is no plain copy goes through it group by group.
Refuses what `transfer` refuses, a device that torch does not have, and an op that fails on its tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.checkpoints.formats.stored_tensor import Joined, Tensor
from compiler.diagnostics import Diagnostic, Refusal, listed, refuse
from compiler.executor.computed_tasks import Place, Room, tasks_of
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
Cut = Callable[[str, layout.Array], layout.Array]  # what of a tensor a file holds


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
    """Write these of the weights files into `folder`. Raises Refusal where a source or the disk fails; OSError with
    the file.

    With a `ledger`, what it has already is not written again, and an error leaves what there is.
    """
    forms = [_Form(folder / file.name, file.size, file.header, file.offsets) for file in files]
    _write(plan, checkpoint, forms, device, jobs, progress, ledger)


def _whole(name: str, array: layout.Array) -> layout.Array:
    return array


@dataclass(frozen=True)
class StateDict:
    """A `.pth` to write: its tensors, and what of the plan's target of that name each of them is."""

    path: Path
    targets: Sequence[TargetTensor]
    cut: Cut = _whole


def write_state_dicts(
    plan: Plan, checkpoint: Checkpoint, parts: Sequence[StateDict], device: str, progress: Progress, jobs: int = 2
) -> None:
    """Write one `.pth` or several parts, each a flat state_dict as torch.save writes it. Raises like `write_folder`."""
    from compiler.output import pth_layout

    for part in parts:
        part.path.parent.mkdir(parents=True, exist_ok=True)
    files = [pth_layout.lay_out(part.path.name, part.targets) for part in parts]
    forms = [_Form(p.path, f.size, b"", f.offsets, f.gaps, p.cut) for p, f in zip(parts, files, strict=True)]
    # Of a group that a GPU computes, one file gets all.
    _write(plan, checkpoint, forms, device if len(parts) == 1 else "cpu", jobs, progress, None)
    for part, file in zip(parts, files, strict=True):
        file.finish(part.path)


@dataclass(frozen=True)
class _Form:
    """A file to write: where each target belongs, and the (start, length) of what somebody else will fill in."""

    path: Path
    size: int
    header: bytes
    offsets: Mapping[str, int]
    gaps: Sequence[tuple[int, int]] = ()
    cut: Cut = _whole


def _write(
    plan: Plan,
    checkpoint: Checkpoint,
    forms: Sequence[_Form],
    device: str,
    jobs: int,
    progress: Progress,
    ledger: Ledger | None,
) -> None:
    outputs, others = _tasks(plan, checkpoint, forms, _pipeline(device) if device != "cpu" else None)
    files = {str(path): path for path in checkpoint.files}
    transfer(outputs, files, opener=opener(checkpoint), others=others, jobs=jobs, progress=progress, ledger=ledger)


def outputs(
    plan: Plan, checkpoint: Checkpoint, files: Sequence[OutFile], folder: Path
) -> tuple[list[TransferFile], list[Task]]:
    """What `write_folder` would transfer on the CPU: byte ranges of the files, and tasks that compute the rest."""
    forms = [_Form(folder / file.name, file.size, file.header, file.offsets) for file in files]
    return _tasks(plan, checkpoint, forms, None)


@uncollected()
def _tasks(
    plan: Plan, checkpoint: Checkpoint, forms: Sequence[_Form], pipeline: Pipeline | None
) -> tuple[list[TransferFile], list[Task]]:
    wanted: dict[str, list[_Form]] = {}
    for form in forms:
        for name in form.offsets:
            wanted.setdefault(name, []).append(form)
    places = {name: (found[0].path, found[0].offsets[name]) for name, found in wanted.items()}
    moves: dict[Path, list[Move]] = {form.path: [] for form in forms}
    left = {form.path: list(form.gaps) for form in forms}
    others: list[Task] = []
    room = Room()
    for group in plan.groups:
        formulas, found = _formulate(group, checkpoint)
        computed: list[Place] = []
        for name, array, form in [(t.name, array, form) for t, array in found for form in wanted.get(t.name, ())]:
            part, offset = form.cut(name, array), form.offsets[name]
            moved = [] if formulas.computed(part) else lower(part, offset)
            if formulas.computed(part) or (pipeline and not all(move.plain for move in moved)):
                computed.append(Place(form.path, offset, part))
                left[form.path].append((offset, computed[-1].nbytes))
            else:
                moves[form.path] += moved
        if computed and pipeline and not any(node.op.host_only for node in formulas.nodes.values()):
            others.append(_on_device(group, checkpoint, [places.get(t.name) for t, _ in found], pipeline))
        elif computed:
            others += tasks_of(computed, formulas.nodes, partial(_failure, group, checkpoint), room)
    made = [
        TransferFile(
            form.path, form.size, form.header, sorted(moves[form.path], key=lambda m: m.target), left[form.path]
        )
        for form in forms
    ]
    return made, others


def _formulate(group: Group, checkpoint: Checkpoint) -> tuple[Formulas, list[tuple[TargetTensor, layout.Array]]]:
    """The targets of a group as arrangements of stored and of computed bytes. Raises Refusal."""
    formulas = Formulas()
    arrays = _apply(group, _sources(group, checkpoint), formulas)
    found = list(zip(group.target_list, _in_order(group, arrays), strict=True))
    for target, array in found:
        if (array.shape, array.dtype) != (target.shape, target.dtype):
            message = (
                f"{target.name} comes out as {array.dtype} {list(array.shape)}, not {target.dtype} {list(target.shape)}"
            )
            raise Refusal([_failure(group, checkpoint, message)])
    return formulas, found


def arrange_group(group: Group, checkpoint: Checkpoint) -> Bundle[layout.Array]:
    """The targets of a group as arrangements of source bytes. Raises NotImplementedError where an op has to compute."""
    return _apply(group, _sources(group, checkpoint), layout.LayoutAlgebra())


def _sources(group: Group, checkpoint: Checkpoint) -> Bundle[Any]:
    return group.sources.map(lambda name: _array(checkpoint.tensors[name]))  # type: ignore[arg-type,return-value]


def _array(tensor: Tensor | Joined) -> layout.Array:
    if isinstance(tensor, Joined):
        return layout.concat([_array(member) for member in tensor.members], tensor.axis)
    return layout.source(str(tensor.path), tensor.dtype, tensor.shape, tensor.offset, tensor.strides)


def _apply(group: Group, bundle: Bundle[Any], algebra: Any) -> Bundle[Any]:
    for op in group.ops:
        bundle = op.apply(bundle, algebra)
    return bundle


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
            sender = host if any(op.host_only for op in group.ops) else there
            with _failing(group, checkpoint):
                made, _ = sender.compute(partial(_call, group), _listed(sources), worker.fill)
                sender.engine.hand_over(made)
                results = [tensor.to(there.engine.device) for tensor in made]
            yield from zip((target.name for target in group.target_list), results, strict=True)


def _pipeline(device: str) -> Pipeline:
    from compiler.executor.gpu_pipeline import Pipeline, engine_of

    try:
        return Pipeline(engine_of(device))
    except (LookupError, RuntimeError) as error:
        refuse("--device", f"{device!r} cannot be used: {error}", "no-device", "leave --device out to run on the CPU")


def _on_device(
    group: Group, checkpoint: Checkpoint, places: Sequence[tuple[Path, int] | None], pipeline: Pipeline
) -> Task:
    """The task that computes a group there and writes its targets to their places; None is none of ours."""

    def run(worker: Worker, targets: Targets) -> Iterator[int]:
        arrays = _listed(_sources(group, checkpoint))
        with _failing(group, checkpoint):
            for number, start, data in pipeline.run(partial(_call, group), arrays, worker.fill):
                if (place := places[number]) is not None:
                    targets[place[0]].write(data, place[1] + start)
                    yield len(data)

    found = zip(group.target_list, places, strict=True)
    return Task(run, tuple(Portion(p[0], p[1], p[1] + target.nbytes) for target, p in found if p is not None))


@contextmanager
def _failing(group: Group, checkpoint: Checkpoint) -> Iterator[None]:
    """What torch cannot do there is a Refusal that names the rule."""
    try:
        yield
    except (RuntimeError, MemoryError, OpError) as error:
        raise Refusal([_failure(group, checkpoint, str(error))]) from error


def _in_order(group: Group, bundle: Bundle[Any]) -> list[Any]:
    """What a group's ops have made, in the order of its targets."""
    return [slot[key] for slot, targets in zip(bundle.slots, group.targets.slots, strict=True) for key in targets]


def _listed(bundle: Bundle[Any]) -> list[Any]:
    return [value for slot in bundle.slots for value in slot.values()]


def _call(group: Group, tensors: list[Any]) -> list[Any]:
    """The targets of a group in their order, from its sources in the order of `_listed`: in one pass where they only
    move."""
    from compiler.executor.torch_layout import MOST_PIECES, arranged, stored
    from compiler.ops.kernels import TorchAlgebra

    numbers: Iterator[Any] = iter(range(len(tensors)))
    bundle: Bundle[Any] = group.sources.map(lambda _: next(numbers))
    try:
        sources = bundle.map(lambda n: stored(str(n), tensors[n]))
        arrays = _in_order(group, _apply(group, sources, layout.LayoutAlgebra()))
        if sum(len(array.pieces) for array in arrays) <= MOST_PIECES:
            named = {str(n): tensor for n, tensor in enumerate(tensors)}
            return [arranged(array, named, tensors[0].device) for array in arrays]
    except NotImplementedError:  # an op computes
        pass
    return _in_order(group, _apply(group, bundle.map(lambda n: tensors[n]), TorchAlgebra()))
