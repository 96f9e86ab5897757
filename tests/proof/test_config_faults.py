"""Config fields that a target lacks, or that only a default would fill, at every depth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from compiler.diagnostics import Diagnostic, Refusal, Span, refuse
from compiler.language.parser import load_spec
from compiler.program.loading import compile_spec, load_program
from compiler.program.program import Program
from compiler.proof.config_faults import config_fault, field_faults, ineffective_fields, reserved_fields
from compiler.proof.proof import prove
from compiler.target.class_signature import ConfigSchema

SPECS = Path(__file__).parent.parent.parent / "specs"
DECODER = (
    '"hidden_size": 32, "hidden_act": "relu", "mlp_dim": 48, "num_hidden_layers": 2, "num_attention_heads": heads, '
    '"attention_downsample_rate": 2, "num_multimask_outputs": 3, "iou_head_depth": 3, "iou_head_hidden_dim": 40, '
    '"layer_norm_eps": 1.0e-6'
)
SPEC = """
spec: 1
name: nested
summary: nested configs
source: {weights: "*.pth"}
target: {model: SamModel}
arguments: {heads: 4}
facts:
  width: dim("vision_encoder.pos_embed", 3)
config:
  derive:
    vision_config: >-
      {"hidden_size": width, "output_channels": 32, "num_hidden_layers": 2, "num_attention_heads": 3, "num_channels": 3,
      "image_size": 64, "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1.0e-6, "qkv_bias": True, "mlp_ratio": 2.0,
      "use_abs_pos": True, "use_rel_pos": True, "window_size": 2, "global_attn_indexes": [1], "num_pos_feats": 16,
      "mlp_dim": 60}
    prompt_encoder_config: >-
      {"hidden_size": 32, "image_size": 64, "patch_size": 16, "mask_input_channels": 16, "num_point_embeddings": 4,
      "hidden_act": "gelu", "layer_norm_eps": 1.0e-6}
    mask_decoder_config: >-
      {DECODER}
keep: all
example: {width: 24}
"""


def problems(path: Path, text: str) -> list[Diagnostic]:
    path.write_text(text)
    try:
        return list(prove(load_program(str(path))).warnings)
    except Refusal as refusal:
        return list(refusal.diagnostics)


def nested(folder: Path, old: str = "", new: str = "") -> list[Diagnostic]:
    text = SPEC.replace("DECODER", DECODER)
    assert old in text
    return problems(folder / "nested.yaml", text.replace(old, new))


def test_a_nested_config_that_is_given_as_a_whole(tmp_path: Path) -> None:
    assert nested(tmp_path) == []


@pytest.mark.parametrize(
    ("old", "new", "kind", "message"),
    [
        (
            '"layer_norm_eps": 1.0e-6}\nkeep',
            '"layer_norm_epsilon": 1.0e-6}\nkeep',
            "unknown-field",
            "layer_norm_epsilon",
        ),
        (', "num_attention_heads": heads', "", "unfilled-field", "num_attention_heads"),
        ('"mlp_ratio": 2.0,', "", "unfilled-field", "vision_config does not set mlp_ratio"),
        ("  derive:\n", "  set: {head_dim: 8}\n  derive:\n", "unknown-field", "head_dim"),
        ("    prompt_encoder_config", "    prompt_config", "unknown-field", "prompt_config"),
    ],
)
def test_what_a_nested_class_lacks_or_needs(old: str, new: str, kind: str, message: str, tmp_path: Path) -> None:
    found = nested(tmp_path, old, new)
    assert kind in {d.kind for d in found}
    assert any(message in d.message for d in found)
    assert all(d.span.line for d in found)


def test_a_nested_constant_is_checked_at_its_key(tmp_path: Path) -> None:
    constant = SPEC.replace("    mask_decoder_config: >-\n      {DECODER}\n", "").replace(
        "keep: all",
        "  set:\n    mask_decoder_config:\n      "
        + DECODER.replace('"', "").replace(", ", "\n      ").replace("heads: heads", "heads: 4")
        + "\n      layer_norm: 2\nkeep: all",
    )
    (found,) = (d for d in problems(tmp_path / "nested.yaml", constant) if d.kind == "unknown-field")
    assert found.span.text.strip() == "layer_norm: 2"


def test_a_field_that_only_the_code_looks_for_must_change_something(tmp_path: Path) -> None:
    """`head_dim` is declared by neither class; one is built with another width of its heads, the other never is."""
    vit = (SPECS / "timm_vit.yaml").read_text()
    changed = vit.replace("  set: {hidden_act", "  derive: {head_dim: embed_dim // num_heads}\n  set: {hidden_act")
    (found,) = problems(tmp_path / "timm_vit.yaml", changed)
    assert (found.kind, "head_dim" in found.message) == ("unknown-field", True)
    assert problems(tmp_path / "qwen3_moe.yaml", (SPECS / "qwen3_moe.yaml").read_text()) == []


def test_a_field_that_only_the_default_of_the_class_fills(tmp_path: Path) -> None:
    """A warning for fields that change the function; not for harmless and neutral ones, nor for those that are fixed."""
    text = (SPECS / "llama2c_llama.yaml").read_text()
    assert problems(tmp_path / "llama2c_llama.yaml", text) == []
    changed = text.replace("hidden_act: silu, ", "").replace(", attention_bias: false", "")
    assert changed != text
    (found,) = problems(tmp_path / "llama2c_llama.yaml", changed)
    assert (found.kind, found.warning) == ("unfilled-field", True)
    assert "hidden_act ('silu')" in found.message
    assert "attention_bias" not in found.message
    assert problems(tmp_path / "opt_opt.yaml", (SPECS / "opt_opt.yaml").read_text()) == []


# ---------------------------------------------------------------------------------------------------------------------
# Against a config class that is made here

SMALL = """
spec: 1
name: small
summary: a small spec
source: {weights: "*.pth"}
target: {model: LlamaForCausalLM}
arguments:
  heads: 4
  given: {default: {inner: {depth: 2}}}
