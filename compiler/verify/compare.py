"""Whether a converted folder computes what its source model computes, and if not, what is wrong.

Both models run on the same inputs in float32, each in a process of its own, and every output that both have is
compared. Where one differs, fields of config.json and row orders of projections are changed one by one; if none of
these explains the difference, the rule whose weights do is looked for. Raises Refusal.
"""

from __future__ import annotations

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

from compiler import packages, process
from compiler.checkpoints import config_file
from compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint
from compiler.diagnostics import listed, refuse
from compiler.dtypes import FLOATING
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.model_folder.sidecar_files import texts
from compiler.plan.plan import Plan
from compiler.program.environment import NamedShapes
from compiler.program.program import Program, Rule
from compiler.progress import COMPARING, Progress
from compiler.resources import package_root
from compiler.settings.arguments import OBJECTS
from compiler.verify import sequence_length
from compiler.verify.config_alternatives import FieldChange, alternatives
from compiler.verify.fault_finding import ModelSide, origins, rules_at_fault, suspects, trace
from compiler.verify.job import InputShape, Job, Results, Trial, load_results
from compiler.verify.model_inputs import BATCH
from compiler.verify.outputs import OutputDifference, compare_outputs, tolerance
from compiler.verify.rotary_rows import LayoutChange, layout_changes
from compiler.verify.round_trip import check_config, check_names, recorded
from compiler.verify.sequence_length import BASE, MARGIN

# Memory of a process that runs a model, measured: of the program itself, and in bytes per byte of the float32 weights
# while the model runs or, when a rule is looked for, while some weights are replaced.
PROGRAM, RUNNING, SEARCHING = 500_000_000, 1.25, 3.25
WATCHED = 512  # tokens up to which the output of every module is kept
Run = Callable[[Path, Job], Results]


@dataclass(frozen=True)
class SourceModel:
    """The model that the converted one is compared with: of a remote_code spec (`program`), or `entry`, MODULE:CLASS or
    FILE:FUNCTION, with the file of its config if that is not the conversion's. `length`: tokens to run, None to choose.
    """

    program: Program | None = None
    entry: str = ""
    config: Path | None = None
    length: int | None = None

    def __str__(self) -> str:
        return self.entry if self.program is None else f"the model of the spec {self.program.spec.name}"


@dataclass(frozen=True)
class Verdict:
    """`outputs`: every pair that was compared; `inputs`: name -> shape. `unseen`: what the inputs are too short to show,
    `unused`: tensors of the converted model that took no part. `narrow`: dtypes in which the source computes, so that
    the tolerance is theirs; `widened`: those that were replaced by float32.

    Where an output differs: the first `module` that `departs`, and what explains it, if anything does: a `field` of the
    config, a `layout` of rows, or `rules`, of which only one is at fault if `undecided`. `searched`: there was enough memory to look for a rule.
    """

    outputs: tuple[OutputDifference, ...]
    inputs: Mapping[str, tuple[int, ...]]
    unseen: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    narrow: tuple[str, ...] = ()
    widened: tuple[str, ...] = ()
    module: str = ""
    departs: float = 0.0
    field: FieldChange | None = None
    layout: LayoutChange | None = None
    rules: tuple[Rule, ...] = ()
    undecided: bool = False
    searched: bool = True

    @property
    def agrees(self) -> bool:
        return bool(self.outputs) and all(output.agrees for output in self.outputs)

    @property
    def worst(self) -> OutputDifference:
        """The output that differs most, relative to its values."""
        return max(self.outputs, key=lambda output: (not output.agrees, output.difference / (output.scale or 1.0)))

    @property
    def difference(self) -> float:
        """The largest difference of any output; infinite where none could be compared."""
        return max((output.difference for output in self.outputs), default=math.inf)

    @property
    def tokens(self) -> int:
        """How many tokens ran, 0 where the model takes none."""
        return next((math.prod(shape) for name, shape in self.inputs.items() if name.endswith("input_ids")), 0)


