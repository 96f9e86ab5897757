"""docs/blocks.md is what its generator makes, and covers the vocabulary."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from compiler.language import document
from compiler.render.remote_code.blocks import BLOCKS

DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.fixture(scope="module")
def generator() -> Any:
    spec = importlib.util.spec_from_file_location("make_blocks", DOCS / "make_blocks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(generator: Any) -> None:
    """Run `python docs/make_blocks.py` where this fails."""
    assert (DOCS / "blocks.md").read_text() == generator.page()


def test_every_block_has_examples_whose_yaml_is_their_value(generator: Any) -> None:
    assert [*generator.EXAMPLES, "names"] == list(BLOCKS["properties"])
    for block, examples in generator.EXAMPLES.items():
        for yaml, value, _ in examples:
            read: Any = document.plain(document.read_document("example.yaml", yaml))
            given = read[block]
            assert (given if isinstance(given, dict) else {"kind": given}) == value
            jsonschema.validate(generator.BASE | read, BLOCKS)
