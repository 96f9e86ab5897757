"""A text of a spec, compiled, and what its target class answers about it. Nothing here reads the file of the spec."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from compiler.diagnostics import Diagnostic, Refusal, Span
from compiler.language import document
from compiler.language.document import Node
from compiler.language.name_pattern import Pattern
from compiler.language.parser import load_spec
from compiler.program.axis_labels import AxisLabels, Shape, has_shipped_labels, record_labels, recorded_labels
from compiler.program.environment import Environment, Given
from compiler.program.inverse import SourceShapes
from compiler.program.lint import lint
from compiler.program.loading import compile_spec
from compiler.program.program import Program

_SPEC = re.compile(r"^spec[ ]*:", re.MULTILINE)


@dataclass(frozen=True)
class Analysis:
    """The diagnostics of a text, errors and warnings, and its Program if there is no error."""

    diagnostics: tuple[Diagnostic, ...]
    program: Program | None


def is_spec(text: str) -> bool:
    """Whether a YAML text is a spec: it has the key `spec`. Editors send all YAML files."""
    return _SPEC.search(text) is not None


def analyse(path: str, text: str) -> Analysis:
    """Compile a text, reported under `path`, without the proof against the target class. A text that is no spec has no
    diagnostics."""
    if not is_spec(text):
        return Analysis((), None)
    try:
        program = compile_spec(load_spec(path, text))
    except Refusal as refusal:
        return Analysis(refusal.diagnostics, None)
    found = tuple(lint(program))
    return Analysis(found, program if all(d.warning for d in found) else None)


@dataclass(frozen=True)
class TargetAnswers:
    """What a target class says of a spec. `shapes`: its tensors, each in the first example that has it; `fields`: of its
    config; `labels`: name form -> the expressions that give the length of each axis; `values`: arguments and facts in the
    first example, as far as they can be evaluated; `patterns`: the names that rules write, by their text."""

    class_name: str
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    fields: tuple[str, ...] = ()
    labels: Mapping[str, Shape] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    patterns: Mapping[str, Pattern] = field(default_factory=dict)


def ask_target(program: Program, labels: AxisLabels | None = None) -> TargetAnswers:
    """The answers of the target class of a program, cached or by importing Transformers. `labels` are those of a proof, by
    default the recorded ones.

    Raises Refusal: `missing-package`, `unknown-class`, `unbuildable-target`.
    """
    from compiler.proof.proof import config_schema, example_config, target_signature

    spec = program.spec
    schema = config_schema(program)
    fields = tuple(spec.fields) if schema is None else (*schema.declared, *schema.looked_for)
    examples = spec.example_values
    each = [target_signature(program, example_config(program, example)).shapes for example in examples]
    labels = labels or recorded_labels(spec)
    rules = (*program.rules, *program.created)
    return TargetAnswers(
        spec.target.class_name,
        {name: shape for shapes in reversed(each) for name, shape in shapes.items()},
        fields,
        labels.target if labels else {},
        dict(_values(program, examples[0], each[0])) if examples else {},
        {pattern.text: pattern for rule in rules for pattern in rule.targets},
    )


def _values(
    program: Program, example: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, Any]]:
    given = {name: Given(value, "the example") for name, value in example.items()}
    environment = Environment(program, SourceShapes(program, shapes), given, trusted=True)
    for name in environment:
        try:
            yield name, environment[name]
        except Refusal:
            continue  # it needs sizes of the source that the target does not reveal


def prove_and_ask(program: Program) -> tuple[tuple[Diagnostic, ...], TargetAnswers | None]:
    """The diagnostics of the proof against the target class, and the answers of the class if the proof succeeds."""
    from compiler.proof.proof import prove

    try:
        proof = prove(program)
        if not has_shipped_labels(program.spec):
            record_labels(program.spec, proof.labels)
        return proof.warnings, ask_target(program, recorded_labels(program.spec) or proof.labels)
    except Refusal as refusal:
        return refusal.diagnostics, None


# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Definition:
    """An argument, a fact or a config field that expressions can name: `kind` says which, `text` is its value or expression
    as written, `help` what the spec says of it."""

    name: str
    kind: str
    text: str
    span: Span
    help: str = ""


def read_tree(path: str, text: str, line: int) -> Node | None:
    """The tree of a text; where it is not YAML, because someone is typing in `line` (from 0), that of the other lines."""
    lines = text.splitlines()
    without = "\n".join("" if n == line else one for n, one in enumerate(lines))
    for candidate in (text, without):
        try:
            return document.read_document(path, candidate)
        except Refusal:
            continue
    return None


def definitions(root: Node | None) -> dict[str, Definition]:
    """What expressions can name, by name; an argument or a fact before a config field of the same name."""
    found: dict[str, Definition] = {}
    for kind, *keys in (
        ("argument", "arguments"),
        ("fact", "facts"),
        ("config field", "config", "fields"),
        ("config field", "config", "derive"),
    ):
        node = root
        for key in keys:
            node = node.get(key) if isinstance(node, document.Mapping) else None
        for name, value in node.entries if isinstance(node, document.Mapping) else ():
            found.setdefault(name.text, _definition(name, kind, value))
    return found


def _definition(name: document.Scalar, kind: str, node: Node) -> Definition:
    help, value = None, node
    if kind == "argument" and isinstance(node, document.Mapping):
        help = node.get("help")
        value = next((part for key in ("default", "guess", "derive") if (part := node.get(key))), node)
    text = value.text if isinstance(value, document.Scalar) else str(document.plain(value))
    if help is not None and value is node:
        text = ""  # the argument is required
    return Definition(name.text, kind, text, name.span, help.text if isinstance(help, document.Scalar) else "")
