"""Compares a converted folder with what its source gives: config.json field by field, and the weights by running the derived
inverse, tensor by tensor.

Equality shows that no tensor was lost, exchanged or damaged. It does not show that the spec understands the two layouts
correctly, because the inverse is derived from the same spec. Raises Refusal where a rule has no inverse.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compiler import packages
from compiler.checkpoints.checkpoint import Checkpoint
from compiler.checkpoints.config_file import read_config_file
from compiler.diagnostics import Diagnostic, Refusal, Report, Span, listed, refuse
from compiler.executor.apply_rule import applied, loaded
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.model_folder.card import recorded_settings
from compiler.plan.plan import Plan
from compiler.program.environment import Given, Origin
from compiler.program.program import Program, Rule
from compiler.progress import COMPARING, Progress, Tick, no_tick
from compiler.settings import arguments
from compiler.target import config_dialects
from compiler.target.config_meaning import HARMLESS

ROUNDINGS = 4  # largest error of arithmetic and its inverse, in units in the last place


@dataclass(frozen=True)
class Difference:
    """A source tensor that the inverse does not reproduce, the rule that reads it, and how it differs."""

    name: str
    rule: Rule
    text: str


@dataclass(frozen=True)
class RoundTrip:
    """How many source tensors are `equal` bit for bit, how many only up to the rounding of a narrower dtype or of
    arithmetic (`rounded`), and the `differences`."""

    equal: int
    rounded: int
    differences: tuple[Difference, ...]


def round_trip(program: Program, request: Request, out: Path, progress: Progress | None = None) -> RoundTrip:
    """Compare config.json with what the source gives; convert the folder `out` back and compare every tensor with the
    source. Raises Refusal."""
    packages.need("the comparison of tensors", "torch")
    prepared = prepare(program, recorded(program, request, out))
    plan, checkpoint = prepared.plan, prepared.checkpoint
    check_config(plan, out)
    report = Report()
    for rule in dict.fromkeys(group.rule for group in plan.groups if group.rule.loss):
        report.add(rule.span, f"the rule {rule.name or rule.kind} has no inverse: {rule.loss}", "irreversible-rule")
    report.settle()
    # What config.json does not carry, such as the version of the source's layout, is that of the source.
    carried = {field.carried for field in program.spec.config}
    values = {name: value for name, value in plan.values.items() if name not in carried}
    reverse_request = replace(request, source=[out], names=(), config=None, reverse=True, dtype=None, assigned=values)
    back = prepare(program, reverse_request)
    tick = (progress or Progress()).begin(COMPARING, sum(target.nbytes for target in back.plan.targets))
    return compare_weights(plan, checkpoint, back.plan, back.checkpoint, tick)


def check_config(plan: Plan, out: Path) -> None:
    """Compare the config.json of `out` with the fields that `plan` writes, but for those that change no function. Raises
    Refusal: `config-mismatch`."""
    path = out / "config.json"
    fields = config_dialects.read_config(read_config_file(path))
    flat = config_dialects.read_config(plan.config)
    written = {name: value for name, value in flat.items() if name not in HARMLESS and name != "dtype"}
    stated = {n: Given(fields[n], str(path), Origin.CONFIG_FILE) for n in written if n in fields}
    wrong = arguments.contradictions(plan.program, stated, written)
    wrong += [
        Diagnostic(Span(str(path)), f"it has no {name}, and the conversion writes {value!r}", "config-mismatch")
        for name, value in written.items()
        if name not in fields and value is not None
    ]
    if wrong:
        raise Refusal(wrong)


def check_names(plan: Plan, converted: Checkpoint) -> None:
    """Refuse a folder with tensors that `plan` does not write: no model reads them. Raises Refusal: `unclaimed-tensor`."""
    written = {target.name for target in plan.targets}
    if strange := [name for name in converted.tensors if name not in written]:
        message = f"it has tensors that the conversion does not write: {listed(strange)}"
        refuse(str(converted.path), message, "unclaimed-tensor", "convert the source again")


def recorded(program: Program, request: Request, out: Path) -> Request:
    """The request with the arguments of the conversion that wrote `out`, from its mapspec.json; those of the request
    take precedence."""
    settings = recorded_settings(out, program)
    known = {name: value for name, value in settings.items() if name in program.spec.arguments}
    return replace(request, assigned={**known, **request.assigned})


def compare_weights(
    plan: Plan, checkpoint: Checkpoint, reverse: Plan, converted: Checkpoint, tick: Tick = no_tick
) -> RoundTrip:
    """Compare what `reverse` makes of the `converted` folder with the `checkpoint` that `plan` reads."""
    equal = rounded = 0
    differences: list[Difference] = []
    readers = {name: group.rule for group in plan.groups for name in group.source_names}
    restored: set[str] = set()
    for group in reverse.groups:
        for name, tensor in applied(group, lambda n: loaded(converted.tensors[n])).items():
            if name not in readers:  # an alias, which was already compared with its owner in the source
                continue
            restored.add(name)
            text = _difference(tensor, loaded(checkpoint.tensors[name]))
            if text:
                differences.append(Difference(name, readers[name], text))
            elif text is None:
                equal += 1
            else:
                rounded += 1
        tick(sum(target.nbytes for target in group.target_list))
    lost = [Difference(name, rule, "is not restored") for name, rule in readers.items() if name not in restored]
    return RoundTrip(equal, rounded, (*differences, *lost))


def _difference(restored: Any, source: Any) -> str | None:
    """None if the bits are equal, "" if they differ by rounding only, else a description of the difference."""
    import torch

    if restored.shape != source.shape:
        return f"is restored with shape {list(restored.shape)} instead of {list(source.shape)}"
    cast = source.to(restored.dtype)
    if torch.equal(_bytes(restored), _bytes(cast)):
        return None if restored.dtype == source.dtype else ""
    if restored.is_floating_point():
        step = ROUNDINGS * torch.finfo(restored.dtype).eps
        error = (restored.double() - cast.double()).abs()
        if bool((error <= step * cast.double().abs().clamp(min=1.0)).all()) and not bool(error.isnan().any()):
            return ""
    count = int((restored != cast).sum())
    return f"is restored with {count:,} of {cast.numel():,} elements changed"


def _bytes(tensor: Any) -> Any:
    """The bytes of a tensor of any shape, () included, in one dimension."""
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8)
