"""Every field of a source's config is read, fixed, or unread with a reason: nothing that a trainer states is unheard of.

`tests/data/config_fields` holds the fields of the packages' own config classes, recorded by
`tests/recorders/record_config_fields.py` from the release that each file names.
"""

from __future__ import annotations

import pytest
from support.config_fields import COMMAND_LINE, SOURCES, SPECS, fields_of, unheard

from compiler.program.loading import load_program

@pytest.mark.parametrize("spec", SPECS)
def test_each_field_of_the_original_config_is_accounted_for(spec: str) -> None:
    program = load_program(spec)
    fields = fields_of(spec)
    assert len(fields) > 5
    assert unheard(program, fields) == []


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_fixed_or_unread_has_a_reason_and_a_field(spec: str) -> None:
    """A name that the original does not have would guard nothing. Patterns of `{field:...}` are of the config class; others
    are of the trainer's command line, whose args are stored with the weights."""
    program = load_program(spec)
    fields = fields_of(spec) + COMMAND_LINE.get(SOURCES[SPECS[spec]][0], [])
    for pattern, reason in program.unread:
        assert len(reason) > 8, pattern
        of_class = pattern.is_name or "field" in pattern.holes
        assert not of_class or any(pattern.match(field) is not None for field in fields), pattern


def test_an_unheard_field_is_found() -> None:
    program = load_program("litgpt_llama")
    assert unheard(program, ["n_head", "new_field", "padding_multiple"]) == ["new_field"]
