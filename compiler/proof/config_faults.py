"""Config values that a target class rejects, and config fields that are not filled, located in the spec.

Takes a Program and a config; returns diagnostics at the argument, the example or the config field at fault.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from compiler.diagnostics import Diagnostic, Refusal, Span, listed, nearest
from compiler.language import document
from compiler.program.program import Program
from compiler.settings.arguments import BAGGAGE
from compiler.target import config_class, config_meaning

if TYPE_CHECKING:
    from compiler.target.model_class import ConfigSchema

Fields = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

# Fields that `config_dialects.config_json` and the model folder write.
RESERVED = frozenset(["architectures", "auto_map", "dtype", "model_type", "torch_dtype", "transformers_version"])
# What generation reads; their defaults belong to the first model of a family.
TOKENS = ("bos_token_id", "eos_token_id")
_NUMERIC = re.compile(r"[-+]?[\d.,_]+([eE][-+]?\d+)?")
_FIELD = re.compile(r"[Ff]ield '(\w+)'")


def config_fault(
    program: Program, example: Mapping[str, Any], config: Mapping[str, Any], found: Diagnostic
) -> Diagnostic:
    """The class's rejection of a config, moved to the place of the value at fault where that can be determined."""
    if found.kind != "unbuildable-target":
        return found
    spec = program.spec
    name = spec.target.class_name
    for field in spec.config:
        value, word = config.get(field.name), field.carried
        if isinstance(value, str) and word and _NUMERIC.fullmatch(value):
            message = f"{name} rejects {field.name} = {value!r}: a string, not a number"
            return replace(
                found,
                span=_origin(program, example, word),
                message=message,
                hint="write it without quotes, as in 12 or 1.0e-6",
            )
    for field in spec.config:
        value, word = config.get(field.name), field.carried
        expr = spec.facts.get(word) if word else field.expr
        if isinstance(value, float) and value.is_integer() and expr is not None and _divides(expr.tree):
            message = f"{name} rejects {field.name} = {value!r}: not an integer"
            return replace(found, span=expr.span, message=message, hint="use // for integer division")
    named = _FIELD.search(found.message)
    at = next((field.span for field in spec.config if named and field.name == named[1]), None)
    return replace(found, span=at) if at else found


def _divides(tree: ast.AST) -> bool:
    return any(isinstance(node, ast.Div) for node in ast.walk(tree))


def _origin(program: Program, example: Mapping[str, Any], word: str) -> Span:
    """The place of a name's value: in the example, or where the name is defined."""
    spec = program.spec
    for one in spec.examples:
        if word in one and one[word][0] == example.get(word):
            return one[word][1]
    return spec.arguments[word].span if word in spec.arguments else spec.facts[word].span


def unfilled_fields(program: Program, schema: ConfigSchema) -> Iterator[Diagnostic]:
    """Warns about config fields that only a default of the target class fills: those with the name of an argument that
    neither `config` nor `require` uses, and those that change what a model computes.

    A default of None is computed from other fields or turns something off; one that is neutral (`config_meaning`) has
    no effect. Neither is reported.
    """
    spec = program.spec
    filled = {field.name for field in spec.config} | {field.carried for field in spec.config}
    required = {name for expr, _ in spec.require for name in expr.names}
    for name, argument in spec.arguments.items():
        if name in schema.declared and name not in filled and name not in required:
            message = f"{spec.target.class_name} has a config field {name!r}, but the argument does not fill it"
            hint = "add it under config: copy, or require the value that is the class's default"
            yield Diagnostic(argument.span, message, "unfilled-field", hint, warning=True)
    defaults = config_class.config_defaults(schema.model_type)
    considered = spec.arguments.keys() | {
        name
        for fixed in (spec.fixed, *(source.fixed for source in spec.sources))
        for name, field in fixed.items()
        if field.allows(defaults.get(name))
    }
    written = {field.name for field in spec.config}
    fields = [name for name in _unset(schema, written) if name not in considered]
    left = {
        name: defaults[name]
        for name in fields
        if name not in BAGGAGE and defaults.get(name) is not None and not config_meaning.has_no_effect(name, defaults)
    }
    left |= {name: defaults[name] for name in TOKENS if name not in written and defaults.get(name) is not None}
    if left and spec.config:
        values = listed(f"{name} ({value!r})" for name, value in left.items())
        message = f"config does not set fields of {spec.target.class_name} that only its defaults would fill: {values}"
        hint = "set them, even where the default is right"
        yield Diagnostic(spec.config[0].span, message, "unfilled-field", hint, warning=True)


# ---------------------------------------------------------------------------------------------------------------------
# Fields, at every depth


def undeclared_fields(program: Program, known: Collection[str]) -> Iterator[Diagnostic]:
    """The config fields of the spec that are not among those that the target `known` has."""
    for field in program.spec.config:
        if field.name not in known:
            message = f"{program.spec.target.class_name} has no config field {field.name!r}"
            yield Diagnostic(field.span, message, "unknown-field", nearest(field.name, known))