def verify(
    program: Program, request: Request, out: Path, model: SourceModel, progress: Progress | None = None
) -> Verdict:
    """Compare the folder `out`, converted from the source of `request`, with the source model. Raises Refusal."""
    packages.need("the comparison of two models")
    prepared = prepare(program, recorded(program, request, out))
    plan, checkpoint = prepared.plan, prepared.checkpoint
    verdict = compare(plan, checkpoint, request, out, model, progress=progress)
    if verdict.agrees:  # a difference that these inputs do not show
        check_config(plan, out)
        check_names(plan, open_folder(out))
    return verdict


def compare(
    plan: Plan,
    checkpoint: Checkpoint,
    request: Request,
    out: Path,
    model: SourceModel,
    run: Run | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """The same for a `plan` by which `out` was written. `run` runs a job; by default in a fresh process."""
    run = run or run_job
    converted = open_folder(out)
    weights = 4 * max(_elements(checkpoint), _elements(converted))
    if not _fits(weights, RUNNING):
        needed, free = PROGRAM + weights * RUNNING, process.available() or 0
        message = f"running it in float32 takes {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
        hint = "without a source model the weights are compared group by group; or use a larger machine"
        refuse(str(out), message, "too-little-memory", hint)
    config = config_file.read_config_file(out / "config.json")
    with tempfile.TemporaryDirectory(prefix="mapspec_") as name:
        place = Path(name)
        common = Job(plan.program, tuple(request.source), plan, weights=request.weights, trials=(Trial(),))
        common = replace(common, names=tuple(request.names))
        source = source_job(common, plan, checkpoint, request, model, place, _rounding(converted))
        others = (plan.values, source.config)
        length = _length(model.length, config, others, weights)
        target = replace(
            common,
            folder=out,
            written=True,
            shapes=input_shapes(plan, checkpoint),
            length=length,
            below=vocabulary(plan),
            watch=length * BATCH <= WATCHED,
        )
        tick = (progress or Progress()).begin(COMPARING, 2 * weights)  # each model is loaded and run once
        pair = _Pair(run, place, source, target)
        pair.run(lambda: tick(weights))
        verdict = replace(pair.verdict(), unseen=_unseen(config, others, pair.inputs))
        return verdict if verdict.agrees else _explained(verdict, pair, plan, checkpoint, config, weights)


class _Pair:
    """The two models and what they last returned for the same inputs."""

    def __init__(self, run: Run, place: Path, source: Job, target: Job) -> None:
        self.runner, self.place, self.source, self.target = run, place, source, target
        self.results: tuple[Results, Results] | None = None
        self.inputs: Mapping[str, Any] = {}

    def run(self, done: Callable[[], None] = lambda: None) -> None:
        """Run both: the target first, which draws inputs where there are none yet; again, if the source model ran on
        shorter ones. `done` is called after each of the two."""
        converted = self.runner(self.place / "target", self.target)
        done()
        source = self.runner(
            self.place / "source", replace(self.source, inputs=converted.inputs, watch=self.target.watch)
        )
        done()
        if _sizes(source.inputs) != _sizes(converted.inputs):
            self.target = replace(self.target, watch=True)
            converted = self.runner(self.place / "target", replace(self.target, inputs=source.inputs))
            source = self.runner(self.place / "source", replace(self.source, inputs=source.inputs, watch=True))
        self.results, self.inputs = (source, converted), source.inputs

    def shortened(self, length: int) -> bool:
        """Whether both differ on sequences of this length, too; if so, these are the inputs from now on."""
        before = self.results, self.inputs, self.target
        inputs = {name: tensor[..., :length].contiguous() for name, tensor in self.inputs.items()}
        self.target = replace(self.target, inputs=inputs, watch=length * BATCH <= WATCHED)
        self.run()
        if self.verdict().agrees:
            self.results, self.inputs, self.target = before
            return False
        return True

    def verdict(self) -> Verdict:
        assert self.results is not None
        source, converted = self.results
        outputs = compare_outputs(source.outputs[0], converted.outputs[0], tolerance(source.narrow))
        if not outputs:
            made = [listed(f"{n} {list(t.shape)}" for n, t in r.outputs[0].items()) or "nothing" for r in self.results]
            message = f"no output can be compared: the source model returns {made[0]}, the converted one {made[1]}"
            hint = "return a dict with the names of the converted model's outputs, for instance from FILE:FUNCTION"
            refuse(self.source.entry or "the source model", message, "incomparable-outputs", hint)
        return Verdict(outputs, _sizes(self.inputs), (), converted.unused, source.narrow, source.widened)

    def trials(self, trials: list[Trial], both: bool) -> list[tuple[OutputDifference, ...]]:
        """The outputs of each trial compared; without `both`, the converted model's with the unchanged source's."""
        assert self.results is not None
        # The first trial of a job is the one that must run.
        asked = (Trial(), *trials)
        target = replace(self.target, inputs=self.inputs, watch=False, trials=asked)
        converted = self.runner(self.place / "target", target).outputs[1:]
        source = [self.results[0].outputs[0]] * len(trials)
        if both:
            job = replace(self.source, inputs=self.inputs, watch=False, trials=asked)
            source = list(self.runner(self.place / "source", job).outputs[1:])
        close = tolerance(self.results[0].narrow)
        return [compare_outputs(a, b, close) for a, b in zip(source, converted, strict=True)]


def _explained(
    verdict: Verdict, pair: _Pair, plan: Plan, checkpoint: Checkpoint, config: Mapping[str, Any], weights: int
) -> Verdict:
    """The verdict with what explains the difference, if anything does."""
    first = max((o.first for o in verdict.outputs if o.first is not None), default=None)
    only_tokens = set(pair.inputs) == {"input_ids"}
    if only_tokens and first is not None and first + MARGIN < pair.inputs["input_ids"].shape[-1] > BASE:
        pair.shortened(max(BASE, first + MARGIN))
    assert pair.results is not None
    source, target = (
        ModelSide(results.modules, _in_memory(_origins(job, checkpoint), results.stored))
        for results, job in zip(pair.results, (pair.source, pair.target), strict=True)
    )
    traced = trace(plan, source, target, _writers(plan, pair.results[1].stored))
    verdict = replace(verdict, module=traced.module, departs=traced.difference)
    before = pair.verdict()
    fields = alternatives(config, {**pair.source.config, **plan.values})
    layouts = layout_changes(plan, config)
    if traced.alone and traced.matrix:  # no field and no order of rows changes what it multiplies
        fields, layouts = [], []
    trials = [Trial(config=change.config) for change in fields] + [Trial(rows=change.rows) for change in layouts]
    found = pair.trials(trials, both=False) if trials else []
    agreeing = [n for n, outputs in enumerate(found) if _agrees_now(before, outputs)]
    if agreeing:
        best = min(agreeing, key=lambda n: max(o.difference / (o.scale or 1.0) for o in found[n]))
        if best < len(fields):
            return replace(verdict, field=fields[best])
        change = layouts[best - len(fields)]
        return replace(verdict, layout=change, rules=change.rules)
    if not _fits(weights, SEARCHING):
        return replace(verdict, searched=False)
    asked = suspects(plan)
    tried = zip(asked, pair.trials([suspect.trial for suspect in asked], both=True), strict=True)
    right = [suspect for suspect, outputs in tried if _agrees_now(before, outputs)]
    rules, undecided = rules_at_fault(traced, right)
    return replace(verdict, rules=rules, undecided=undecided)


def _writers(plan: Plan, stored: Mapping[str, tuple[str, ...]]) -> dict[str, Rule]:
    """Each tensor of the converted model, by its name in the model, and the rule that writes it."""
    written = {target.name: group.rule for group in plan.groups for target in group.target_list}
    moved = {each: name for name, names in stored.items() for each in names}
    return {moved.get(name, name): rule for name, rule in written.items()}


def _agrees_now(before: Verdict, outputs: tuple[OutputDifference, ...]) -> bool:
    """Whether a trial made models agree that did not, and by a clear margin."""
    earlier = {output.name: output for output in before.outputs}
    if outputs and {output.name for output in outputs} != earlier.keys():
        return False
    return bool(outputs) and all(
        o.agrees and (earlier[o.name].agrees or o.difference * 10 <= earlier[o.name].difference) for o in outputs
    )


def open_folder(out: Path) -> Checkpoint:
    """The weights of a converted folder. Raises Refusal."""
    if not (out / "config.json").is_file():
        refuse(str(out), "not a converted folder: it has no config.json", "missing-config", "run the spec first")
    return open_checkpoint(out)


def _elements(checkpoint: Checkpoint) -> int:
    return sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())


