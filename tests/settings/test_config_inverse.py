"""The `config` section read backwards: the arguments that make a spec write a given config."""

from __future__ import annotations

from typing import Any

import pytest

from compiler.language.parser import load_spec
from compiler.program.loading import compile_spec
from compiler.program.program import Program
from compiler.settings.config_inverse import arguments_of, arguments_of_facts

SPEC = """
spec: 1
name: small
summary: a small spec
source: {{weights: "*.pth"}}
target: {{model: LlamaForCausalLM}}
arguments: {{heads: 4, theta: null, scaling: false, kind: plain, names: {{help: some, default: {{a: 1}}}}}}
facts: {{double: heads * 2}}
config:
  derive:
    field: >-
      {expression}
keep: all
"""


def program(expression: str) -> Program:
    return compile_spec(load_spec("small.yaml", SPEC.format(expression=expression)))


@pytest.mark.parametrize(
    ("expression", "value", "found"),
    [
        ("heads", 7, {"heads": 7}),
        ("int(heads)", 7, {"heads": 7}),
        ("heads * 1.0", 7.0, {"heads": 7.0}),
        ('names["a"]', 5, {"names": {"a": 5}}),
        ("[heads, 3, kind]", [7, 3, "x"], {"heads": 7, "kind": "x"}),
        ("[heads, 3]", [7, 4], {}),
        ("[heads, 3]", [7], {}),
        ("[heads, 3]", 7, {}),
        ("[heads, heads]", [7, 8], {}),
        ('{"a": heads, "b": 2}', {"a": 7, "b": 2}, {"heads": 7}),
        ('{"a": heads}', {"b": 7}, {}),
        ("heads + 1", 7, {}),
        ("heads if scaling else 3", 3, {"scaling": True, "heads": 3}),
        ("5 if scaling else heads", 5, {"scaling": True}),
        ("heads if not scaling else None", None, {"scaling": False, "heads": None}),
        ('heads if kind == "plain" else None', None, {"kind": "plain", "heads": None}),
        ('5 if kind == "other" else 3', 5, {"kind": "other"}),
        ('5 if kind != "plain" else 3', 3, {"kind": "plain"}),
        ("5 if theta is None else 3", 3, {"theta": False}),
        ("5 if heads > 8 else 3", 5, {}),
        ("5 if heads + 1 else 3", 5, {}),
        ("5 if scaling and theta else 3", 5, {"scaling": True, "theta": True}),
        ("5 if scaling and heads > 8 else 3", 5, {}),
        ("5 if scaling or theta else 3", 3, {"scaling": False, "theta": None}),
        ("5 if scaling or heads > 8 else 3", 5, {"scaling": True}),
        ("theta or 5", 7, {"theta": 7}),
        ("scaling or 0", 0, {"scaling": False}),
        ("scaling or 0", None, {}),
    ],
)
def test_a_field_decides_arguments(expression: str, value: Any, found: dict[str, Any]) -> None:
    assert arguments_of(program(expression), {"field": value}, {}) == found


def test_what_is_known_is_not_changed() -> None:
    """Of two sides, the one that fits what is known; what contradicts it decides nothing."""
    spec = program("heads if scaling else 3")
    assert arguments_of(spec, {"field": 7}, {"scaling": True}) == {"heads": 7}
    assert arguments_of(spec, {"field": 7}, {"scaling": False}) == {}
    assert arguments_of(spec, {"other": 7}, {}) == {}
    compared = program('5 if kind == "plain" else 3')
    assert arguments_of(compared, {"field": 5}, {"kind": "plain"}) == {}
    assert arguments_of(program("[heads, theta]"), {"field": [7, 1]}, {"heads": 8}) == {}


def test_a_fact_that_cannot_be_read_backwards_decides_nothing() -> None:
    assert arguments_of_facts(program("heads"), {"double": 6}, {}) == {}
