"""A spec by path or by the name of a shipped one, loaded as a checked Program. Raises Refusal."""

from __future__ import annotations

from pathlib import Path

from compiler.diagnostics import nearest, refuse
from compiler.language.parser import load_spec
from compiler.language.spec import Spec
from compiler.program.build import build_program
from compiler.program.consistency import check
from compiler.program.program import Program
from compiler.resources import find_spec, folder


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
        refuse(text, "no such spec: neither a file nor a shipped spec", "unreadable-file", hint)
    return compile_spec(load_spec(path))
