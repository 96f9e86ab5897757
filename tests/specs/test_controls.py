"""What a spec must reject, it still rejects: a recorded source for each `fixed` field and for most requirements."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from support.controls import accepted, recorded
from support.synthetic import Synthetic, synthetic

from compiler.program.loading import load_program
from compiler.program.program import Program


@cache
def program(spec: str) -> Program:
    return load_program(spec)


@cache
def made(spec: str) -> list[Synthetic]:
    return [synthetic(program(spec), n) for n in range(len(program(spec).spec.examples))]


@pytest.mark.parametrize("spec", recorded())
def test_each_control_is_rejected(spec: str) -> None:
    assert accepted(program(spec), made(spec), recorded()[spec]) == []


def test_each_fixed_field_has_a_control() -> None:
    for spec, controls in recorded().items():
        fields = {control["field"] for control in controls if "field" in control}
        assert fields == program(spec).spec.fixed.keys(), spec


def test_most_requirements_have_a_control() -> None:
    wanted = sum(len(program(spec).spec.require) for spec in recorded())
    found = sum("field" not in control for controls in recorded().values() for control in controls)
    assert found >= 0.85 * wanted


def test_a_check_that_is_gone_is_noticed() -> None:
    """Each requirement and each fixed field of two specs, dropped in turn."""
    for name in ("litgpt_mixtral", "deepseek_v3_fp8_deepseek_v3"):
        right, controls = program(name), recorded()[name]
        spec = right.spec
        unnoticed = []
        for n, (expr, _) in enumerate(spec.require):
            wrong = replace(right, spec=replace(spec, require=(*spec.require[:n], *spec.require[n + 1 :])))
            if not accepted(wrong, made(name), controls):
                unnoticed.append(expr.text)
        for field in spec.fixed:
            fixed = {other: value for other, value in spec.fixed.items() if other != field}
            wrong = replace(right, spec=replace(spec, fixed=fixed))
            assert accepted(wrong, made(name), controls) == [c for c in controls if c.get("field") == field]
        assert len(unnoticed) <= 3
