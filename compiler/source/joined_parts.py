"""One checkpoint of the files that parallel ranks wrote: parts are joined along the axis that the spec states; what several
files hold alike is a replica, to be compared before it is used.

Takes a Program and the opened files; returns a Checkpoint in which a tensor of several files is a `Joined`. Rejects files
whose names or shapes do not fit together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.checkpoints.formats.stored_tensor import AnyTensor, Joined, Tensor
from compiler.checkpoints.opened import Replica
from compiler.diagnostics import Report, Span, listed
from compiler.ops.algebra import OpError, shown
from compiler.program.environment import NamedShapes
from compiler.program.program import Program
from compiler.source.merge_cut import Cut
from compiler.source.rank_grid import Rank, ranks_of

Holder = tuple[Rank, AnyTensor]


def joined(program: Program, parts: Sequence[Checkpoint]) -> Checkpoint:
    """One checkpoint of the parts. Raises Refusal with every problem."""
    ranks = ranks_of(program, parts)
    if len(ranks) == 1:
        return parts[0]
    _check_names(program, ranks)
    first, report = ranks[0], Report()
    held = _by_name(ranks)
    cuts = [Cut(rule, NamedShapes(first.tensors), tuple(held), len(ranks)) for rule in program.merged]
    copies = _copies(program, ranks)
    tensors: dict[str, Tensor | Joined] = {}
    replicas: list[Replica] = []
    for name, holders in held.items():
        cut = next((cut for cut in cuts if cut.rule.pattern.match(name) is not None), None)
        try:
            parts_of_ranks, alike = _divided(holders)
            if any(pattern.match(name) is not None for pattern, _ in program.ignored):
                tensors[name] = parts_of_ranks[0]
                continue
            if name in copies:
                owners, _ = _divided(held[copies[name]])
                alike += zip(owners, parts_of_ranks, strict=True)
            elif cut is None:
                tensors[name] = parts_of_ranks[0]
                alike += ((parts_of_ranks[0], other) for other in parts_of_ranks[1:])
            elif cut.rule.by:
                tensors[name] = cut.only(name, [rank.tensor for rank, _ in holders], parts_of_ranks)
            else:
                tensors[name] = cut.concatenated(parts_of_ranks)
            replicas += _replicas(alike)
        except OpError as error:
            span = Span(str(first.checkpoint.path)) if cut is None else cut.rule.pattern.span
            report.add(span, f"{name}: {error}", "unfit-parts")
    report.settle()
    files = [rank.checkpoint for rank in ranks]
    whole = Checkpoint.of_parts(files, tensors, (f"joined {_described(ranks)}", *files[0].notes))
    return replace(whole, objects=files[0].objects, replicas=tuple(replicas))


def _described(ranks: Sequence[Rank]) -> str:
    """The number of files and the kinds of ranks that wrote them."""
    kinds = {"tensor-parallel ranks": "tensor", "pipeline stages": "pipeline", "expert-parallel ranks": "expert"}
    counts = {words: 1 + max(getattr(rank, kind) for rank in ranks) for words, kind in kinds.items()}
    return f"{len(ranks)} files: {' x '.join(f'{n} {words}' for words, n in counts.items() if n > 1)}"


def _by_name(ranks: Sequence[Rank]) -> dict[str, list[Holder]]:
    """The files that have a part of each tensor, by names in the order of the complete model."""
    found: dict[str, list[Holder]] = {}
    for run in range(max(len(rank.runs) for rank in ranks)):
        for rank in ranks:
            for name, tensor in rank.runs[run].items() if run < len(rank.runs) else ():
                found.setdefault(name, []).append((rank, tensor))
    return found


def _check_names(program: Program, ranks: Sequence[Rank]) -> None:
    """All files of a stage must have the same names, as they are stored, but for those that are divided by an index.
    Raises Refusal."""
    report, firsts = Report(), dict[int, Checkpoint]()
    alone = [rule.pattern for rule in program.merged if rule.by]
    for rank in ranks:
        first, part = firsts.setdefault(rank.pipeline, rank.checkpoint), rank.checkpoint
        differing = sorted(first.tensors.keys() ^ part.tensors.keys())
        if differing := [name for name in differing if all(pattern.match(name) is None for pattern in alone)]:
            message = f"only one of this and {part.path} has {listed(differing)}"
            report.add(Span(str(first.path)), message, "missing-tensor")
    report.settle()


def _copies(program: Program, ranks: Sequence[Rank]) -> dict[str, str]:
    """The tensors of the last stage that repeat one of the first stage, and which, where the arguments tie them."""
    stated = program.spec.ranks.copies if program.spec.ranks else ()
    if ranks[0].pipeline == ranks[-1].pipeline or not ranks[0].tied:
        return {}
    pairs = ((copy.value, owner.value) for copy, owner in stated)
    return {copy: owner for copy, owner in pairs if owner in ranks[0].tensors and copy in ranks[-1].tensors}


def _divided(holders: Sequence[Holder]) -> tuple[list[Tensor], list[Replica]]:
    """The part of each tensor-parallel rank, and the parts that other files hold alike. Raises OpError."""
    firsts: dict[int, Tensor] = {}
    alike: list[Replica] = []
    for rank, tensor in holders:
        if not isinstance(tensor, Tensor):
            raise OpError(f"a part of it is in several files: {rank.checkpoint.path}")
        if (known := firsts.setdefault(rank.tensor, tensor)) is not tensor:
            alike.append((known, tensor))
    return [firsts[n] for n in sorted(firsts)], alike


def _replicas(pairs: Iterable[Replica]) -> Iterator[Replica]:
    """The pairs. Raises OpError where two are of different shapes or types."""
    for first, other in pairs:
        if other.shape != first.shape:
            a, b = shown(first.shape), shown(other.shape)
            raise OpError(f"the spec joins it along no axis, but the parts have the shapes {a} and {b}")
        if other.dtype != first.dtype:
            raise OpError(f"it is {first.dtype} in one part and {other.dtype} in {other.path}")
        yield first, other
