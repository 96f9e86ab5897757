"""Open a checkpoint, collect the arguments and bind a Program to it. Nothing is written.

Takes a Program and a `Request`; returns a `Prepared`: everything that is decided before the first byte of output. Reads
file headers; with `compare`, also the tensors that must equal each other. Raises Refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from compiler import packages
from compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint, verify
from compiler.checkpoints.config_file import beside, read_config_file
from compiler.diagnostics import Diagnostic, Refusal, listed, refuse
from compiler.executor import preconditions
from compiler.jobs.request import Request
from compiler.model_folder.card import recorded_settings
from compiler.output.earlier_run import MANIFEST
from compiler.plan.bind import bind
from compiler.plan.notes import (
    DefaultArguments,
    DerivedArguments,
    GuessedArgument,
    IgnoredTensors,
    Listener,
    Note,
    ReleasedArguments,
    Remark,
    UnreadFields,
    ignore_note,
)
from compiler.plan.plan import Plan
from compiler.plan.provenance import config_origins
from compiler.plan.source_checks import check_quantized, integer_tensors, uneven_shapes
from compiler.process import uncollected
from compiler.program.environment import (
    Environment,
    Given,
    NamedShapes,
    Origin,
    TensorTable,
    check_given,
    unfounded,
)
from compiler.program.inverse import SourceShapes
from compiler.program.program import Program
from compiler.proof.proof import check_target
from compiler.settings import arguments, config_guard, config_inverse, released_models
from compiler.settings.checkpoint_statements import unread_statements
from compiler.settings.named_sources import gather_named
from compiler.source.named_sources import named_paths
from compiler.source.source_files import open_source
from compiler.target import config_dialects


@dataclass(frozen=True)
class Prepared:
    """A plan, the opened checkpoint, the value and origin of each argument, and the notes in the order they arose."""

    plan: Plan
    checkpoint: Checkpoint
    folder_config: Mapping[str, Any] | None  # config.json of the folder that a reverse conversion reads
    arguments: Mapping[str, Given]
    notes: tuple[Note, ...]

    @property
    def defaults(self) -> dict[str, Any]:
        """The arguments that have their default value."""
        return _of(self.arguments, Origin.DEFAULT)


@uncollected()
def prepare(program: Program, request: Request, on_note: Listener = ignore_note) -> Prepared:
    """Open the source and bind the program to it. `on_note` gets each note at once, so that notes are known even if the
    preparation fails. Raises Refusal."""
    notes: list[Note] = []

    def note(one: Note) -> None:
        notes.append(one)
        on_note(one)

    check_given(program, request.assigned)
    if request.config and request.names:
        hint = "put it beside the weights of its source, or pass its values with --set"
        refuse("--config", "one config cannot be that of several sources", "wrong-usage", hint)
    if request.reverse:
        checkpoint = open_checkpoint(request.source[0] if len(request.source) == 1 else list(request.source))
    else:
        checkpoint = open_source(program, request.source, request.weights, names=request.names)
    for text in checkpoint.notes:
        note(Remark(text))
    if request.reverse:
        config = _config_of_folder(request)
        converted = Converted(
            read_config_file(config), config, recorded_settings(config.parent, program), checkpoint.tensors
        )
        plan, env = bind_reversed(program, request, converted, note)
    else:
        plan, env = bind_source(program, request, checkpoint, note)
    for finder in (uneven_shapes, integer_tensors):
        for one in finder(plan):
            note(one)
    if plan.ignored:
        note(IgnoredTensors(plan.ignored))
    if not request.checksums:
        checkpoint = replace(checkpoint, checksums={})
    try:
        if request.compare:
            preconditions.check_replicas(checkpoint)
            preconditions.check_ties(plan, checkpoint)
            preconditions.check_copies(plan, checkpoint)
            preconditions.check_constants(plan, checkpoint)
            if not plan.reverse:
                preconditions.check_vectors(env, checkpoint)
    except Refusal:
        verify(checkpoint)  # a damaged file explains any difference
        raise
    folder_config = read_config_file(_config_of_folder(request)) if request.reverse else None
    return Prepared(plan, checkpoint, folder_config, env.arguments, tuple(notes))


def in_order(program: Program, request: Request) -> Request:
    """The request with its named sources in the order of the spec; the same without names. Raises Refusal."""
    named = {} if request.reverse else named_paths(program, request.source, request.names)
    return replace(request, source=[*named.values()], names=[*named]) if named else request


def bind_source(
    program: Program, request: Request, checkpoint: Checkpoint, note: Listener = ignore_note
) -> tuple[Plan, Environment]:
    """The plan of an opened source, and the values of its arguments and facts. Reads no tensor. Raises Refusal."""
    recorded = _recorded(program, request.source[0])
    if paths := named_paths(program, request.source, request.names):
        settings = gather_named(program, paths, checkpoint.sources, request.assigned, request.any_model_type)
    else:
        settings = arguments.gather(
            program,
            request.source[0],
            checkpoint.objects,
            request.config,
            request.assigned,
            request.any_model_type,
            recorded,
        )
    for one in settings.notes:
        note(one)
    if stated := unread_statements(program, checkpoint.objects, str(checkpoint.path)):
        note(Remark(f"fields of the checkpoint that the spec does not read: {listed(stated, 40)}"))
    shapes = NamedShapes(checkpoint.tensors, partial(preconditions.equal_tensors, checkpoint))
    given, released = released_models.with_released(program, shapes, {**recorded, **settings.given}, request.model)
    env = Environment(program, shapes, given)
    env.check()
    check_quantized(program, env, checkpoint.tensors)
    plan = bind(program, checkpoint.tensors, env, dtype=request.dtype)
    plan = replace(plan, origins=config_origins(env))
    if program.keep_all and program.spec.target.code is None:  # planning runs no remote code; the class check does
        if absent := packages.missing():
            note(Remark(packages.unchecked(absent)))
        else:
            check_target(plan)
    problems = arguments.contradictions(program, settings.stated, plan.config)
    if problems := problems or arguments.padding_beyond_vocabulary(plan.config):
        raise Refusal(problems)
    for text in arguments.tokens_beyond_vocabulary(plan.config):
        note(Remark(text))
    if settings.unread:
        note(UnreadFields(settings.unread))
    return _with_assumptions(plan, env, released, request.strict, note), env


@dataclass(frozen=True)
class Converted:
    """What a reverse conversion reads: config.json as it is in the file `path`, the `settings` that a manifest has for
    what config.json lacks, and the tensors."""

    config: dict[str, Any]
    path: Path
    settings: Mapping[str, Any]
    tensors: TensorTable


def bind_reversed(
    program: Program, request: Request, converted: Converted, note: Listener = ignore_note
) -> tuple[Plan, Environment]:
    """The reversed plan of a converted folder, and the values of its arguments and facts. Raises Refusal."""
    config, tensors = converted.path, converted.tensors
    fields, given, unread = arguments.gather_reversed(
        program, converted.config, config, request.assigned, request.any_model_type
    )
    # An argument whose default is null is for sources that the reverse does not write, such as padded vocabularies.
    own = {n for n, a in program.spec.arguments.items() if a.default is not None or a.required or a.derive}
    recorded = {n: v for n, v in converted.settings.items() if n in own}
    given = {n: Given(v, MANIFEST, Origin.CONFIG_FILE) for n, v in recorded.items()} | given
    shapes = SourceShapes(program, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    env = Environment(program, shapes, given, trusted=True)
    if different := config_guard.differing_fields(program, fields, _written(program, env)):
        solved = config_inverse.arguments_of(program, different, {n: known.value for n, known in given.items()})
        given |= {n: Given(value, config.name, Origin.CONFIG_FILE) for n, value in solved.items()}
    env = Environment(program, shapes, given, trusted=True)
    carried = {field.name for field in program.spec.config if field.carried in request.assigned}
    fields = {name: value for name, value in fields.items() if name not in carried}  # --set replaces them
    if wrong := config_guard.irreversible_fields(program, fields, _written(program, env), str(config)):
        raise Refusal(wrong)
    env = Environment(program, shapes, given, trusted=True)  # without the values that only the comparison needed
    for name, value in given.items():
        if name in program.spec.arguments or (name in program.spec.facts and value.value is not None):
            env[name]  # so that it is listed even if the plan does not use it
    plan = bind(program, tensors, env, dtype=request.dtype, reverse=True)
    plan = _with_assumptions(plan, env, None, request.strict, note)
    if unread:
        note(UnreadFields(unread))
    # The result must be a source that the spec accepts, with the sizes of the config.
    made = NamedShapes({target.name: target for target in plan.targets})
    try:
        Environment(program, made, given, trusted=unfounded(program, given)).check()
    except Refusal as refusal:  # arguments that only the forward direction needs may be missing
        if others := [d for d in refusal.diagnostics if d.kind != "missing-argument"]:
            raise Refusal(others) from None
    return plan, env


def _recorded(program: Program, source: Path) -> dict[str, Given]:
    """The arguments that the manifest of a reverse conversion beside the source has; guesses are not among them."""
    recorded = recorded_settings(source if source.is_dir() else source.parent, program, reverse=True)
    return {n: Given(v, MANIFEST, Origin.CONFIG_FILE) for n, v in recorded.items() if n in program.spec.arguments}


def _config_of_folder(request: Request) -> Path:
    """The config.json of a folder that is converted back. Raises Refusal: `missing-config`."""
    config = request.config or beside(request.source[0], "config.json")
    if config is None:
        text = "there is no config.json, which the reverse conversion reads sizes from"
        refuse(str(request.source[0]), text, "missing-config", "pass one with --config")
    return config


def _written(program: Program, env: Environment) -> dict[str, Any]:
    """The flat config fields that the spec writes, as far as their values are known."""
    written: dict[str, Any] = {}
    for field in program.spec.config:
        try:
            written[field.name] = env.evaluate(field.expr) if field.expr else field.constant
        except Refusal:  # it needs an argument that the folder does not have
            continue
    flat = config_dialects.read_config(written)
    return {name: flat.get(name, value) for name, value in written.items()}


def _of(values: Mapping[str, Given], origin: Origin) -> dict[str, Any]:
    return {name: given.value for name, given in values.items() if given.origin is origin}


def _with_assumptions(
    plan: Plan, env: Environment, released: ReleasedArguments | None, strict: bool, note: Listener
) -> Plan:
    """The plan with its guesses; a note for each of them, and for the arguments that were derived or have defaults. With
    `strict`, raises Refusal for guesses."""
    if released:
        note(released)
    if derived := _of(env.arguments, Origin.DERIVED):
        note(DerivedArguments(derived))
    if defaults := _of(env.arguments, Origin.DEFAULT):
        note(DefaultArguments(defaults))
    guesses = _of(env.arguments, Origin.GUESS)
    known = {name: env.spec.arguments[name] for name in guesses}
    if strict and guesses:
        raise Refusal(
            Diagnostic(
                argument.span,
                f"{name} is a guess: {guesses[name]!r}; {argument.help}",
                "guessed-argument",
                f"pass --set {name}=VALUE, or a --config that has it",
            )
            for name, argument in known.items()
        )
    for name, argument in known.items():
        note(GuessedArgument(name, guesses[name], argument.help))
    return replace(plan, guesses=guesses, released=released.models if released else ())
