"""Render the files of a spec, after proving it against its target class."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from compiler import packages
from compiler.diagnostics import Diagnostic, Refusal, located
from compiler.program.loading import load_program
from compiler.program.program import Program

if TYPE_CHECKING:
    from compiler.render.pair import Restored


def build(
    text: str, *, prove: bool, warn: Callable[[Diagnostic], None] = lambda warning: None, to: str | None = None
) -> dict[str, str]:
    """`{path below generated/: content}` of one spec, proven against its target class. `to`: the spec or family into whose
    layout the converter goes on. `warn` is called with each warning. Raises Refusal."""
    from compiler.program.named_sources import config_program
    from compiler.render.converter import render
    from compiler.render.remote_code.from_spec import remote_code
    from compiler.settings import checkpoint_statements, config_guard
    from compiler.settings.arguments import HUB_CONFIG
    from compiler.target import model_class

    program = checked_program(text, prove=prove, warn=warn)
    spec = program.spec
    second = _second(program, to) if to else None
    neutral: dict[str, tuple[Any, ...]] = {}
    for source in spec.sources:
        own = config_guard.neutral_values(config_program(program, source)) if source.config == HUB_CONFIG else {}
        neutral |= {f"{source.name}_{name}": values for name, values in own.items()}
    if spec.source_config == HUB_CONFIG:
        neutral |= config_guard.neutral_values(program)
    elif not spec.source_config and not spec.sources:  # the checkpoint has the arguments
        neutral |= checkpoint_statements.neutral_values(program)
    if spec.target.model is not None:
        with located(spec.target.model.span):
            model_type = model_class.model_type(spec.target.model.value)
        files = render(program, model_type, neutral=neutral, second=second)
    else:
        code = remote_code(spec)
        files = {**code.files, **render(program, code.model_type, code.auto_map, code.files, neutral)}
    return {f"{program.spec.name}/{name}": content for name, content in files.items()}


def _second(program: Program, to: str) -> Restored:
    """What the converter of `program` adds to go on into another layout. Raises Refusal."""
    from compiler.jobs.compose import second_program
    from compiler.model_folder.source_folder import weights_name
    from compiler.render.pair import Restored
    from compiler.settings.config_guard import NOT_REVERSED
    from compiler.source.rank_grid import SIZES

    second = second_program(program, to)
    sizes = dict.fromkeys(SIZES.values(), 1) if second.spec.ranks else {}
    return Restored(second, program.spec.arguments, weights_name(second), NOT_REVERSED, sizes)


def checked_program(text: str, *, prove: bool, warn: Callable[[Diagnostic], None]) -> Program:
    """The program of one spec, proven against its target class if `prove`. Raises Refusal."""
    from compiler.program.axis_labels import has_shipped_labels, record_labels
    from compiler.program.lint import lint
    from compiler.proof.proof import prove as prove_program

    program = load_program(text)
    findings = lint(program)
    if errors := [d for d in findings if not d.warning]:
        raise Refusal(errors)
    for warning in findings:
        warn(warning)
    if prove:
        packages.need("the proof of a spec", otherwise="leave the proof out with --no-proof")
        proof = prove_program(program)
        if not has_shipped_labels(program.spec):
            record_labels(program.spec, proof.labels)
        for warning in proof.warnings:
            warn(warning)
    return program
