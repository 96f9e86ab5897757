"""The isolated process that runs one model: `python -m compiler.verify.run_model FOLDER`.

Loads the model in float32, runs it once per trial and writes `results.safetensors` beside `job`. An error of the model or
of its code is one line on standard error and status 1.
"""

from __future__ import annotations

import inspect
import json
import os
import pickle
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint
from compiler.executor.apply_rule import applied, loaded
from compiler.plan.plan import Plan
from compiler.program.named_sources import MARK
from compiler.source.source_files import open_source
from compiler.target.model_class import stored_names
from compiler.verify import model_inputs, source_model
from compiler.verify.job import Job, Results, RowOrder, Trial, save_results
from compiler.verify.neutral_weights import neutral
from compiler.verify.outputs import named_tensors
from compiler.verify.precision import narrow_tensors, observed, widened
from compiler.verify.sequence_length import BASE


def main(folder: Path) -> None:
    import torch

    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiled code hides its operations
    job: Job = pickle.loads((folder / "job").read_bytes())
    torch.set_num_threads(1)
    try:
        save_results(results(job), folder)
    except Exception as error:  # whatever a model of somebody else raises
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        sys.exit(f"{type(error).__name__}: {' '.join(lines[:2])}")


@dataclass
class _First:
    """What the first trial leaves for the next ones: its inputs, the way they were passed, and what was observed."""

    inputs: Mapping[str, Any] | None
    wide: bool
    call: int = 0
    modules: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    report: dict[str, set[str]] = field(default_factory=lambda: {"narrow": set(), "read": set(), "widened": set()})
    unused: tuple[str, ...] = ()
    stored: dict[str, tuple[str, ...]] = field(default_factory=dict)


def results(job: Job) -> Results:
    """Run the job in this process. Raises what the model raises."""
    checkpoint = open_source(job.program, job.paths, job.weights, names=job.names)
    written = _written(job)
    first = _First(job.inputs, wide=job.folder is None)
    outputs: list[dict[str, Any]] = []
    for number, trial in enumerate(job.trials):
        replaced = neutral({name: _load(checkpoint.tensors[name], "") for name in trial.names}, trial.level)
        state = _state(job, trial, checkpoint, written, replaced)
        if number == 0:
            outputs.append(_run_first(job, trial, state, first))
            continue
        try:
            outputs.append(_run(job, trial, state, first))
        except Exception:  # this variant of the model cannot be built or run, which decides nothing
            outputs.append({})
    assert first.inputs is not None
    narrow = tuple(sorted(first.report["narrow"]))
    changed = tuple(sorted(first.report["widened"])) if first.wide else ()
    return Results(tuple(outputs), first.modules, first.inputs, first.unused, narrow, changed, first.stored)


def _run_first(job: Job, trial: Trial, state: Mapping[str, Any], first: _First) -> dict[str, Any]:
    """The first trial. A source model that fails while its dtypes are widened runs as it is; one that fails on a long
    sequence runs on a short one. Raises the first error where nothing runs."""
    try:
        return _run(job, trial, state, first, record=True)
    except Exception:
        if not first.wide:
            raise
        inputs = first.inputs
        for first.wide, first.inputs in ((False, inputs), (True, _shortened(inputs)), (False, _shortened(inputs))):
            if first.inputs is None:
                continue
            try:
                return _run(job, trial, state, first, record=True)
            except Exception:
                first.report["widened"].clear()
        raise