def _fits(weights: int, times: float, more: float = 0.0) -> bool:
    """Whether memory is free for a process that holds so many bytes of weights so many times, and `more` bytes."""
    free = process.available()
    return free is None or PROGRAM + weights * times + more <= free


# ---------------------------------------------------------------------------------------------------------------------
# Inputs


def _length(asked: int | None, config: Mapping[str, Any], others: tuple[Mapping[str, Any], ...], weights: int) -> int:
    """How many tokens to run: as asked, or as the configs need and time and memory allow."""

    def affordable(length: int) -> bool:
        sizes = config.get("text_config") if isinstance(config.get("text_config"), Mapping) else config
        width, heads, layers, words = (
            next((n for key in keys if isinstance(n := (sizes or config).get(key), int)), default)
            for keys, default in (
                (("hidden_size", "n_embd", "d_model"), 4096),
                (("num_attention_heads", "n_head"), 32),
                (("num_hidden_layers", "n_layer"), 32),
                (("vocab_size",), 0),
            )
        )
        operations = BATCH * length * (weights / 2 + 4 * layers * length * width)
        scores = BATCH * length * (3 * heads * length + 3 * words + 16 * width) * 4
        return operations <= sequence_length.MOST_OPERATIONS and _fits(weights, RUNNING, scores)

    return sequence_length.choose_length(config, others, affordable, asked).tokens


