"""The main job: convert a checkpoint into a folder that Transformers loads; reversed, into the source's own folder or file.

Plans and checks everything from metadata, then writes.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from compiler import __version__, packages
from compiler.checkpoints import config_file
from compiler.checkpoints.checkpoint import Checkpoint
from compiler.diagnostics import refuse
from compiler.dtypes import BLOCKS
from compiler.executor import execute, preconditions
from compiler.executor.model_parallel_files import check_grid
from compiler.jobs.compose import prepare_both, second_program
from compiler.jobs.destination import Destination, as_stored, check_container, grid_of, is_folder, weights_file
from compiler.jobs.option_effects import check_effects
from compiler.jobs.prepare import in_order, prepare
from compiler.jobs.request import Request
from compiler.language import document
from compiler.model_folder import card, sidecar_files
from compiler.output import ranks, safetensors_layout
from compiler.output.atomic_output import AtomicOutput
from compiler.output.earlier_run import MANIFEST
from compiler.plan.gguf_types import unquantized
from compiler.plan.notes import Listener, Remark, ignore_note
from compiler.plan.plan import Plan
from compiler.process import Interrupted, stoppable
from compiler.program.program import Program
from compiler.progress import HASHING, WRITING, Progress
from compiler.proof.class_check import ClassCheck
from compiler.resources import find_spec
from compiler.transfer.engine import Ledger
from compiler.transfer.files import Unchanged


def convert(
    program: Program,
    request: Request,
    out: Path,
    on_note: Listener = ignore_note,
    progress: Progress | None = None,
) -> Plan:
    """Prepare and write a conversion. `out` is a folder; with `reverse` also a file, if it is called like one.

    Raises Refusal, after removing what was written; Interrupted, whose text says whether the run can be resumed.
    """
    from compiler.executor import nonfinite_values

    safetensors_layout.parse_size(request.max_shard_size)
    request = in_order(program, request)
    second = second_program(program, request.to) if request.to else None
    check_grid(second or program, grid_of(request))
    check_container(second or program, request, out)
    check_effects(request, out, weights_file(second or program, request, out), is_folder(request, out))
    output = _output(out, request, second or program)
    output.check()
    output.protect(_named_files(program, request), [])
    with ranks.from_environment(out) as crew:
        if not crew.leads:  # the leading process prints notes and looks at values
            on_note = ignore_note
        asked = replace(request, dtype=None) if request.dtype in BLOCKS else request
        prepared = prepare_both(program, second, asked, on_note) if second else prepare(program, asked, on_note)
        plan, checkpoint = as_stored(prepared.plan, request, out), prepared.checkpoint
        for line in unquantized(plan) if request.dtype in BLOCKS else ():
            on_note(Remark(line))
        output.check_room(sum(target.nbytes for target in plan.targets))
        for line in nonfinite_values.in_source(checkpoint, plan, request.check_values) if crew.leads else ():
            on_note(Remark(line))
        write(plan, checkpoint, request, out, on_note, progress, crew, prepared.folder_config)
    return plan


def write(
    plan: Plan,
    checkpoint: Checkpoint,
    request: Request,
    out: Path,
    on_note: Listener = ignore_note,
    progress: Progress | None = None,
    crew: ranks.Crew | None = None,
    folder_config: Mapping[str, Any] | None = None,
) -> None:
    """Carry out a plan. `folder_config`: the config.json of the folder that a reverse conversion reads.

    Raises Refusal; what was written is removed, unless an I/O error lets --resume continue.
    """
    from compiler.executor import nonfinite_values

    crew, progress = crew or ranks.Crew(0, 1, out), progress or Progress()
    absent = packages.missing() if request.check else []
    checked = request.check and not absent

    def remark(text: str) -> None:
        on_note(Remark(text))

    destination = Destination(plan, checkpoint, replace(request, check=checked), out, is_folder(request, out), remark)
    files = destination.files
    output = _output(out, request, plan.program, fingerprint(plan, checkpoint, files, str(grid_of(request))))

    def weights(folder: Path, ledger: Ledger, done: int = 0) -> None:
        mine = crew.share(files)
        execute.write_folder(
            plan,
            checkpoint,
            mine,
            folder,
            device=request.device,
            jobs=request.jobs,
            progress=crew.watched(progress.begin(WRITING, max(1, sum(file.size for file in mine) - done))),
            ledger=ledger,
        )

    try:
        if not crew.leads:
            with stoppable():
                crew.follow(output.fingerprint, weights)
            return
        if absent and not (plan.program.keep_all and plan.program.spec.target.code is None):  # `prepare` said it
            remark(packages.unchecked(absent))
        sidecars = destination.sidecars
        names = [*destination.names, *(sidecars.names if sidecars else ())]
        reads = [*checkpoint.files, *checkpoint.indexes, *(sidecars.reads if sidecars else ())]
        named = _named_files(plan.first.program if plan.first else plan.program, request)
        output.protect([*named, *reads], names)
        with stoppable(), output, ExitStack() as stack:
            if output.done:
                remark("everything was written by an earlier run; moved it to its final name")
                return
            total = sum(file.size for file in files)
            output.check_room(total)
            sources = Unchanged(checkpoint.files)
            check = stack.enter_context(ClassCheck(plan.first or plan, checkpoint, folder_config)) if checked else None
            if sidecars is not None:
                sidecar_files.write(sidecars, files, output, remark)
            if destination.folder:
                with output.journal as journal, crew.leading(journal, output.fingerprint):
                    weights(output.place, journal, journal.total)
            else:
                place, jobs, tick = output.place.parent, request.jobs, progress.begin(WRITING, total)
                execute.write_folder(plan, checkpoint, files, place, device=request.device, jobs=jobs, progress=tick)
            if request.digests and not plan.reverse:
                sizes = {p.name: p.stat().st_size for p in output.place.iterdir() if p.name != MANIFEST}
                size = sum(p.stat().st_size for p in checkpoint.files) + total
                tick = progress.begin(HASHING, size)
                text = card.manifest(plan, checkpoint, sizes, output.place, checked=checked, tick=tick)
                (output.place / MANIFEST).write_text(text, encoding="utf-8")
            for line in nonfinite_values.after_casts(checkpoint, plan, output.place):
                remark(line)
            sources.check()
            if check:
                preconditions.check_shared(checkpoint, check.settle(), plan.program.spec.target.class_name)
            output.finish()
        for line in output.notes:
            remark(line)
    except KeyboardInterrupt as interrupt:
        raise Interrupted(output.left(), interrupt) from None
    except ranks.LostRank as error:
        refuse(str(out), str(error), "lost-rank", output.left())
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        source = error.filename is not None and not output.holds(Path(str(error.filename)))
        kind = "disk-full" if full else "unreadable-file" if source else "output-unwritable"
        verb = "read" if source else "written"
        refuse(str(error.filename or out), f"cannot be {verb}: {error.strerror or error}", kind, output.left())


def _output(out: Path, request: Request, program: Program, fingerprint: str = "") -> AtomicOutput:
    folder = is_folder(request, out)
    parts = (
        program.spec.layout.path(program.spec.weights) if request.backwards and folder and program.spec.weights else ""
    )
    return AtomicOutput(out, request.force, request.resume, fingerprint, folder, parts)


def _named_files(program: Program, request: Request) -> list[Path]:
    """The files that a user names for a run, and the configs that are read from the sources' folders."""
    named = {source.name.value: source.config for source in program.spec.sources}
    name = "config.json" if request.reverse else program.spec.source_config
    pairs = [(path, named[one]) for path, one in zip(request.source, request.names, strict=False)]
    beside = [config_file.beside(*pair) for pair in pairs or [(request.source[0], name)]]
    configs = [request.config] if request.config else beside
    optional = [path for one in configs if one is not None for path in (one, one / "config.json")]
    second = [find_spec(request.to)] if request.to else []
    return [*request.source, Path(program.spec.path), *second, *optional]


def fingerprint(plan: Plan, checkpoint: Checkpoint, files: list[safetensors_layout.OutFile], grid: str = "") -> str:
    """A hash of all that decides the bytes of a run: program, settings, source files, layout of the output."""
    spec = document.plain(plan.program.spec.root)
    sources = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in checkpoint.files]
    regions = hashlib.sha256(str([tensor.region for tensor in checkpoint.tensors.values()]).encode()).hexdigest()
    places = [(file.name, file.size, hashlib.sha256(file.header).hexdigest()) for file in files]
    identity = [__version__, spec, plan.values, plan.config, plan.dtype, plan.reverse, sources, regions, places, grid]
    if plan.first:
        identity += [document.plain(plan.first.program.spec.root), plan.first.values, plan.first.dtype]
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=dict).encode()).hexdigest()
