"""The fresh process in which one model runs: loads it in float32, runs the tokens, once per trial; writes logits.

Run as `python -m compiler.verify.run_model FOLDER`. FOLDER holds `job` (a pickled Job of the process that made the folder, and
of nobody else) and afterwards `results.safetensors`: `logits.N` of trial N, float32 (batch, length, vocabulary), and
`output.M` and `input.M` of the Mth module that finished in trial 0, float32, whose name stands in the metadata. What
the model or its code refuses is a line on standard error and status 1.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint
from compiler.executor.apply_rule import applied, loaded
from compiler.plan.plan import Plan
from compiler.plan.source_files import open_source
from compiler.program.program import Program
from compiler.verify.neutral_weights import neutral

RESULTS = "results.safetensors"


@dataclass(frozen=True)
class Trial:
    """One run. The tensors `names` of the checkpoint are replaced by values that a fault of kind `level` leaves alone;
    without names the weights are as they are. A `plan` takes the place of the job's."""

    names: tuple[str, ...] = ()
    level: str = ""
    plan: Plan | None = None


@dataclass(frozen=True)
class Job:
    """What to run. `plan` makes the model's tensors of the checkpoint's; without one they are its own.

    With `folder`, Transformers builds the model of the config there, whose weights are taken as well where `written`;
    else `entry` is `module:Class`, built from `config`. `rounding`: a dtype that every weight passes through.
    """

    program: Program
    paths: tuple[Path, ...]
    plan: Plan | None
    folder: Path | None
    written: bool
    entry: str
    config: Mapping[str, Any]
    ignored: frozenset[str]
    aliases: Mapping[str, str]
    rounding: str
    input_ids: Sequence[Sequence[int]]
    weights: str | None = None
    trials: list[Trial] = field(default_factory=list)


def main(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    job: Job = pickle.loads((folder / "job").read_bytes())
    torch.set_num_threads(1)
    try:
        found, names = results(job)
    except Exception as error:  # whatever a model of somebody else raises
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        sys.exit(f"{type(error).__name__}: {' '.join(lines[:2])}")
    save_file(found, folder / RESULTS, {"modules": json.dumps(names)})


def results(job: Job) -> tuple[dict[str, Any], list[str]]:
    """What the process writes, and the names of the modules."""
    import torch

    checkpoint = open_source(job.program, job.paths, job.weights)
    written = _written(job)
    found: dict[str, Any] = {}
    names: list[str] = []
    for number, trial in enumerate(job.trials):
        replaced = neutral({name: _load(checkpoint.tensors[name], "") for name in trial.names}, trial.level)
        model = _model(job, _state(job, trial.plan or job.plan, checkpoint, written, replaced)).eval()
        outputs = _watch(model) if number == 0 else {}
        with torch.no_grad():
            found[f"logits.{number}"] = _logits(model(torch.tensor(job.input_ids))).float().contiguous().clone()
        for name, (output, given) in outputs.items():
            found[f"output.{len(names)}"] = output
            found |= {f"input.{len(names)}": given} if given is not None else {}
            names.append(name)
        del model  # before the next is made: both at once might not fit
    return found, names


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def _load(tensor: Any, rounding: str) -> Any:
    """A tensor of a checkpoint in float32, rounded as its conversion rounds it."""
    import torch

    found = loaded(tensor)
    if not found.is_floating_point():
        return found
    return (found.to(getattr(torch, rounding)) if rounding else found).float()


def _written(job: Job) -> dict[str, Any]:
    """The weights that lie in the folder."""
    if not job.written or job.folder is None:
        return {}
    return {name: _load(tensor, "") for name, tensor in open_checkpoint(job.folder).tensors.items()}


def _state(
    job: Job, plan: Plan | None, checkpoint: Checkpoint, written: Mapping[str, Any], replaced: Mapping[str, Any]
) -> dict[str, Any]:
    """The model's tensors; those in the folder, but for what the replaced ones make."""

    def load(name: str) -> Any:
        return replaced[name] if name in replaced else _load(checkpoint.tensors[name], job.rounding)

    if plan is None:
        state = {name: load(name) for name in checkpoint.tensors}
        return state | {alias: state[owner] for alias, owner in job.aliases.items() if alias in state}
    state = dict(written)
    for group in plan.groups:
        if job.written and replaced.keys().isdisjoint(group.source_names):
            continue
        state |= applied(group, load)
    return state


# ---------------------------------------------------------------------------------------------------------------------
# Models


def _model(job: Job, state: dict[str, Any]) -> Any:
    return _of_folder(job.folder, state) if job.folder else _of_code(job, state)


def _of_folder(folder: Path, state: dict[str, Any]) -> Any:
    """The model of a folder's config, its code included, with `state` loaded as Transformers loads a file."""
    import torch
    import transformers

    trust: dict[str, Any] = {"trust_remote_code": True} if _has_code(folder) else {}
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **trust)
    if trust:
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        found: Any = get_class_from_dynamic_module(config.auto_map["AutoModelForCausalLM"], str(folder))
    else:
        found = getattr(transformers, config.architectures[0])
    # What loading leaves unset must show: torch then fills it with NaN.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    model, told = found.from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=torch.float32,
        attn_implementation="eager",
        output_loading_info=True,
    )
    torch.use_deterministic_algorithms(False)
    wrong = {kind: sorted(map(str, told.get(kind) or ())) for kind in ("missing_keys", "mismatched_keys")}
    if problems := [f"{kind}: {', '.join(names[:8])}" for kind, names in wrong.items() if names]:
        sys.exit(f"the folder does not load whole: {'; '.join(problems)}")
    return model


