"""Finds out what catches a mistake in a spec: the proof, a run, a recorded case, or nothing.

A mistaken spec is compiled, then run on every source that the right spec converts: one made up for each of its
examples, and the recorded cases. What it writes is compared with what the right spec writes. Where the two differ on a
case, the case's tensors, config or logits, which other people's code made, must tell them apart.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from campaign.counterexamples import Counterexample, against_field, against_requirement
from campaign.mistakes import Known, Mistake
from support.config_fields import fields_of, unheard, wrong_defaults
from support.controls import accepted, recorded
from support.oracle_cases import Case, cases, digests, understood
from support.parity import difference, inputs_of
from support.synthetic import Synthetic, request_of, synthetic

from compiler.diagnostics import Refusal
from compiler.jobs.compile import build
from compiler.jobs.convert import convert
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.plan.notes import UnreadFields
from compiler.program.loading import load_program
from compiler.program.program import Program
from compiler.proof.example_sizes import BoundExample, size_names

# In the order in which they are asked: `compile` and `run` reject it; a recorded case has other `tensors`, another `config`
# or other `logits`; it contradicts the recorded `fields` and `defaults` of the trainer's config class, or accepts one of the
# recorded `controls`; `compile` warns. `no effect`: every source gives a folder that means the same.
CAUGHT = ("compile", "run", "tensors", "config", "logits", "fields", "defaults", "controls", "warning")
MISSED = ("no effect", "no counterexample", "survived")


@dataclass(frozen=True)
class Verdict:
    by: str
    reason: str = ""


@dataclass(frozen=True)
class Source:
    """`case`: the recorded case that it belongs to; None for a made-up source."""

    name: str
    request: Request
    case: Case | None = None


class Judge:
    """Judges the mistakes of one spec. Answers of classes are cached below `place`, where everything is written."""

    def __init__(self, spec: Path, place: Path) -> None:
        self.spec, self.place = spec, place
        self.program = load_program(str(spec))
        self.made: list[Synthetic] = []
        self.runs = 0

    @cached_property
    def sources(self) -> list[Source]:
        found = []
        for n in range(len(self.program.spec.examples)):
            made = synthetic(self.program, n, finite=True)
            self.made.append(made)
            folder = self.place / f"{self.spec.stem}_{n}"
            folder.mkdir()
            found.append(Source(f"example {n}", request_of(made, folder, self.program)))
        found += [Source(c.name, c.request, c) for c in cases() if self.spec.stem in (c.spec, *c.said.get("also", ()))]
        return found

    @cached_property
    def right(self) -> dict[str, Any]:
        """What the right spec makes of each source."""
        return {source.name: self._written(self.program, source)[1] for source in self.sources}

    @cached_property
    def known(self) -> Known:
        from compiler.target import signature_cache

        shapes: dict[str, list[Any]] = {}
        bound = []
        for source in self.sources:
            if source.case is None:
                prepared = prepare(self.program, source.request)
                found: dict[str, set[tuple[int, ...]]] = {}
                for group in prepared.plan.groups:
                    for pattern, slot in zip(group.rule.targets, group.targets.slots, strict=False):
                        found.setdefault(pattern.text, set()).update(target.shape for target in slot.values())
                for rule in (*self.program.rules, *self.program.created):
                    for pattern in rule.targets:
                        shapes.setdefault(pattern.text, []).append(sorted(found.get(pattern.text, ())) or None)
                bound.append(BoundExample({}, prepared.plan.values, {}, prepared.plan))
        model = self.program.spec.target.model
        fields = signature_cache.config_schema(model.value).declared if model else tuple(self.program.spec.fields)
        values = {name for one in bound for name in one.values}
        complete = [one for one in bound if values == one.values.keys()]
        sizes = size_names(self.program, complete) if complete and values >= {*self.program.spec.facts} else []
        return Known(shapes, sizes or [*self.program.spec.facts], fields)

    def judge(self, mistake: Mistake) -> Verdict:
        """What catches a mistake, and how."""
        path = self.place / f"{self.spec.stem}.yaml"
        path.write_text(mistake.text, encoding="utf-8")
        warned: list[str] = []
        try:
            build(str(path), prove=True, warn=lambda d: warned.append(d.kind))
        except Refusal as refusal:
            return Verdict("compile", refusal.diagnostics[0].kind)
        program = load_program(str(path))
        if mistake.kind in ("fixed field dropped", "requirement dropped"):
            verdict = self._check_dropped(program, mistake)
        else:
            verdict = self._compared(program)
        if verdict.by not in CAUGHT and {*wrong_defaults(program)} - {*wrong_defaults(self.program)}:
            return Verdict("defaults")
        if verdict.by not in CAUGHT and self._accepts_a_control(program):
            return Verdict("controls", verdict.reason)
        if verdict.by not in CAUGHT and warned:
            return Verdict("warning", ", ".join(sorted({*warned})))
        return verdict

    def _accepts_a_control(self, program: Program) -> bool:
        assert self.sources
        try:
            return bool(accepted(program, self.made, recorded().get(self.spec.stem, ())))
        except Refusal:
            return True  # the test of the controls fails

    def _written(self, program: Program, source: Source) -> tuple[Path, Any]:
        """A new folder with what a program makes of a source, and its image. Raises Refusal."""
        self.runs += 1
        out = self.place / f"out_{self.spec.stem}_{self.runs}"
        convert(program, source.request, out)
        return out, (digests(out), self._meaning(out))

    def _meaning(self, out: Path) -> Any:
        path = out / "config.json"
        return json.loads(path.read_text()) if self.program.spec.target.model is None else understood(path)

    def _compared(self, program: Program) -> Verdict:
        right, differing = self.right, []
        try:
            for source in self.sources:
                out, image = self._written(program, source)
                if image != right[source.name]:
                    differing.append((source, out))
                else:
                    shutil.rmtree(out)
        except Refusal as refusal:
            return Verdict("run", f"{source.name}: {refusal.diagnostics[0].kind}")
        except Exception as error:  # what a run must not end in: shown as a survivor
            return Verdict("survived", f"{source.name}: {error!r}")
        finally:
            verdict = next((v for s, out in differing if s.case and (v := self._by_case(s.case, out))), None)
            for _, out in differing:
                shutil.rmtree(out, ignore_errors=True)
        if verdict:
            return verdict
        if not differing:
            return Verdict("no effect")
        return Verdict("survived", ", ".join(source.name for source, _ in differing))

    def _by_case(self, case: Case, out: Path) -> Verdict | None:
        """What of a recorded case tells a folder from the right one."""
        if self.spec.stem == case.spec:
            if case.manifest and digests(out) != case.manifest:
                return Verdict("tensors", case.name)
            expected = case.folder / "expected/config.json"
            if expected.is_file():
                got, wanted = understood(out / "config.json"), understood(expected)
                apart = {n for n in got.keys() | wanted.keys() if got.get(n) != wanted.get(n)}
                if apart != case.said.get("config_differs", {}).keys():
                    return Verdict("config", case.name)
        if case.golden and (far := _logits_apart(case, out, self.program)):
            return Verdict("logits", f"{case.name}: {far}")
        return None

    # -----------------------------------------------------------------------------------------------------------------

    def counterexample(self, mistake: Mistake) -> Counterexample | None:
        """A source that only the check which a mistake drops rejects."""
        source = self.sources[0]
        if mistake.kind == "fixed field dropped":
            return against_field(self.program, source, self.made[0], mistake.subject, self.place)
        return against_requirement(self.program, self.made, mistake.subject, self.place)

    def _check_dropped(self, program: Program, mistake: Mistake) -> Verdict:
        """A check that is gone: is what it rejects still rejected?"""
        found = self.counterexample(mistake)
        verdict = self._refused(program, found) if found else Verdict("no counterexample")
        fields = fields_of(self.spec.stem)
        if verdict.by not in CAUGHT and fields and mistake.subject in unheard(program, fields):
            return Verdict("fields")
        return verdict

    def _refused(self, program: Program, found: Counterexample) -> Verdict:
        notes: list[Any] = []
        if found.also:
            return Verdict("run", f"{found.what}: another requirement")
        self.runs += 1
        out = self.place / f"out_{self.spec.stem}_{self.runs}"
        try:
            convert(program, found.request, out, notes.append)
        except Refusal as refusal:
            return Verdict("run", f"{found.what}: {refusal.diagnostics[0].kind}")
        except Exception as error:
            return Verdict("survived", f"{found.what}: {error!r}")
        finally:
            shutil.rmtree(out, ignore_errors=True)
        noted = any(isinstance(note, UnreadFields) for note in notes)
        return Verdict("survived", found.what + (", with a note" if noted else ""))


def _logits_apart(case: Case, out: Path, program: Program) -> str:
    """How the logits of a folder differ from the golden ones; "" where they do not."""
    import torch
    import transformers

    assert case.golden
    loader = getattr(transformers, case.said.get("model_class", "AutoModelForCausalLM"))
    trust = {"trust_remote_code": True} if program.spec.target.model is None else {}
    torch.set_num_threads(1)
    try:
        model = loader.from_pretrained(
            out, dtype=torch.float32, attn_implementation="eager", local_files_only=True, **trust
        )
        with torch.no_grad():
            made = model.eval()(**inputs_of(case.golden))
    except Exception as error:
        return type(error).__name__
    apart = difference((made.logits_per_image if "logits_per_image" in made else made.logits).float(), case.golden)
    return f"{apart:.2g}" if apart > case.said["tolerance"] else ""


def private_cache(place: Path) -> None:
    """Let this process cache the answers of classes, and copied code, in a folder of its own."""
    os.environ |= {"MAPSPEC_CACHE": str(place / "cache"), "HF_MODULES_CACHE": str(place / "modules")}
    os.environ |= {"HF_HUB_OFFLINE": "1"}


def counts(verdicts: Mapping[str, int]) -> str:
    return ", ".join(f"{by} {verdicts[by]}" for by in (*CAUGHT, *MISSED) if verdicts.get(by))
