"""Opens the files of a source as one checkpoint, as its spec says: several shards, or tensor-parallel parts to join.

Takes a Program and paths; returns a Checkpoint, in which a tensor of several files is a `Joined`. Rejects a set of parts
with one missing, parts that do not fit together, and a replicated tensor that differs between parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint, open_parts
from compiler.checkpoints.folder import LAYER_FILE, last_step
from compiler.checkpoints.quantization import decoded
from compiler.diagnostics import Diagnostic, Refusal, listed, refuse
from compiler.language.name_pattern import Pattern
from compiler.language.name_pattern_parser import parse_pattern
from compiler.language.spec import in_parts
from compiler.program.program import Program
from compiler.source.joined_parts import joined
from compiler.source.named_sources import named_paths, united

Opened = dict[object, list[Checkpoint] | tuple[Diagnostic, ...]]


def open_source(
    program: Program,
    paths: Sequence[Path],
    weights: str | None = None,
    opened: Opened | None = None,
    names: Sequence[str] = (),
) -> Checkpoint:
    """Open a user's paths. `weights`: the key path of the weights in a torch file; `opened`: a cache of opened files and of
    failures, shared between programs; `names`: the name of the source at each path, where there are several. Raises
    Refusal."""
    if named := named_paths(program, paths, names):
        nested = {source.name.value: source.nested for source in program.spec.sources}
        return united(program, {n: open_checkpoint(path, weights, nested[n]) for n, path in named.items()})
    files = _files(program, paths)
    checkpoints = _opened(files, bool(program.merged), program.spec.nested, weights, {} if opened is None else opened)
    if how := program.quantized_by:
        checkpoints = [decoded(checkpoint, how.config, how.path) for checkpoint in checkpoints]
    checkpoints = [without_attribute_prefix(program, checkpoint) for checkpoint in checkpoints]
    return joined(program, checkpoints) if program.merged else checkpoints[0]


def _opened(files: list[Path], apart: bool, nested: bool, weights: str | None, opened: Opened) -> list[Checkpoint]:
    """The files as one checkpoint, or with `apart` each as its own."""
    apart = apart and (len(files) > 1 or files[0].is_dir())
    key = (tuple(files), apart, nested, weights)
    if key not in opened:
        try:
            whole = files[0] if len(files) == 1 else files
            opened[key] = (
                open_parts(files, weights, nested) if apart else [open_checkpoint(whole, weights, nested=nested)]
            )
        except Refusal as refusal:
            opened[key] = refusal.diagnostics
    outcome = opened[key]
    if isinstance(outcome, tuple):
        raise Refusal(outcome)
    return outcome


def _files(program: Program, paths: Sequence[Path]) -> list[Path]:
    """The files of a checkpoint, sorted by the numbers in their names."""
    weights, shared = program.spec.weights, bool(program.merged)
    if not in_parts(weights):
        return list(paths)
    one = paths[0]
    if len(paths) == 1 and one.is_dir() and (step := last_step(one)) and any(step.glob(weights)):
        one = step
    if len(paths) == 1 and one.is_dir() and any(LAYER_FILE.fullmatch(path.name) for path in one.iterdir()):
        return [one]
    if len(paths) == 1 and one.is_dir() and (matching := list(one.glob(weights))):
        files = sorted(matching, key=_numbers)
        # The number that differs between names counts the parts; where there are several, the grid of ranks is checked.
        for values in () if program.spec.ranks else zip(*map(_numbers, files), strict=False):
            there = set(values)
            missing = [n for n in range(len(there)) if n not in there] if len(there) > 1 else []
            if missing:
                name = f"{len(files)} parts, {listed(sorted(str(f.relative_to(one)) for f in files), 4)}"
                refuse(
                    str(one),
                    f"part {missing[0]} is missing; there are {name}",
                    "missing-part",
                    "copy it next to the others",
                )
        return files
    if len(paths) == 1 and one.is_file() and shared:
        whole, depth = one.absolute(), weights.count("/")
        folder = whole.parents[min(depth, len(whole.parents) - 1)]
        others = [f for f in folder.glob(weights) if f != whole] if whole in folder.glob(weights) else []
        if others:
            hint = f"pass the folder: {folder}"
            refuse(str(one), f"this is one of {len(others) + 1} parts of a model", "missing-part", hint)
    return sorted(paths, key=_numbers)


def _numbers(path: Path) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", "/".join(path.parts[-2:]))]


DEPTH = 3  # components


def without_attribute_prefix(program: Program, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint without a prefix that all names share and the spec does not know, such as `model.`."""
    asked = [parse_pattern(text, span) for expr in program.spec.facts.values() for kind, text, span in expr.asked
             if kind != "exists"]  # fmt: skip
    names, prefix = list(checkpoint.tensors), ""
    if len({name.partition(".")[0] for name in names}) > 1:  # the usual case
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
        notes=(*checkpoint.notes, f"removed the prefix {prefix!r} from {len(names)} names"),
    )


def _known(asked: Iterable[Pattern], names: Iterable[str]) -> bool:
    """Whether the names include one that the spec's facts read."""
    known_names = list(names)
    return any(pattern.match(name) is not None for pattern in asked for name in known_names)