def _has_code(folder: Path) -> bool:
    return "auto_map" in json.loads((folder / "config.json").read_text(encoding="utf-8"))


def _of_code(job: Job, state: dict[str, Any]) -> Any:
    """`module:Class` built from the config, with every tensor of the checkpoint in it but the ignored ones."""
    import torch

    module, _, name = job.entry.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    found = getattr(importlib.import_module(module), name)
    torch.manual_seed(0)
    given = _arguments(found, job.config)
    model = found(*given) if given else found(**_known(found, job.config))
    held = model.state_dict()
    kept = {n: t for n, t in state.items() if n in held or n not in job.ignored}
    kept |= {a: kept[o] for a, o in job.aliases.items() if a in held and a not in kept and o in kept}
    model.load_state_dict(kept, strict=True)
    return model.float()


def _arguments(found: Any, config: Mapping[str, Any]) -> list[Any]:
    """The config object that a model class takes as its first argument; empty where it takes the fields themselves.

    It is what `config_class` names, or the class that annotates the argument, or the only `*Config` or `*Args` beside it.
    """
    parameters = [p for p in inspect.signature(found.__init__).parameters.values() if p.name != "self"]
    if not parameters or parameters[0].name in config:
        return []
    beside = vars(sys.modules[found.__module__])
    kind = getattr(found, "config_class", None) or parameters[0].annotation
    kind = beside.get(kind) if isinstance(kind, str) else kind
    if not inspect.isclass(kind) or kind is inspect.Parameter.empty:
        classes = [c for n, c in beside.items() if inspect.isclass(c) and n.endswith(("Config", "Args"))]
        kind = classes[0] if len(classes) == 1 else None
    if kind is None:
        sys.exit(f"{found.__name__} takes {parameters[0].name}, and no class of it is known: annotate the argument")
    return [kind(**_known(kind, config))]


def _known(found: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config that a class takes."""
    known = inspect.signature(found).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in known.values())
    return {n: v for n, v in config.items() if free or n in known}


# ---------------------------------------------------------------------------------------------------------------------
# What comes out


def _watch(model: Any) -> dict[str, tuple[Any, Any]]:
    """Fills, while the model runs, with the first output and the first input of each module, in the order in which
    they finish."""
    seen: dict[str, tuple[Any, Any]] = {}

    def hook(name: str) -> Any:
        def keep(module: Any, given: Any, words: Any, output: Any) -> None:
            if (first := _floats(output)) is not None:
                seen.setdefault(name, (first, _floats([*given, *words.values()])))

        return keep

    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(hook(name), with_kwargs=True)
    return seen


def _floats(value: Any) -> Any:
    """A copy of the first tensor in `value`, in float32; None where it is none of floats."""
    first = _first(value)
    if first is None or not first.is_floating_point():
        return None
    return first.detach().float().contiguous().clone()


def _first(output: Any) -> Any:
    import torch

    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return next((item for item in output if isinstance(item, torch.Tensor)), None)
    return None


def _logits(output: Any) -> Any:
    logits = getattr(output, "logits", None)
    return logits if logits is not None else _first(output)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
