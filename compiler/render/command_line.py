"""The command line of a converter: one typed option for each argument of the spec, with its help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compiler.diagnostics import refuse
from compiler.language.spec import Argument, Spec
from compiler.render.long_lines import LINE, loop_over, packed
from compiler.render.python_source import literal, quoted

# Names of a converter's own options.
OWN = frozenset(["source", "out", "config", "dtype", "cast", "limit", "help"])
FEW = 3  # so many fields that can have the same values, and options that differ in their names, are written together


def values(spec: Spec, neutral: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """The template variables for the command line.

    `neutral`: fields that nothing reads, and the values with which they change nothing. Raises Refusal for an argument named
    like one of `OWN`.
    """
    for argument in spec.arguments.values():
        if argument.name in OWN:
            message = f"the argument {argument.name!r} is named like an option that every converter has"
            refuse(argument.span, message, "duplicate-name", "give it another name")
    own = [n for n, e in spec.facts.items() if n in e.names and n in spec.fields and n not in OWN]
    options = [_option(a, spec) for a in spec.arguments.values()]
    options += [f"{quoted(f'--{name}')}, type=json.loads, help={quoted(_default(spec, name))}" for name in own]
    options, alike = _grouped(options)
    arguments = spec.arguments.values()
    required = tuple(a.name for a in arguments if a.required)
    guesses = tuple(a.name for a in arguments if a.guess)
    fixed = _fixed(spec, neutral)
    reads_config = bool(options or fixed) and not spec.sources
    yaml_config = spec.source_config.endswith((".yaml", ".yml"))
    what = f"{'YAML' if yaml_config else 'JSON'} file of the arguments below"
    beside = f" ({spec.source_config} beside the weights)" if spec.source_config else ""
    known = spec.arguments.keys() | set(own)
    rotary = "rope_theta" in known and "config.json" in spec.source_config
    return {
        "options": options,
        "alike": alike,
        "required": required,
        "each_required": loop_over(required),
        "guesses": [quoted(name) for name in sorted(guesses)],
        "fixed": fixed,
        "released": [(m.name, literal(dict(m.when)), literal(dict(m.sets))) for m in spec.models],
        # Whether it matters which arguments were given, beside their values.
        "stated": bool(required or guesses or spec.models or any(a.derive for a in arguments)),
        "reads_config": reads_config,
        "usage": "".join(f" --{name} N" for name in required[:2]) if not (spec.source_config or spec.sources) else "",
        "config_help": quoted((what + beside).replace("%", "%%")),
        "yaml_config": yaml_config and reads_config,
        "json_config": (not yaml_config and reads_config) or bool(spec.sources),
        "rotary": rotary,
        "scaled": "rope_scaling" in known,
        "whole_heads": "partial_rotary_factor" not in known,
    }


def _grouped(options: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The options, and loops over those that are the same but for their names; not for flags, whose names have two forms."""
    rest: dict[str, list[str]] = {}
    for option in options:
        name, _, others = option.partition(", ")
        rest.setdefault(others, []).append(name)
    alike = {others for others, names in rest.items() if len(names) >= FEW and "BooleanOptionalAction" not in others}
    left = [option for option in options if option.partition(", ")[2] not in alike]
    return left, [(loop_over(n[3:-1] for n in names), others) for others, names in rest.items() if others in alike]


def _fixed(spec: Spec, neutral: Mapping[str, Sequence[Any]]) -> list[str]:
    """The lines of a dict of the fields that can have only some values. Null is the same as false."""
    names: dict[str, list[str]] = {}  # code of the values -> the fields that can have these
    for name, values in {**neutral, **_fixed_values(spec)}.items():
        held = [*values, *(None for one in values if one is False)]
        unique = [literal(one) for n, one in enumerate(held) if repr(one) not in map(repr, held[:n])]
        names.setdefault(f"({', '.join(unique)}{',' * (len(unique) == 1)})", []).append(quoted(name))
    single = packed((f"{n}: {code}" for code, found in names.items() if len(found) < FEW for n in found), LINE - 4)
    lines = single if any(single) else []
    for code, found in names.items():
        if len(found) >= FEW:
            first, *others = packed(found, LINE - len("    **dict.fromkeys(["))
            start = [f"**dict.fromkeys([{first}", *(f"    {line}" for line in others)]
            lines += [*start[:-1], f"{start[-1].rstrip(',')}], {code}),"]
    return lines


def _fixed_values(spec: Spec) -> dict[str, tuple[Any, ...]]:
    """The fields that can have only some values, and these; of several sources, under the names of these."""
    named = [(f"{source.name}_", source.fixed) for source in spec.sources]
    return {start + n: field.values for start, fixed in [("", spec.fixed), *named] for n, field in fixed.items()}


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
