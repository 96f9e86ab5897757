"""The compile-time proof: checks a spec against the real target class.

For each example of the spec: take the names and shapes that the target class writes to disk, derive the source's by the
inverse rules, run the spec forward on them and compare the result, facts included. A target tensor that the class
lacks, one that no rule writes, a wrong shape, a fact that reads the wrong axis, and a rule that no example exercises
are compile errors at their place in the spec.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from compiler.diagnostics import Diagnostic, Refusal, Report, Span, listed, located, nearest
from compiler.language.name_pattern import Pattern
from compiler.plan.bind import bind
from compiler.plan.plan import Plan
from compiler.program.axis_labels import AxisLabels
from compiler.program.environment import Environment, Given, NamedShapes, reads_data
from compiler.program.inverse import SourceShapes, invert
from compiler.program.program import Program
from compiler.proof.class_check import class_question, config_written
from compiler.proof.config_faults import (
    config_fault,
    field_faults,
    ineffective_fields,
    undeclared_fields,
    unfilled_fields,
)
from compiler.proof.example_sizes import BoundExample, check_examples, separating_examples, varied
from compiler.proof.rope_scaling import scaling_faults
from compiler.proof.shape_labels import axis_labels
from compiler.target.class_signature import ConfigSchema
from compiler.target.model_class import COMMON_FIELDS
from compiler.tensor_names import NUMBER

if TYPE_CHECKING:
    from compiler.target.class_signature import ClassSignature


@dataclass(frozen=True)
class Proof:
    """The result of a proof: what is probably a mistake, and the examples as they were bound."""

    program: Program
    warnings: tuple[Diagnostic, ...]
    examples: tuple[BoundExample, ...]

    @cached_property
    def labels(self) -> AxisLabels:
        """The labels of all axes; the examples are proven once more in variants."""
        variants = varied(self.examples, partial(_prove_example, self.program))
        return axis_labels(self.program, [*self.examples, *variants])


def prove(program: Program) -> Proof:
    """Check a program against its target class with each of its examples. Raises Refusal."""
    spec = program.spec
    report = Report()
    if not spec.examples:
        report.add(
            spec.name.span,
            "the spec has no example, so nothing can be checked",
            "missing-example",
            "give sizes for the facts, as in example: {vocab_size: 128, ...}",
        )
    report.settle()
    schema = config_schema(program)
    examples = spec.example_values
    configs = [config for example in examples if (config := _possible_config(program, example)) is not None]
    if schema is not None:
        report.diagnostics += field_faults(program, schema, configs)
    else:
        report.diagnostics += undeclared_fields(program, {*spec.fields, *COMMON_FIELDS})
    report.diagnostics += scaling_faults(program)
    report.settle()
    bound: list[BoundExample] = []
    for example in examples:
        try:
            bound.append(_prove_example(program, example))
        except Refusal as refusal:
            # Other sizes, the same mistake.
            reported = {(d.span, d.kind) for d in report.diagnostics if d.kind != "uncovered-tensor"}
            report.diagnostics += [d for d in refusal.diagnostics if (d.span, d.kind) not in reported]
    report.settle()
    exercised = {group.rule for example in bound for group in example.plan.groups}
    for rule in (*program.rules, *program.created):
        if rule not in exercised:
            report.add(
                rule.span,
                f"no example exercises the rule {rule.name or rule.sources[0]}",
                "unproven-rule",
                "add an example in which its guard is true",
            )
    report.diagnostics += check_examples(program, bound, partial(_prove_example, program))
    if schema is not None:
        report.diagnostics += ineffective_fields(
            program, schema, configs, lambda c: target_signature(program, c).shapes
        )
    report.settle()
    warnings = unfilled_fields(program, schema) if schema is not None else ()
    return Proof(program, tuple(warnings), tuple(bound))


def further_examples(program: Program) -> list[Mapping[str, Any]]:
    """Examples to add to those of a spec, so that no two sizes are equal in all; none where its own do not prove."""
    examples = program.spec.example_values
    try:
        bound = [_prove_example(program, example) for example in examples]
    except Refusal:
        return []
    return separating_examples(program, bound, partial(_prove_example, program))


def config_schema(program: Program) -> ConfigSchema | None:
    """The config schema of the target class; None for rendered code, whose fields the spec lists."""
    from compiler.render.remote_code import from_spec
    from compiler.target import signature_cache

    spec = program.spec
    if spec.target.code is not None:
        code = from_spec.remote_code(spec)
        declared = tuple({*code.fields, *COMMON_FIELDS})
        return ConfigSchema(spec.target.class_name, code.model_type, declared, (), (), {}, {})
    if spec.target.model is None:
        return None
    with located(spec.target.model.span):
        return signature_cache.config_schema(spec.target.model.value)


def example_config(program: Program, example: Mapping[str, Any]) -> dict[str, Any]:
    """The config fields that the spec writes for an example. Raises Refusal."""
    given = {name: Given(value, "the example") for name, value in example.items()}
    # The config needs the facts; those that need the source's sizes must be given in the example.
    env = Environment(program, SourceShapes(program, {}), given, trusted=True)
    return {f.name: env.evaluate(f.expr) if f.expr else f.constant for f in program.spec.config}


def _possible_config(program: Program, example: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        return example_config(program, example)
    except Refusal:
        return None  # the proof of this example reports it


def target_signature(program: Program, config: Mapping[str, Any]) -> ClassSignature:
    """Names and shapes of what the target class writes to disk when built from these fields. Raises Refusal."""
    from compiler.target import signature_cache

    spec = program.spec
    place = spec.target.model or spec.target.code
    with located(place.span if place else spec.target.span):
        return signature_cache.ask(class_question(program, config_written(program, config)))


def _prove_example(program: Program, example: Mapping[str, Any]) -> BoundExample:
    spec = program.spec
    given = {name: Given(value, "the example") for name, value in example.items()}
    config = example_config(program, example)
    name = spec.target.class_name
    try:
        signature = target_signature(program, config)
    except Refusal as refusal:
        raise Refusal(config_fault(program, example, config, d) for d in refusal.diagnostics) from None
    shapes = {n: tuple(shape) for n, shape in signature.shapes.items()}
    env = Environment(program, SourceShapes(program, shapes), given, trusted=True)
    _check_covered(program, env, shapes)
    _check_ties(program, env, signature.ties)
    source = invert(program, env, shapes)
    # Data is not known here, so facts over it have the value of the example.
    data = reads_data(program)
    known = {n: g for n, g in given.items() if n in spec.arguments or n in data}
    forward = Environment(program, NamedShapes(source), known, trusted=data)
    for fact in given.keys() & spec.facts.keys():
        if forward[fact] != given[fact].value:
            refused = Report()
            refused.add(
                spec.facts[fact].span,
                f"{fact} = {given[fact].value!r} in the example, but computed from the source it is {forward[fact]!r}",
                "wrong-fact",
                "the expression reads another tensor or axis than the config field needs, or the example is not consistent",
            )
            refused.settle()
    forward.check()
    plan = bind(program, source, forward)
    made = {t.name: t.shape for t in plan.targets}
    report = Report()
    for group in plan.groups:
        for made_target in group.target_list:
            if shapes.get(made_target.name) != made_target.shape:
                report.add(
                    group.rule.span,
                    f"{made_target.name} has shape {list(made_target.shape)}, but {name} expects {list(shapes.get(made_target.name, ()))}",
                    "wrong-shape",
                )
    if missing := sorted(shapes.keys() - made.keys()):
        _uncovered(program, missing, shapes, report)
    report.settle()
    values = {name: forward[name] for name in forward}
    return BoundExample(example, values, {name: tensor.shape for name, tensor in source.items()}, plan)


def check_target(plan: Plan) -> None:
    """Compare a plan with its target class at the plan's own sizes. Raises Refusal."""
    spec = plan.program.spec
    shapes = {n: tuple(shape) for n, shape in target_signature(plan.program, plan.config).shapes.items()}
    made = {t.name: t.shape for t in plan.targets}
    report = Report()
    if missing := sorted(shapes.keys() - made.keys()):
        report.add(
            Span(spec.path),
            f"{len(missing)} tensors are missing: {listed(missing)}",
            "missing-tensor",
            nearest(missing[0], made),
        )
    if extra := sorted(made.keys() - shapes.keys()):
        report.add(
            Span(spec.path),
            f"{spec.target.class_name} has no {listed(extra)}",
            "unclaimed-tensor",
            nearest(extra[0], shapes),
        )
    for name in sorted(shapes.keys() & made.keys()):
        if shapes[name] != made[name]:
            message = f"{name} has shape {list(made[name])}, but {spec.target.class_name} expects {list(shapes[name])}"
            report.add(Span(spec.path), message, "wrong-shape", "the config does not fit the checkpoint")
    report.settle()


