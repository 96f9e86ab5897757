"""Open a checkpoint, collect the arguments and bind a Program to it. Nothing is written.

Takes a Program and a `Request`; returns a `Prepared`: everything that is decided before the first byte of output. Reads
file headers; with `compare`, also the tensors that must equal each other. Raises Refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from compiler.checkpoints import config_file
from compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint, verify
from compiler.diagnostics import Refusal, refuse
from compiler.executor import preconditions
from compiler.jobs.request import Request
from compiler.plan import arguments
from compiler.plan.bind import bind
from compiler.plan.notes import DefaultArguments, IgnoredTensors, Listener, Note, Remark, UnreadFields, ignore_note
from compiler.plan.plan import Plan
from compiler.plan.source_checks import check_quantized, integer_tensors, uneven_shapes
from compiler.plan.source_files import open_source
from compiler.process import uncollected
from compiler.program.environment import Environment, Given, NamedShapes, Origin, check_given, unfounded
from compiler.program.inverse import SourceShapes
from compiler.program.program import Program
from compiler.proof.proof import check_target


@dataclass(frozen=True)
class Prepared:
    """A plan, the opened checkpoint, the value and origin of each argument, and the notes in the order they arose."""

    plan: Plan
    checkpoint: Checkpoint
    arguments: Mapping[str, Given]
    notes: tuple[Note, ...]

    @property
    def defaults(self) -> dict[str, Any]:
        """The arguments that have their default value."""
        return _defaults(self.arguments)


@uncollected()
def prepare(program: Program, request: Request, on_note: Listener = ignore_note) -> Prepared:
    """Open the source and bind the program to it. `on_note` gets each note at once, so that notes are known even if the
    preparation fails. Raises Refusal."""
    notes: list[Note] = []

    def note(one: Note) -> None:
        notes.append(one)
        on_note(one)

    check_given(program, request.assigned)
    if request.reverse:
        checkpoint = open_checkpoint(request.source[0] if len(request.source) == 1 else list(request.source))
    else:
        checkpoint = open_source(program, request.source, request.weights)
    for text in checkpoint.notes:
        note(Remark(text))
    plan, env = (_bind_reversed if request.reverse else bind_source)(program, request, checkpoint, note)
    for finder in (uneven_shapes, integer_tensors):
        for one in finder(plan):
            note(one)
    if plan.ignored:
        note(IgnoredTensors(plan.ignored))
    if not request.checksums:
        checkpoint = replace(checkpoint, checksums={})
    try:
        if request.compare:
            preconditions.check_ties(plan, checkpoint)
            preconditions.check_constants(plan, checkpoint)
    except Refusal:
        verify(checkpoint)  # a damaged file explains any difference
        raise
    return Prepared(plan, checkpoint, env.arguments, tuple(notes))


def bind_source(
    program: Program, request: Request, checkpoint: Checkpoint, note: Listener = ignore_note
) -> tuple[Plan, Environment]:
    """The plan of an opened source, and the values of its arguments and facts. Reads no tensor. Raises Refusal."""
    settings = arguments.gather(program, request.source[0], checkpoint.objects, request.config, request.assigned)
    for one in settings.notes:
        note(one)
    env = Environment(program, NamedShapes(checkpoint.tensors), settings.given)
    env.check()
    check_quantized(program, env, checkpoint.tensors)
    plan = bind(program, checkpoint.tensors, env, dtype=request.dtype)
    if program.keep_all:
        check_target(plan)
    problems = arguments.contradictions(program, settings.stated, plan.config)
    if problems := problems or arguments.padding_beyond_vocabulary(plan.config):
        raise Refusal(problems)
    if settings.unread:
        note(UnreadFields(settings.unread))
    _note_defaults(env, note)
    return plan, env


def _bind_reversed(
    program: Program, request: Request, checkpoint: Checkpoint, note: Listener
) -> tuple[Plan, Environment]:
    config = request.config or config_file.beside(request.source[0], "config.json")
    if config is None:
        text = "there is no config.json, which the reverse conversion reads sizes from"
        refuse(str(request.source[0]), text, "missing-config", "pass one with --config")
    given, changed = arguments.gather_reversed(program, config, request.assigned)
    if changed:
        note(changed)
    shapes = SourceShapes(program, {name: tensor.shape for name, tensor in checkpoint.tensors.items()})
    env = Environment(program, shapes, given, trusted=True)
    plan = bind(program, checkpoint.tensors, env, dtype=request.dtype, reverse=True)
    _note_defaults(env, note)
    # The result must be a source that the spec accepts, with the sizes of the config.
    made = NamedShapes({target.name: target for target in plan.targets})
    try:
        Environment(program, made, given, trusted=unfounded(program, given)).check()
    except Refusal as refusal:  # arguments that only the forward direction needs may be missing
        if others := [d for d in refusal.diagnostics if d.kind != "missing-argument"]:
            raise Refusal(others) from None
    for name in given.keys() & program.spec.arguments.keys():
        env[name]  # so that it is listed even if the plan does not use it
    return plan, env


def _defaults(values: Mapping[str, Given]) -> dict[str, Any]:
    return {name: given.value for name, given in values.items() if given.origin is Origin.DEFAULT}


def _note_defaults(env: Environment, note: Listener) -> None:
    if values := _defaults(env.arguments):
        note(DefaultArguments(values))
