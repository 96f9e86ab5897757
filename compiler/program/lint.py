"""Finds probable mistakes in a well-formed spec.

Takes a Program, returns diagnostics. Errors: sizes that are unused or given twice. Warnings, which do not fail a
compile: unused names, an index that never starts at 0, a regular expression without anchors, a weight and a bias of one
module that become those of two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from compiler.diagnostics import Diagnostic, Span, listed
from compiler.language import document
from compiler.language.name_pattern import Hole, Pattern, options
from compiler.language.spec import Transform
from compiler.program.consistency import expressions
from compiler.program.program import Program, Rule


def lint(program: Program) -> list[Diagnostic]:
    """All errors and warnings, sorted."""
    found = [*_unused(program), *_unanchored(program), *_starts(program), *_parted(program), *_orders(program)]
    for transform in program.spec.transform:
        found += _sizes(transform)
    return sorted(set(found))


def _warn(span: Span, message: str, kind: str, hint: str = "") -> Diagnostic:
    return Diagnostic(span, message, kind, hint, warning=True)


def _unused(program: Program) -> Iterator[Diagnostic]:
    spec = program.spec
    read: set[str] = set()
    for expr in expressions(program):
        own = next((name for name, fact in spec.facts.items() if fact is expr), None)
        read |= expr.names - {own}
    for name, argument in spec.arguments.items():
        if name not in read:
            yield _warn(argument.span, f"the argument {name!r} is not used", "unused-name", "remove it, or require it")
    for name, fact in spec.facts.items():
        if name not in read:
            yield _warn(fact.span, f"the fact {name!r} is not used", "unused-name", "remove it")
    held = {hole for pattern in _patterns(program) for hole in pattern.holes}
    for name in spec.indices.keys() - held:
        yield _warn(spec.indices[name].span, f"no name uses the index {{{name}}}", "unused-name", "remove its guard")


def _patterns(program: Program) -> Iterator[Pattern]:
    for rule in (*program.rules, *program.created):
        yield from (*rule.sources, *rule.targets)
    for tie in program.ties:
        yield from (tie.alias, tie.owner)
    yield from (pattern for pattern, _ in program.ignored)
    yield from (merged.pattern for merged in program.merged)


def _unanchored(program: Program) -> Iterator[Diagnostic]:
    for pattern in _patterns(program):
        if pattern.text.startswith("/") and not (pattern.text.startswith("/^") and pattern.text.endswith("$/")):
            message = f"{pattern} must match the whole name, but has no ^ and $"
            yield _warn(pattern.span, message, "unanchored-regex", f"write it as /^{pattern.text.strip('/^$')}$/")


# ---------------------------------------------------------------------------------------------------------------------


def _starts(program: Program) -> Iterator[Diagnostic]:
    """Warns about an index that no rule can read as 0."""
    first: dict[str, tuple[Pattern, Hole]] = {}
    able: set[str] = set()
    for rule in program.rules:
        for pattern in rule.sources:
            for prefix, hole in _indices(pattern):
                first.setdefault(prefix, (pattern, hole))
                if hole.shift <= 0:
                    able.add(prefix)
            text = pattern.parts[0] if isinstance(pattern.parts[0], str) else ""
            able |= {text[: at.start()] for at in re.finditer(r"(?<![0-9])0(?![0-9])", text)}  # number 0, written out
    for prefix in first.keys() - able:
        pattern, hole = first[prefix]
        yield _warn(
            pattern.span,
            f"no rule reads {prefix.replace('#', '0')}0, but an index usually starts at 0",
            "index-start",
            f"write {{{hole.name}}} here and shift the index of the target, or add a rule that reads number 0",
        )


def _indices(pattern: Pattern) -> Iterator[tuple[str, Hole]]:
    prefixes = [""]
    for part in pattern.parts:
        if isinstance(part, Hole) and part.is_index:
            yield from ((prefix, part) for prefix in prefixes)
            prefixes = [prefix + "#" for prefix in prefixes]
        elif (words := options(part)) is not None:
            prefixes = [prefix + word for prefix in prefixes for word in words]
        else:
            return  # the texts behind an open part cannot be listed


# ---------------------------------------------------------------------------------------------------------------------


_LEAVES = re.compile(r"(.+)\.(weight|bias|\{\w+:weight\|bias\})")
_CHOICE = re.compile(r"\{(\w+):[^}]*\}")


def _parted(program: Program) -> Iterator[Diagnostic]:
    """Warns where the weight of a source module and its bias become those of different target modules."""
    first: dict[tuple[str, ...], list[tuple[Rule, tuple[str, ...], tuple[str, ...]]]] = {}
    for rule in program.rules:
        (sources, _), (targets, leaves) = _modules(rule.sources), _modules(rule.targets)
        if not sources or not targets:
            continue
        for key, value in ((sources, targets), (("to", *targets), sources)):
            for other, modules, others in first.setdefault(key, []):
                together = rule.when is None or other.when is None or rule.when.text == other.when.text
                if together and leaves != others and len(modules) == len(value) and modules != value:
                    message = f"{leaves[0]} and {others[0]} of one module go to different modules"
                    hint = f"here it is {listed(value)}; in the rule at line {other.span.line} it is {listed(modules)}"
                    yield _warn(rule.span, message, "parted-module", hint)
            first[key].append((rule, value, leaves))


def _orders(program: Program) -> Iterator[Diagnostic]:
    """Warns where two rules split into the same tensors, or join the same tensors, in different orders."""
    first: dict[tuple[str, frozenset[str]], tuple[Rule, list[str]]] = {}
    for rule in program.rules:
        for side, patterns in (("to", rule.targets), ("from", rule.sources)):
            names = [pattern.text for pattern in patterns]
            other, order = first.setdefault((side, frozenset(names)), (rule, names))
            if names != order:
                message = f"{rule.name}: the names under {side!r} are those of {other.name} in another order"
                hint = f"the rule at line {other.span.line} has {listed(order)}"
                yield _warn(rule.span, message, "other-order", hint)


def _modules(patterns: tuple[Pattern, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The modules whose weights or biases these are, and which of the two; empty if one is something else."""
    found = [_LEAVES.fullmatch(pattern.text) for pattern in patterns]
    parts = [(_CHOICE.sub(r"{\1}", match[1]), match[2]) for match in found if match]
    return tuple(zip(*parts, strict=True)) if parts and all(found) else ((), ())  # type: ignore[return-value]


def _sizes(transform: Transform) -> Iterator[Diagnostic]:
    """Sizes that no op uses, or that are given twice."""
    for named, word, side in ((transform.targets, "split", "to"), (transform.sources, "concat", "from")):
        sizes = [one.size for one in named if one.size is not None]
        steps = [step for step in transform.steps if step.word == word]
        if sizes and not steps:
            message = f"{transform.name}: no {word} uses the sizes beside the names under {side!r}"
            yield Diagnostic(sizes[0].span, message, "op-mismatch", f"only {word} has sizes there")
        for step in steps:
            listed = isinstance(step.values.get("sizes"), document.Sequence)
            if "parts" in step.values and (listed or sizes):
                message = f"{transform.name}: both the sizes and the number of parts are given"
                yield Diagnostic(step.values["parts"].span, message, "op-mismatch", "leave one out")
            if listed and sizes:
                message = f"{transform.name}: the sizes are given twice"
                yield Diagnostic(sizes[0].span, message, "op-mismatch", "leave one out")