def _unseen(
    config: Mapping[str, Any], others: tuple[Mapping[str, Any], ...], inputs: Mapping[str, Any]
) -> tuple[str, ...]:
    """What the sequences that ran are too short to show."""
    tokens = next((t.shape[-1] for name, t in inputs.items() if name.endswith("input_ids")), None)
    return () if tokens is None else sequence_length.unseen_features(config, others, tokens)


def input_shapes(plan: Plan, checkpoint: Checkpoint) -> tuple[InputShape, ...]:
    """The inputs that the spec's `verify` section names, with their sizes. Raises Refusal."""
    shapes = NamedShapes(checkpoint.tensors)
    found = []
    for given in plan.program.spec.verify_inputs:
        exprs = [*given.shape, *([given.below] if given.below else [])]
        numbers = [expr.evaluate(plan.values, shapes) for expr in exprs]
        for expr, value in zip(exprs, numbers, strict=True):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                refuse(expr.span, f"{expr.text} is {value!r}; a size is a whole number from 1 up", "wrong-size")
        below = numbers.pop() if given.below else vocabulary(plan) or 2
        found.append(InputShape(given.name.value, given.kind, tuple(numbers), below, given.source))
    return tuple(found)


def vocabulary(plan: Plan) -> int:
    """The number of tokens that both models know; 0 where the plan has none."""
    sizes = [n for n in (plan.config.get("vocab_size"), plan.values.get("vocab_size")) if isinstance(n, int) and n > 0]
    return min(sizes, default=0)


