"""Checks the values of the config that a plan writes, and reports them at the argument or field of the spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compiler.diagnostics import Report
from compiler.language.spec import Field
from compiler.program.environment import Environment
from compiler.program.program import Program
from compiler.target.config_values import expected_value, value_faults


def check_config_values(program: Program, env: Environment, config: Mapping[str, Any]) -> None:
    """Raises Refusal (`config-value`) for each field whose value no class can use, with the origin of the value."""
    report = Report()
    fields = {field.name: field for field in program.spec.config}
    for fault in value_faults(config):
        name, field = ".".join(fault.path), fields[fault.path[0]]
        source = _argument(program, field)
        span, origin, hint = field.span, "", fault.hint
        if source is not None:
            given = env.given.get(source)
            span, origin = program.spec.arguments[source].span, f" ({given.place if given else 'default'})"
            hint = hint or f"--set {source}=VALUE"
        report.add(span, f"{name} = {fault.value!r}{origin}, but must be {fault.expected}", "config-value", hint)
    for name, value in config.items():
        source = _argument(program, fields[name]) if value is None and (expected := expected_value(name)) else None
        if source is not None and (given := env.given.get(source)) and given.value is None:
            message = f"{name} is null ({given.place}), but must be {expected}"
            report.add(program.spec.arguments[source].span, message, "config-value", f"--set {source}=VALUE")
    report.settle()


def _argument(program: Program, field: Field) -> str | None:
    """The argument that a config field depends on, directly or through facts; None if there are several or none."""
    spec = program.spec
    names, seen = set(field.expr.names if field.expr else ()), set[str]()
    while facts := names & spec.facts.keys() - seen:
        seen |= facts
        names |= {name for fact in facts for name in spec.facts[fact].names}
    arguments = names & spec.arguments.keys()
    return arguments.pop() if len(arguments) == 1 else None
