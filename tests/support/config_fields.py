"""The fields of trainers' own config classes and their defaults, as `tests/data/config_fields` has them, and the specs that
they belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compiler.language.spec import Argument
from compiler.program.program import Program
from compiler.target import config_class, model_class

ROOT = Path(__file__).parent.parent.parent
RECORDED = {
    path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "tests/data/config_fields").glob("*.json"))
}

# Spec, or the first words of several -> package, and its classes whose fields may stand in the source's config.
SOURCES: dict[str, tuple[str, ...]] = {
    "litgpt_": ("litgpt", "Config"),
    "fairseq2_llama": ("fairseq2", "LLaMAConfig"),
    "fms_llama": ("ibm-fms", "LLaMAConfig"),
    "mistral_": ("mistral-inference", "TransformerArgs"),
    "whisper_whisper": ("openai-whisper", "ModelDimensions"),
    "meta_llama": ("llama-models", "ModelArgs"),
    "mcore_": ("megatron-core", "TransformerConfig", "ModelParallelConfig"),
    "olmo1_olmo": ("ai2-olmo", "ModelConfig"),
    "olmo_core_": ("ai2-olmo-core", "TransformerConfig", "AttentionConfig"),
    "transformer_lens_gpt2": ("transformer-lens", "HookedTransformerConfig"),
    "timm_vit": ("timm", "VisionTransformer"),
    "timm_dinov2": ("timm", "VisionTransformer"),
    "timm_deit": ("timm", "VisionTransformer"),
    "timm_beit": ("timm", "Beit"),
    "timm_convnext": ("timm", "ConvNeXt"),
    "timm_resnet": ("timm", "ResNet"),
    "timm_swin": ("timm", "SwinTransformer"),
    "torchtune_llama": ("torchtune", "llama3_1"),
    "torchtune_mistral": ("torchtune", "mistral"),
    "torchtune_phi3": ("torchtune", "phi3"),
    "torchtune_qwen2": ("torchtune", "qwen2"),
    "torchtitan_": ("torchtitan", "RoPE.Config"),
}
SPECS = {
    path.stem: prefix
    for path in sorted((ROOT / "specs").glob("*.yaml"))
    for prefix in SOURCES
    if path.stem.startswith(prefix)
}

# What a trainer's command line has beside its config class.
COMMAND_LINE = {"megatron-core": ["rope_scaling_factor"]}


def unheard(program: Program, fields: list[str]) -> list[str]:
    """The fields of which a spec says nothing."""
    spec = program.spec
    heard = {*spec.arguments, *spec.facts, *spec.fixed}
    return [field for field in fields if field not in heard and not program.passes_over(field)]


def fields_of(spec: str) -> list[str]:
    """The recorded fields of the classes whose configs a spec reads; none for specs without a record."""
    if spec not in SPECS:
        return []
    package, *classes = SOURCES[SPECS[spec]]
    return [field for name in classes for field in RECORDED[package]["fields"][name]]


def defaults_of(program: Program) -> dict[str, Any]:
    """The defaults that other people's code has for a spec's arguments: the trainer's recorded config class, else the
    target's own where the trainer uses its field names. A list for a tuple."""
    spec, name = program.spec, program.spec.name.value
    found: dict[str, Any] = {}
    if name in SPECS:
        package, *classes = SOURCES[SPECS[name]]
        for one in classes:
            found |= RECORDED[package]["defaults"][one]
    elif spec.target.model:
        found = dict(config_class.config_defaults(model_class.model_type(spec.target.model.value)))
    return {name: found[name] for name, argument in spec.arguments.items() if name in found and has_default(argument)}


def has_default(argument: Argument) -> bool:
    return not argument.required and argument.derive is None


# Spec -> argument -> the default that differs from the recorded one, and why. A spec that is not in it is not compared.
OTHER_DEFAULTS: dict[str, dict[str, tuple[Any, str]]] = json.loads(
    (ROOT / "tests/data/other_defaults.json").read_text()
)


def wrong_defaults(program: Program) -> list[str]:
    """The arguments whose default is neither the recorded one nor listed in `other_defaults.json`."""
    listed = OTHER_DEFAULTS.get(program.spec.name.value, {})
    wrong = []
    for name, recorded in defaults_of(program).items():
        default = program.spec.arguments[name].default
        wanted = listed[name][0] if name in listed else list(recorded) if isinstance(recorded, tuple) else recorded
        if default != wanted or isinstance(default, bool) != isinstance(wanted, bool):
            wrong.append(name)
    return wrong
