"""Every field of a source's config is read, fixed, or unread with a reason: nothing that a trainer states is unheard of.
The default of an argument is that of the trainer's config class, or differs for a reason.

`tests/data/config_fields` holds the fields of the packages' own config classes, recorded by
`tests/recorders/record_config_fields.py` from the release that each file names.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.config_fields import (
    COMMAND_LINE,
    OTHER_DEFAULTS,
    SOURCES,
    SPECS,
    defaults_of,
    fields_of,
    unheard,
    wrong_defaults,
)

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


@pytest.mark.parametrize("spec", OTHER_DEFAULTS)
def test_a_default_is_the_recorded_one_or_has_a_reason(spec: str) -> None:
    assert wrong_defaults(load_program(spec)) == []


def test_no_reason_is_stale() -> None:
    for spec, arguments in OTHER_DEFAULTS.items():
        found = defaults_of(load_program(spec))
        for name, (value, reason) in arguments.items():
            assert name in found, f"{spec}: {name}"
            assert found[name] != value, f"{spec}: {name}"
            assert len(reason) > 8


def test_a_wrong_default_is_found() -> None:
    program = load_program("torchtune_llama")
    arguments = program.spec.arguments
    assert arguments["norm_eps"].default == 1e-5
    wrong = {**arguments, "norm_eps": replace(arguments["norm_eps"], default=1e-6)}
    assert wrong_defaults(replace(program, spec=replace(program.spec, arguments=wrong))) == ["norm_eps"]
