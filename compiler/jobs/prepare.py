"""Open a checkpoint, collect its arguments and bind a Program to it; nothing is written.

Takes a Program and a `Request`; returns all that is known before the first byte of output exists, as a `Prepared`.
Everything is decided from metadata. Raises Refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from compiler.checkpoints import config_file
from compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint, verify
from compiler.diagnostics import Refusal, listed, refuse
from compiler.executor import preconditions
from compiler.jobs.request import Request
from compiler.model_folder.card import recorded_settings
from compiler.output.earlier_run import MANIFEST
from compiler.plan import arguments
from compiler.plan.bind import bind
from compiler.plan.checkpoint_statements import unread_statements
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
    """A plan and what it rests on: the opened checkpoint, the value and origin of each argument that the plan uses, and
    the notes, in the order in which they came up."""

    plan: Plan
    checkpoint: Checkpoint
    folder_config: Mapping[str, Any] | None  # config.json of the folder that a reverse conversion reads
    arguments: Mapping[str, Given]
    notes: tuple[Note, ...]

    @property
    def defaults(self) -> dict[str, Any]:
        """The arguments that nothing gave, with the defaults that they took."""
        return _defaults(self.arguments)


@uncollected()
def prepare(program: Program, request: Request, on_note: Listener = ignore_note) -> Prepared:
    """Open the source and bind the program to it; nothing is written. `on_note` gets each note at once, so that it is
    known even where the conversion is refused. Raises Refusal."""
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
            preconditions.check_made(plan, checkpoint)
    except Refusal:
        verify(checkpoint)  # damage explains any difference
        raise
    folder_config = config_file.read_config_file(_config_of_folder(request)) if request.reverse else None
    return Prepared(plan, checkpoint, folder_config, env.arguments, tuple(notes))


def bind_source(
    program: Program, request: Request, checkpoint: Checkpoint, note: Listener = ignore_note
) -> tuple[Plan, Environment]:
    """The plan of an opened source, and the values that it was made with. No tensor is read. Raises Refusal."""
    settings = arguments.gather(program, request.source[0], checkpoint.objects, request.config, request.assigned)
    for one in settings.notes:
        note(one)
    if stated := unread_statements(program, checkpoint.objects, str(checkpoint.path)):
        note(Remark(f"not carried over from the checkpoint: {listed(stated, 40)}"))
    equal = partial(preconditions.equal_tensors, checkpoint)
    env = Environment(program, NamedShapes(checkpoint.tensors, equal), settings.given)
    env.check()
    check_quantized(program, env, checkpoint.tensors)
    plan = bind(program, checkpoint.tensors, env, dtype=request.dtype)
    if program.keep_all and program.spec.target.code is None:  # planning runs no code of others; the last check does
        check_target(plan)
    if different := arguments.contradictions(program, settings.stated, plan.config) or arguments.rowless(plan.config):
        raise Refusal(different)
    if settings.unread:
        note(UnreadFields(settings.unread))
    _note_defaults(env, note)
    return plan, env


def _bind_reversed(
    program: Program, request: Request, checkpoint: Checkpoint, note: Listener
) -> tuple[Plan, Environment]:
    config = _config_of_folder(request)
    given, changed = arguments.gather_reversed(program, config, request.assigned)
    settings = recorded_settings(config.parent, program)  # what config.json does not carry
    known = {n: v for n, v in settings.items() if n in program.spec.arguments}
    given = {n: Given(v, MANIFEST, Origin.CONFIG_FILE) for n, v in known.items()} | given
    if changed:
        note(changed)
    shapes = SourceShapes(program, {name: tensor.shape for name, tensor in checkpoint.tensors.items()})
    env = Environment(program, shapes, given, trusted=True)
    plan = bind(program, checkpoint.tensors, env, dtype=request.dtype, reverse=True)
    _note_defaults(env, note)
    # What comes out must be a source that the spec would accept, of the sizes that the config tells.
    made = NamedShapes({target.name: target for target in plan.targets})
    try:
        Environment(program, made, given, trusted=unfounded(program, given)).check()
    except Refusal as refusal:  # what only the way there has to know is nothing here
        if others := [d for d in refusal.diagnostics if d.kind != "missing-argument"]:
            raise Refusal(others) from None
    for name in given.keys() & program.spec.arguments.keys():
        env[name]  # a value that was given counts, though the plan may do without
    return plan, env


def _config_of_folder(request: Request) -> Path:
    """The config.json of a folder that is converted back. Raises Refusal: `missing-config`."""
    config = request.config or config_file.beside(request.source[0], "config.json")
    if config is None:
        text = "there is no config.json, which tells the sizes of the way back"
        refuse(str(request.source[0]), text, "missing-config", "give it with --config")
    return config


def _defaults(values: Mapping[str, Given]) -> dict[str, Any]:
    return {name: given.value for name, given in values.items() if given.origin is Origin.DEFAULT}


def _note_defaults(env: Environment, note: Listener) -> None:
    if values := _defaults(env.arguments):
        note(DefaultArguments(values))
