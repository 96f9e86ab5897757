"""A spec's name to its Program, and a spec to the files that are generated from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from compiler.checks import check
from compiler.diagnostics import Diagnostic, Refusal, located, nearest, refuse
from compiler.program import Program, build_program
from compiler.reading import load_spec
from compiler.resources import find_spec, folder
from compiler.spec import Spec


def compile_spec(spec: Spec) -> Program:
    """The checked Program of a Spec. Raises Refusal."""
    program = build_program(spec)
    check(program)
    return program


def load_program(text: str) -> Program:
    """The Program of a spec named by path or by the name of a shipped one. Raises Refusal."""
    path = find_spec(text)
    if not path.exists():
        hint = nearest(Path(text).stem, (spec.stem for spec in folder("specs").glob("*.yaml")))
        refuse(text, "there is no such spec, neither here nor among the shipped ones", "unreadable-file", hint)
    return compile_spec(load_spec(path))


def build(text: str, *, prove: bool, warn: Callable[[Diagnostic], None] = lambda found: None) -> dict[str, str]:
    """`{path below generated/: content}` of one spec, proven against its target class; `warn` hears what is probably
    not meant. Raises Refusal."""
    from compiler import target
    from compiler.architecture import custom_model
    from compiler.custom import auto_map, render_custom
    from compiler.lint import lint
    from compiler.proof import prove as prove_program
    from compiler.render import render

    program = load_program(text)
    found = lint(program)
    if errors := [d for d in found if not d.warning]:
        raise Refusal(errors)
    for warning in found:
        warn(warning)
    if prove:
        for warning in prove_program(program):
            warn(warning)
    spec = program.spec
    if spec.target.model is not None:
        with located(spec.target.model.span):
            model_type = target.model_type(spec.target.model.value)
        files = render(program, model_type)
    else:
        model = custom_model(spec)
        files = render_custom(model) | render(program, model.module, auto_map(model))
    return {f"{program.spec.name}/{name}": content for name, content in files.items()}
