"""The main job: a spec and a checkpoint in, a folder that Transformers loads out. Reversed, a `.pth` out.

Opens, gathers settings, plans, checks, and only then writes; everything is decided from metadata before the first
byte of output exists.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compiler import __version__, beside, card, dialects, document, execute, outfiles, ranks, settings
from compiler.checkpoint import Checkpoint, open_checkpoint, verify
from compiler.collecting import uncollected
from compiler.constants import check_made
from compiler.cutting import check_parts, state_dicts
from compiler.diagnostics import Refusal, listed, refuse
from compiler.environment import Environment, Given, NamedShapes, check_given, unfounded
from compiler.files import Unchanged
from compiler.interrupts import Interrupted, stoppable
from compiler.output import Output
from compiler.parts import open_source
from compiler.plan import Plan, bind
from compiler.program import Program
from compiler.proof import SourceShapes, check_target
from compiler.quantized import check_quantized, whole_numbers
from compiler.transfer import Ledger
from compiler.uneven import uneven

Say = Callable[[str], None]


def _nothing(line: str) -> None:
    """Say it to nobody."""


@dataclass(frozen=True)
class Request:
    """What a user asks for; the fields are the options of `compile run`.

    Without `compare` (and `checksums`) a plan is made from headers alone: no byte of a tensor is read.
    """

    source: Sequence[Path]
    config: Path | None = None
    assigned: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Path | None = None
    dtype: str | None = None
    device: str = "cpu"
    jobs: int = 2
    checksums: bool = True
    compare: bool = True
    max_shard_size: str = "5GB"
    reverse: bool = False
    force: bool = False
    resume: bool = False
    check_values: bool = False
    digests: bool = False
    weights: str | None = None
    parts: int = 1  # of a state_dict, the other way


@uncollected()
def prepare(program: Program, request: Request, say: Say = _nothing) -> tuple[Plan, Checkpoint]:
    """Open the source and bind the program to it; nothing is written. Raises Refusal."""
    check_given(program, request.assigned)
    if request.reverse:
        checkpoint = open_checkpoint(request.source[0] if len(request.source) == 1 else list(request.source))
    else:
        checkpoint = open_source(program, request.source, request.weights)
    for note in checkpoint.notes:
        say(note)
    plan = (_prepare_reverse if request.reverse else _prepare)(program, request, checkpoint, say)
    for line in (*uneven(plan), *whole_numbers(plan)):
        say(line)
    for name, reason in plan.ignored[:8]:
        say(f"ignored {name}: {reason}")
    if len(plan.ignored) > 8:
        say(f"ignored {len(plan.ignored) - 8} more tensors")
    if not request.checksums:
        checkpoint = replace(checkpoint, checksums={})
    try:
        if request.compare:
            execute.check_ties(plan, checkpoint)
            check_made(plan, checkpoint)
    except Refusal:
        verify(checkpoint)  # damage explains any difference
        raise
    return plan, checkpoint


def _prepare(program: Program, request: Request, checkpoint: Checkpoint, say: Say) -> Plan:
    told = settings.gather(program, request.source[0], checkpoint.objects, request.config, request.assigned)
    for note in told.notes:
        say(note)
    env = Environment(program, NamedShapes(checkpoint.tensors), told.given)
    env.check()
    check_quantized(program, env, checkpoint.tensors)
    plan = bind(program, checkpoint.tensors, env, dtype=request.dtype)
    if program.keep_all:
        check_target(plan)
    if different := settings.contradictions(program, told.stated, plan.config) or settings.rowless(plan.config):
        raise Refusal(different)
    if told.unread:
        say(f"not carried over from the config: {listed(told.unread, 40)}")
    if env.defaulted:
        say("left at their defaults: " + ", ".join(f"{n}={v!r}" for n, v in env.defaulted.items()))
    return plan


def _prepare_reverse(program: Program, request: Request, checkpoint: Checkpoint, say: Say) -> Plan:
    config_path = request.config or settings.beside(request.source[0], "config.json")
    if config_path is None:
        text = "there is no config.json, which tells the sizes of the way back"
        refuse(str(request.source[0]), text, "missing-config", "give it with --config")
    fields = dialects.read_config(settings.read_config_file(config_path))
    known = {
        f.carried or "": Given(fields[f.name], config_path.name)
        for f in program.spec.config
        if f.carried and f.name in fields
    }
    known |= {n: Given(v, "--set") for n, v in request.assigned.items()}
    different = [
        f"{f.name}={fields[f.name]!r} (the spec sets {f.constant!r})"
        for f in program.spec.config
        if f.expr is None and f.name in fields and fields[f.name] != f.constant
    ]
    if different:
        say(f"the config differs from what the spec writes: {listed(different)}")
    shapes = SourceShapes(program, {name: tensor.shape for name, tensor in checkpoint.tensors.items()})
    env = Environment(program, shapes, known, trusted=True)
    plan = bind(program, checkpoint.tensors, env, dtype=request.dtype, reverse=True)
    if used := {name: value for name, value in env.defaulted.items() if name in env.found}:
        say("left at their defaults: " + ", ".join(f"{name}={value!r}" for name, value in used.items()))
    # What comes out must be a source that the spec would accept, of the sizes that the config tells.
    made = NamedShapes({target.name: target for target in plan.targets})
    try:
        Environment(program, made, known, trusted=unfounded(program, known)).check()
    except Refusal as refusal:  # what only the way there has to know is nothing here
        if others := [d for d in refusal.diagnostics if d.kind != "missing-argument"]:
            raise Refusal(others) from None
    return plan


def convert(
    program: Program,
    request: Request,
    out: Path,
    say: Say = _nothing,
    progress: execute.Progress = lambda size: None,
) -> Plan:
    """Do all of it: `out` is a folder, or with `reverse` a file unless it is cut into parts.

    Raises Refusal; then nothing is left behind. Raises Interrupted, which says whether something is left to resume.
    """
    from compiler import values

    outfiles.parse_size(request.max_shard_size)
    check_parts(program, request.parts)
    output = _output(out, request, program)
    output.check()
    if replaced := next((source for source in request.source if output.replaces(source)), None):
        refuse(str(replaced), "the output would take the place of the source", "output-exists", "choose another output")
    with ranks.from_environment(out) as crew:
        if not crew.leads:  # the leader speaks, and looks at values, for all
            say = _nothing
        plan, checkpoint = prepare(program, request, say)
        output.check_room(sum(target.nbytes for target in plan.targets))
        for line in values.brought(checkpoint, plan, request.check_values) if crew.leads else ():
            say(line)
        write(plan, checkpoint, request, out, say, progress, crew)
    return plan


def write(
    plan: Plan,
    checkpoint: Checkpoint,
    request: Request,
    out: Path,
    say: Say = _nothing,
    progress: execute.Progress = lambda size: None,
    crew: ranks.Crew | None = None,
) -> None:
    """Carry a plan out. Raises Refusal; then nothing is left behind but what an I/O error lets --resume continue."""
    from compiler import values

    crew = crew or ranks.Crew(0, 1, out)
    files = [] if plan.reverse else outfiles.lay_out(plan.targets, outfiles.parse_size(request.max_shard_size))
    output = _output(out, request, plan.program, fingerprint(plan, checkpoint, files, request.parts))

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
                say("all was written; it has its name now")
                return
            output.check_room(sum(target.nbytes for target in plan.targets))
            sources = Unchanged(checkpoint.files)
            if plan.reverse:
                files_of = state_dicts(plan, output.place, request.parts)
                execute.write_state_dicts(plan, checkpoint, files_of, request.device, progress)
            else:
                beside.write(plan, checkpoint, request.tokenizer, request.source[0], files, output, say)
                with output.journal as journal, crew.leading(journal, output.fingerprint):
                    weights(output.place, journal)
                if request.digests:
                    text = card.manifest(plan, checkpoint, output.place)
                    (output.place / card.MANIFEST).write_text(text, encoding="utf-8")
            for line in values.made(checkpoint, plan, output.place):
                say(line)
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


def _output(out: Path, request: Request, program: Program, fingerprint: str = "") -> Output:
    folder = not request.reverse or request.parts > 1
    weights = [program.spec.weights] if request.reverse else []
    return Output(out, request.force, request.resume, fingerprint, folder, weights)


def fingerprint(plan: Plan, checkpoint: Checkpoint, files: list[outfiles.OutFile], parts: int = 1) -> str:
    """What two runs have in common whose bytes are the same: program, settings, source files, places of the output."""
    spec = document.plain(plan.program.spec.root)
    sources = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in checkpoint.files]
    regions = hashlib.sha256(str([tensor.region for tensor in checkpoint.tensors.values()]).encode()).hexdigest()
    places = [(file.name, file.size, hashlib.sha256(file.header).hexdigest()) for file in files]
    told = [__version__, spec, plan.values, plan.config, plan.dtype, plan.reverse, sources, regions, places, parts]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=dict).encode()).hexdigest()