def _check_covered(program: Program, env: Environment, shapes: Mapping[str, tuple[int, ...]]) -> None:
    report = Report()
    active = [rule for rule in (*program.rules, *program.created) if env.holds(rule.when)]
    patterns = [p for rule in active for p in rule.targets]
    uncovered = [name for name in shapes if not any(env.match(p, name) is not None for p in patterns)]
    for rule in active:
        for pattern in rule.targets:
            if not any(env.match(pattern, name) is not None for name in shapes):
                report.add(
                    pattern.span,
                    f"{program.spec.target.class_name} has no tensor {pattern}",
                    "unknown-target",
                    nearest(pattern.fill({h: "0" for h, hole in pattern.holes.items() if hole.is_index}), shapes),
                )
    if uncovered and not program.keep_all:
        _uncovered(program, uncovered, shapes, report)
    report.settle()


def _uncovered(program: Program, names: Collection[str], shapes: Collection[str], report: Report) -> None:
    """Reports the target tensors that no rule writes; numbers are folded to * where all of them are missing."""
    spec = program.spec
    forms: dict[str, list[str]] = {}
    for name in names:
        forms.setdefault(NUMBER.sub("*", name), []).append(name)
    every = Counter(NUMBER.sub("*", name) for name in shapes)
    found = [word for form, those in forms.items() for word in ([form] if len(those) == every[form] > 1 else those)]
    written = {p.text: p.span for rule in (*program.rules, *program.created) for p in rule.targets}
    near = difflib.get_close_matches(found[0].replace("*", "{i}"), written, 1, 0.8)
    hint = "each needs a rule under keep, rename, transform or create"
    if near:
        hint = f"the most similar name that a rule writes is {near[0]}, at line {written[near[0]].line}"
    elif any(tie.alias.match(name) is not None for tie in program.ties for name in names):
        hint = "the class ties it only if the config says so: check tie_word_embeddings"
    span = spec.target.model.span if spec.target.model else spec.target.span
    report.add(span, f"{spec.target.class_name} needs {listed(found)}, which no rule writes", "uncovered-tensor", hint)