facts:
  vision: >-
    {"width": heads, "inner": {"deep": 3}}
config:
  copy: [heads, given]
  rename: {vision_config: vision}
keep: all
example:
  - {heads: "12"}
"""
INNER = ConfigSchema("InnerConfig", "inner", ("depth",), (), ("depth",), {}, {})
VISION = ConfigSchema("VisionConfig", "vision", ("width", "inner"), ("patch",), (), {}, {"inner": INNER})
NESTED = {"vision_config": VISION, "given": VISION}
MODEL = ConfigSchema("SmallConfig", "small", ("heads", "vision_config", "given"), ("looked_for",), (), {}, NESTED)


def small(old: str = "", new: str = "") -> Program:
    assert old in SMALL
    return compile_spec(load_spec("small.yaml", SMALL.replace(old, new)))


def line(text: str) -> int:
    return SMALL[: SMALL.index(text)].count("\n") + 1


def test_a_field_that_every_conversion_writes() -> None:
    program = small("config:\n", "config:\n  set: {dtype: float16}\n")
    (found,) = reserved_fields(program)
    assert found.message == "dtype is written by every conversion, so a spec cannot set it"
    assert (found.kind, found.hint, found.span.line) == ("unknown-field", "leave it out", line("config:\n") + 1)
    assert list(reserved_fields(small())) == []


def test_configs_within_nested_configs() -> None:
    """The place is that of the key, in a fact, and of the argument that holds a whole config."""
    vision, given = {"width": 4, "inner": {"deep": 3}}, {"inner": {"depth": 2, "other": 1}}
    found = field_faults(small(), MODEL, [{"vision_config": vision, "given": given}])
    assert {(d.message, d.span.line) for d in found} == {
        ("given.inner: InnerConfig has no config field 'other'", line("  given:")),
        ("vision_config.inner: InnerConfig has no config field 'deep'", line("  vision: >-") + 1),
        ("vision_config.inner does not set depth, so InnerConfig would use its defaults", line("  vision: >-") + 1),
    }
    assert (
        field_faults(small(), MODEL, [{"vision_config": {"inner": {"depth": 1}}, "given": {"inner": {"depth": 1}}}])
        == []
    )


def test_a_nested_config_of_another_class_is_not_judged() -> None:
    other = {"model_type": "other", "anything": 1}
    assert field_faults(small(), MODEL, [{"vision_config": other, "given": other}]) == []
    same = {"model_type": "vision", "anything": 1}
    found = field_faults(small(), MODEL, [{"vision_config": same, "given": other}])
    assert "vision_config: VisionConfig has no config field 'anything'" in {d.message for d in found}
    assert all(d.message.startswith("vision_config") for d in found)


def test_a_field_that_changes_nothing_is_ineffective() -> None:
    """At any depth; where no example has it otherwise, and not where the class cannot be built without it."""
    program = small("{vision_config: vision}", "{vision_config: vision, looked_for: heads}")
    configs = [{"looked_for": 4, "vision_config": {"patch": 2}}, {"looked_for": 4}]

    def without_effect(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return {"w": (3,)}

    found = list(ineffective_fields(program, MODEL, configs, without_effect))
    assert [d.message for d in found] == [
        "LlamaForCausalLM has no config field 'looked_for'",
        "LlamaForCausalLM has no config field 'vision_config.patch'",
    ]

    def patched(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        if "looked_for" not in config:
            refuse("SmallConfig", "it needs looked_for", "unbuildable-target")
        return {"w": (config.get("vision_config", {}).get("patch", 1),)}

    assert list(ineffective_fields(program, MODEL, configs, patched)) == []


def test_a_number_in_quotes_is_found_where_it_was_written() -> None:
    """In the example that has it, else at the argument."""
    rejected = Diagnostic(Span("LlamaForCausalLM"), "'<' not supported between 'str' and 'int'", "unbuildable-target")
    for value, place in (("12", '  - {heads: "12"}'), ("7", "  heads: 4")):
        found = config_fault(small(), {"heads": value}, {"heads": value}, rejected)
        assert found.message == f"LlamaForCausalLM rejects heads = '{value}': a string, not a number"
        assert (found.span.line, found.hint) == (line(place), "write it without quotes, as in 12 or 1.0e-6")
    assert config_fault(small(), {}, {"heads": 12}, rejected) == rejected
