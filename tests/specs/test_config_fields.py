"""Every field of a source's config is read, fixed, or unread with a reason: nothing that a trainer states is unheard of.

`tests/data/config_fields` holds the fields of the packages' own config classes, recorded by
`tests/recorders/record_config_fields.py` from the release that each file names.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compiler.program.loading import load_program
from compiler.program.program import Program

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


@pytest.mark.parametrize("spec", SPECS)
def test_each_field_of_the_original_config_is_accounted_for(spec: str) -> None:
    package, *classes = SOURCES[SPECS[spec]]
    program = load_program(spec)
    fields = [field for name in classes for field in RECORDED[package]["fields"][name]]
    assert len(fields) > 5
    assert unheard(program, fields) == []


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_fixed_or_unread_has_a_reason_and_a_field(spec: str) -> None:
    """A name that the original does not have would guard nothing. Patterns of `{field:...}` are of the config class; others
    are of the trainer's command line, whose args are stored with the weights."""
    package, *classes = SOURCES[SPECS[spec]]
    program = load_program(spec)
    fields = [field for name in classes for field in RECORDED[package]["fields"][name]]
    fields += COMMAND_LINE.get(package, [])
    for pattern, reason in program.unread:
        assert len(reason) > 8, pattern
        of_class = pattern.is_name or "field" in pattern.holes
        assert not of_class or any(pattern.match(field) is not None for field in fields), pattern


def test_an_unheard_field_is_found() -> None:
    program = load_program("litgpt_llama")
    assert unheard(program, ["n_head", "new_field", "padding_multiple"]) == ["new_field"]
