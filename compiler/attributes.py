"""Names below an attribute of a trainer's module, such as `net.` before every name in a Lightning checkpoint.

Which attribute a trainer chose, no name tells by itself: a spec does. Takes a Program and a checkpoint; returns it with
the leading component taken off every name where the spec's facts ask for tensors that only then are there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from types import MappingProxyType

from compiler.checkpoint import Checkpoint
from compiler.names import Pattern
from compiler.program import Program
from compiler.spelling import parse_pattern

DEPTH = 3  # components


def below_an_attribute(program: Program, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint by the names that the spec knows; as it is where none or all are known already."""
    asked = [parse_pattern(text, span) for expr in program.spec.facts.values() for kind, text, span in expr.asked
             if kind != "exists"]  # fmt: skip
    names, prefix = list(checkpoint.tensors), ""
    if len({name.partition(".")[0] for name in names}) > 1:  # what most are, told at once
        return checkpoint
    for _ in range(DEPTH):
        if not asked or _known(asked, names):
            break
        first = names[0].partition(".")[0] + "." if names else ""
        if not all(name.startswith(first) and name != first for name in names):
            return checkpoint
        names, prefix = [name.removeprefix(first) for name in names], prefix + first
    if not prefix or not _known(asked, names):
        return checkpoint
    pairs = zip(names, checkpoint.tensors.values(), strict=True)
    return replace(
        checkpoint,
        tensors=MappingProxyType({name: replace(tensor, name=name) for name, tensor in pairs}),
        notes=(*checkpoint.notes, f"took the attribute {prefix!r} off {len(names)} names"),
    )


def _known(asked: Iterable[Pattern], names: Iterable[str]) -> bool:
    """Whether some tensor is there that the spec asks for."""
    found = list(names)
    return any(pattern.match(name) is not None for pattern in asked for name in found)
