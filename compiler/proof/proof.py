"""The compile-time proof: a spec that compiles has been type-checked against the real target class.

For each of the spec's examples: take the names and shapes that the target class writes to disk, run the derived
inverse to get the source's, run the spec forward on those, and demand the identity, facts included. What a rule writes
and the class lacks, what the class needs and no rule writes, a wrong shape, a fact that reads the wrong axis, and a
rule that no example exercises are compile errors at their place.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from compiler.diagnostics import Diagnostic, Refusal, Report, Span, listed, located, nearest
from compiler.language.name_pattern import Pattern
from compiler.plan.bind import bind
from compiler.plan.plan import Plan
from compiler.program.environment import Environment, Given, NamedShapes
from compiler.program.inverse import SourceShapes, invert
from compiler.program.program import Program, Rule
from compiler.proof.config_faults import blamed, unwritten

if TYPE_CHECKING:
    from compiler.target.model_class import ClassSignature

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def prove(program: Program) -> list[Diagnostic]:
    """Check a program against its target class, by each of its examples; what is probably not meant. Raises Refusal."""
    spec = program.spec
    report = Report()
    if not spec.examples:
        report.add(
            spec.name.span,
            "the spec has no example, so nothing is proven",
            "missing-example",
            "give sizes for the facts: example: {vocab_size: 128, ...}",
        )
    report.settle()
    fields = _fields(program)
    for field in spec.config:
        if field.name not in fields:
            report.add(
                field.span,
                f"{spec.target.class_name} has no config field {field.name!r}",
                "unknown-field",
                nearest(field.name, fields),
            )
    report.settle()
    exercised: set[Rule] = set()
    for example in spec.examples:
        try:
            exercised |= _prove_example(program, {name: value for name, (value, _) in example.items()})
        except Refusal as refusal:
            # Other sizes, the same mistake.
            said = {(d.span, d.kind) for d in report.diagnostics if d.kind != "uncovered-tensor"}
            report.diagnostics += [d for d in refusal.diagnostics if (d.span, d.kind) not in said]
    report.settle()
    for rule in (*program.rules, *program.created):
        if rule not in exercised:
            report.add(
                rule.span,
                f"no example exercises the rule {rule.name or rule.sources[0]}",
                "unproven-rule",
                "add an example for which its guard holds",
            )
    report.settle()
    return list(unwritten(program, fields)) if spec.target.remote_code is None else []


def _fields(program: Program) -> Collection[str]:
    """The config fields that the target class has."""
    from compiler.render.remote_code import from_spec
    from compiler.target import model_class as target
    from compiler.target import signature_cache

    spec = program.spec
    if spec.target.model is None:
        return {*from_spec.remote_code(spec).fields, *target.COMMON_FIELDS}
    with located(spec.target.model.span):
        return signature_cache.config_fields(spec.target.model.value)


def target_signature(program: Program, config: Mapping[str, Any]) -> ClassSignature:
    """Names and shapes of what the target class writes to disk when built from these fields. Raises Refusal."""
    from compiler.render.remote_code import from_spec
    from compiler.target import config_dialects, signature_cache
    from compiler.target import model_class as target

    spec = program.spec
    if spec.target.model is not None:
        name = spec.target.model.value
        with located(spec.target.model.span):
            kind = target.model_type(name)
            return signature_cache.signature(
                name, config_dialects.config_json(config, model_class=name, model_type=kind, dtype="float32")
            )
    kind = from_spec.remote_code(spec).model_type
    name = spec.target.class_name
    return from_spec.signature(
        spec, config_dialects.config_json(config, model_class=name, model_type=kind, dtype="float32")
    )


def _prove_example(program: Program, example: Mapping[str, Any]) -> set[Rule]:
    spec = program.spec
    given = {name: Given(value, "the example") for name, value in example.items()}
    # The config needs the facts; those that only the source can tell must stand in the example.
    env = Environment(program, SourceShapes(program, {}), given, trusted=True)
    config = {f.name: env.evaluate(f.expr) if f.expr else f.constant for f in spec.config}
    name = spec.target.class_name
    try:
        signature = target_signature(program, config)
    except Refusal as refusal:
        raise Refusal(blamed(program, example, config, d) for d in refusal.diagnostics) from None
    shapes = {n: tuple(shape) for n, shape in signature.shapes.items()}
    env = Environment(program, SourceShapes(program, shapes), given, trusted=True)
    _check_covered(program, env, shapes)
    _check_ties(program, env, signature.ties)
    source = invert(program, env, shapes)
    arguments = {n: g for n, g in given.items() if n in spec.arguments}
    forward = Environment(program, NamedShapes(source), arguments)
    for fact in given.keys() & spec.facts.keys():
        if forward[fact] != given[fact].value:
            refused = Report()
            refused.add(
                spec.facts[fact].span,
                f"{fact} comes out as {forward[fact]!r}, the example says {given[fact].value!r}",
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
                    f"{made_target.name} comes out as {list(made_target.shape)}, {name} has {list(shapes.get(made_target.name, ()))}",
                    "wrong-shape",
                )
    if missing := sorted(shapes.keys() - made.keys()):
        _uncovered(program, missing, shapes, report)
    report.settle()
    return {group.rule for group in plan.groups}


def check_target(plan: Plan) -> None:
    """Hold a plan against its target class at the plan's own sizes: what `keep: all` cannot tell by rules."""
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
            message = f"{name} has the shape {list(made[name])}, {spec.target.class_name} needs {list(shapes[name])}"
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
    """What no rule writes, numbers folded where all are meant, with the nearest name that a rule does write."""
    spec = program.spec
    forms: dict[str, list[str]] = {}
    for name in names:
        forms.setdefault(_NUMBER.sub("*", name), []).append(name)
    every = Counter(_NUMBER.sub("*", name) for name in shapes)
    found = [word for form, those in forms.items() for word in ([form] if len(those) == every[form] > 1 else those)]
    written = {p.text: p.span for rule in (*program.rules, *program.created) for p in rule.targets}
    near = difflib.get_close_matches(found[0].replace("*", "{i}"), written, 1, 0.8)
    hint = "each needs a rule: kept, renamed, made by a transform, or created"
    if near:
        hint = f"the nearest that a rule writes is {near[0]}, at line {written[near[0]].line}"
    elif any(tie.alias.match(name) is not None for tie in program.ties for name in names):
        hint = "the class shares it only where the config says so: look at tie_word_embeddings"
    span = spec.target.model.span if spec.target.model else spec.target.span
    report.add(span, f"{spec.target.class_name} needs {listed(found)}, which no rule writes", "uncovered-tensor", hint)


