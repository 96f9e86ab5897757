"""Reads and writes LoRA files: PEFT folders, and files of plain trainers with `X.lora.A.weight` and `X.lora.B.weight`.

`read_adapter` takes a PEFT folder or one file; returns the factors of each adapted weight, with the scale of
`adapter_config.json` multiplied in. Rejects other kinds of adapters, every setting that changes what an adapter computes
and is not handled here, and every tensor that is not part of a LoRA. `write_peft` and `write_plain` write one.

Source of the format: the package peft 0.21, tuners/lora/config.py, tuners/lora/layer.py and utils/save_and_load.py.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler import __version__
from compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint
from compiler.checkpoints.config_file import read_config_file
from compiler.checkpoints.formats.stored_tensor import Joined, Tensor, dense
from compiler.diagnostics import listed, refuse
from compiler.executor.apply_rule import loaded
from compiler.language.spec import TargetModel
from compiler.output.earlier_run import MANIFEST, add_mark
from compiler.plan.plan import Plan
from compiler.target.model_class import build, class_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Module, then factor: PEFT's names with and without the name of the adapter, and those of a plain trainer.
NAMES = re.compile(
    r"(?P<wrapped>base_model\.model\.)?(?P<module>.+)\.(?:"
    r"lora_(?P<peft>[AB])(?:\.default)?\.weight|lora_embedding_(?P<embedding>[AB])(?:\.default)?|"
    r"lora\.(?P<plain>[AB])\.weight)"
)
BASE_COPY = re.compile(r"(?:base_model\.model\.)?(.+)\.base_layer\.weight")
# Settings that do not change what a saved adapter computes, or that are handled here.
KNOWN = frozenset(
    [
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "lora_ga_config",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "target_modules",
        "task_type",
        "use_rslora",
        "velora_config",
    ]
)
# Of `init_lora_weights`: these leave the base model as it is.
PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
MERGE = "merge it into its base model and convert the result"
DTYPES = ("float64", "float32", "float16", "bfloat16")  # of factors
EMBEDDINGS = ("embed_tokens", "wte")  # names of embeddings in a class with code of its own


@dataclass(frozen=True)
class Pair:
    """What is added to a weight [rows, columns] as `b` [rows, rank] times `a` [rank, columns], scale included."""

    a: Any
    b: Any

    @property
    def transposed(self) -> Pair:
        """The pair of the transposed weight."""
        return Pair(self.b.T.contiguous(), self.a.T.contiguous())


@dataclass(frozen=True)
class Adapter:
    """`pairs` by the name of the weight; `copies` of weights of the base model, which PEFT saves with an embedding's
    factors; `files`: those that were read."""

    pairs: Mapping[str, Pair]
    copies: Mapping[str, Tensor | Joined]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class ModuleKinds:
    """Names of weights by the kind of their module: `transposed` are stored as [in, out], `embeddings` as [tokens, width]."""

    transposed: frozenset[str] = frozenset()
    embeddings: frozenset[str] = frozenset()


def module_kinds(target: TargetModel, config: Mapping[str, Any]) -> ModuleKinds:
    """The kinds of the target class's modules. Raises Refusal: `missing-package`, `unknown-class`, `unbuildable-target`."""
    if target.model is None:
        return ModuleKinds()
    modules = dict(build(class_of(target.model.value), config).named_modules())
    names = {
        kind: frozenset(f"{name}.weight" for name, module in modules.items() if type(module).__name__ == kind)
        for kind in ("Conv1D", "Embedding")
    }
    return ModuleKinds(names["Conv1D"], names["Embedding"])


# ---------------------------------------------------------------------------------------------------------------------
# Read


def read_adapter(path: Path, kinds: ModuleKinds = ModuleKinds()) -> Adapter:
    """The adapter in a folder or a file. PEFT stores factors as [out, in], so the pairs of `kinds.transposed` weights are
    transposed. Raises Refusal."""
    checkpoint = _opened(path)
    factors: dict[str, dict[str, Any]] = {}
    copies: dict[str, Tensor | Joined] = {}
    embeddings, plain, strange = set[str](), set[str](), list[str]()
    for stored, tensor in checkpoint.tensors.items():
        if match := NAMES.fullmatch(stored):
            name = f"{match['module']}.weight"
            key = match["peft"] or match["embedding"] or match["plain"]
            if key in factors.setdefault(name, {}):
                refuse(str(path), f"the factor {key} of {name} occurs twice", "colliding-names")
            if tensor.dtype not in DTYPES:
                refuse(
                    str(path), f"the factor {key} of {name} is of the type {tensor.dtype}", "unsupported-adapter", MERGE
                )
            factors[name][key] = loaded(tensor)
            embeddings |= {name} if match["embedding"] else set()
            plain |= {name} if match["plain"] else set()
        elif match := BASE_COPY.fullmatch(stored):
            copies[f"{match[1]}.weight"] = dense(tensor)
        else:
            strange.append(stored)
    if not factors:
        hint = "an adapter has X.lora.A.weight and X.lora.B.weight, or the names that PEFT writes"
        _settings(path, checkpoint, needed=False)  # reports another kind of adapter by its name
        refuse(str(path), "contains no LoRA weights", "missing-weights", hint)
    settings, config = _settings(path, checkpoint, needed=len(plain) < len(factors))
    if strange:
        refuse(str(path), f"not part of a plain LoRA: {listed(strange, 4)}", "unsupported-adapter", MERGE)
    pairs: dict[str, Pair] = {}
    for name, pair in factors.items():
        if (
            len(pair) < 2
            or pair["A"].ndim != 2
            or pair["B"].ndim != 2
            or not 0 < pair["A"].shape[0] == pair["B"].shape[1]
        ):
            shapes = listed(f"{key} {list(factor.shape)}" for key, factor in sorted(pair.items()))
            refuse(str(path), f"the LoRA of {name} is not a pair of matrices: {shapes}", "shape-mismatch")
        scale = 1.0 if name in plain else _scale(settings, name.removesuffix(".weight"), pair["A"].shape[0])
        own = Pair(pair["A"], pair["B"] if scale == 1 else (pair["B"].float() * scale))
        transposed = name in embeddings or (name not in plain and name in kinds.transposed)
        pairs[name] = own.transposed if transposed else own
    files = (*checkpoint.files, *checkpoint.indexes, *([config] if config else []))
    return Adapter(pairs, copies, files)


