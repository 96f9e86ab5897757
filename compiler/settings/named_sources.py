"""The values of a spec's arguments where it has several sources: each config gives those that begin with its source's name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.diagnostics import Refusal, Report
from compiler.plan.notes import Note
from compiler.program.environment import Given, Origin
from compiler.program.named_sources import config_program
from compiler.program.program import Program
from compiler.settings.arguments import Settings, gather
from compiler.settings.checkpoint_statements import unread_statements


def gather_named(
    program: Program,
    paths: Mapping[str, Path],
    sources: Mapping[str, Checkpoint],
    assigned: Mapping[str, Any],
    any_model_type: bool = False,
) -> Settings:
    """Collect the values of the arguments from the sources at `paths`, by name, and `assigned`, which counts most. Raises
    Refusal with the problems of all configs."""
    given: dict[str, Given] = {}
    unread: list[str] = []
    notes: list[Note] = []
    report = Report()
    for source in program.spec.sources:
        name = source.name.value
        if name not in paths:
            continue
        own, objects = config_program(program, source), sources[name].objects
        try:
            settings = gather(own, paths[name], objects, None, {}, any_model_type, part=source.part)
            unread += [
                f"{name}_{field}" for field in (*settings.unread, *unread_statements(own, objects, str(paths[name])))
            ]
        except Refusal as refusal:
            report.absorb(refusal)
            continue
        known = {*own.spec.arguments, *own.spec.facts}
        given |= {f"{name}_{field}": value for field, value in settings.given.items() if field in known}
        notes += settings.notes
    report.settle()
    given |= {name: Given(value, "--set", Origin.ASSIGNMENT) for name, value in assigned.items()}
    return Settings(given, tuple(unread), tuple(notes), {})