def _shortened(inputs: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The inputs with sequences of the shortest length; None where they are no longer than that."""
    if inputs is None or all(t.is_floating_point() or t.shape[-1] <= BASE for t in inputs.values()):
        return None
    return {n: t if t.is_floating_point() else t[..., :BASE].contiguous() for n, t in inputs.items()}


def _run(job: Job, trial: Trial, state: Mapping[str, Any], first: _First, record: bool = False) -> dict[str, Any]:
    """The outputs of one trial."""
    import torch

    with widened(first.report["widened"]) if first.wide else nullcontext():
        model = _of_folder(job.folder, trial, state) if job.folder else _of_code(job, state, first)
        model.eval()
        if not record:
            with torch.no_grad():
                return named_tensors(_call(job, model, first))
        first.report["read"].clear()
        first.modules = _watch(model) if job.watch else {}
        with torch.no_grad(), observed(model, first.report):
            outputs = named_tensors(_first_call(job, model, first))
    floating = [name for name, tensor in model.state_dict().items() if tensor.is_floating_point()]
    if job.folder is not None:
        first.stored = {name: names for name, names in stored_names(model).items() if names != (name,)}
    unused = (name for name in floating if name not in first.report["read"])
    first.unused = tuple(stored for name in unused for stored in first.stored.get(name, (name,)))
    return outputs


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def _load(tensor: Any, rounding: str) -> Any:
    """A tensor of a checkpoint in float32, rounded as its conversion rounds it."""
    import torch

    value = loaded(tensor)
    if not value.is_floating_point():
        return value
    return (value.to(getattr(torch, rounding)) if rounding else value).float()


def _written(job: Job) -> dict[str, Any]:
    """The weights in the folder."""
    if not job.written or job.folder is None:
        return {}
    return {name: _load(tensor, "") for name, tensor in open_checkpoint(job.folder).tensors.items()}


def _state(
    job: Job, trial: Trial, checkpoint: Checkpoint, written: Mapping[str, Any], replaced: Mapping[str, Any]
) -> dict[str, Any]:
    """The model's tensors: those in the folder, except what is made of replaced ones or has its rows reordered."""

    def load(name: str) -> Any:
        return replaced[name] if name in replaced else _load(checkpoint.tensors[name], job.rounding)

    plan: Plan | None = trial.plan or job.plan
    if plan is None:
        state = {name: load(name) for name in checkpoint.tensors}
        return state | {alias: state[owner] for alias, owner in job.aliases.items() if alias in state}
    state = dict(written)
    for group in plan.groups:
        if job.written and replaced.keys().isdisjoint(group.source_names):
            continue
        state |= applied(group, load)
    return state | {order.tensor: _reordered(state[order.tensor], order) for order in trial.rows}


def _reordered(tensor: Any, order: RowOrder) -> Any:
    """A tensor whose first axis holds heads, its rotary rows in the other order."""
    import torch

    heads = tensor.unflatten(0, (-1, order.head_dim))
    rotary, rest = heads[:, : order.rotary_dim], heads[:, order.rotary_dim :]
    pairs = (-1, 2) if order.to == "half" else (2, -1)
    rotary = rotary.unflatten(1, pairs).transpose(1, 2).flatten(1, 2)
    return torch.cat((rotary, rest), dim=1).flatten(0, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Models


def _of_folder(folder: Path, trial: Trial, state: Mapping[str, Any]) -> Any:
    """The model of a folder's config, its code included, with `state` loaded as Transformers loads a file."""
    import torch
    import transformers

    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    trust: dict[str, Any] = {"trust_remote_code": True} if "auto_map" in fields else {}
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **trust)
    if trial.config is not None:
        config = type(config).from_dict(dict(trial.config))
    if trust:
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        found: Any = get_class_from_dynamic_module(config.auto_map["AutoModelForCausalLM"], str(folder))
    else:
        found = getattr(transformers, config.architectures[0])
    # What loading leaves unset must show: torch then fills it with NaN.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        model, info = found.from_pretrained(
            None,
            config=config,
            state_dict=dict(state),
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
    finally:
        torch.use_deterministic_algorithms(False)
    wrong = {kind: sorted(map(str, info.get(kind) or ())) for kind in ("missing_keys", "mismatched_keys")}
    if problems := [f"{kind}: {', '.join(names[:8])}" for kind, names in wrong.items() if names]:
        raise RuntimeError(f"the folder lacks tensors of its class: {'; '.join(problems)}")
    return model


def _of_code(job: Job, state: Mapping[str, Any], first: _First) -> Any:
    """The source's own model in float32; without widening, its buffers keep their dtypes."""
    model = source_model.build(job.entry, job.config)
    first.report["narrow"] |= narrow_tensors(model) if not first.wide else set()
    ignored, aliases = job.ignored, job.aliases
    if job.names:  # the model has a submodule for each source
        state = {_dotted(name): tensor for name, tensor in state.items()}
        ignored = frozenset(map(_dotted, ignored))
        aliases = {_dotted(alias): _dotted(owner) for alias, owner in aliases.items()}
    source_model.load_weights(model, state, ignored, aliases)
    if first.wide:
        return model.float()
    for parameter in model.parameters():
        parameter.data = parameter.data.float() if parameter.is_floating_point() else parameter.data
    return model


def _dotted(name: str) -> str:
    """The name in a model of the tensor `name` of one of several sources."""
    return name.replace(MARK, ".", 1)


# ---------------------------------------------------------------------------------------------------------------------
# Inputs and outputs


def _first_call(job: Job, model: Any, first: _First) -> Any:
    """What the model returns for the first of its possible inputs, or ways to pass them, that runs."""
    if first.inputs is None:
        parameters = inspect.signature(model.forward).parameters
        if unknown := [shape.name for shape in job.shapes if shape.name not in parameters]:
            raise RuntimeError(f"forward of {type(model).__name__} has no parameter {', '.join(unknown)}")
        offered = [model_inputs.draw(job.shapes)] if job.shapes else model_inputs.implied(model, job.length, job.below)
        if not offered:
            raise RuntimeError(
                f"the inputs of {type(model).__name__} (main input: {model.main_input_name}) are unknown: "
                "write them in the spec's `verify` section"
            )
    else:
        offered = [dict(first.inputs)]
    error: Exception | None = None
    for inputs in offered:
        for number, (positional, named) in enumerate(_calls(job, model, inputs)):
            try:
                result = model(*positional, **named)
            except Exception as raised:
                error = error or raised
                first.modules.clear()
                first.report["read"].clear()
                continue
            first.inputs, first.call = inputs, number
            return result
    if error is None:
        names = ", ".join(offered[0])
        error = RuntimeError(f"forward of {type(model).__name__} has too few parameters for the inputs {names}")
    raise error


def _call(job: Job, model: Any, first: _First) -> Any:
    """The same for a later trial: the inputs of the first one, passed the same way."""
    assert first.inputs is not None
    positional, named = list(_calls(job, model, first.inputs))[first.call]
    return model(*positional, **named)


def _calls(job: Job, model: Any, inputs: Mapping[str, Any]) -> list[tuple[list[Any], dict[str, Any]]]:
    if job.folder is not None:
        return [([], dict(inputs))]
    return list(source_model.calls(model, inputs, {s.name: s.source for s in job.shapes if s.source}))


def _watch(model: Any) -> dict[str, tuple[Any, Any]]:
    """Fills, while the model runs, with the first floating output and input of each module, in the order in which
    modules finish."""
    seen: dict[str, tuple[Any, Any]] = {}

    def hook(name: str) -> Any:
        def keep(module: Any, given: Any, named: Any, output: Any) -> None:
            if (first := _first_float(output)) is not None:
                seen.setdefault(name, (first, _first_float([*given, *named.values()])))

        return keep

    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(hook(name), with_kwargs=True)
    return seen


def _first_float(value: Any) -> Any:
    """A float32 copy of the first tensor in a value; None where it is not a floating tensor."""
    import torch

    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        value = next((item for item in value if isinstance(item, torch.Tensor)), None)
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return None
    return value.detach().float().contiguous().clone()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
