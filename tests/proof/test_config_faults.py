"""Config fields that a target lacks, or that only a default would fill, at every depth."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.diagnostics import Diagnostic, Refusal
from compiler.program.loading import load_program
from compiler.proof.proof import prove

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
