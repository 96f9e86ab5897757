"""The command line of a converter: one typed option for each argument of the spec, with its help."""

from __future__ import annotations

from typing import Any

from compiler.diagnostics import refuse
from compiler.language.spec import Argument, Spec
from compiler.render.python_source import literal, quoted

# Names of a converter's own options.
OWN = frozenset(["source", "out", "config", "dtype", "cast", "limit", "help"])
MOST_COLUMNS = 95  # of an option whose line ruff does not wrap


def values(spec: Spec) -> dict[str, Any]:
    """The template variables for the command line. Raises Refusal for an argument named like one of `OWN`."""
    for argument in spec.arguments.values():
        if argument.name in OWN:
            message = f"the argument {argument.name!r} is named like an option that every converter has"
            refuse(argument.span, message, "duplicate-name", "give it another name")
    own = [n for n, e in spec.facts.items() if n in e.names and n in spec.fields and n not in OWN]
    options = [_option(a, spec) for a in spec.arguments.values()]
    options += [f"{quoted(f'--{name}')}, type=json.loads, help={quoted(_default(spec, name))}" for name in own]
    arguments = spec.arguments.values()
    required = tuple(a.name for a in arguments if a.required)
    guesses = tuple(a.name for a in arguments if a.guess)
    fixed = _fixed(spec)
    reads_config = bool(options or fixed)
    yaml_config = spec.source_config.endswith((".yaml", ".yml"))
    what = f"{'YAML' if yaml_config else 'JSON'} file of the arguments below"
    beside = f" ({spec.source_config} beside the weights)" if spec.source_config else ""
    config = f'"--config", type=Path, help={quoted((what + beside).replace("%", "%%"))}'
    known = spec.arguments.keys() | set(own)
    rotary = "rope_theta" in known and "config.json" in spec.source_config
    return {
        "options": options,
        "required": required,
        "guesses": guesses,
        "fixed": fixed,
        "released": [(m.name, literal(dict(m.when)), literal(dict(m.sets))) for m in spec.models],
        # Whether it matters which arguments were given, beside their values.
        "stated": bool(required or guesses or spec.models or any(a.derive for a in arguments)),
        "reads_config": reads_config,
        "usage": "".join(f" --{name} N" for name in required[:2]) if not spec.source_config else "",
        "config_help": quoted((what + beside).replace("%", "%%")),
        "yaml_config": yaml_config and reads_config,
        "json_config": not yaml_config and reads_config,
        "rotary": rotary,
        "scaled": "rope_scaling" in known,
        "whole_heads": "partial_rotary_factor" not in known,
        "long_options": any(len(option) > MOST_COLUMNS for option in (*options, config)),
    }


def _fixed(spec: Spec) -> list[tuple[str, list[str]]]:
    """Each reason, and the lines of a dict of the fields that it holds for with the values that can be converted."""
    held: dict[str, list[str]] = {}
    for field in spec.fixed.values():
        held.setdefault(field.reason or "the spec has no rule for others", []).append(
            f"{quoted(field.name)}: {literal(list(field.values))}"
        )
    return [(quoted(reason), _lines(pairs)) for reason, pairs in held.items()]


def _lines(pairs: list[str]) -> list[str]:
    """The pairs, as many on each line as fit."""
    lines = [""]
    for pair in pairs:
        if lines[-1] and len(lines[-1]) + len(pair) > MOST_COLUMNS:
            lines.append("")
        lines[-1] += f"{pair}, "
    return [line.rstrip() for line in lines]


def _default(spec: Spec, name: str) -> str:
    field = spec.fields[name]
    return f"default: {field.expr.text if field.expr else field.constant}".replace("%", "%%")


def _option(argument: Argument, spec: Spec) -> str:
    """What `add_argument` takes for an argument. Its type is that of its default, else that of its values in the spec."""
    text = " ".join(argument.help.split()).replace("%", "%%")
    released = [model.sets[argument.name] for model in spec.models if argument.name in model.sets]
    if argument.required:
        text = f"needed{' where no released model has these sizes' * bool(released)}: {text}"
    else:
        default = "%(default)s, a guess" if argument.guess else "%(default)s"
        if argument.derive:
            default = argument.derive.text.replace("%", "%%")
        text = f"{text}; default: {default}" if text else f"default: {default}"
    parts = [quoted(f"--{argument.name}")]
    values = released + [example[argument.name][0] for example in spec.examples if argument.name in example]
    kinds = {type(value) for value in ([argument.default] if argument.default is not None else values)}
    if str in kinds:
        kinds -= {type(None)}  # as JSON, a text would need quotes
    match [*kinds]:
        case [kind] if kind is bool:
            parts.append("action=BooleanOptionalAction")
        case [kind] if kind in (int, float):
            parts.append(f"type={kind.__name__}")
        case [kind] if kind is str:
            pass
        case _:
            parts.append("type=json.loads")
    if argument.default is not None:
        parts.append(f"default={literal(argument.default)}")
    return ", ".join([*parts, f"help={quoted(text)}"])
