"""Notes as sentences: the only place where they are worded."""

from __future__ import annotations

from compiler.diagnostics import listed
from compiler.plan.notes import (
    ChangedConstants,
    ChosenSpec,
    ClassAgrees,
    ConfigBesideWeights,
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
    """The lines that tell a person of a note; one each, but for the names of ignored tensors."""
    match note:
        case Remark(text):
            return [text]
        case ClassAgrees(model_class):
            return [f"{model_class} with this config has the same names, shapes and ties"]
        case ChosenSpec(name, summary):
            return [f"took the spec {name}: {summary}"]
        case ConfigBesideWeights(path):
            return [f"read {path.name} beside the weights"]
        case DefaultArguments(values):
            return ["left at their defaults: " + ", ".join(f"{name}={value!r}" for name, value in values.items())]
        case UnreadFields(names):
            return [f"not carried over from the config: {listed(names, 40)}"]
        case ChangedConstants(fields):
            different = listed(f"{name}={value!r} (the spec sets {own!r})" for name, value, own in fields)
            return [f"the config differs from what the spec writes: {different}"]
        case UnevenShapes(usual, count, others):
            odd = listed((f"{name} {list(shape)}" for name, shape in others), 4)
            return [f"of another shape than the {count} others like it, {list(usual)}: {odd}"]
        case IntegerTensors(tensors):
            whole = listed((f"{name} ({dtype})" for name, dtype in tensors), 4)
            return [f"whole numbers, where fractions are usual: {whole}"]
        case IgnoredTensors(tensors):
            lines = [f"ignored {name}: {reason}" for name, reason in tensors[:MOST_IGNORED]]
            more = len(tensors) - MOST_IGNORED
            return lines + [f"ignored {more} more tensors"] * (more > 0)
