"""docs/reference.md is what its generator makes, and has an example for every key, which the schema accepts."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from compiler.language.schema import schema

DOCS = Path(__file__).parent.parent.parent / "docs"
sys.path.insert(0, str(DOCS))

import make_reference  # noqa: E402

KEYS = make_reference.keys()


def without_required(node: Any) -> Any:
    """The schema of a part of a spec: nothing in it is required."""
    if isinstance(node, dict):
        dropped = ("required", "minProperties", "if", "then", "else", "allOf", "dependentRequired")
        return {k: without_required(v) for k, v in node.items() if k not in dropped}
    return [without_required(item) for item in node] if isinstance(node, list) else node


PARTIAL = without_required(copy.deepcopy(schema()))


def test_the_page_is_fresh() -> None:
    assert make_reference.PAGE.read_text() == make_reference.page(), "python docs/make_reference.py"


def test_the_keys_are_those_of_the_schema() -> None:
    assert len(KEYS) > 100
    assert {path[0] for path in KEYS} == schema()["properties"].keys()
    assert {("rename", "*", "when"), ("transform", "[]", "rope_to_half"), ("config", "derive")} <= KEYS.keys()
    assert [text for text in make_reference.EXAMPLES if tuple(text.split(".")) not in KEYS] == []


@pytest.mark.parametrize("path", KEYS, ids=".".join)
def test_a_key_has_an_example_of_each_form(path: tuple[str, ...]) -> None:
    found = make_reference.examples(path)
    assert found
    assert KEYS[path]["description"]
    for text, _ in found:
        assert [key for key in path if key not in ("*", "[]") and key not in text] == []
        jsonschema.Draft202012Validator(PARTIAL).validate(yaml.safe_load(text))
    for kind in make_reference.kinds(KEYS[path]):
        assert any(list(make_reference.uses(yaml.safe_load(text), path, kind)) for text, _ in found), kind


def test_a_form_without_an_example_is_found() -> None:
    path = ("transform", "[]", "from")
    assert make_reference.kinds(KEYS[path]) == [make_reference.Scalar, list, dict]
    rule = {"transform": [{"from": "a", "to": "b"}]}
    assert [bool(list(make_reference.uses(rule, path, kind))) for kind in (str, list, dict)] == [True, False, False]


def test_an_example_that_the_schema_rejects_is_found() -> None:
    for wrong in ("transform: [{form: a}]", "target: {blocks: {head: {softcap: yes please}}}", "rename: {a: {too: b}}"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft202012Validator(PARTIAL).validate(yaml.safe_load(wrong))
