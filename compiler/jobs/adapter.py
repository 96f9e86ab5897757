"""Converts a LoRA along with the weights that it changes.

Takes the Plan of the base model and an adapter: a PEFT folder, or a file with `X.lora.A.weight` and `X.lora.B.weight`
for each `X.weight`. Returns the adapter of the plan's targets. W + B A becomes f(W) + f(B) A if a rule rearranges rows
only, and f(W) + A' f(B) if it also transposes the matrix (A' is A transposed); both are compared with f(B A) in numbers.
A rule that joins matrices joins their adapters, whose ranks add up. Rejects rules that do more, and adapters that are
not plain LoRAs.

Source of the format: `peft/tuners/lora` and `peft/utils/save_and_load.py`, peft 0.21.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from compiler.checkpoints.checkpoint import open_checkpoint
from compiler.checkpoints.config_file import read_config_file
from compiler.diagnostics import listed, nearest, refuse
from compiler.executor.apply_rule import applied, loaded
from compiler.language.spec import TargetModel
from compiler.ops.algebra import OpError
from compiler.ops.structural import Cast
from compiler.plan.plan import Group, Plan
from compiler.program.environment import TensorTable
from compiler.target.model_class import build, class_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Module, then factor: PEFT's names, with and without the name of the adapter, and those of a plain trainer.
NAMES = re.compile(r"(?:base_model\.model\.)?(.+)\.(?:lora_([AB])(?:\.default)?|lora\.([AB]))\.weight")
OTHER_KINDS = {"use_dora": False, "use_qalora": False, "lora_bias": False, "modules_to_save": None, "bias": "none",
               "trainable_token_indices": None, "target_parameters": None}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """What is added to a weight [rows, columns] as `b` [rows, rank] times `a` [rank, columns], scale included."""

    a: Any
    b: Any

    @property
    def transposed(self) -> Pair:
        """The pair of the transposed weight."""
        return Pair(self.b.T.contiguous(), self.a.T.contiguous())


def read_adapter(path: Path, in_out: Collection[str] = ()) -> dict[str, Pair]:
    """The pair of each adapted weight, by the weight's name. `in_out`: the weights that are stored as [in, out]. Other
    tensors of the file are not read. Raises Refusal."""
    settings = read_config_file(path / CONFIG) if (path / CONFIG).is_file() else {}
    if other := [name for name, plain in OTHER_KINDS.items() if settings.get(name) not in (plain, None, [], {})]:
        refuse(str(path / CONFIG), f"not a plain LoRA: {listed(other)}", "unsupported-adapter",
               "merge it into its base model and convert that")  # fmt: skip
    factors_by_name: dict[str, dict[str, Any]] = {}
    checkpoint = open_checkpoint(path)
    for name, tensor in checkpoint.tensors.items():
        if match := NAMES.fullmatch(name):
            factors_by_name.setdefault(f"{match[1]}.weight", {})[match[2] or match[3]] = loaded(tensor)
    if not factors_by_name:
        hint = "an adapter has X.lora.A.weight and X.lora.B.weight, or the names that PEFT writes"
        refuse(str(path), "contains no adapter", "missing-weights", hint)
    pairs: dict[str, Pair] = {}
    for name, factors in factors_by_name.items():
        if len(factors) < 2 or factors["A"].ndim != 2 or factors["A"].shape[0] != factors["B"].shape[-1]:
            shapes = listed(f"{key} {list(factor.shape)}" for key, factor in sorted(factors.items()))
            refuse(str(path), f"the adapter of {name} is not a pair of matrices: {shapes}", "shape-mismatch")
        scale = _scale(settings, name.removesuffix(".weight"), factors["A"].shape[0])
        pair = Pair(factors["A"], factors["B"] if scale == 1 else (factors["B"].float() * scale))
        pairs[name] = pair.transposed if name in in_out else pair
    return pairs


def _scale(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """The factor of the product, as PEFT computes it; 1 for a file without settings."""
    if not settings:
        return 1.0
    patterns = settings.get("alpha_pattern") or {}
    alpha = next((v for k, v in patterns.items() if re.fullmatch(rf"(.*\.)?{k}", module)), settings.get("lora_alpha"))
    return float(alpha if alpha is not None else rank) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


# ---------------------------------------------------------------------------------------------------------------------


def carry(plan: Plan, base: TensorTable, pairs: Mapping[str, Pair], path: str) -> dict[str, Pair]:
    """The pairs of the plan's targets. `base` has the shapes of its sources. Raises Refusal: `unknown-tensor`,
    `shape-mismatch`, `unsupported-adapter`."""
    known = {name for group in plan.groups for name in group.source_names}
    if unknown := [name for name in pairs if name not in known]:
        hint = nearest(unknown[0], known) or "is this the adapter's base model?"
        refuse(
            path, f"it adapts weights that the base model does not have: {listed(unknown, 4)}", "unknown-tensor", hint
        )
    for name, pair in pairs.items():
        adds, shape = (pair.b.shape[0], pair.a.shape[1]), tuple(base[name].shape)
        if adds != shape:
            message = f"it adds {list(adds)} to {name}, which is {list(shape)}"
            refuse(path, message, "shape-mismatch", "is this the adapter's base model?")
    converted: dict[str, Pair] = {}
    for group in plan.groups:
        if any(name in pairs for name in group.source_names):
            converted |= _convert_group(group, base, pairs)
    return converted


def _convert_group(group: Group, base: TensorTable, pairs: Mapping[str, Pair]) -> dict[str, Pair]:
    import torch

    bare = replace(group, ops=tuple(op for op in group.ops if not isinstance(op, Cast)))
    adapted = [name for name in group.source_names if name in pairs]
    ranks = [pairs[name].a.shape[0] for name in adapted]
    starts = dict(zip(adapted, (sum(ranks[:n]) for n in range(len(ranks))), strict=True))
    if any(pairs[name].a.shape[1] != base[adapted[0]].shape[1] for name in adapted):
        _refuse(group, "the matrices that it joins have inputs of different sizes")
    joined = torch.cat([pairs[name].a for name in adapted])

    def factor(name: str, function: Any) -> Any:
        """`function(b)` in its own columns, so that joined matrices do not share any."""
        wide = torch.zeros(base[name].shape[0], sum(ranks), dtype=torch.float64)
        if name in pairs:
            wide[:, starts[name] : starts[name] + pairs[name].b.shape[1]] = function(pairs[name].b.double())
        return wide

    try:
        made = applied(bare, lambda name: factor(name, lambda b: b))
        ones = applied(bare, lambda name: factor(name, torch.ones_like))
        product = applied(bare, lambda name: factor(name, lambda b: b) @ joined.double())
    except (OpError, RuntimeError) as error:
        _refuse(group, str(error).splitlines()[0])
    converted: dict[str, Pair] = {}
    for name, b in made.items():
        transposed = b.ndim == 2 and _equal(_product(b.T, joined.double()), product[name].T)
        if not transposed and (b.ndim != 2 or not _equal(_product(b, joined.double()), product[name])):
            _refuse(group, "it does more than rearrange rows or transpose the matrix")
        columns = ones[name].ne(0).any(1 if transposed else 0)
        if bool(columns.any()):
            rows = (b.T if transposed else b)[:, columns].to(pairs[adapted[0]].b.dtype).contiguous()
            pair = Pair(joined[columns].contiguous(), rows)
            converted[name] = pair.transposed if transposed else pair
    return converted


def _product(b: Any, a: Any) -> Any:
    """`b` [rows, rank] times `a` [rank, columns]; no rows if their shapes do not fit."""
    return b @ a if b.shape[1] == a.shape[0] else b[:0]


def _equal(a: Any, b: Any) -> bool:
    return a.shape == b.shape and bool(((a - b).abs() <= 1e-9 * b.abs().max().clamp(min=1e-30)).all())


def _refuse(group: Group, why: str) -> NoReturn:
    name = group.rule.name or group.rule.kind
    refuse(group.rule.span, f"an adapter cannot follow the rule {name}: {why}", "unsupported-adapter",
           "merge it into its base model and convert that")  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def peft_config(pairs: Mapping[str, Pair], plan: Plan, in_out: bool = False) -> str:
    """The text of adapter_config.json. A module is named by its last component if every module of that name is adapted."""
    modules = {name.removesuffix(".weight"): pair.a.shape[0] for name, pair in pairs.items()}
    every = Counter(target.name.removesuffix(".weight").rpartition(".")[2] for target in plan.targets)
    here = Counter(module.rpartition(".")[2] for module in modules)
    targets = {
        m.rpartition(".")[2] if here[m.rpartition(".")[2]] == every[m.rpartition(".")[2]] else m for m in modules
    }
    rank = Counter(modules.values()).most_common(1)[0][0]
    others = {module: r for module, r in sorted(modules.items()) if r != rank}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,  # the scale is in the factors
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": in_out,
        "target_modules": sorted(targets),
        "rank_pattern": others,
        "alpha_pattern": others,
    }
    return json.dumps(config, indent=2) + "\n"


def write_peft(pairs: Mapping[str, Pair], plan: Plan, folder: Path, in_out: Collection[str] = ()) -> None:
    """Write the folder that `PeftModel.from_pretrained` loads. `in_out`: the weights that are stored as [in, out]."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    tensors: dict[str, Any] = {}
    for name, stored in pairs.items():
        pair = stored.transposed if name in in_out else stored
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        tensors |= {f"{stem}.lora_A.weight": pair.a, f"{stem}.lora_B.weight": pair.b}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(peft_config(pairs, plan, any(name in in_out for name in pairs)), encoding="utf-8")


def write_plain(pairs: Mapping[str, Pair], path: Path) -> None:
    """Write the file of a plain trainer, whose adapters have no scale."""
    import torch

    stems = {name.removesuffix(".weight"): pair for name, pair in pairs.items()}
    tensors = {f"{stem}.lora.{key}.weight": f for stem, p in stems.items() for key, f in (("A", p.a), ("B", p.b))}
    torch.save(tensors, path)


def in_out_weights(target: TargetModel, config: Mapping[str, Any]) -> frozenset[str]:
    """The weights that the target class stores as [in, out]. Raises Refusal: `missing-package`, `unknown-class`, `unbuildable-target`."""
    if target.model is None:
        return frozenset()
    modules = build(class_of(target.model.value), config).named_modules()
    return frozenset(f"{name}.weight" for name, module in modules if type(module).__name__ == "Conv1D")
