"""Open a checkpoint, collect its arguments and bind a Program to it; nothing is written.

Takes a Program and a `Request`; returns the Plan with the opened Checkpoint. Everything is decided from metadata before
the first byte of output exists. Raises Refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compiler.checkpoints import config_file
from compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint, verify
from compiler.diagnostics import Diagnostic, Refusal, listed, refuse
from compiler.executor import preconditions
from compiler.executor.preconditions import check_made
from compiler.plan import arguments, config_guard, config_inverse, released_models
from compiler.plan.bind import bind
from compiler.plan.plan import Plan
from compiler.plan.source_checks import check_quantized, uneven, whole_numbers
from compiler.plan.source_files import open_source
from compiler.process import uncollected
from compiler.program.environment import Environment, Given, NamedShapes, check_given, unfounded
from compiler.program.inverse import SourceShapes
from compiler.program.program import Program
from compiler.proof.proof import check_target

Say = Callable[[str], None]
WARNING = "warning: "  # a line that begins so is no mere note


def silent(line: str) -> None:
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
    model: str | None = None  # a released model that the spec knows
    any_model_type: bool = False  # accept a config of another architecture
    strict: bool = False  # refuse guesses
    parts: int = 1  # of a state_dict, the other way


@uncollected()
def prepare(program: Program, request: Request, say: Say = silent) -> tuple[Plan, Checkpoint]:
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
            preconditions.check_ties(plan, checkpoint)
            check_made(plan, checkpoint)
    except Refusal:
        verify(checkpoint)  # damage explains any difference
        raise
    return plan, checkpoint


def _prepare(program: Program, request: Request, checkpoint: Checkpoint, say: Say) -> Plan:
    told = arguments.gather(
        program, request.source[0], checkpoint.objects, request.config, request.assigned, request.any_model_type
    )
    for note in told.notes:
        say(note)
    shapes = NamedShapes(checkpoint.tensors)
    given, released = released_models.with_released(program, shapes, told.given, request.model)
    env = Environment(program, shapes, given)
    env.check()
    check_quantized(program, env, checkpoint.tensors)
    plan = bind(program, checkpoint.tensors, env, dtype=request.dtype)
    if program.keep_all:
        check_target(plan)
    if different := arguments.contradictions(program, told.stated, plan.config) or arguments.rowless(plan.config):
        raise Refusal(different)
    for line in released:
        say(line)
    if told.unread:
        say(f"not carried over from the config: {listed(told.unread, 40)}")
    if derived := env.derived:
        say("derived from the checkpoint: " + ", ".join(f"{n}={v!r}" for n, v in derived.items()))
    if env.defaulted:
        say("left at their defaults: " + ", ".join(f"{n}={v!r}" for n, v in env.defaulted.items()))
    guessed = env.guessed
    _report_guesses(program, guessed, request.strict, say)
    return replace(plan, guesses=guessed, released="; ".join(released))


def _report_guesses(program: Program, guessed: Mapping[str, Any], strict: bool, say: Say) -> None:
    """A line for each guess that is used. Raises Refusal where none may be."""
    told = {n: program.spec.arguments[n] for n in guessed}
    if strict and guessed:
        raise Refusal(
            Diagnostic(
                argument.span,
                f"{name} is a guess: {guessed[name]!r}; {argument.help}",
                "guessed-argument",
                f"give it with --set {name}=VALUE, or a --config that has it",
            )
            for name, argument in told.items()
        )
    for name, argument in told.items():
        say(f"{WARNING}{name} = {guessed[name]!r} is a guess ({argument.help}); give it with --set {name}=VALUE")


def _prepare_reverse(program: Program, request: Request, checkpoint: Checkpoint, say: Say) -> Plan:
    config_path = request.config or config_file.beside(request.source[0], "config.json")
    if config_path is None:
        text = "there is no config.json, which tells the sizes of the way back"
        refuse(str(request.source[0]), text, "missing-config", "give it with --config")
    fields, known = arguments.gather_reverse(program, config_path, request.assigned, request.any_model_type)
    shapes = SourceShapes(program, {name: tensor.shape for name, tensor in checkpoint.tensors.items()})
    env = Environment(program, shapes, known, trusted=True)
    if different := config_guard.differing_fields(program, fields, _written(program, env)):
        solved = config_inverse.arguments_of(program, different, {n: given.value for n, given in known.items()})
        known |= {n: Given(value, config_path.name) for n, value in solved.items()}
        env = Environment(program, shapes, known, trusted=True)
    if wrong := config_guard.irreversible_fields(program, fields, _written(program, env), str(config_path)):
        raise Refusal(wrong)
    plan = bind(program, checkpoint.tensors, env, dtype=request.dtype, reverse=True)
    if used := {name: value for name, value in env.defaulted.items() if name in env.found}:
        say("left at their defaults: " + ", ".join(f"{name}={value!r}" for name, value in used.items()))
    guessed = {name: value for name, value in env.guessed.items() if name in env.found}
    _report_guesses(program, guessed, request.strict, say)
    # What comes out must be a source that the spec would accept, of the sizes that the config tells.
    made = NamedShapes({target.name: target for target in plan.targets})
    try:
        Environment(program, made, known, trusted=unfounded(program, known)).check()
    except Refusal as refusal:  # what only the way there has to know is nothing here
        if others := [d for d in refusal.diagnostics if d.kind != "missing-argument"]:
            raise Refusal(others) from None
    return replace(plan, guesses=guessed)


def _written(program: Program, env: Environment) -> dict[str, Any]:
    """The fields that the source of a reversed conversion would be given, as far as they are known."""
    found: dict[str, Any] = {}
    for one in program.spec.config:
        try:
            found[one.name] = env.evaluate(one.expr) if one.expr else one.constant
        except Refusal:  # it needs an argument that the folder does not have
            continue
    return found