def _opened(path: Path) -> Checkpoint:
    """The weights file that PEFT writes in a folder, or `path` itself. Other files of the folder are not read."""
    names = (WEIGHTS, "adapter_model.bin")
    inside = next((path / name for name in names if (path / name).is_file()), path)
    return open_checkpoint(inside)


def _settings(path: Path, checkpoint: Checkpoint, needed: bool) -> tuple[Mapping[str, Any], Path | None]:
    """The settings of `adapter_config.json` next to the weights, and its path. Raises Refusal."""
    config = checkpoint.files[0].parent / CONFIG
    if not config.is_file():
        if needed:
            hint = f"put the {CONFIG} of the adapter next to it: it has lora_alpha, which scales the factors"
            refuse(str(path), f"there is no {CONFIG}", "missing-config", hint)
        return {}, None
    return (_plain_settings(config) if needed else {}), config


def _plain_settings(config: Path) -> dict[str, Any]:
    """The settings of a plain LoRA. Raises Refusal with all that make it another kind of adapter."""
    settings = read_config_file(config)
    kind = settings.get("peft_type", "LORA")
    other = [f"peft_type {kind}"] if kind != "LORA" else []
    other += [
        f"{name} = {json.dumps(value)}"
        for name, value in settings.items()
        if name not in KNOWN
        and not name.endswith("_core")
        and value not in (None, False, [], {}, "")
        and not (name == "bias" and value == "none")
    ]
    if (start := settings.get("init_lora_weights")) not in PLAIN_STARTS:
        other.append(f"init_lora_weights = {json.dumps(start)}, which changes the base model")
    if other:
        refuse(str(config), f"not a plain LoRA: {listed(other)}", "unsupported-adapter", MERGE)
    if wrong := _malformed(settings):
        refuse(
            str(config), f"{wrong} = {json.dumps(settings[wrong])} is malformed", "bad-config", "copy the file again"
        )
    return settings


def _malformed(settings: Mapping[str, Any]) -> str:
    """The first setting of the scale that is not what it must be; empty if there is none."""
    patterns = settings.get("alpha_pattern") or {}
    if (
        not isinstance(patterns, dict)
        or not all(map(_is_pattern, patterns))
        or not all(map(_is_number, patterns.values()))
    ):
        return "alpha_pattern"
    if "lora_alpha" in settings and not _is_number(settings["lora_alpha"]):
        return "lora_alpha"
    return "" if isinstance(settings.get("use_rslora"), bool | None) else "use_rslora"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_pattern(text: str) -> bool:
    """Whether it is a regular expression without a repeated repetition, which can take exponential time."""
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError):
        return False
    return not re.search(r"[*+}][^()]*\)+[*+{]", text)


def _scale(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """The factor that PEFT multiplies the product by."""
    patterns = settings.get("alpha_pattern") or {}
    alpha = next((v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", module)), settings.get("lora_alpha", 8))
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


# ---------------------------------------------------------------------------------------------------------------------
# Write


def peft_config(pairs: Mapping[str, Pair], plan: Plan, transposed: bool = False) -> str:
    """The text of adapter_config.json. A module is named by its last component if all modules of that name are adapted."""
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
        "fan_in_fan_out": transposed,
        "target_modules": sorted(targets),
        "rank_pattern": others,
        "alpha_pattern": others,
    }
    return json.dumps(config, indent=2) + "\n"


def write_peft(pairs: Mapping[str, Pair], plan: Plan, folder: Path, kinds: ModuleKinds = ModuleKinds()) -> None:
    """Write the folder that `PeftModel.from_pretrained` loads, for modules of these kinds."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    tensors: dict[str, Any] = {}
    for name, pair in pairs.items():
        module = name.removesuffix(".weight")
        stem = f"base_model.model.{module}"
        named = plan.program.spec.target.model is None and module.rpartition(".")[2] in EMBEDDINGS
        if name in kinds.embeddings or named:
            made = pair.transposed
            tensors |= {f"{stem}.lora_embedding_A": made.a, f"{stem}.lora_embedding_B": made.b}
        else:
            made = pair.transposed if name in kinds.transposed else pair
            tensors |= {f"{stem}.lora_A.weight": made.a, f"{stem}.lora_B.weight": made.b}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(peft_config(pairs, plan, any(n in kinds.transposed for n in pairs)), encoding="utf-8")
    sizes = {file.name: file.stat().st_size for file in (folder / WEIGHTS, folder / CONFIG)}
    manifest = {"mapspec": __version__, "spec": plan.program.spec.name.value, "files": sizes}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def peft_files() -> Collection[str]:
    """The names of the files of `write_peft`."""
    return (WEIGHTS, CONFIG, MANIFEST)


def write_plain(pairs: Mapping[str, Pair], path: Path) -> None:
    """The file of a plain trainer, whose adapters have no scale."""
    import torch

    stems = {name.removesuffix(".weight"): pair for name, pair in pairs.items()}
    tensors = {f"{stem}.lora.{key}.weight": f for stem, p in stems.items() for key, f in (("A", p.a), ("B", p.b))}
    torch.save(tensors, path)
    add_mark(path)
