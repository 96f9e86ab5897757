"""Folders whose names and shapes are a plain decoder's, and whose config says that the model computes something else.

Every one is rejected: forward as a source of its own names, and reversed towards four trainers' layouts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from compiler.diagnostics import Refusal
from compiler.jobs.detect import detect
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.plan.plan import Plan
from compiler.program.loading import load_program
from compiler.program.program import Program
from compiler.settings.arguments import gather
from compiler.settings.config_guard import neutral_values, unconverted_fields

HEADS, WIDTH, MLP, LAYERS, ROWS = 4, 32, 48, 2, 64
SIZES = {
    "vocab_size": ROWS,
    "hidden_size": WIDTH,
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
PLAIN = SIZES | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
# Architectures with the same names, as their own configs state them.
OTHERS: Mapping[str, dict[str, Any]] = {
    "gemma": {"model_type": "gemma", "hidden_act": "gelu_pytorch_tanh", "head_dim": 8},
    "granite": {"model_type": "granite", "embedding_multiplier": 12.0, "logits_scaling": 8.0},
    "mistral_window": {"model_type": "mistral", "sliding_window": 16},
    "ministral": {"model_type": "ministral", "sliding_window": 16, "layer_types": ["sliding_attention"] * LAYERS},
    "helium": {"model_type": "helium", "head_dim": 8},
    "smollm3": {"model_type": "smollm3", "no_rope_layers": [1, 0]},
    "cohere": {"model_type": "cohere", "logit_scale": 0.0625},
    "olmo": {"model_type": "olmo", "clip_qkv": 8.0},
    "arcee": {"model_type": "arcee", "hidden_act": "relu2"},
    "nemotron": {"model_type": "nemotron", "partial_rotary_factor": 0.5, "hidden_act": "relu2"},
    "seed_oss": {"model_type": "seed_oss", "attention_out_bias": False},
    "exaone4": {"model_type": "exaone4", "sliding_window_pattern": 4},
    "stablelm": {"model_type": "stablelm", "use_parallel_residual": True},
    "named_by_its_class": {"model_type": None, "architectures": ["GraniteForCausalLM"]},
    "named_without_a_list": {"model_type": None, "architectures": "GraniteForCausalLM"},
    "class_of_own_code": {"model_type": "llama", "architectures": ["LlamaForCausalLMWithExtras"]},
    "type_is_a_list": {"model_type": ["gemma"]},
    "type_and_class_differ": {"model_type": "llama", "architectures": ["MistralForCausalLM"]},
}
# Fields of a config of the right type that no rule writes, or that these layouts cannot express.
FIELDS: Mapping[str, dict[str, Any]] = {
    "yarn": {"rope_scaling": YARN},
    "yarn_of_generation_5": {"rope_parameters": YARN | {"rope_theta": 10000.0}},
    "share_of_generation_5": {"rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    "scaled_sliding_layers": {
        "rope_parameters": {
            "full_attention": {"rope_theta": 10000.0},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0},
        }
    },
    "theta_of_sliding_layers": {
        "rope_parameters": {"full_attention": {"rope_theta": 10000.0}, "sliding_attention": {"rope_theta": 5000.0}}
    },
    "a_third_kind_of_layers": {"rope_parameters": {"full_attention": {"rope_theta": 1e4}, "chunked_attention": {}}},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "window": {"sliding_window": 16},
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "activation": {"hidden_act": "gelu"},
    "multiplier": {"residual_multiplier": 0.22},
    "soft_cap": {"final_logit_softcapping": 30.0},
    "partial_rotary": {"partial_rotary_factor": 0.5},
    "no_rope_layers": {"no_rope_layers": [1, 0]},
    "quantized": {"quantization_config": {"quant_method": "fp8"}},
    "sliding_layers": {"layer_types": ["sliding_attention", "full_attention"]},
    "experts": {"num_local_experts": 8},
}
REVERSED = ("meta_llama", "torchtune_llama", "litgpt_llama", "gpt_fast_llama")
GIVEN: dict[str, Any] = {"fused_weights": True}


@cache
def program(name: str) -> Program:
    return load_program(name)


def weights() -> dict[str, torch.Tensor]:
    names = {"model.embed_tokens": (ROWS, WIDTH), "model.norm": (WIDTH,), "lm_head": (ROWS, WIDTH)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        names |= {f"{layer}.self_attn.{p}_proj": (WIDTH, WIDTH) for p in "qo"}
        names |= {f"{layer}.self_attn.{p}_proj": (WIDTH // 2, WIDTH) for p in "kv"}
        names |= {f"{layer}.mlp.{p}_proj": (MLP, WIDTH) for p in ("gate", "up")}
        names |= {f"{layer}.mlp.down_proj": (WIDTH, MLP)}
        names |= {f"{layer}.{n}_layernorm": (WIDTH,) for n in ("input", "post_attention")}
    return {f"{name}.weight": torch.zeros(shape) for name, shape in names.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[Mapping[str, Any]], Path]:
    def made(config: Mapping[str, Any]) -> Path:
        save_file(weights(), tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return made


def planned(spec: str, source: Path, reverse: bool = False, **rest: Any) -> Plan:
    return prepare(program(spec), Request([source], reverse=reverse, **rest)).plan


def kinds(refusal: pytest.ExceptionInfo[Refusal]) -> set[str]:
    return {diagnostic.kind for diagnostic in refusal.value.diagnostics}


Folder = Callable[[Mapping[str, Any]], Path]


@pytest.mark.parametrize("spec", ["llama", *REVERSED])
@pytest.mark.parametrize("name", OTHERS)
def test_another_architecture_is_an_error(folder: Folder, name: str, spec: str) -> None:
    source = folder(PLAIN | OTHERS[name])
    with pytest.raises(Refusal) as refusal:
        planned(spec, source, reverse=spec in REVERSED)
    assert "other-architecture" in kinds(refusal)


@pytest.mark.parametrize("spec", ["llama", *REVERSED])
@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_changes_the_function_is_an_error(folder: Folder, name: str, spec: str) -> None:
    if spec == "llama" and name in ("yarn", "yarn_of_generation_5", "dynamic", "activation"):
        pytest.skip("this spec writes it")
    source = folder(PLAIN | FIELDS[name])
    with pytest.raises(Refusal) as refusal:
        planned(spec, source, reverse=spec in REVERSED)
    assert kinds(refusal) <= {"unconverted-field", "config-mismatch", "unmet-requirement"}


@pytest.mark.parametrize("spec", ["llama", *REVERSED])
def test_the_plain_folder_is_converted(folder: Folder, spec: str) -> None:
    """Else the tests above would prove nothing."""
    assert len(planned(spec, folder(PLAIN), reverse=spec in REVERSED).targets) >= 15


@pytest.mark.parametrize("name", ["granite", "mistral_window", "cohere", "smollm3"])
def test_ignoring_the_type_ignores_no_field(folder: Folder, name: str) -> None:
    source = folder(PLAIN | OTHERS[name])
    with pytest.raises(Refusal) as refusal:
        planned("llama", source, any_model_type=True)
    assert kinds(refusal) == {"unconverted-field"}


def test_a_type_may_be_ignored(folder: Folder) -> None:
    source = folder(SIZES | {"model_type": "helium"})
    assert planned("llama", source, any_model_type=True).config["hidden_size"] == WIDTH
    assert planned("torchtune_llama", source, reverse=True, any_model_type=True)


def test_the_types_of_a_spec_are_its_own(folder: Folder) -> None:
    """Of a source, not of a folder to reverse; a type that nobody knows is not among them."""
    own = PLAIN | {"model_type": "minimind", "architectures": ["MiniMindForCausalLM"], "dropout": 0.1}
    assert planned("llama", folder(own))
    for config, reverse in ((own, True), (own | {"model_type": "minicpm", "scale_emb": 12}, False)):
        with pytest.raises(Refusal) as refusal:
            planned("llama", folder(config), reverse=reverse)
        assert "other-architecture" in kinds(refusal)


def test_a_file_counts_as_its_folder(folder: Folder) -> None:
    source = folder(PLAIN | OTHERS["gemma"])
    with pytest.raises(Refusal, match="other-architecture"):
        planned("llama", source / "model.safetensors")


def test_a_config_that_is_given_is_looked_at(folder: Folder, tmp_path: Path) -> None:
    source = folder(PLAIN)
    other = tmp_path / "other.json"
    other.write_text(json.dumps(PLAIN | OTHERS["granite"]))
    with pytest.raises(Refusal, match="other-architecture"):
        planned("llama", source, config=other)


def test_a_config_inside_of_the_weights_is_looked_at(tmp_path: Path) -> None:
    torch.save({"model": weights(), "config": PLAIN | OTHERS["granite"]}, tmp_path / "model.pth")
    with pytest.raises(Refusal, match=r"the checkpoint's 'config'.*model_type is 'granite'"):
        planned("llama", tmp_path / "model.pth")


def test_detect_names_the_architecture(folder: Folder) -> None:
    fit = detect(Request([folder(PLAIN | OTHERS["gemma"])]), [program("llama")])[0]
    assert fit.status == "near"
    assert any("model_type is 'gemma'" in reason for reason in fit.reasons)


def test_another_value_than_the_class_has_is_an_error(folder: Folder) -> None:
    """For fields that the spec does not set: harmless ones pass, others need the default of the class."""
    base = PLAIN | {"initializer_range": 0.5, "attention_dropout": 0.1, "pretraining_tp": 2, "use_cache": False}
    assert planned("llama", folder(base))


@pytest.mark.parametrize(("field", "value"), [("scale_attn_by_inverse_layer_idx", True), ("scale_attn_weights", False)])
def test_a_field_of_the_class_that_no_rule_writes(tmp_path: Path, field: str, value: bool) -> None:
    config = tmp_path / "given.json"
    config.write_text(json.dumps({"model_type": "gpt2", "n_head": 4, field: value}))
    with pytest.raises(Refusal, match=rf"{field} is {value}, where {not value} is the default of the class"):
        gather(program("megatron_gpt2"), tmp_path / "model.pt", {}, config, {})


# ---------------------------------------------------------------------------------------------------------------------
# Arguments that a folder's config implies


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("meta_llama", {"use_scaled_rope": True, "rope_scale_factor": 32.0}),
        ("torchtune_llama", {"scale_factor": 32.0}),
        ("torchtitan_llama", {"scaling": "llama", "scaling_factor": 32.0}),
        ("gpt_fast_llama", {"rope_scaling": {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                             "original_max_position_embeddings": 8192}}),
    ],
)  # fmt: skip
def test_the_way_back_keeps_the_scaling_that_a_layout_can_express(
    folder: Folder, spec: str, expected: dict[str, Any]
) -> None:
    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}  # fmt: skip
    plan = planned(spec, folder(PLAIN | {"rope_theta": 500000.0, "rope_scaling": scaling}), reverse=True)
    assert {name: plan.values[name] for name in expected} == expected


def test_a_number_that_a_layout_cannot_express_is_an_error(folder: Folder) -> None:
    """Meta's code has 1 and 4 for the two factors and 8192 for the positions, whatever params.json says."""
    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 8.0,
               "original_max_position_embeddings": 8192}  # fmt: skip
    with pytest.raises(Refusal, match=r"rope_scaling is .*config-mismatch"):
        planned("meta_llama", folder(PLAIN | {"rope_scaling": scaling}), reverse=True)


def test_what_converters_reject_is_what_runs_reject() -> None:
    """Each field of the table that a converter prints: its row has no effect, another value is an error."""
    program = load_program("internlm2_llama")
    table = neutral_values(program)
    assert {"sliding_window", "final_logit_softcapping", "quantization_config", "use_qk_norm"} <= table.keys()
    assert not table.keys() & {*program.spec.arguments, *program.spec.facts, *program.spec.fixed}
    for name, values in table.items():
        accepted = [unconverted_fields(program, {name: value}, set(), "x", False)[0] for value in values]
        assert accepted == [[]] * len(values), name
        assert unconverted_fields(program, {name: 17.25}, set(), "x", False)[0], name
