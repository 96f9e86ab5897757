"""The dictionary of a RoPE scaling that a spec writes, also in branches that no example takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.program.loading import load_program
from compiler.proof.rope_scaling import scaling_faults

SPECS = Path(__file__).parent.parent.parent / "specs"


def kinds(folder: Path, spec: str, old: str = "", new: str = "") -> list[str]:
    text = (SPECS / f"{spec}.yaml").read_text()
    assert old in text
    (folder / f"{spec}.yaml").write_text(text.replace(old, new, 1))
    return [d.kind for d in scaling_faults(load_program(str(folder / f"{spec}.yaml")))]


@pytest.mark.parametrize("spec", sorted(path.stem for path in SPECS.glob("*.yaml")))
def test_shipped_specs_have_no_fault(tmp_path: Path, spec: str) -> None:
    assert kinds(tmp_path, spec) == []


@pytest.mark.parametrize(
    ("spec", "old", "new", "kind"),
    [
        ("meta_llama", '"low_freq_factor": 1.0', '"low_freq_facter": 1.0', "unknown-field"),
        ("meta_llama", '"low_freq_factor": 1.0, ', "", "unfilled-field"),
        ("meta_llama", '"rope_type": "llama3"', '"rope_typ": "llama3"', "unknown-field"),
        ("meta_llama", '"rope_type": "llama3", ', "", "unfilled-field"),
        ("litgpt_gemma3", '"factor": rope_adjustments["factor"]', '"factor": "linear"', "wrong-type"),
        ("litgpt_gemma3", '"rope_type": "linear"', '"rope_type": 8.0', "wrong-type"),
        ("gguf_llama", '"rope_type": "linear", "factor"', '"rope_type": "linear", "scale"', "unfilled-field"),
        ("qwen3", '"beta_fast": 32.0, ', "", "unfilled-field"),
        ("qwen3", '"beta_fast": 32.0, "beta_slow": 1.0', '"beta_fast": 1.0, "beta_slow": 32.0', "wrong-value"),
        ("llama", '"rope_type": "yarn"', '"rope_type": "llama3"', "unknown-field"),
    ],
)
def test_a_mistake_in_a_key_or_its_value(tmp_path: Path, spec: str, old: str, new: str, kind: str) -> None:
    assert kind in kinds(tmp_path, spec, old, new)


def test_a_constant_a_fact_and_layers_of_two_kinds(tmp_path: Path) -> None:
    old, config = "  set: {hidden_act", "config:\n"
    constant = "  set: {rope_scaling: {rope_type: linear, facter: 2.0}, hidden_act"
    assert sorted(kinds(tmp_path, "llama2c_llama", old, constant)) == ["unfilled-field", "unknown-field"]
    layers = '{"full_attention": {"rope_type": "yarn", "factor": 2.0}, "sliding_attention": {"rope_type": "default"}}'
    derived = f"{config}  derive: {{rope_parameters: '{layers}'}}\n"
    assert kinds(tmp_path, "llama2c_llama", config, derived) == ["unfilled-field"]
    fact = """facts:\n  scaling: '{"rope_type": "linear", "facter": 2.0}'\n"""
    text = (SPECS / "llama2c_llama.yaml").read_text()
    path = tmp_path / "llama2c_llama.yaml"
    path.write_text(
        text.replace("facts:\n", fact, 1).replace(config, f"{config}  derive: {{rope_scaling: scaling}}\n", 1)
    )
    found = list(scaling_faults(load_program(str(path))))
    assert sorted(d.kind for d in found) == ["unfilled-field", "unknown-field"]
    assert all("scaling:" in d.span.text for d in found)


def test_a_kind_that_is_not_known_may_have_any_keys(tmp_path: Path) -> None:
    assert kinds(tmp_path, "meta_llama", '"rope_type": "llama3"', '"rope_type": "of_the_future"') == []