def _check_ties(program: Program, env: Environment, ties: Mapping[str, str]) -> None:
    """A tie drops a tensor; only a class that shares it may do without."""
    report = Report()
    active = [tie for tie in program.ties if env.holds(tie.when)]
    if len(active) > len(ties):
        shared = listed(f"{alias} = {owner}" for alias, owner in ties.items()) or "nothing"
        report.add(
            active[0].alias.span,
            f"{active[0].alias} is tied, but {program.spec.target.class_name} shares {shared} with this config",
            "untied-target",
            "keep the tensor, or set tie_word_embeddings",
        )
        report.settle()
    for tie in active if ties else ():
        for written in _written(program, env, tie.owner):
            if written not in ties.values():
                report.add(
                    tie.owner.span,
                    f"{tie.alias} is tied to {tie.owner}, but {program.spec.target.class_name} shares "
                    + listed(f"{alias} = {owner}" for alias, owner in ties.items()),
                    "untied-target",
                )
    report.settle()


def _written(program: Program, env: Environment, source: Pattern) -> list[str]:
    """What becomes of one source tensor that no op touches."""
    if not source.is_name:
        return []
    rules = [r for r in program.rules if not r.steps and env.holds(r.when)]
    found = [(rule, captures) for rule in rules if (captures := env.match(rule.sources[0], source.text)) is not None]
    return [rule.targets[0].fill(captures) for rule, captures in found]
