"""Several sources of one spec: the qualifiers of names, what they must fulfil, and a Program for one source's config.

A tensor of the source `vision` has the name `vision:NAME`, and the field F of its config is the argument or fact `vision_F`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from compiler.diagnostics import Report, Span, listed, nearest
from compiler.language.expression import Expr
from compiler.language.name_pattern_parser import parse_pattern
from compiler.language.spec import NamedSource, Spec, Text
from compiler.program.program import Program

MARK = ":"  # between the name of a source and that of a tensor


def unqualified(name: Text) -> Text:
    """The name of a tensor without that of its source."""
    qualifier, mark, rest = name.value.partition(MARK)
    return Text(rest, name.span.within(len(qualifier) + 1)) if mark else name


def config_program(program: Program, source: NamedSource) -> Program:
    """The program for the config of one source: its arguments and facts, by the names of the config's fields."""
    prefix = f"{source.name}_"

    def own(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}

    spec = replace(
        program.spec,
        weights=source.weights,
        source_config=source.config,
        nested=source.nested,
        model_types=source.model_types,
        fixed=source.fixed,
        unread=source.unread,
        arguments=own(program.spec.arguments),
        facts=own(program.spec.facts),
        models=(),
        config=(),
        fields={},
        sources=(),
        part_of=source.name.value,
    )
    unread = tuple((parse_pattern(text.value, text.span), reason) for text, reason in source.unread)
    return replace(program, spec=spec, rules=(), ties=(), ignored=(), created=(), merged=(), unread=unread)


def check_sources(program: Program, report: Report) -> None:
    """Report qualifiers of no source, names without one, and sources that join what they cannot."""
    spec = program.spec
    known = [source.name.value for source in spec.sources]
    joining = {source.name.value: source.joins for source in spec.sources if source.joins}
    for source in spec.sources:
        name, other = source.name.value, source.joins
        if source.overlays and source.fills:
            report.add(
                source.name.span, f"{name} both overlays and fills a source", "wrong-value", "remove one of them"
            )
        if other and (other not in known or other in joining):
            message = f"{name} {'overlays' if source.overlays else 'fills'} {other!r}, which "
            message += "completes another source itself" if other in joining else "is not a source"
            hint = nearest(other, [one for one in known if one not in (name, *joining)])
            report.add(source.name.span, message, "unknown-source", hint)
        for longer in known:
            if longer.startswith(f"{name}_"):
                message = f"arguments of the source {longer!r} could be those of the source {name!r}"
                report.add(source.name.span, message, "duplicate-name", "rename one of them")
        for text, _ in source.unread:
            parse_pattern(text.value, text.span)
    if report.diagnostics:
        return
    owners = [name for name in known if name not in joining]
    for name, span in _names(program):
        qualifier, mark, _ = name.partition(MARK)
        if qualifier in owners and mark:
            continue
        if joined := joining.get(qualifier):
            message, hint = f"the tensors of {qualifier} are names of {joined}", f"write {joined}{MARK}"
        elif mark and qualifier.isidentifier():
            message = f"{qualifier!r} is not a source"
            hint = nearest(qualifier, owners) or f"the sources are {listed(owners)}"
        else:
            message, hint = f"{name} does not name its source", f"write one of {listed(one + MARK for one in owners)}"
        report.add(span, message, "unknown-source", hint)


def _names(program: Program) -> Iterator[tuple[str, Span]]:
    """The names of source tensors in rules and expressions, each with its place."""
    patterns = [pattern for rule in (*program.rules, *program.created) for pattern in rule.sources]
    patterns += [pattern for tie in program.ties for pattern in (tie.alias, tie.owner)]
    patterns += [pattern for pattern, _ in program.ignored]
    yield from ((pattern.text, pattern.span) for pattern in patterns)
    for expr in _expressions(program.spec):
        yield from ((name, span) for _, name, span in expr.asked)


def _expressions(spec: Spec) -> Iterator[Expr]:
    yield from spec.facts.values()
    yield from (expr for expr, _ in spec.require)
    yield from (argument.derive for argument in spec.arguments.values() if argument.derive)
    yield from (field.expr for field in spec.config if field.expr)
    guards = [entry.when for entry in (*spec.keep, *spec.rename, *spec.tie)]
    guards += [rule.when for rule in spec.transform] + [rule.when for rule in spec.create]
    yield from (guard for guard in guards if guard)
