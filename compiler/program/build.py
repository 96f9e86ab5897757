"""Spec to Program: rules with patterns and ops, checked for everything that needs no sizes.

Takes a `Spec` and returns a `Program` without sizes. Raises Refusal with every problem at once: name patterns that do
not parse, indices that are not bound, and op chains whose numbers of tensors do not match.
"""

from __future__ import annotations

from collections.abc import Iterable

from compiler.diagnostics import Refusal, Report, Span, listed, nearest
from compiler.language.name_pattern import Pattern
from compiler.language.name_pattern_parser import parse_pattern
from compiler.language.spec import Create, Entry, Spec, Text, Transform
from compiler.ops import arithmetic
from compiler.ops.algebra import Op, OpError
from compiler.ops.step_readers import read_op
from compiler.ops.written_step import WrittenStep, size_of
from compiler.program.named_sources import unqualified
from compiler.program.program import Merged, Program, Rule, Tie


def build_program(spec: Spec) -> Program:
    """The Program of a Spec; each rule is checked on its own. `consistency` checks rules against each other. Raises Refusal."""
    builder = _Builder(spec)
    program = builder.program()
    builder.report.settle()
    return program


class _Builder:
    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.report = Report()

    def pattern(self, text: Text) -> Pattern | None:
        try:
            return parse_pattern(text.value, text.span)
        except Refusal as refusal:
            self.report.absorb(refusal)
            return None

    # -----------------------------------------------------------------------------------------------------------------

    def program(self) -> Program:
        spec = self.spec
        rules: list[Rule] = []
        for kind, entries in (("keep", spec.keep), ("rename", spec.rename)):
            for entry in entries:
                written = unqualified(entry.target) if kind == "keep" and spec.sources else entry.target
                source, target = self.pattern(entry.source), self.pattern(written)
                if source and target and (rule := self.renamed(kind, entry, source, target)):
                    rules.append(rule)
        seen: dict[str, Span] = {}
        for transform in spec.transform:
            if transform.name.value in seen:
                self.report.add(
                    transform.name.span,
                    f"two steps are named {transform.name}",
                    "duplicate-name",
                    f"the first is at line {seen[transform.name.value].line}",
                )
            seen.setdefault(transform.name.value, transform.name.span)
            if rule := self.transform(transform):
                rules.append(rule)
        ties = []
        for entry in spec.tie:
            alias, owner = self.pattern(entry.source), self.pattern(entry.target)
            if alias and owner:
                self.bound(owner, alias.holes, f"the alias {alias}")
                ties.append(Tie(alias, owner.with_holes(alias.holes), entry.when))
        ignored = [(p, reason) for text, reason in spec.ignore if (p := self.pattern(text))]
        created = [rule for create in spec.create if (rule := self.created(create))]
        merged = [
            Merged(p, m.axis, m.blocks, m.lengths, m.by.value) for m in spec.merge if (p := self.pattern(m.pattern))
        ]
        unread = [(p, reason) for text, reason in spec.unread if (p := self.pattern(text))]
        return Program(spec, tuple(rules), tuple(ties), tuple(ignored), tuple(created), tuple(merged), tuple(unread))

    def created(self, create: Create) -> Rule | None:
        source, target = self.pattern(create.like), self.pattern(create.target)
        if not source or not target or not self.bound(target, source.holes, str(source)):
            return None
        self.bound(source, target.holes, str(target))
        try:
            shape = None if create.shape is None else tuple(map(size_of, create.shape))
        except Refusal as refusal:
            self.report.absorb(refusal)
            return None
        step = (arithmetic.Full(create.fill, shape), target.span)
        return Rule("create", "", (source,), (target.with_holes(source.holes),), (step,), create.when, target.span)

    def bound(self, pattern: Pattern, holes: Iterable[str], where: str) -> bool:
        missing = [hole for hole in pattern.holes if hole not in holes]
        for hole in missing:
            start = max(0, pattern.text.find("{" + hole))
            self.report.add(
                pattern.span.within(start, len(hole) + 2),
                f"the index {{{hole}}} of {pattern} is not bound",
                "unbound-index",
                nearest(hole, holes) or f"{where} has {listed('{' + h + '}' for h in holes) or 'no index'}",
            )
        return not missing

    def renamed(self, kind: str, entry: Entry, source: Pattern, target: Pattern) -> Rule | None:
        if not self.bound(target, source.holes, str(source)) or not self.bound(source, target.holes, str(target)):
            return None
        return Rule(kind, "", (source,), (target.with_holes(source.holes),), (), entry.when, entry.source.span)

    def transform(self, transform: Transform) -> Rule | None:
        sources = [self.pattern(named.pattern) for named in transform.sources]
        targets = [self.pattern(named.pattern) for named in transform.targets]
        if None in sources or None in targets:
            return None
        read = {name: hole for p in sources if p for name, hole in p.holes.items()}
        patterns = tuple(p for p in sources if p)
        written = tuple(p.with_holes(read) for p in targets if p)
        for pattern in patterns[1:]:
            self.bound(pattern, patterns[0].holes, str(patterns[0]))
            self.bound(patterns[0], pattern.holes, str(pattern))
        for pattern in written[1:]:
            self.bound(pattern, written[0].holes, str(written[0]))
            self.bound(written[0], pattern.holes, str(pattern))
        holes = tuple(h for h in patterns[0].holes if h not in written[0].holes)
        steps: list[tuple[Op, Span]] = []
        slots, before = len(patterns), len(self.report.diagnostics)
        for step in transform.steps:
            try:
                op = read_op(WrittenStep(step, transform.sources, transform.targets, slots))
                slots, holes = op.arity(slots, holes)
            except Refusal as refusal:
                self.report.absorb(refusal)
                return None
            except OpError as error:
                self.report.add(step.span, f"{transform.name}: {error}", "op-mismatch")
                return None
            steps.append((op, step.span))
        if len(self.report.diagnostics) > before:
            return None
        opened = [h for h in holes if h not in patterns[0].holes]
        if left := [h for h in holes if h in patterns[0].holes]:
            self.report.add(
                patterns[0].span,
                f"{transform.name}: the target names lack the index {{{left[0]}}}",
                "unbound-index",
                f"fold it: stack: {left[0]}",
            )
        if unbound := [h for h in written[0].holes if h not in patterns[0].holes and h not in opened]:
            self.report.add(
                written[0].span,
                f"the index {{{unbound[0]}}} of {written[0]} is not bound",
                "unbound-index",
                f"open it: unstack: {unbound[0]}",
            )
        if unused := [h for h in opened if h not in written[0].holes]:
            self.report.add(
                written[0].span,
                f"{transform.name}: unstack opens {{{unused[0]}}}, which no target name has",
                "unbound-index",
            )
        if slots != len(written):
            self.report.add(
                transform.targets[0].pattern.span,
                f"{transform.name}: the ops make {slots} tensor{'s' * (slots != 1)}, but 'to' has {len(written)} name{'s' * (len(written) != 1)}",
                "op-mismatch",
                "check the sizes or parts of the last split, the number of copies, or the names under 'to'",
            )
        if len(self.report.diagnostics) > before:
            return None
        return Rule(
            "transform", transform.name.value, patterns, written, tuple(steps), transform.when, transform.name.span
        )
