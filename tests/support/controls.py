"""Recorded controls: sources that a spec must reject, one for each `fixed` field and each requirement that one could be found
for. `python tests/campaign --record` finds them.

`tests/data/controls.json` has, for each spec, a list. A control of a `fixed` field is `{"field": name, "value": value}`. That
of a requirement is a change to one of the spec's examples: `{"example": number, "set": {argument: value}, "tensors": {name:
shape, or null where it is left out}}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from support.synthetic import Synthetic

from compiler.diagnostics import Refusal
from compiler.program.environment import Environment, Given, NamedShapes
from compiler.program.program import Program
from compiler.settings.config_guard import fixed_fields

FILE = Path(__file__).parent.parent / "data" / "controls.json"
Control = Mapping[str, Any]


@dataclass(frozen=True)
class Shape:
    shape: tuple[int, ...]
    dtype: str


@cache
def recorded() -> dict[str, list[Control]]:
    found: dict[str, list[Control]] = json.loads(FILE.read_text())
    return found


def accepted(program: Program, made: Sequence[Synthetic], controls: Sequence[Control]) -> list[Control]:
    """The controls that a spec does not reject. `made`: the sources of its examples."""
    return [control for control in controls if not _rejects(program, made, control)]


def _rejects(program: Program, made: Sequence[Synthetic], control: Control) -> bool:
    if "field" in control:
        return bool(fixed_fields(program, {control["field"]: Given(control["value"], "the config")}))
    return bool(unmet(program, made[control["example"]], control["set"], control["tensors"]))


def unmet(
    program: Program, made: Synthetic, arguments: Mapping[str, Any], tensors: Mapping[str, Sequence[int] | None]
) -> set[str]:
    """The requirements that a changed source does not meet, by their text; not those that cannot be evaluated."""
    shapes = {name: Shape(tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in made.tensors.items()}
    shapes |= {name: Shape(tuple(shape), "float32") for name, shape in tensors.items() if shape is not None}
    for name in [name for name, shape in tensors.items() if shape is None]:
        shapes.pop(name, None)
    given = {name: Given(value, "--set") for name, value in {**made.arguments, **arguments}.items()}
    env = Environment(program, NamedShapes(shapes, lambda one, other: True), given)
    found = set()
    for expr, _ in program.spec.require:
        try:
            if not env.evaluate(expr):
                found.add(expr.text)
        except Refusal:
            continue
    return found
