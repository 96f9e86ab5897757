"""The main job: convert a checkpoint into a folder that Transformers loads; reversed, into a `.pth` file.

Plans and checks everything from metadata, then writes.
"""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path

from compiler import __version__
from compiler.checkpoints.checkpoint import Checkpoint
from compiler.diagnostics import refuse
from compiler.executor import execute
from compiler.executor.tensor_parallel_parts import check_parts, state_dicts
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.language import document
from compiler.model_folder import card, sidecar_files
from compiler.output import ranks, safetensors_layout
from compiler.output.atomic_output import AtomicOutput
from compiler.plan.notes import Listener, Remark, ignore_note
from compiler.plan.plan import Plan
from compiler.process import Interrupted, stoppable
from compiler.program.program import Program
from compiler.transfer.engine import Ledger
from compiler.transfer.files import Unchanged


def convert(
    program: Program,
    request: Request,
    out: Path,
    on_note: Listener = ignore_note,
    progress: execute.Progress = lambda size: None,
) -> Plan:
    """Prepare and write a conversion. `out` is a folder; with `reverse` a file, or a folder of several `parts`.

    Raises Refusal, after removing what was written; Interrupted, whose text says whether the run can be resumed.
    """
    from compiler.executor import nonfinite_values

    safetensors_layout.parse_size(request.max_shard_size)
    check_parts(program, request.parts)
    output = _output(out, request, program)
    output.check()
    if replaced := next((source for source in request.source if output.replaces(source)), None):
        refuse(str(replaced), "the output would replace the source", "output-exists", "choose another output")
    with ranks.from_environment(out) as crew:
        if not crew.leads:  # the leading process prints notes and looks at values
            on_note = ignore_note
        prepared = prepare(program, request, on_note)
        plan, checkpoint = prepared.plan, prepared.checkpoint
        output.check_room(sum(target.nbytes for target in plan.targets))
        for line in nonfinite_values.in_source(checkpoint, plan, request.check_values) if crew.leads else ():
            on_note(Remark(line))
        write(plan, checkpoint, request, out, on_note, progress, crew)
    return plan


def write(
    plan: Plan,
    checkpoint: Checkpoint,
    request: Request,
    out: Path,
    on_note: Listener = ignore_note,
    progress: execute.Progress = lambda size: None,
    crew: ranks.Crew | None = None,
) -> None:
    """Carry out a plan. Raises Refusal; what was written is removed, unless an I/O error lets --resume continue."""
    from compiler.executor import nonfinite_values

    crew = crew or ranks.Crew(0, 1, out)
    files = (
        []
        if plan.reverse
        else safetensors_layout.lay_out(plan.targets, safetensors_layout.parse_size(request.max_shard_size))
    )
    output = _output(out, request, plan.program, fingerprint(plan, checkpoint, files, request.parts))

    def remark(text: str) -> None:
        on_note(Remark(text))

    def weights(folder: Path, ledger: Ledger) -> None:
        execute.write_folder(
            plan,
            checkpoint,
            crew.share(files),
            folder,
            device=request.device,
            jobs=request.jobs,
            progress=crew.watched(progress),
            ledger=ledger,
        )

    try:
        if not crew.leads:
            with stoppable():
                crew.follow(output.fingerprint, weights)
            return
        with stoppable(), output:
            if output.done:
                remark("everything was written by an earlier run; only the folder was renamed")
                return
            output.check_room(sum(target.nbytes for target in plan.targets))
            sources = Unchanged(checkpoint.files)
            if plan.reverse:
                files_of = state_dicts(plan, output.place, request.parts)
                execute.write_state_dicts(plan, checkpoint, files_of, request.device, progress)
            else:
                sidecar_files.write(plan, checkpoint, request.tokenizer, request.source[0], files, output, remark)
                with output.journal as journal, crew.leading(journal, output.fingerprint):
                    weights(output.place, journal)
                if request.digests:
                    text = card.manifest(plan, checkpoint, output.place)
                    (output.place / card.MANIFEST).write_text(text, encoding="utf-8")
            for line in nonfinite_values.after_casts(checkpoint, plan, output.place):
                remark(line)
            sources.check()
            output.finish()
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
    folder = not request.reverse or request.parts > 1
    weights = [program.spec.weights] if request.reverse else []
    return AtomicOutput(out, request.force, request.resume, fingerprint, folder, weights)


def fingerprint(plan: Plan, checkpoint: Checkpoint, files: list[safetensors_layout.OutFile], parts: int = 1) -> str:
    """A hash of all that decides the bytes of a run: program, settings, source files, layout of the output."""
    spec = document.plain(plan.program.spec.root)
    sources = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in checkpoint.files]
    regions = hashlib.sha256(str([tensor.region for tensor in checkpoint.tensors.values()]).encode()).hexdigest()
    places = [(file.name, file.size, hashlib.sha256(file.header).hexdigest()) for file in files]
    inputs = [__version__, spec, plan.values, plan.config, plan.dtype, plan.reverse, sources, regions, places, parts]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=dict).encode()).hexdigest()
