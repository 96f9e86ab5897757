"""Rejects a config that describes another function than the one that a conversion writes, or reads when reversed.

Names and shapes do not reveal an architecture: many families have the same. A config beside the weights names its own,
and states fields that a conversion may not pass over. Takes a Program and the fields of a config; returns diagnostics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from compiler.checkpoints.config_file import read_config_file
from compiler.diagnostics import Diagnostic, Span, listed, located
from compiler.program.environment import Given
from compiler.program.program import Program
from compiler.target import class_registry, config_class, config_meaning, model_class, model_file

# A field that so many config classes declare is one that users have heard of.
_SEVERAL = 3
# What a reversed conversion may lose: fields that no source of weights holds.
NOT_REVERSED = frozenset(["tie_word_embeddings", *config_meaning.HARMLESS])


def target_types(program: Program) -> frozenset[str]:
    """The `model_type` of what a spec writes; for code of the user, every one that its text states; none for the config of
    one of several sources. Raises Refusal."""
    target = program.spec.target
    if program.spec.part_of:
        return frozenset()
    if target.code:
        with located(target.code.span):
            return model_file.stated_model_types(model_file.read_files(program.spec.code_file))
    return frozenset([target.remote_code.value if target.remote_code else model_class.model_type(target.class_name)])


def target_defaults(program: Program) -> Mapping[str, Any]:
    """The defaults of the config class of the target; none for a class that Transformers does not have."""
    return {k: v for kind in target_types(program) for k, v in config_class.config_defaults(kind).items()}


def architectures(program: Program, objects: Mapping[str, object], files: Iterable[Path]) -> list[Diagnostic]:
    """What `other_architecture` finds in the config files of a source, and in the mappings that its weights carry."""
    found: list[Diagnostic] = []
    for path in files:
        fields = read_config_file(path)
        # the parts of a composite model have types of their own
        parts = () if "model_type" in fields else (value for value in fields.values() if isinstance(value, dict))
        for part in (fields, *parts):
            found += other_architecture(program, part, str(path))
    for key, value in objects.items():
        if isinstance(value, Mapping):
            found += other_architecture(program, value, f"the checkpoint's {key!r}")
    return found


@cache
def _types_by_class() -> Mapping[str, frozenset[str]]:
    """Class in lower case -> its model types."""
    return {name.lower(): frozenset(types) for name, types in model_class.model_types_by_class().items()}


def other_architecture(
    program: Program, config: Mapping[str, Any], place: str, reverse: bool = False
) -> list[Diagnostic]:
    """What a config says of its architecture that is neither the target's nor one of `source: {model_types: ...}`.

    Reversed, the source is a folder of the target, so that only the target's own type is right. A type that neither
    Transformers nor the spec knows is accepted, unless the spec lists types or the conversion is reversed. A class that
    Transformers lacks is not, where it has the type: that is a changed model which kept its type.
    """
    own = target_types(program)
    allowed = own if reverse else own | {*program.spec.model_types}
    closed = bool(allowed) and (reverse or bool(program.spec.model_types))
    found: dict[str, Any] = {}
    kind, classes = config.get("model_type"), config.get("architectures")
    classes = [classes] if isinstance(classes, str) else classes
    known = config_class.known_model_types()
    if kind is not None and kind not in [*allowed] and (closed or not isinstance(kind, str) or kind in known):
        found["model_type"] = kind
    for name in classes if isinstance(classes, list) and not found else ():
        if not isinstance(name, str):
            continue
        types = _types_by_class().get(name.lower(), frozenset())
        if not allowed & types if types else kind in [*known] and not program.spec.part_of:
            found["architectures"] = name
    takes = "reverses" if reverse else "converts"
    hint = "such a model may have the same names and compute something else; --ignore-model-type accepts it"
    return [
        Diagnostic(
            Span(place),
            f"{field} is {value!r}, and {program.spec.name} {takes} {listed(sorted(allowed))}",
            "other-architecture",
            hint,
        )
        for field, value in found.items()
    ]


def fixed_fields(program: Program, stated: Mapping[str, Given]) -> list[Diagnostic]:
    """The fields for which the spec allows other values than those stated."""
    spec = program.spec
    found: list[Diagnostic] = []
    for name, field in spec.fixed.items():
        given = stated.get(name)
        if given is not None and not field.allows(given.value):
            wanted = " or ".join(repr(value) for value in field.values)
            text = f"{name} is {given.value!r} in {given.place}"
            text += f": {field.reason}" if field.reason else ""
            found.append(Diagnostic(field.span, text, "unmet-requirement", f"{spec.name} converts {wanted} only"))
    return found


def unconverted_fields(
    program: Program, config: Mapping[str, Any], known: set[str], place: str, of_target: bool, reverse: bool = False
) -> tuple[list[Diagnostic], list[str]]:
    """Fields that no one reads or writes: those that change the function, and the names of those unheard of.

    `config` in the flat dialect; `known`: the names that the spec reads. `of_target`: whether it is a config of the
    target's class, whose fields and defaults Transformers knows. Reversed, what the spec says of its source's fields
    does not count.
    """
    spec = program.spec
    written = {field.name: field for field in spec.config}
    defaults = target_defaults(program) if of_target else {}
    wrong: list[Diagnostic] = []
    unheard: list[str] = []
    for name, value in config.items():
        if name in known or (of_target and name in written):
            continue
        if not reverse and (name in spec.fixed or program.passes_over(name)):
            continue
        neutral = _written_activation(program, name, value)
        if neutral is None:
            neutral = config_meaning.is_neutral(name, value, config, defaults)
        if neutral is None:
            unheard.append(name)
        elif not neutral:
            expected = f", where {defaults[name]!r} is the default of the class" if name in defaults else ""
            text = f"{name} is {value!r}{expected}, and {spec.name} does not convert this field"
            hint = "the model would compute something else; if it makes no difference, list it under source: unread"
            wrong.append(Diagnostic(Span(place), text, "unconverted-field", hint))
    return wrong, unheard


def neutral_values(program: Program) -> Mapping[str, tuple[Any, ...]]:
    """The fields that several kinds of models have and nobody reads, and the values with which they have no effect.

    Which fields those are does not depend on the installed Transformers.
    """
    spec = program.spec
    known = {*spec.arguments, *spec.facts, *spec.fixed}
    written = {field.name: field for field in spec.config}
    having = Counter(name for fields in class_registry.stored()["defaults"].values() for name in fields)
    found = {}
    for name, values in config_meaning.NEUTRAL.items():
        field = written.get(name)
        varies = field is not None and (field.expr is not None or field.constant not in values)
        common = having[name] >= _SEVERAL or name == "quantization_config"  # which every config may have
        if common and not (varies or name in known or program.passes_over(name)):
            found[name] = values
    return found


def _written_activation(program: Program, name: str, value: Any) -> bool | None:
    """Whether an activation under another name is the one that the spec writes; None for other fields."""
    if name not in config_meaning.ACTIVATIONS or value is None:
        return None
    written = [field for field in program.spec.config if field.name in config_meaning.ACTIVATIONS]
    constants = [field.constant for field in written if field.expr is None]
    return any(config_meaning.same_value(name, value, one) for one in constants) if constants else None


def differing_fields(program: Program, config: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config that change the function and are not, or not yet, known to be those in `written`."""
    return {
        name: config[name]
        for name in (field.name for field in program.spec.config)
        if name in config
        and name not in NOT_REVERSED
        and not (name in written and config_meaning.same_value(name, config[name], written[name]))
    }


def irreversible_fields(
    program: Program, config: Mapping[str, Any], written: Mapping[str, Any], place: str
) -> list[Diagnostic]:
    """The fields of a folder that the source, converted forward again, would not have: `written` is what it would."""
    constants = {field.name for field in program.spec.config if field.expr is None}
    return [
        Diagnostic(
            Span(place),
            f"{name} is {value!r}, and {program.spec.name} "
            + (f"converts {written[name]!r}" if name in written else "has no arguments for that"),
            "config-mismatch",
            "its rules are for models of this value" if name in constants else "give its arguments with --set",
        )
        for name, value in differing_fields(program, config, written).items()
    ]