def _sizes(inputs: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in inputs.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Jobs


def _rounding(converted: Checkpoint) -> str:
    """The floating dtype of most elements of the folder; the source's weights are rounded to it, too."""
    totals: dict[str, int] = {}
    for tensor in converted.tensors.values():
        if tensor.dtype in FLOATING:
            totals[tensor.dtype] = totals.get(tensor.dtype, 0) + math.prod(tensor.shape)
    return max(totals, key=totals.__getitem__, default="float32")


def source_job(
    common: Job,
    plan: Plan,
    checkpoint: Checkpoint,
    request: Request,
    model: SourceModel,
    place: Path,
    rounding: str,
) -> Job:
    """The job that runs the source model; files that it needs are written below `place`. Raises Refusal."""
    job = replace(common, rounding=rounding, shapes=input_shapes(plan, checkpoint))
    if model.program is None:
        path = model.config or request.config or config_file.beside(request.source[0], plan.program.spec.source_config)
        fields = config_file.read_config_file(path) if path else {}
        config = {**_own_arguments(checkpoint), **plan.values, **fields, **request.assigned}
        ignored = frozenset(name for name, _ in plan.ignored)
        return replace(job, plan=None, entry=model.entry, config=config, ignored=ignored, aliases=dict(plan.ties))
    known = {*model.program.spec.arguments, *model.program.spec.facts}
    assigned = {name: value for name, value in request.assigned.items() if name in known}
    # An argument that the source model's spec requires is not asked for twice. Its defaults stay its own.
    required = {name for name, argument in model.program.spec.arguments.items() if argument.required}
    assigned = {name: value for name, value in plan.values.items() if name in required} | assigned
    own = prepare(model.program, replace(request, assigned=assigned, dtype=None, checksums=False)).plan
    folder = place / "model"
    folder.mkdir()
    for name, text in texts(own).items():
        (folder / name).write_text(text, encoding="utf-8")
    return replace(job, program=model.program, plan=own, folder=folder, config=dict(own.config))


def _own_arguments(checkpoint: Checkpoint) -> dict[str, Any]:
    """The arguments of its model that a checkpoint holds beside the weights."""
    found: dict[str, Any] = {}
    for key in reversed(OBJECTS):
        if isinstance(held := checkpoint.objects.get(key), Mapping):
            found |= held
    return {name: value for name, value in found.items() if isinstance(value, bool | int | float | str | None)}


def _origins(job: Job, checkpoint: Checkpoint) -> dict[str, frozenset[str]]:
    if job.plan is not None:
        return dict(origins(job.plan))
    names = checkpoint.tensors.keys() - job.aliases.keys() - job.ignored
    return {name: frozenset([name]) for name in checkpoint.tensors if name in names}


def _in_memory(made: Mapping[str, frozenset[str]], stored: Mapping[str, tuple[str, ...]]) -> dict[str, frozenset[str]]:
    """The origins of tensors by their names in the model, which may differ from those in its weights file."""
    moved = {name for names in stored.values() for name in names}
    found = {name: sources for name, sources in made.items() if name not in moved}
    return found | {
        name: frozenset[str]().union(*(made.get(each, ()) for each in names)) for name, names in stored.items()
    }


def run_job(folder: Path, job: Job) -> Results:
    """Run a job in a fresh process. Raises Refusal with the error of the process."""
    folder.mkdir(exist_ok=True)
    (folder / "job").write_bytes(pickle.dumps(job))
    # A module cache of its own: otherwise a folder's code could be that of an earlier folder of the same name.
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(package_root()), os.environ.get("PYTHONPATH")))),
        "HF_MODULES_CACHE": str(folder / "modules"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    command = [sys.executable, "-m", "compiler.verify.run_model", str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        name = job.entry or str(job.folder)
        refuse(name, f"the model cannot be run: {lines[-1] if lines else 'the process was killed'}", "unrunnable-model")
    return load_results(folder)
