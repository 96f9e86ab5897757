"""Turns notes into sentences. The wording of every note is here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compiler.diagnostics import listed
from compiler.plan.notes import (
    ChosenSpec,
    ClassAgrees,
    ConfigNextToWeights,
    DefaultArguments,
    DerivedArguments,
    GuessedArgument,
    IgnoredTensors,
    IntegerTensors,
    Note,
    ReleasedArguments,
    Remark,
    UnevenShapes,
    UnreadFields,
)

MOST_IGNORED = 8  # names that get a line each


def sentences(note: Note) -> list[str]:
    """The lines to print for a note: one, or one for each of the first ignored tensors."""
    match note:
        case Remark(text):
            return [text]
        case ClassAgrees(model_class):
            return [f"{model_class} with this config has the same names, shapes and ties"]
        case ChosenSpec(name, summary):
            return [f"using the spec {name}: {summary}"]
        case ConfigNextToWeights(path):
            return [f"read {path.name} next to the weights"]
        case DefaultArguments(values):
            return [f"defaults used: {_values(values)}"]
        case DerivedArguments(values):
            return [f"derived from the checkpoint: {_values(values)}"]
        case ReleasedArguments(models, named, values):
            return [f"{listed(models)} by {'--model' if named else 'its sizes'}: {_values(values)}"]
        case GuessedArgument(name, value, help):
            return [f"{name} = {value!r} is a guess ({help}); set it with --set {name}=VALUE"]
        case UnreadFields(names):
            return [f"config fields that the spec does not read: {listed(names, 40)}"]
        case UnevenShapes(usual, count, others):
            different = listed((f"{name} is {list(shape)}" for name, shape in others), 4)
            return [f"tensors of one rule differ in shape: {count} are {list(usual)}, but {different}"]
        case IntegerTensors(tensors):
            integers = listed((f"{name} ({dtype})" for name, dtype in tensors), 4)
            return [f"integer tensors, where floating-point ones are usual: {integers}"]
        case IgnoredTensors(tensors):
            lines = [f"ignored {name}: {reason}" for name, reason in tensors[:MOST_IGNORED]]
            more = len(tensors) - MOST_IGNORED
            return lines + [f"ignored {more} more tensors"] * (more > 0)


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())
