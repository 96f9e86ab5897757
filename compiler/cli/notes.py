"""Turns notes into sentences. The wording of every note is here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
MOST_VALUES = 4  # of arguments, in a short note


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


def brief(note: Note) -> list[str]:
    """The same in short: values and names that are many are counted, `-v` has them all."""
    match note:
        case DefaultArguments(values):
            some = {name: value for name, value in values.items() if value is not None} or values
            return [f"defaults used: {_few(some, len(values))}"]
        case DerivedArguments(values):
            return [f"derived from the checkpoint: {_few(values)}"]
        case ReleasedArguments(models, named, values):
            return [f"{listed(models, 3)} by {'--model' if named else 'its sizes'}: {_few(values)}"]
        case UnreadFields(names):
            return [f"config fields that the spec does not read: {_counted(names)}"]
        case IgnoredTensors(tensors):
            by_reason: dict[str, list[str]] = {}
            for name, reason in tensors:
                by_reason.setdefault(reason, []).append(name)
            return [f"ignored {_counted(names)}: {reason}" for reason, names in by_reason.items()]
        case _:
            return sentences(note)


def _few(values: Mapping[str, Any], count: int | None = None) -> str:
    """The first values, and how many of `count` are not shown."""
    shown = dict(list(values.items())[:MOST_VALUES])
    more = (count or len(values)) - len(shown)
    return _values(shown) + (f" and {more} more (-v lists them)" if more else "")


def _counted(names: Sequence[str]) -> str:
    more = len(names) - MOST_IGNORED
    return listed(names, MOST_IGNORED) + " (-v lists them)" * (more > 0)


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())
