"""Several sources as one checkpoint, in which every name begins with that of its source.

Takes a Program, and the paths and names that a user gives; returns a Checkpoint. Rejects sources that the spec does not
have, lacks or gets twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.checkpoints.formats.stored_tensor import AnyTensor
from compiler.diagnostics import Report, Span, listed, nearest, refuse
from compiler.program.named_sources import MARK
from compiler.program.program import Program


def named_paths(program: Program, paths: Sequence[Path], names: Sequence[str]) -> dict[str, Path]:
    """The path of each named source, in the order of the spec; empty for a spec of one source. Raises Refusal:
    `missing-source`, `unknown-source`, `repeated-source`."""
    spec = program.spec
    if not spec.sources and not names:
        return {}
    known = [source.name.value for source in spec.sources]
    hint = f"write {spec.source_words}" if known else "write the path alone"
    if not names:
        refuse("SOURCE", f"{spec.name} reads several sources: {listed(known)}", "missing-source", hint)
    report = Report()
    for name in dict.fromkeys(names):
        if name not in known:
            problem = f"{spec.name} has no source {name!r}" if known else f"{spec.name} reads one source"
            report.add(Span("SOURCE"), problem, "unknown-source", nearest(name, known) or hint)
        if names.count(name) > 1:
            message = f"the source {name} is given {names.count(name)} times"
            report.add(Span("SOURCE"), message, "repeated-source", "give the folder that holds its files")
    for source in spec.sources:
        if source.name.value not in names and not source.optional:
            report.add(Span("SOURCE"), f"the source {source.name} is missing", "missing-source", hint)
    report.settle()
    given = dict(zip(names, paths, strict=True))
    return {name: given[name] for name in known if name in given}


def united(program: Program, opened: Mapping[str, Checkpoint]) -> Checkpoint:
    """One checkpoint of the named ones. Raises Refusal: `repeated-source`."""
    owners: dict[Path, str] = {}
    for name, checkpoint in opened.items():
        for file in checkpoint.files:
            if (other := owners.setdefault(file.resolve(), name)) != name:
                message = f"it is given as the source {other} and as the source {name}"
                refuse(str(file), message, "repeated-source", "give each source its own checkpoint")
    tensors: dict[str, AnyTensor] = {}
    notes = [f"{name}: {note}" for name, checkpoint in opened.items() for note in checkpoint.notes]
    joining = [source for source in program.spec.sources if source.joins and source.name.value in opened]
    for name in (name for name in opened if name not in [source.name.value for source in joining]):
        tensors |= _qualified(opened[name], name)
    for source in joining:
        added = _qualified(opened[source.name.value], source.joins)
        shared = len(added.keys() & tensors.keys())
        tensors = tensors | added if source.overlays else added | tensors
        used = f"replaces {shared}" if source.overlays else f"leaves {shared} as they are"
        notes.append(f"{source.name} adds {len(added) - shared} tensors to {source.joins} and {used}")
    parts = list(opened.values())
    replicas = tuple(pair for part in parts for pair in part.replicas)
    return replace(
        Checkpoint.of_parts(parts, tensors, notes), replicas=replicas, sources=MappingProxyType(dict(opened))
    )


def _qualified(checkpoint: Checkpoint, name: str) -> dict[str, AnyTensor]:
    """The tensors under their qualified names."""
    names = {f"{name}{MARK}{tensor}": held for tensor, held in checkpoint.tensors.items()}
    return {qualified: replace(tensor, name=qualified) for qualified, tensor in names.items()}