def _check_ties(program: Program, env: Environment, ties: Mapping[str, str]) -> None:
    """A tie drops a tensor, so the target class must tie it too."""
    report = Report()
    active = [tie for tie in program.ties if env.holds(tie.when)]
    if len(active) > len(ties):
        shared = listed(f"{alias} = {owner}" for alias, owner in ties.items()) or "no tensors"
        report.add(
            active[0].alias.span,
            f"{active[0].alias} is tied, but with this config {program.spec.target.class_name} ties {shared}",
            "untied-target",
            "keep the tensor, or set tie_word_embeddings",
        )
        report.settle()
    for tie in active if ties else ():
        written = _written(program, env, tie.owner)
        if written and not any(name in ties.values() for name in written):
            report.add(
                tie.owner.span,
                f"{tie.alias} is tied to {tie.owner}, but {program.spec.target.class_name} ties "
                + listed(f"{alias} = {owner}" for alias, owner in ties.items()),
                "untied-target",
            )
    report.settle()


def _written(program: Program, env: Environment, source: Pattern) -> list[str]:
    """The target names of one source tensor that no op changes."""
    if not source.is_name:
        return []
    rules = [r for r in program.rules if r.keeps_shape and env.holds(r.when)]
    found = [(rule, captures) for rule in rules if (captures := env.match(rule.sources[0], source.text)) is not None]
    return [target.fill(captures) for rule, captures in found for target in rule.targets]
