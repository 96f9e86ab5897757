"""Render a spec as the mapping of another program."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import metadata

from compiler import packages
from compiler.diagnostics import Diagnostic, located, refuse
from compiler.emit import mlx_sanitize, weights_mapper
from compiler.emit.class_mapping import Conversion, class_mapping
from compiler.jobs.compile import checked_program
from compiler.program.program import Program
from compiler.target.class_signature import ClassSignature


def emit(
    text: str, form: str, *, prove: bool = False, warn: Callable[[Diagnostic], None] = lambda warning: None
) -> dict[str, str]:
    """`{path below generated/: content}`: the mapping of one spec in a form of `FORMS`, proven like a converter.

    Raises Refusal: `inexpressible-rule`, `missing-package`, and what loading and proving a spec raises.
    """
    program = checked_program(text, prove=prove, warn=warn)
    return {f"emit/{form}/{program.spec.name}.py": RENDERERS[form](program)}


def _transformers(program: Program) -> str:
    from compiler.emit import transformers_mapping

    packages.need("--emit transformers")
    release = metadata.version("transformers")
    if int(release.split(".")[0]) < 5:
        message = f"needs Transformers 5, and {release} is installed"
        refuse("--emit transformers", message, "missing-package", "pip install 'transformers>=5'")
    return transformers_mapping.render(program, [*_signatures(program)], _stated(program))


def _stated(program: Program) -> list[Conversion]:
    """What Transformers itself does to the names of the target class."""
    from compiler.target import model_class

    if program.spec.target.model is None:
        return []
    name = program.spec.target.model.value
    with located(program.spec.target.model.span):
        kind = model_class.model_type(name)
    return (class_mapping(name) or []) + (class_mapping(kind) or [])


def _signatures(program: Program) -> Iterator[ClassSignature]:
    """What the target class says of itself, for each example."""
    from compiler.proof.proof import example_config, target_signature

    if program.spec.target.model is None:
        return
    for values in program.spec.example_values:
        yield target_signature(program, example_config(program, values))


RENDERERS: Mapping[str, Callable[[Program], str]] = {
    "transformers": _transformers,
    "vllm": weights_mapper.render,
    "mlx": mlx_sanitize.render,
}