def reserved_fields(program: Program) -> Iterator[Diagnostic]:
    """The config fields of the spec that every conversion writes by itself."""
    for field in program.spec.config:
        if field.name in RESERVED:
            message = f"{field.name} is written by every conversion, so a spec cannot set it"
            yield Diagnostic(field.span, message, "unknown-field", "leave it out")


def field_faults(program: Program, schema: ConfigSchema, configs: Iterable[Fields]) -> list[Diagnostic]:
    """The fields of `configs`, the configs of the examples, that the target's config classes lack, and those of a
    nested config that only a default would fill.

    A nested config is given as a whole: what it leaves out takes a default that belongs to some other model.
    """
    found = {*undeclared_fields(program, {*schema.declared, *schema.looked_for}), *reserved_fields(program)}
    for config in configs:
        nested = [name for name in schema.nested if isinstance(config.get(name), Mapping)]
        for name in nested:
            found |= {*_nested_faults(program, schema.nested[name], config[name], (name,))}
        if nested and (missing := schema.nested.keys() - config.keys()):
            message = f"{schema.class_name} needs {listed(sorted(missing))}, which only defaults would fill"
            found.add(
                Diagnostic(_place_of(program, (nested[0],)), message, "unfilled-field", "give each nested config")
            )
    return sorted(found)


def _nested_faults(
    program: Program, schema: ConfigSchema, config: Fields, path: tuple[str, ...]
) -> Iterator[Diagnostic]:
    if config.get("model_type", schema.model_type) != schema.model_type:
        return  # another class than the usual one, of which nothing is known here
    where = ".".join(path)
    for name, value in config.items():
        if name not in {*schema.declared, *schema.looked_for}:
            message = f"{where}: {schema.class_name} has no config field {name!r}"
            hint = nearest(name, schema.declared)
            yield Diagnostic(_place_of(program, (*path, name)), message, "unknown-field", hint)
        elif name in schema.nested and isinstance(value, Mapping):
            yield from _nested_faults(program, schema.nested[name], value, (*path, name))
    if missing := _unset(schema, config):
        message = f"{where} does not set {listed(missing, 20)}, so {schema.class_name} would use its defaults"
        yield Diagnostic(
            _place_of(program, path), message, "unfilled-field", "set them, even where the default is right"
        )


def _unset(schema: ConfigSchema, names: Iterable[str]) -> list[str]:
    """The fields that change what a model computes, and the nested configs, that are not among `names`."""
    given = {*names} | {schema.synonyms.get(name, name) for name in names}
    if given & {"rope_theta", "rope_parameters"}:
        given |= {"rope_theta", "rope_parameters", "rope_scaling"}
    return [name for name in (*schema.needed, *schema.nested) if name not in given]


def ineffective_fields(
    program: Program, schema: ConfigSchema, configs: Sequence[Fields], shapes: Callable[[Fields], Shapes]
) -> Iterator[Diagnostic]:
    """Fields that no config class declares, though the model's code looks for them, and that change no shape in any
    example: the class does not need them, and other releases ignore them. `shapes` of a config may raise Refusal."""
    for path in sorted({path for config in configs for path in _undeclared(schema, config, ())}):
        if not any(_changes(config, path, shapes) for config in configs):
            message = f"{program.spec.target.class_name} has no config field {'.'.join(path)!r}"
            hint = "the model's code looks for it, but it changes no shape in any example: leave it out"
            yield Diagnostic(_place_of(program, path), message, "unknown-field", hint)


def _undeclared(schema: ConfigSchema, config: Fields, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, value in config.items():
        if name in schema.looked_for:
            yield (*path, name)
        elif name in schema.nested and isinstance(value, Mapping):
            yield from _undeclared(schema.nested[name], value, (*path, name))


def _changes(config: Fields, path: tuple[str, ...], shapes: Callable[[Fields], Shapes]) -> bool:
    try:
        return shapes(config) != shapes(_without(config, path))
    except Refusal:
        return True  # it cannot be left out


def _without(config: Fields, path: tuple[str, ...]) -> Fields:
    first, *rest = path
    if first not in config:
        return config
    if not rest:
        return {name: value for name, value in config.items() if name != first}
    return {**config, first: _without(config[first], tuple(rest))}


def _place_of(program: Program, path: tuple[str, ...]) -> Span:
    """Where a spec writes a config field, or a key of a nested one: in an expression or in a constant."""
    spec = program.spec
    field = next(field for field in spec.config if field.name == path[0])
    expr = field.expr
    while expr is not None and expr.text in spec.facts:
        expr = spec.facts[expr.text]
    if expr is not None and expr.text in spec.arguments:
        return spec.arguments[expr.text].span
    if expr is not None:
        keys = [key for node in ast.walk(expr.tree) if isinstance(node, ast.Dict) for key in node.keys]
        named = [key for key in keys if isinstance(key, ast.Constant) and key.value == path[-1] and len(path) > 1]
        return expr.at(named[0]) if named else field.span
    node: document.Node | None = spec.root
    for name in ("config", "set", *path[:-1]):
        node = node.get(name) if isinstance(node, document.Mapping) else None
    key = node.key(path[-1]) if isinstance(node, document.Mapping) else None
    return key.span if key else field.span
