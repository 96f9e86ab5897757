"""One conversion from a source's layout into another trainer's: two specs that meet at one target class, in one pass.

`second_program` finds the spec that `--to` means; `prepare_both` plans the first forward and the second backwards, on the
tensors and the config.json that the first would write. Nothing is written between. Raises Refusal.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from compiler.diagnostics import Diagnostic, Refusal, Span, listed, nearest, refuse
from compiler.executor import preconditions
from compiler.jobs.prepare import Converted, Prepared, bind_reversed, prepare
from compiler.jobs.request import Request
from compiler.output.earlier_run import MANIFEST
from compiler.plan.composition import compose
from compiler.plan.notes import Listener, Note, Remark, ignore_note
from compiler.program.environment import Origin, check_given
from compiler.program.loading import load_program
from compiler.program.program import Program
from compiler.proof.class_check import config_written
from compiler.resources import find_spec, folder


def target_of(program: Program) -> str:
    """What two specs must share to meet: the model class, or the code of one that Transformers does not have."""
    target = program.spec.target
    owner = target.remote_code or target.code
    return f"{owner.value}:{target.class_name}" if owner else target.class_name


def second_program(first: Program, name: str) -> Program:
    """The program of `--to NAME`: a spec by path or name, or the shipped one of the family NAME (`gguf` of `gguf_x`)
    that has the target class of the first. Raises Refusal: `no-route`."""
    if find_spec(name).exists():
        second = load_program(name)
        if target_of(second) != target_of(first):
            raise _apart(first, f"{name} is a layout of {second.spec.target.class_name}")
        return second
    paths = sorted(folder("specs").glob("*.yaml"))
    family = [path for path in paths if path.stem.startswith(f"{name}_")]
    if name == "dcp":
        hint = "for a Transformers folder of that kind, leave --to out; with --to SPEC, for another layout"
        refuse("--to", "dcp is a container, not a layout: use --container dcp", "no-route", hint)
    if not family:
        known = [path.stem for path in paths]
        families = sorted({stem.partition("_")[0] for stem in known})
        refuse("--to", f"no spec and no family of specs is named {name!r}", "no-route", nearest(name, known + families))
    programs = [load_program(str(path)) for path in family]
    meeting = [program for program in programs if target_of(program) == target_of(first)]
    if len(meeting) == 1:
        return meeting[0]
    if meeting:
        names = listed(program.spec.name.value for program in meeting)
        refuse(
            "--to", f"{name} has several layouts of {first.spec.target.class_name}", "no-route", f"choose one: {names}"
        )
    classes = listed(sorted({program.spec.target.class_name for program in programs}))
    raise _apart(first, f"{name} has layouts of {classes} only")


def _apart(first: Program, problem: str) -> Refusal:
    """That two specs do not meet, with those that the first one reaches."""
    spec = first.spec
    others = (load_program(str(path)) for path in sorted(folder("specs").glob("*.yaml")))
    reached = [p.spec.name.value for p in others if target_of(p) == target_of(first)]
    reached = [name for name in reached if name != spec.name.value]
    hint = f"its layouts are {listed(reached, 30)}" if reached else "no other shipped spec has this class"
    message = f"{spec.name.value} becomes {spec.target.class_name}; {problem}"
    return Refusal([Diagnostic(Span("--to"), message, "no-route", hint)])


def prepare_both(first: Program, second: Program, request: Request, on_note: Listener = ignore_note) -> Prepared:
    """The composed plan, with the source's checkpoint. `--set` gives arguments of either spec. Raises Refusal."""
    notes: list[Note] = []

    def note(one: Note) -> None:
        notes.append(one)
        on_note(one)

    mine, theirs, common = _divided(first, second, request)
    forward = prepare(first, replace(request, assigned=mine, to=None), note)
    config = config_written(first, forward.plan.config, forward.plan.dtype)
    settings = forward.plan.values if first.spec.name.value == second.spec.name.value else common
    tensors = {target.name: target for target in forward.plan.targets}
    converted = Converted(config, Path("config.json"), settings, tensors)
    asked = replace(request, assigned=theirs, dtype=None, reverse=True, config=None, to=None)
    backward, env = bind_reversed(second, asked, converted, note)
    name = second.spec.name.value
    if shared := [n for n in common if n in env.arguments and env.arguments[n].place == MANIFEST]:
        note(
            Remark(f"--set of {listed(shared)} counts for both specs; for {name} alone: --set {name}.{shared[0]}=VALUE")
        )
    plan = compose(forward.plan, backward)
    if request.compare:
        preconditions.check_copies(plan, forward.checkpoint)
        preconditions.check_constants(plan, forward.checkpoint)
    own = {name: given for name, given in env.arguments.items() if given.origin is not Origin.CONFIG_FILE}
    return Prepared(plan, forward.checkpoint, None, {**forward.arguments, **own}, tuple(notes))


def _divided(
    first: Program, second: Program, request: Request
) -> tuple[dict[str, object], dict[str, object], dict[str, object]]:
    """The values of `--set` for the first of two programs, for the second, and those of the first whose names the second
    has too: it takes them if config.json does not have them. `SPEC.NAME` is for that spec alone."""
    mine, theirs, common = dict[str, object](), dict[str, object](), dict[str, object]()
    for key, value in request.assigned.items():
        owner, _, name = key.rpartition(".")
        if owner == second.spec.name.value != first.spec.name.value:
            check_given(second, {name: value})
            theirs[name] = value
        elif owner == first.spec.name.value:
            mine[name] = value
        elif key in (spec := first.spec).arguments or key in spec.facts or key in spec.fixed:
            mine[key] = value
            if key in second.spec.arguments and first.spec.name.value != second.spec.name.value:
                common[key] = value
        elif key in second.spec.arguments or key in second.spec.facts:
            theirs[key] = value
        else:
            mine[key] = value
    check_given(first, mine)
    return mine, theirs, {name: value for name, value in common.items() if name not in theirs}
