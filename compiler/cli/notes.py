"""Turns notes into sentences. The wording of every note is here."""

from __future__ import annotations

from compiler.diagnostics import listed
from compiler.plan.notes import (
    ChangedConstants,
    ChosenSpec,
    ConfigNextToWeights,
    DefaultArguments,
    IgnoredTensors,
    IntegerTensors,
    Note,
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
        case ChosenSpec(name, summary):
            return [f"using the spec {name}: {summary}"]
        case ConfigNextToWeights(path):
            return [f"read {path.name} next to the weights"]
        case DefaultArguments(values):
            return ["defaults used: " + ", ".join(f"{name}={value!r}" for name, value in values.items())]
        case UnreadFields(names):
            return [f"config fields that the spec does not read: {listed(names, 40)}"]
        case ChangedConstants(fields):
            different = listed(f"{name}={value!r} (the spec sets {own!r})" for name, value, own in fields)
            return [f"config.json differs from what the spec writes: {different}"]
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
