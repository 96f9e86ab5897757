"""Finds the specs that fit a checkpoint by its tensor names, shapes and container.

`detect` takes a request and the programs to try; it returns one `Fit` for each, best first. A spec `fits` if it binds as
in a run. Its status is `asks` if only arguments are missing, and `near` if most names match. `unique` picks the one that
fits; it rejects a checkpoint that no spec fits, or several.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from typing import Any

from compiler.checkpoints import config_file
from compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint
from compiler.checkpoints.formats.stored_tensor import AnyTensor
from compiler.diagnostics import Diagnostic, Refusal, listed, refuse
from compiler.jobs import identity
from compiler.jobs.model_evidence import Comparison, compare_evidence, read_evidence
from compiler.jobs.prepare import bind_source
from compiler.jobs.request import Request
from compiler.language.spec import in_parts
from compiler.plan.notes import ChosenSpec, Listener, ignore_note
from compiler.program.environment import NamedShapes
from compiler.program.loading import load_program
from compiler.program.named_sources import MARK
from compiler.program.program import Program
from compiler.resources import folder
from compiler.source.source_files import Opened, open_source
from compiler.tensor_names import NUMBER

ORDER = ("fits", "asks", "near", "no")
NEAR = 0.6  # of the names and patterns
_MOST_FILES = 10_000  # of a folder whose names are read
_MOST_NAMES = 2000  # that are matched; two layers of a model have some hundred
_CERTAIN = (9, 0, 0)  # the evidence of a config that names the class; other specs have at most one for their config


@dataclass(frozen=True)
class Fit:
    """How one spec fits. `share`: of names and patterns that match each other, 0 to 1; `asks`: arguments that it needs;
    `reasons`: why it does not fit; `container`: whether a file name matches `source.weights`. `evidence` ranks specs that
    fit equally well: by the model types of a config, the config fields that the spec knows, and file names. `doubt`: the
    model types that file names mention, if they are not the spec's. `standard`: whether the target is a class of
    Transformers, not one with code of its own."""

    spec: str
    summary: str
    path: str
    status: str
    share: float
    container: bool
    asks: tuple[str, ...]
    reasons: tuple[str, ...]
    evidence: tuple[int, ...] = ()
    doubt: str = ""
    standard: bool = True

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
    fits: list[Fit] = []
    evidence = None
    for program in programs:
        key = (
            program.spec.weights if program.merged or not program.spec.weights.startswith("*") else "",
            program.merged,
            program.spec.nested,
            program.spec.path if program.spec.sources or request.names else "",
        )
        if key not in opened:
            try:
                opened[key] = open_source(program, request.source, request.weights, files, request.names)
            except Refusal as refusal:
                opened[key] = Refusal(refusal.diagnostics)  # without its cause
        checkpoint = opened[key]
        if program.spec.sources and not request.names:
            held = next((one for one in opened.values() if isinstance(one, Checkpoint)), None) or _alone(request)
            fits.append(_part(program, held.tensors) if held else _fit(program, request, names, checkpoint))
            continue
        if evidence is None and isinstance(checkpoint, Checkpoint) and not request.names:
            evidence = read_evidence(request.source, checkpoint.objects, request.config)
        fit = _fit(program, request, names, checkpoint)
        fits.append(
            _with_evidence(fit, compare_evidence(program, evidence)) if evidence and fit.status != "no" else fit
        )
    if opened and all(isinstance(one, Refusal) for one in opened.values()):
        raise next(one for one in opened.values() if isinstance(one, Refusal))
    if not request.reverse and not request.names and (named := identity.named_class(request)):
        fits.append(_identity_fit(request, named))
    return sorted(fits, key=_order)


def _identity_fit(request: Request, named: identity.NamedClass) -> Fit:
    """How the names fit the class that the config with the source names. Before all specs where they do: the config says
    which model it is, and nothing has to be guessed."""
    summary = f"{identity.SUMMARY}, {named.name}"
    fit = Fit(identity.NAME, summary, identity.NAME, "fits", 1.0, True, (), (), _CERTAIN)
    request = replace(request, assigned={})
    try:
        program = identity.identity_program(request, named)
        bind_source(program, request, open_source(program, request.source, request.weights))
    except Refusal as refusal:
        reasons = tuple(d.message for d in refusal.diagnostics)
        return replace(fit, status="near", share=0.0, reasons=reasons, evidence=(0, 0, 0))
    return fit


def _order(fit: Fit) -> tuple[object, ...]:
    config, files = fit.evidence[:2], fit.evidence[2:]
    return (
        ORDER.index(fit.status),
        -fit.share,
        [-n for n in config],
        not fit.container,
        [-n for n in files],
        not fit.standard,
        fit.spec,
    )


def unique(fits: Sequence[Fit], path: Path, ask: Callable[[str], str] | None = None) -> Fit:
    """The one that fits. Of several, the one with the most evidence in config and file names, then a target class of
    Transformers; `ask` lets a person choose between equals. Raises Refusal: `ambiguous-spec`, `no-fitting-spec`."""
    good = [fit for fit in fits if fit.status == "fits"] or [fit for fit in fits if fit.status == "asks"]
    best = [fit for fit in good if fit.evidence == max(one.evidence for one in good)]
    if len(best) > 1 and len({fit.container for fit in best}) > 1:
        best = [fit for fit in best if fit.container]
    if len(best) > 1 and len({fit.standard for fit in best}) > 1:
        best = [fit for fit in best if fit.standard]
    if len(best) > 1:
        if ask is not None:
            return _asked(best, ask)
        names = listed((fit.spec for fit in best), 12)
        hint = f"name one of them instead of auto: mapspec run {best[0].spec} {path} OUT"
        refuse(str(path), f"{len(best)} specs fit: {names}", "ambiguous-spec", hint)
    if best and best[0].doubt:
        message = f"{best[0].spec} fits, but the file names mention {best[0].doubt}"
        hint = f"to use it: mapspec run {best[0].spec} {path} OUT; else `mapspec draft` writes a new spec"
        refuse(str(path), message, "ambiguous-spec", hint)
    if not good:
        near = [fit for fit in fits if fit.status == "near"]
        hint = (
            f"the closest is {near[0].spec}: {near[0].reasons[0]}"
            if near
            else "`mapspec draft` writes a first version of a new one"
        )
        refuse(str(path), "no spec fits", "no-fitting-spec", hint)
    return best[0]


def _asked(fits: Sequence[Fit], ask: Callable[[str], str]) -> Fit:
    """The spec that a person chooses by its number or name."""
    lines = [f"  {n}  {fit.spec}: {fit.summary}" for n, fit in enumerate(fits, 1)]
    while True:
        answer = ask("\n".join(["several specs fit:", *lines, "which one? "])).strip()
        for n, fit in enumerate(fits, 1):
            if answer in (str(n), fit.spec):
                return fit


def _with_evidence(fit: Fit, comparison: Comparison) -> Fit:
    """The fit with the evidence of config and file names. A spec that a config contradicts does not fit."""
    fit = replace(fit, evidence=comparison.rank, doubt=comparison.doubt)
    if not comparison.contradiction or fit.status not in ("fits", "asks"):
        return fit
    return replace(
        fit, status="near", reasons=(f"this is another model, according to {comparison.contradiction}", *fit.reasons)
    )


def named_program(
    spec: str, request: Request, on_note: Listener = ignore_note, ask: Callable[[str], str] | None = None
) -> Program:
    """The program of a spec by path or name; for `auto` that of the shipped spec that fits the source. Raises Refusal."""
    if spec == identity.NAME:
        return identity.identity_program(request)
    if spec != "auto":
        return load_program(spec)
    if request.reverse:
        refuse(
            "auto",
            "--reverse needs the name of a spec",
            "wrong-usage",
            "mapspec.json in the folder names the spec that wrote it",
        )
    programs = known_specs()
    fit = unique(detect(request, programs), request.source[0], ask)
    on_note(ChosenSpec(fit.spec, fit.summary))
    if fit.spec == identity.NAME:
        return identity.identity_program(request)
    return next(program for program in programs if program.spec.path == fit.path)


def _file_names(path: Path) -> Iterable[str]:
    """The name of a file or folder, and the names of the folder's files."""
    yield path.name
    if os.path.isdir(path):
        yield from (str(file.relative_to(path)) for file in islice(path.rglob("*"), _MOST_FILES))


