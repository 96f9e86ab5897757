"""Which specs fit a checkpoint, by its tensor names, shapes and container; the model type of a config does not count.

Takes a request and the programs to try; returns one `Fit` for each, the best first. A spec `fits` if it binds as in a
run; it `asks` if only arguments are missing; it is `near` if it knows most of the names. `unique` picks the one that
fits and rejects an ambiguous choice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from typing import Any

from compiler.checkpoints import config_file
from compiler.checkpoints.checkpoint import Checkpoint
from compiler.checkpoints.formats.stored_tensor import Joined, Tensor
from compiler.diagnostics import Diagnostic, Refusal, listed, refuse
from compiler.jobs.prepare import bind_source
from compiler.jobs.request import Request
from compiler.plan.notes import ChosenSpec, Listener, ignore_note
from compiler.plan.source_files import Opened, open_source
from compiler.program.environment import NamedShapes
from compiler.program.loading import load_program
from compiler.program.program import Program
from compiler.resources import folder

ORDER = ("fits", "asks", "near", "no")
NEAR = 0.6  # of the names and patterns
_MOST_FILES = 10_000  # of a folder whose names are read
_MOST_NAMES = 2000  # that are matched; two layers of a model have some hundred
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True)
class Fit:
    """How one spec fits. `share`: of names and patterns that match each other; `asks`: arguments that it needs;
    `reasons`: why it does not fit; `container`: whether a file name matches `source.weights`."""

    spec: str
    summary: str
    path: str
    status: str
    share: float
    container: bool
    asks: tuple[str, ...]
    reasons: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def known_specs(more: Sequence[Path] = ()) -> list[Program]:
    """The shipped specs and those of more folders. Raises Refusal for one that does not compile."""
    paths = sorted(folder("specs").glob("*.yaml"))
    for place in more:
        if not place.is_dir():
            refuse(str(place), "no such folder of specs", "unreadable-file")
        paths += sorted(place.glob("*.yaml"))
    return [load_program(str(path)) for path in paths]


def detect(request: Request, programs: Iterable[Program]) -> list[Fit]:
    """A Fit for each program, the best first. Raises Refusal if no program can open the checkpoint."""
    opened: dict[object, Checkpoint | Refusal] = {}
    files: Opened = {}
    names = [name for path in request.source for name in _file_names(path)]
    if request.config is not None:
        config_file.read_config_file(request.config)
    fits = []
    for program in programs:
        key = (
            program.spec.weights if program.merged or not program.spec.weights.startswith("*") else "",
            program.merged,
            program.spec.nested,
        )
        if key not in opened:
            try:
                opened[key] = open_source(program, request.source, request.weights, files)
            except Refusal as refusal:
                opened[key] = Refusal(refusal.diagnostics)  # without its cause
        fits.append(_fit(program, request, names, opened[key]))
    if opened and all(isinstance(one, Refusal) for one in opened.values()):
        raise next(one for one in opened.values() if isinstance(one, Refusal))
    return sorted(fits, key=lambda fit: (ORDER.index(fit.status), -fit.share, not fit.container, fit.spec))


def unique(fits: Sequence[Fit], path: Path) -> Fit:
    """The one fit that fits. Raises Refusal: `ambiguous-spec`, `no-fitting-spec`."""
    good = [fit for fit in fits if fit.status == "fits"] or [fit for fit in fits if fit.status == "asks"]
    if len(good) > 1:
        names = listed((fit.spec for fit in good), 12)
        refuse(str(path), f"{len(good)} specs fit: {names}", "ambiguous-spec", "name one of them instead of auto")
    if not good:
        near = [fit for fit in fits if fit.status == "near"]
        hint = (
            f"the closest is {near[0].spec}: {near[0].reasons[0]}"
            if near
            else "`compile draft` writes a first version of a new one"
        )
        refuse(str(path), "no spec fits", "no-fitting-spec", hint)
    return good[0]


def named_program(spec: str, request: Request, on_note: Listener = ignore_note) -> Program:
    """The program of a spec by path or name; for `auto` that of the shipped spec that fits the source. Raises Refusal."""
    if spec != "auto":
        return load_program(spec)
    if request.reverse:
        refuse("auto", "--reverse needs the name of a spec", "wrong-usage", "auto recognizes sources only")
    programs = known_specs()
    fit = unique(detect(request, programs), request.source[0])
    on_note(ChosenSpec(fit.spec, fit.summary))
    return next(program for program in programs if program.spec.path == fit.path)


def _file_names(path: Path) -> Iterable[str]:
    """The name of a file or folder, and the names of the folder's files."""
    yield path.name
    if os.path.isdir(path):
        yield from (str(file.relative_to(path)) for file in islice(path.rglob("*"), _MOST_FILES))


