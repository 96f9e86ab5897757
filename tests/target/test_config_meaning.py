"""Which values of a config's fields leave the function of a model as it is."""

from __future__ import annotations

from typing import Any

import pytest

from compiler.target.config_meaning import is_neutral

# The field, its value, the defaults of the target's class, and the answer.
CASES: list[tuple[str, Any, dict[str, Any], bool | None]] = [
    ("qkv_bias", False, {}, True),
    ("qkv_bias", True, {}, False),
    ("qkv_bias", False, {"qkv_bias": False}, True),
    ("qkv_bias", None, {"qkv_bias": False}, True),
    ("qkv_bias", False, {"qkv_bias": True}, False),  # the class adds biases unless the field is written
    ("qkv_bias", True, {"qkv_bias": True}, True),
    ("logit_scale", 1, {"logit_scale": 0.0625}, False),
    ("logit_scale", 0.0625, {"logit_scale": 0.0625}, True),
    ("attention_dropout", 0.5, {"attention_dropout": 0.0}, True),
    ("something_new", 1, {}, None),
    ("something_new", 1, {"something_new": 2}, False),
]


@pytest.mark.parametrize(("name", "value", "defaults", "expected"), CASES)
def test_a_neutral_value(name: str, value: Any, defaults: dict[str, Any], expected: bool | None) -> None:
    assert is_neutral(name, value, {name: value}, defaults) is expected
