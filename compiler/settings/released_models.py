"""Arguments that follow from which released model a checkpoint is: the `models` of a spec.

A release is recognised by its sizes, or named by the user. It gives values that nothing else gives; a config and `--set`
come first. Where the sizes fit several releases that differ, none is taken and the user is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compiler.diagnostics import Refusal, listed, nearest, refuse
from compiler.language.expression import Shapes
from compiler.language.spec import ReleasedModel
from compiler.plan.notes import ReleasedArguments
from compiler.program.environment import Environment, Given, Origin
from compiler.program.program import Program


def with_released(
    program: Program, shapes: Shapes, given: Mapping[str, Given], name: str | None = None
) -> tuple[Mapping[str, Given], ReleasedArguments | None]:
    """`given` with the arguments of the released model, and a note where it has any.

    `name`: the release that the user names, whatever the sizes. Raises Refusal: `unknown-model` for a name that the
    spec does not have, `ambiguous-model` where several releases fit and give different values.
    """
    models = program.spec.models
    if name is not None:
        chosen = [model for model in models if model.name == name]
        if not chosen:
            names = [model.name for model in models]
            hint = nearest(name, names) or (
                f"it knows {listed(names, 30)}" if names else "leave out --model: the spec lists no released models"
            )
            refuse("--model", f"{program.spec.name} knows no model {name!r}", "unknown-model", hint)
        return _filled(given, chosen, named=True)
    env = Environment(program, shapes, given)
    fitting = [model for model in models if _fits(model, env)]
    values: dict[str, dict[str, Any]] = {}
    for model in fitting:
        for argument in model.sets.keys() - given.keys():
            values.setdefault(argument, {})[model.name] = model.sets[argument]
    for argument, by_model in sorted(values.items()):
        if any(value != next(iter(by_model.values())) for value in by_model.values()):
            said = listed(f"{value!r} in {model}" for model, value in by_model.items())
            hint = f"choose with --model {next(iter(by_model))}, or give it with --set {argument}=VALUE"
            refuse(program.spec.path, f"the sizes fit several models: {argument} is {said}", "ambiguous-model", hint)
    return _filled(given, fitting, named=False)


def _filled(
    given: Mapping[str, Given], models: list[ReleasedModel], named: bool
) -> tuple[Mapping[str, Given], ReleasedArguments | None]:
    added = {
        argument: Given(value, f"released model {model.name}", Origin.RELEASE)
        for model in models
        for argument, value in model.sets.items()
        if argument not in given
    }
    if not added:
        return given, None
    values = {argument: value.value for argument, value in sorted(added.items())}
    return {**added, **given}, ReleasedArguments(tuple(model.name for model in models), named, values)


def _fits(model: ReleasedModel, env: Environment) -> bool:
    """Whether all sizes of a release are those of the checkpoint; a size that is not known fits none."""
    try:
        return all(env[name] == value for name, value in model.when.items())
    except Refusal:
        return False