def _fit(program: Program, request: Request, names: Sequence[str], checkpoint: Checkpoint | Refusal) -> Fit:
    spec = program.spec

    def fit(status: str, share: float, reasons: Iterable[str] = (), asks: Iterable[str] = ()) -> Fit:
        container = any(fnmatch(name, spec.weights) for name in names)
        return Fit(spec.name.value, spec.summary, spec.path, status, share, container, tuple(asks), tuple(reasons))

    if isinstance(checkpoint, Refusal):
        return fit("no", 0.0, [d.message for d in checkpoint.diagnostics])
    share, reasons = _names(program, checkpoint.tensors)
    if share < NEAR or (program.keep_all and not _has_names_of_facts(program, checkpoint.tensors)):
        return fit("no", share, reasons)
    problems = _problems(program, request, checkpoint)
    if not problems:
        return fit("fits", share)
    asks = [d.message.partition(" ")[0] for d in problems if d.kind == "missing-argument"]
    if len(asks) == len(problems) and not reasons:
        return fit("asks", share, asks=asks)
    others = [d.message for d in problems if d.kind not in ("missing-argument", "unclaimed-tensor", "missing-tensor")]
    return fit("near", share, list(dict.fromkeys([*reasons, *others])) or [d.message for d in problems], asks)


def _problems(program: Program, request: Request, checkpoint: Checkpoint) -> tuple[Diagnostic, ...]:
    """Why the program does not bind to this checkpoint; nothing if it does."""
    known = {*program.spec.arguments, *program.spec.facts}
    request = replace(request, assigned={name: value for name, value in request.assigned.items() if name in known})
    try:
        bind_source(program, request, checkpoint)
    except Refusal as refusal:
        return refusal.diagnostics
    return ()


def _names(program: Program, tensors: Mapping[str, Tensor | Joined]) -> tuple[float, list[str]]:
    """The share of names that a rule reads and of unguarded patterns that match a name; what does not match."""
    # The first two layers or experts represent all.
    few = list(
        islice((name for name in tensors if all(len(n) < 9 and int(n) < 2 for n in _NUMBER.findall(name))), _MOST_NAMES)
    )
    needed = [p for rule in program.rules if not rule.when for p in rule.sources]
    others = [p for rule in program.rules if rule.when for p in rule.sources]
    guarded = program.spec.indices.keys()  # their numbers may start anywhere
    others += [tie.alias for tie in program.ties] + [p for p, _ in program.ignored if not p.holes.keys() & guarded]
    unread = [n for n in few if not any(p.match(n) is not None for p in (*needed, *others))]
    many = {p: tensors if p.holes.keys() & guarded else few for p in needed}
    absent = [str(p) for p, names in many.items() if not any(p.match(n) is not None for n in names)]
    if program.keep_all:
        return 1.0, []
    reasons = [f"the checkpoint lacks {listed(absent, 4)}"] if absent else []
    reasons += [f"no rule reads {listed(unread, 4)}"] if unread else []
    total = len(few) + len(needed)
    return (1 - (len(unread) + len(absent)) / total if total else 0.0), reasons


def _has_names_of_facts(program: Program, tensors: Mapping[str, Tensor | Joined]) -> bool:
    """Whether the checkpoint has the names that the facts read; a spec with `keep: all` knows no others."""
    facts = program.spec.facts.values()
    plain = [fact for fact in facts if " if " not in fact.text]
    asked = [(function, text) for fact in plain for function, text, _ in fact.asked if function != "exists"]
    shapes = NamedShapes(tensors)
    return bool(asked) and all(shapes.exists(text) for _, text in asked)
