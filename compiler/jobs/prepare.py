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
from compiler.diagnostics import Refusal, listed, refuse
from compiler.executor import preconditions
from compiler.executor.preconditions import check_made
from compiler.plan import arguments
from compiler.plan.bind import bind
from compiler.plan.checkpoint_statements import unread_statements
from compiler.plan.plan import Plan
from compiler.plan.source_checks import check_quantized, uneven, whole_numbers
from compiler.plan.source_files import open_source
from compiler.process import uncollected
from compiler.program.environment import Environment, Given, NamedShapes, check_given, unfounded
from compiler.program.inverse import SourceShapes
from compiler.program.program import Program
from compiler.proof.proof import check_target
from compiler.target import config_dialects

Say = Callable[[str], None]


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
    processor: Path | None = None
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
    told = arguments.gather(program, request.source[0], checkpoint.objects, request.config, request.assigned)
    for note in told.notes:
        say(note)
    if stated := unread_statements(program, checkpoint.objects, str(checkpoint.path)):
        say(f"not carried over from the checkpoint: {listed(stated, 40)}")
    env = Environment(program, NamedShapes(checkpoint.tensors), told.given)
    env.check()
    check_quantized(program, env, checkpoint.tensors)
    plan = bind(program, checkpoint.tensors, env, dtype=request.dtype)
    if program.keep_all:
        check_target(plan)
    if different := arguments.contradictions(program, told.stated, plan.config) or arguments.rowless(plan.config):
        raise Refusal(different)
    if told.unread:
        say(f"not carried over from the config: {listed(told.unread, 40)}")
    if env.defaulted:
        say("left at their defaults: " + ", ".join(f"{n}={v!r}" for n, v in env.defaulted.items()))
    return plan


def _prepare_reverse(program: Program, request: Request, checkpoint: Checkpoint, say: Say) -> Plan:
    config_path = request.config or config_file.beside(request.source[0], "config.json")
    if config_path is None:
        text = "there is no config.json, which tells the sizes of the way back"
        refuse(str(request.source[0]), text, "missing-config", "give it with --config")
    fields = config_dialects.read_config(config_file.read_config_file(config_path))
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
