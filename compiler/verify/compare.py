"""Whether a converted folder computes what the source computes: the jobs of `compile verify`.

With a source model, both models run on the same tokens in float32, each in a process of its own, and their logits are
compared; where they differ, the first module that departs and the rule that wrote its weights are looked for. Without
one, the derived inverse of the folder is compared with the source, which shows that nothing was lost or mixed up, not
that the spec's idea of the two layouts is right. Raises Refusal.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compiler import process
from compiler.checkpoints import config_file
from compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint
from compiler.diagnostics import refuse
from compiler.dtypes import FLOATING
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.model_folder.sidecar_files import texts
from compiler.plan.plan import Plan
from compiler.program.program import Program, Rule
from compiler.resources import package_root
from compiler.verify.fault_finding import CLOSE, ModelSide, guilty, largest_difference, origins, suspects, trace
from compiler.verify.run_model import RESULTS, Job, Trial

BATCH = 2
# Memory of a process that runs a model, measured: the program itself, and bytes for each byte of the weights in float32
# that are held with what the modules gave, or, when a rule is looked for, beside values in the place of some.
PROGRAM, RUNNING, LOOKING = 500_000_000, 1.25, 3.25
Run = Callable[[Path, Job], Mapping[str, Any]]


@dataclass(frozen=True)
class SourceModel:
    """The model that the converted one is held to: the spec of path B that renders it, or `module:Class` and the file
    of its config (where that is not the one of the conversion). It runs on `length` tokens."""

    program: Program | None = None
    entry: str = ""
    config: Path | None = None
    length: int = 64

    def __str__(self) -> str:
        return self.entry if self.program is None else f"the model of the spec {self.program.spec.name}"


@dataclass(frozen=True)
class Verdict:
    """`difference`: the largest of the logits, whose largest is `scale`; `divergence`: the mean KL divergence in nats
    of the converted model's predictions from the source's; `argmax`: the share of positions with the same best token.
    Where they do not agree: the first `module` that departs and the `rules` found guilty, if one could be; `searched`:
    there was memory enough to look for one."""

    agrees: bool
    difference: float
    scale: float
    divergence: float
    argmax: float
    tokens: int
    module: str = ""
    departs: float = 0.0
    rules: tuple[Rule, ...] = ()
    searched: bool = True


def verify(program: Program, request: Request, out: Path, model: SourceModel) -> Verdict:
    """Hold the folder `out` to the source model. Raises Refusal where either cannot be run."""
    prepared = prepare(program, request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    return compare(plan, checkpoint, request, out, model)


def compare(
    plan: Plan, checkpoint: Checkpoint, request: Request, out: Path, model: SourceModel, run: Run | None = None
) -> Verdict:
    """The same for a plan at hand, by which `out` was written. `run` runs a job, else a fresh process does."""
    run = run or run_job
    held = open_folder(out)
    weights = 4 * max(_elements(checkpoint), _elements(held))
    if not _fits(weights, RUNNING):
        takes, free = _takes(weights, RUNNING), process.available() or 0
        message = f"to run it in float32 takes {takes / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
        hint = "without a source model the weights are compared, group by group; or use a larger machine"
        refuse(str(out), message, "too-little-memory", hint)
    with tempfile.TemporaryDirectory(prefix="mapspec_") as name:
        place = Path(name)
        ids = draw_tokens(plan, _config(out), model.length)
        common = Job(
            plan.program, tuple(request.source), plan, out, True, "", {}, frozenset(), {}, "", ids, request.weights
        )
        target = common
        source = source_job(common, plan, request, model, place, _rounding(held))
        first, second = (run(place / side, replace(job, trials=[Trial()])) for side, job in
                         (("source", source), ("target", target)))  # fmt: skip
        verdict = judged(first["logits.0"], second["logits.0"])
        if verdict.agrees:
            return verdict
        sides = [
            ModelSide(_seen(found, "output"), _seen(found, "input"), _origins(job, checkpoint))
            for found, job in ((first, source), (second, target))
        ]
        traced = trace(plan, *sides)
        if not _fits(weights, LOOKING):
            return replace(verdict, module=traced.module, departs=traced.largest, searched=False)
        asked = suspects(plan)
        runs = [run(place / side, replace(job, trials=[s.trial for s in asked])) for side, job in
                (("source", source), ("target", target))]  # fmt: skip
    found = [s for n, s in enumerate(asked) if _agrees_now(verdict, *(each[f"logits.{n}"] for each in runs))]
    return replace(verdict, module=traced.module, departs=traced.largest, rules=guilty(plan, traced, found))


def open_folder(out: Path) -> Checkpoint:
    """The weights of a converted folder. Raises Refusal."""
    if not (out / "config.json").is_file():
        refuse(str(out), "it is no converted folder: there is no config.json", "missing-config", "run the spec first")
    return open_checkpoint(out)


def _elements(checkpoint: Checkpoint) -> int:
    return sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())


def _fits(weights: int, times: float) -> bool:
    """Whether a process that holds so many bytes of weights so many times gets its memory."""
    free = process.available()
    return free is None or _takes(weights, times) <= free


def _takes(weights: int, times: float) -> float:
    return PROGRAM + weights * times


def _config(out: Path) -> Mapping[str, Any]:
    return config_file.read_config_file(out / "config.json")


def draw_tokens(plan: Plan, config: Mapping[str, Any], length: int) -> list[list[int]]:
    """Tokens that both models know, the same in every run."""
    import random

    sizes = [n for n in (config.get("vocab_size"), plan.values.get("vocab_size")) if isinstance(n, int) and n > 0]
    positions = [n for n in (config.get("max_position_embeddings"), config.get("n_positions")) if isinstance(n, int)]
    draw = random.Random(0)
    return [[draw.randrange(min(sizes)) for _ in range(min([length, *positions]))] for _ in range(BATCH)]


def _rounding(held: Checkpoint) -> str:
    """The floating type that most elements of the folder have: the source passes through it, too."""
    totals: dict[str, int] = {}
    for tensor in held.tensors.values():
        if tensor.dtype in FLOATING:
            totals[tensor.dtype] = totals.get(tensor.dtype, 0) + math.prod(tensor.shape)
    return max(totals, key=totals.__getitem__, default="float32")


def source_job(common: Job, plan: Plan, request: Request, model: SourceModel, place: Path, rounding: str) -> Job:
    """The job that runs the source model; the files that it takes are written below `place`. Raises Refusal."""
    job = replace(common, folder=None, written=False, rounding=rounding)
    if model.program is None:
        path = model.config or request.config or config_file.beside(request.source[0], plan.program.spec.source_config)
        config = dict(plan.values) | (config_file.read_config_file(path) if path else {}) | dict(request.assigned)
        ignored = frozenset(name for name, _ in plan.ignored)
        return replace(job, plan=None, entry=model.entry, config=config, ignored=ignored, aliases=dict(plan.ties))
    known = {*model.program.spec.arguments, *model.program.spec.facts}
    assigned = {name: value for name, value in request.assigned.items() if name in known}
    own = prepare(model.program, replace(request, assigned=assigned, dtype=None, checksums=False)).plan
    folder = place / "model"
    folder.mkdir()
    for name, text in texts(own).items():
        (folder / name).write_text(text, encoding="utf-8")
    return replace(job, program=model.program, plan=own, folder=folder)


def _origins(job: Job, checkpoint: Checkpoint) -> dict[str, frozenset[str]]:
    if job.plan is not None:
        return dict(origins(job.plan))
    tied = {*job.aliases}
    return {name: frozenset([name]) for name in checkpoint.tensors if name not in tied and name not in job.ignored}


def run_job(folder: Path, job: Job) -> Mapping[str, Any]:
    """Run a job in a fresh process. Raises Refusal with what the process said."""
    from safetensors import safe_open

    folder.mkdir(exist_ok=True)
    (folder / "job").write_bytes(pickle.dumps(job))
    here = str(package_root())
    # A cache of its own: else a folder's code could be that of an earlier folder of the same name.
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH")))),
        "HF_MODULES_CACHE": str(folder / "modules"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    command = [sys.executable, "-m", "compiler.verify.run_model", str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        name = job.entry or str(job.folder)
        refuse(name, f"the model cannot be run: {said[-1] if said else 'the process was killed'}", "unrunnable-model")
    with safe_open(str(folder / RESULTS), "pt") as file:
        found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        return found | {"modules": json.loads(file.metadata()["modules"])}


def _seen(found: Mapping[str, Any], what: str) -> dict[str, Any]:
    return {name: found[f"{what}.{n}"] for n, name in enumerate(found["modules"]) if f"{what}.{n}" in found}


# ---------------------------------------------------------------------------------------------------------------------
# Logits


def _common(a: Any, b: Any) -> tuple[Any, Any]:
    """The positions that both hold (some models return the last one only) and the words that both know."""
    length, words = min(a.shape[1], b.shape[1]), min(a.shape[2], b.shape[2])
    return a[:, -length:, :words].double(), b[:, -length:, :words].double()


def judged(source: Any, converted: Any) -> Verdict:
    """Two sets of logits, (batch, length, vocabulary), held against each other."""
    a, b = _common(source, converted)
    apart, scale = largest_difference(a, b), float(a.abs().max())
    p, q = a.log_softmax(-1), b.log_softmax(-1)
    divergence = float((p.exp() * (p - q)).sum(-1).mean())
    argmax = float((a.argmax(-1) == b.argmax(-1)).double().mean())
    return Verdict(apart <= CLOSE * max(1.0, scale), apart, scale, divergence, argmax, a.shape[0] * a.shape[1])


def _agrees_now(before: Verdict, source: Any, converted: Any) -> bool:
    """Whether a trial made the models agree that did not: also much better than before, where that was little."""
    a, b = _common(source, converted)
    apart = largest_difference(a, b)
    return apart <= CLOSE * max(1.0, float(a.abs().max())) and apart * 10 <= before.difference
