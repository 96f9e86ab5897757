"""Adapters of low rank from one layout to the other: a LoRA follows the weights that it belongs to.

Takes the Plan of the base model and an adapter: a PEFT folder, or a file with `X.lora.A.weight` and `X.lora.B.weight`
beside each `X.weight`. Returns the adapter of the plan's targets. W + B A becomes f(W) + f(B) A where a rule works on
rows alone, and f(W) + A' f(B) where it also turns the matrix over (A' is A transposed); either is held to f(B A) in
numbers. A rule that joins matrices joins their adapters, whose ranks add up. Refuses a rule that does more, and kinds of
adapters that are no plain LoRA.

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
# Before, then which factor: PEFT's names, with and without the name of the adapter, and those of a plain trainer.
NAMES = re.compile(r"(?:base_model\.model\.)?(.+)\.(?:lora_([AB])(?:\.default)?|lora\.([AB]))\.weight")
OTHER_KINDS = {"use_dora": False, "use_qalora": False, "lora_bias": False, "modules_to_save": None, "bias": "none",
               "trainable_token_indices": None, "target_parameters": None}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """The two factors of what is added to a weight [rows, columns]: `a` [rank, columns], `b` [rows, rank], scale and all."""

    a: Any
    b: Any

    @property
    def over(self) -> Pair:
        """The pair of the transposed weight."""
        return Pair(self.b.T.contiguous(), self.a.T.contiguous())


def read_adapter(path: Path, turned: Collection[str] = ()) -> dict[str, Pair]:
    """The pair of each adapted weight, by the weight's name; `turned` are those that lie as [in, out]. What else a file
    holds is not looked at. Raises Refusal."""
    settings = read_config_file(path / CONFIG) if (path / CONFIG).is_file() else {}
    if other := [name for name, plain in OTHER_KINDS.items() if settings.get(name) not in (plain, None, [], {})]:
        refuse(str(path / CONFIG), f"not a plain LoRA: {listed(other)}", "unsupported-adapter",
               "merge it into its base model and convert the result")  # fmt: skip
    factors_of: dict[str, dict[str, Any]] = {}
    checkpoint = open_checkpoint(path)
    for name, tensor in checkpoint.tensors.items():
        if match := NAMES.fullmatch(name):
            factors_of.setdefault(f"{match[1]}.weight", {})[match[2] or match[3]] = loaded(tensor)
    if not factors_of:
        hint = "an adapter holds X.lora.A.weight and X.lora.B.weight, or what PEFT writes"
        refuse(str(path), "it holds no LoRA weights", "missing-weights", hint)
    pairs: dict[str, Pair] = {}
    for name, factors in factors_of.items():
        if len(factors) < 2 or factors["A"].ndim != 2 or factors["A"].shape[0] != factors["B"].shape[-1]:
            shapes = listed(f"{key} {list(factor.shape)}" for key, factor in sorted(factors.items()))
            refuse(str(path), f"the LoRA of {name} is not a pair of matrices: {shapes}", "shape-mismatch")
        scale = _scale(settings, name.removesuffix(".weight"), factors["A"].shape[0])
        pair = Pair(factors["A"], factors["B"] if scale == 1 else (factors["B"].float() * scale))
        pairs[name] = pair.over if name in turned else pair
    return pairs


def _scale(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """What PEFT multiplies the product with; 1 for a file without settings."""
    if not settings:
        return 1.0
    patterns = settings.get("alpha_pattern") or {}
    alpha = next((v for k, v in patterns.items() if re.fullmatch(rf"(.*\.)?{k}", module)), settings.get("lora_alpha"))
    return float(alpha if alpha is not None else rank) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


# ---------------------------------------------------------------------------------------------------------------------


def carry(plan: Plan, base: TensorTable, pairs: Mapping[str, Pair], path: str) -> dict[str, Pair]:
    """The pairs of the plan's targets; `base` has the shapes of its sources. Raises Refusal: `unknown-tensor`,
    `shape-mismatch`, `unsupported-adapter`."""
    known = {name for group in plan.groups for name in group.source_names}
    if unknown := [name for name in pairs if name not in known]:
        hint = nearest(unknown[0], known) or "BASE is a different model"
        refuse(path, f"it adapts tensors that BASE lacks: {listed(unknown, 4)}", "unknown-tensor", hint)
    for name, pair in pairs.items():
        adds, shape = (pair.b.shape[0], pair.a.shape[1]), tuple(base[name].shape)
        if adds != shape:
            message = f"it adds {list(adds)} to {name}, which is {list(shape)}"
            refuse(path, message, "shape-mismatch", "BASE is a different model")
    carried: dict[str, Pair] = {}
    for group in plan.groups:
        if any(name in pairs for name in group.source_names):
            carried |= _carried(group, base, pairs)
    return carried


def _carried(group: Group, base: TensorTable, pairs: Mapping[str, Pair]) -> dict[str, Pair]:
    import torch

    bare = replace(group, ops=tuple(op for op in group.ops if not isinstance(op, Cast)))
    adapted = [name for name in group.source_names if name in pairs]
    ranks = [pairs[name].a.shape[0] for name in adapted]
    starts = dict(zip(adapted, (sum(ranks[:n]) for n in range(len(ranks))), strict=True))
    if any(pairs[name].a.shape[1] != base[adapted[0]].shape[1] for name in adapted):
        _refuse(group, "it joins matrices of different input sizes")
    joined = torch.cat([pairs[name].a for name in adapted])

    def factor(name: str, of: Any) -> Any:
        """`b` in columns of its own, so that joined matrices do not share them."""
        wide = torch.zeros(base[name].shape[0], sum(ranks), dtype=torch.float64)
        if name in pairs:
            wide[:, starts[name] : starts[name] + pairs[name].b.shape[1]] = of(pairs[name].b.double())
        return wide

    try:
        made = applied(bare, lambda name: factor(name, lambda b: b))
        used = applied(bare, lambda name: factor(name, torch.ones_like))
        update = applied(bare, lambda name: factor(name, lambda b: b) @ joined.double())
    except (OpError, RuntimeError) as error:
        _refuse(group, str(error).splitlines()[0])
    carried: dict[str, Pair] = {}
    for name, b in made.items():
        over = b.ndim == 2 and _equal(_product(b.T, joined.double()), update[name].T)
        if not over and (b.ndim != 2 or not _equal(_product(b, joined.double()), update[name])):
            _refuse(group, "the rule does more than reorder rows or transpose")
        columns = used[name].ne(0).any(1 if over else 0)
        if bool(columns.any()):
            rows = (b.T if over else b)[:, columns].to(pairs[adapted[0]].b.dtype).contiguous()
            pair = Pair(joined[columns].contiguous(), rows)
            carried[name] = pair.over if over else pair
    return carried


def _product(b: Any, a: Any) -> Any:
    """`b` [rows, rank] times `a` [rank, columns]; nothing where they are not so."""
    return b @ a if b.shape[1] == a.shape[0] else b[:0]


def _equal(a: Any, b: Any) -> bool:
    return a.shape == b.shape and bool(((a - b).abs() <= 1e-9 * b.abs().max().clamp(min=1e-30)).all())


def _refuse(group: Group, why: str) -> NoReturn:
    name = group.rule.name or group.rule.kind
    refuse(group.rule.span, f"an adapter cannot be converted by the rule {name}: {why}", "unsupported-adapter",
           "merge it into its base model and convert the result")  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# What is written


def peft_config(pairs: Mapping[str, Pair], plan: Plan, over: bool = False) -> str:
    """The text of adapter_config.json. Modules are named by their last word where all that bear it are adapted."""
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
        "fan_in_fan_out": over,
        "target_modules": sorted(targets),
        "rank_pattern": others,
        "alpha_pattern": others,
    }
    return json.dumps(config, indent=2) + "\n"


def write_peft(pairs: Mapping[str, Pair], plan: Plan, folder: Path, turned: Collection[str] = ()) -> None:
    """The folder that `PeftModel.from_pretrained` loads; `turned` are the weights that lie as [in, out]."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    tensors: dict[str, Any] = {}
    for name, stored in pairs.items():
        pair = stored.over if name in turned else stored
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        tensors |= {f"{stem}.lora_A.weight": pair.a, f"{stem}.lora_B.weight": pair.b}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(peft_config(pairs, plan, any(name in turned for name in pairs)), encoding="utf-8")


def write_plain(pairs: Mapping[str, Pair], path: Path) -> None:
    """The file of a plain trainer, whose adapters have no scale."""
    import torch

    stems = {name.removesuffix(".weight"): pair for name, pair in pairs.items()}
    tensors = {f"{stem}.lora.{key}.weight": f for stem, p in stems.items() for key, f in (("A", p.a), ("B", p.b))}
    torch.save(tensors, path)


def turned(target: TargetModel, config: Mapping[str, Any]) -> frozenset[str]:
    """The names. Raises Refusal: `missing-package`, `unknown-class`, `unbuildable-target`."""
    if target.model is None:
        return frozenset()
    modules = build(class_of(target.model.value), config).named_modules()
    return frozenset(f"{name}.weight" for name, module in modules if type(module).__name__ == "Conv1D")
