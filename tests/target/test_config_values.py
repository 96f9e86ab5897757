"""Values of config fields that no class can use, found without importing transformers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compiler.target.config_values import is_fraction, is_positive, null_faults, type_faults, value_faults

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
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling.factor"),
        ({"rope_parameters": {"rope_type": "default", "factor": 2.0, "rope_theta": 1e4}}, "rope_parameters.factor"),
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
    for scaling in ({"type": "linear", "factor": 2.0}, {"rope_type": "default", "type": "linear", "factor": 2.0}):
        assert list(value_faults({"rope_scaling": scaling})) == []
    assert list(value_faults({"rope_parameters": {"rope_type": "default", "factor": 1.0}})) == []


def test_transformers_is_not_imported() -> None:
    code = (
        "import sys\nfrom compiler.target.config_values import is_fraction, is_positive, value_faults\n"
        "print(len(list(value_faults({'hidden_act': 'nonsense'}))), 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]


@pytest.mark.parametrize(
    ("config", "path", "expected"),
    [
        ({"architectures": "LlamaForCausalLM"}, "architectures", 'write ["LlamaForCausalLM"]'),
        ({"architectures": [["LlamaForCausalLM"]]}, "architectures", "a list of class names"),
        ({"model_type": ["llama"]}, "model_type", "a text"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers", "a positive integer"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers", "a positive integer"),
        ({"num_hidden_layers": True}, "num_hidden_layers", "a positive integer"),
        ({"vocab_size": [32]}, "vocab_size", "a positive integer"),
        ({"vocab_size": {"a": 32}}, "vocab_size", "a positive integer"),
        ({"rope_theta": "10000"}, "rope_theta", "a positive number"),
        ({"rope_parameters": {"rope_theta": "x"}}, "rope_parameters.rope_theta", "a positive number"),
        ({"rope_scaling": "linear"}, "rope_scaling", "a mapping"),
        ({"rope_scaling": {"rope_type": 3}}, "rope_scaling.rope_type", "a text"),
        ({"text_config": {"hidden_act": 3}}, "text_config.hidden_act", "a text"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings", "true or false"),
        ({"eos_token_id": [2, "3"]}, "eos_token_id", "a token id"),
    ],
)
def test_a_field_of_another_type(config: dict[str, Any], path: str, expected: str) -> None:
    (fault,) = type_faults(config)
    assert ".".join(fault.path) == path
    assert expected in f"{fault.expected} {fault.hint}"
    assert fault.at("config.json").kind == "wrong-type"


def test_types_are_not_ranges() -> None:
    """What a trainer's own field of this name may hold, and nulls."""
    config = {
        "architectures": ["LlamaForCausalLM"], "num_experts": 0, "rope_theta": -1, "hidden_act": "nonsense", "vocab_size": None,
        "num_key_value_heads": [2, 4], "eos_token_id": [2, 3], "rope_scaling": None, "sliding_window": 0, "dropout": 7,
    }  # fmt: skip
    assert list(type_faults(config)) == []


def test_nulls_where_the_class_has_a_number() -> None:
    defaults = {
        "num_hidden_layers": 32,
        "rope_theta": 1e4,
        "rms_norm_eps": 1e-6,
        "head_dim": 8,
        "intermediate_size": None,
    }
    config = dict.fromkeys(defaults)
    assert [fault.path[0] for fault in null_faults(config, defaults)] == [
        "num_hidden_layers",
        "rope_theta",
        "rms_norm_eps",
    ]
    assert "rope_theta" not in [
        fault.path[0] for fault in null_faults(config | {"rope_parameters": {"rope_theta": 1.0}}, defaults)
    ]


def test_what_a_converter_checks() -> None:
    """Positive numbers and fractions that no shape shows; a class that is built of a wrong width has other tensors."""
    assert all(map(is_positive, ("rope_theta", "factor", "max_position_embeddings", "num_experts_per_tok")))
    assert not any(map(is_positive, ("hidden_size", "rms_norm_eps", "bos_token_id", "partial_rotary_factor", "other")))
    assert all(map(is_fraction, ("rms_norm_eps", "partial_rotary_factor", "attention_dropout")))
    assert not any(map(is_fraction, ("rope_theta", "hidden_size", "tie_word_embeddings", "other")))