def _fit(program: Program, request: Request, names: Sequence[str], checkpoint: Checkpoint | Refusal) -> Fit:
    spec = program.spec

    def fit(status: str, share: float, reasons: Iterable[str] = (), asks: Iterable[str] = ()) -> Fit:
        globs = [spec.weights, *([f"*/{spec.weights}"] if in_parts(spec.weights) else ())]  # of the folder of a step
        globs = [source.weights for source in spec.sources] or globs
        container = any(fnmatch(name, glob) for name in names for glob in globs)
        standard = spec.target.model is not None
        return Fit(
            spec.name.value,
            spec.summary,
            spec.path,
            status,
            share,
            container,
            tuple(asks),
            tuple(reasons),
            standard=standard,
        )

    if isinstance(checkpoint, Refusal):
        return fit("no", 0.0, [d.message for d in checkpoint.diagnostics])
    share, reasons = _names(program, checkpoint.tensors)
    if share < NEAR:
        return fit("no", share, reasons)
    problems = _problems(program, request, checkpoint)
    if not problems:
        return fit("fits", share)
    asks = [d.subject for d in problems if d.kind == "missing-argument"]
    if len(asks) == len(problems) and not reasons:
        return fit("asks", share, asks=asks)
    others = [d.message for d in problems if d.kind not in ("missing-argument", "unclaimed-tensor", "missing-tensor")]
    return fit("near", share, list(dict.fromkeys([*reasons, *others])) or [d.message for d in problems], asks)


