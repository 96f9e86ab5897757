"""Values of config fields that no class can use, found without importing transformers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from compiler.target.config_values import is_fraction, is_positive, value_faults

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({"rope_theta": -1}, "rope_theta"),
        ({"rope_theta": "high"}, "rope_theta"),
        ({"rope_theta": True}, "rope_theta"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
        ({"layer_norm_epsilon": 2}, "layer_norm_epsilon"),
        ({"hidden_act": "nonsense"}, "hidden_act"),
        ({"hidden_act": 3}, "hidden_act"),
        ({"activation_function": "gelu_old"}, "activation_function"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"vocab_size": 12.5}, "vocab_size"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ({"attention_dropout": 2}, "attention_dropout"),
        ({"sliding_window": -4}, "sliding_window"),
        ({"eos_token_id": [1, -7]}, "eos_token_id"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"rope_scaling": {"rope_type": "linea", "factor": 2.0}}, "rope_scaling.rope_type"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "rope_scaling.factor"),
        ({"text_config": {"hidden_act": "nonsense"}}, "text_config.hidden_act"),
        ({"vision_config": {"layer_norm_eps": -1e-5}}, "vision_config.layer_norm_eps"),
    ],
)
def test_a_value_that_no_class_can_use(config: dict[str, object], path: str) -> None:
    assert [".".join(fault.path) for fault in value_faults(config)] == [path]


def test_values_in_use_are_accepted() -> None:
    config = {
        "rope_theta": 10000, "rms_norm_eps": 0.0, "hidden_act": "gelu_pytorch_tanh", "sliding_window": None,
        "eos_token_id": [1, 2], "pad_token_id": -1, "tie_word_embeddings": False, "num_key_value_heads": None,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "quantization_config": {"hidden_size": "anything"},
    }  # fmt: skip
    assert list(value_faults(config)) == []


def test_transformers_is_not_imported() -> None:
    code = (
        "import sys\nfrom compiler.target.config_values import is_fraction, is_positive, value_faults\n"
        "print(len(list(value_faults({'hidden_act': 'nonsense'}))), 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]


def test_what_a_converter_checks() -> None:
    """Positive numbers and fractions that no shape shows; a class that is built of a wrong width has other tensors."""
    assert all(map(is_positive, ("rope_theta", "factor", "max_position_embeddings", "num_experts_per_tok")))
    assert not any(map(is_positive, ("hidden_size", "rms_norm_eps", "bos_token_id", "partial_rotary_factor", "other")))
    assert all(map(is_fraction, ("rms_norm_eps", "partial_rotary_factor", "attention_dropout")))
    assert not any(map(is_fraction, ("rope_theta", "hidden_size", "tie_word_embeddings", "other")))