def _alone(request: Request) -> Checkpoint | None:
    """The checkpoint as no spec reads it; None if it cannot be opened."""
    with suppress(Refusal):
        return open_checkpoint(request.source, request.weights)
    return None


def _part(program: Program, tensors: Mapping[str, AnyTensor]) -> Fit:
    """How a checkpoint fits one of the several sources of a spec: near at best, since the others are missing."""
    few = [*islice(tensors, _MOST_NAMES)]
    shares: dict[str, float] = {}
    for source in program.spec.sources:
        start = f"{source.name}{MARK}"
        needed = [p for rule in program.rules if not rule.when for p in rule.sources if p.text.startswith(start)]
        others = [p for rule in program.rules if rule.when for p in rule.sources]
        others += [*(tie.alias for tie in program.ties), *(pattern for pattern, _ in program.ignored)]
        named = [start + name for name in few]
        read = sum(any(pattern.match(name) is not None for pattern in (*needed, *others)) for name in named)
        there = sum(any(pattern.match(name) is not None for name in named) for pattern in needed)
        shares[source.name.value] = (read + there) / (len(named) + len(needed)) if named else 0.0
    best = max(shares, key=shares.__getitem__)
    reason = (
        f"it is the source {best} of several: write {program.spec.source_words}"
        if shares[best] >= NEAR
        else "it is none of its sources"
    )
    status, spec = "near" if shares[best] >= NEAR else "no", program.spec
    return Fit(spec.name.value, spec.summary, spec.path, status, shares[best], True, (), (reason,))


def _problems(program: Program, request: Request, checkpoint: Checkpoint) -> tuple[Diagnostic, ...]:
    """Why the program does not bind to this checkpoint; nothing if it does."""
    known = {*program.spec.arguments, *program.spec.facts}
    request = replace(request, assigned={name: value for name, value in request.assigned.items() if name in known})
    try:
        bind_source(program, request, checkpoint)
    except Refusal as refusal:
        return refusal.diagnostics
    return ()


def _names(program: Program, tensors: Mapping[str, AnyTensor]) -> tuple[float, list[str]]:
    """The share of names that a rule reads and of unguarded patterns that match a name, 0 to 1; and the names and
    patterns without a match, as reasons."""
    # The first two layers or experts, and those that the spec writes as numbers, represent all of them.
    needed = [p for rule in program.rules if not rule.when for p in rule.sources]
    written = {number for p in needed for number in re.findall(r"\d+", p.text)} | {"0", "1"}
    some = (name for name in tensors if all(number in written for number in NUMBER.findall(name)))
    few = list(islice(some, _MOST_NAMES))
    others = [p for rule in program.rules if rule.when for p in rule.sources]
    guarded = program.spec.indices.keys()  # their numbers may start anywhere
    others += [tie.alias for tie in program.ties] + [p for p, _ in program.ignored if not p.holes.keys() & guarded]
    unread = [n for n in few if not any(p.match(n) is not None for p in (*needed, *others))]
    many = {p: tensors if p.holes.keys() & guarded else few for p in needed}
    absent = [str(p) for p, names in many.items() if not any(p.match(n) is not None for n in names)]
    if program.keep_all:
        return (
            (1.0, [])
            if _has_names_of_facts(program, tensors)
            else (0.0, ["the checkpoint does not have the tensors that the spec measures"])
        )
    reasons = [f"the checkpoint does not have {listed(absent, 4)}"] if absent else []
    reasons += [f"no rule reads {listed(unread, 4)}"] if unread else []
    total = len(few) + len(needed)
    return (1 - (len(unread) + len(absent)) / total if total else 0.0), reasons


def _has_names_of_facts(program: Program, tensors: Mapping[str, AnyTensor]) -> bool:
    """Whether the checkpoint has the names that the facts measure. A spec with `keep: all` has no other patterns."""
    facts = program.spec.facts.values()
    plain = [fact for fact in facts if " if " not in fact.text]
    asked = [(function, text) for fact in plain for function, text, _ in fact.asked if function != "exists"]
    shapes = NamedShapes(tensors)
    return bool(asked) and all(shapes.exists(text) for _, text in asked)
