"""Checks the parts of a Program against each other: overlapping rules, undefined names, circular facts.

Takes a Program; raises Refusal with all problems. Works on patterns and expressions only, never on example sizes.
"""

from __future__ import annotations

from compiler.diagnostics import Refusal, Report, Span, nearest
from compiler.language.expression import Expr, parse_expr
from compiler.language.name_pattern import Pattern
from compiler.language.name_pattern_overlap import common_name
from compiler.language.name_pattern_parser import parse_pattern
from compiler.program.named_sources import check_sources
from compiler.program.program import Program


def check(program: Program) -> None:
    """Raises Refusal with every inconsistency of a Program."""
    checker = _Checker(program)
    for text, question in program.spec.undecided:
        checker.report.add(text.span, f"undecided: {question}", "undecided", "decide it, then remove this entry")
    if program.spec.sources:
        check_sources(program, checker.report)
        checker.report.settle()
    checker.check_claims(program)
    checker.check_merge(program)
    checker.check_ranks(program)
    checker.check_indices(program)
    checker.check_names(program)
    checker.report.settle()


class _Checker:
    def __init__(self, program: Program) -> None:
        self.spec = program.spec
        self.report = Report()

    def attempt(self, expr: Expr) -> None:
        try:
            parse_expr(expr.text, expr.span)
        except Refusal as refusal:
            self.report.absorb(refusal)

    def check_claims(self, program: Program) -> None:
        """No two unguarded rules read or write one name. Guarded rules are compared at bind time, when their guards have values."""
        free: list[tuple[Pattern, str]] = [
            (p, r.name or r.kind) for r in program.rules if not r.when for p in r.sources
        ]
        free += [(t.alias, "tie") for t in program.ties if not t.when] + [(p, "ignore") for p, _ in program.ignored]
        self.disjoint(free, "claim", "claimed-twice")
        self.disjoint(
            [(p, r.name or r.kind) for r in (*program.rules, *program.created) if not r.when for p in r.targets],
            "write",
            "written-twice",
        )

        self.disjoint([(m.pattern, "merge") for m in program.merged], "join", "claimed-twice")

    def check_merge(self, program: Program) -> None:
        """A merge has an axis or an index. The axis is evaluated before arguments are known, so it may not use any."""
        for merged in program.merged:
            if (merged.axis is None) != bool(merged.by) or (merged.by and merged.blocks > 1):
                hint = "`axis`: parts are joined along it; `by`: each part has the tensors of a range of that index"
                message = f"the merge of {merged.pattern} needs either an axis or an index"
                self.report.add(merged.pattern.span, message, "missing-key", hint)
            elif merged.by and merged.by not in merged.pattern.holes:
                hint = nearest(merged.by, merged.pattern.holes)
                self.report.add(merged.pattern.span, f"the name has no index {{{merged.by}}}", "unknown-name", hint)
            for expression in merged.expressions:
                self.attempt(expression)
        self.report.settle()
        for expression in (expression for merged in program.merged for expression in merged.expressions):
            for name in sorted(expression.names):
                self.report.add(
                    expression.name_span(name),
                    f"an axis cannot depend on {name!r}",
                    "unknown-name",
                    "it may use dim, count and exists, which read the first part",
                )

    def check_ranks(self, program: Program) -> None:
        """The indices that ranks count are plain ones of source names, and tensors are named as in the source."""
        ranks = self.spec.ranks
        if ranks is None:
            return
        read = [p for rule in program.rules for p in rule.sources]
        plain = {name for p in read for name, hole in p.holes.items() if hole.is_index and not hole.shift}
        for index in (ranks.pipeline, ranks.expert):
            if index.value and index.value not in plain:
                message = f"no source name has the index {{{index}}}"
                self.report.add(index.span, message, "unknown-name", nearest(index.value, plain))
        for name in (*ranks.first, *(text for pair in ranks.copies for text in pair)):
            if not any(p.match(name.value) is not None for p in read):
                self.report.add(name.span, f"no rule reads {name}", "unknown-name")

    def check_indices(self, program: Program) -> None:
        """A guard uses its own index, and that index is a plain one on both sides of every rule."""
        for name, guard in self.spec.indices.items():
            self.attempt(guard)
            if name in self.spec.arguments or name in self.spec.facts:
                self.report.add(
                    guard.span,
                    f"{name!r} is the name of an index and of an argument or fact",
                    "duplicate-name",
                    "rename one of them",
                )
        self.report.settle()
        for name, guard in self.spec.indices.items():
            for function, text, span in guard.asked:
                message = f"the guard of an index cannot call {function}({text!r})"
                self.report.add(span, message, "expression-syntax", "make it a fact and use the fact")
            if name not in guard.names:
                message = f"the guard of {{{name}}} does not use {name!r}"
                self.report.add(
                    guard.span, message, "unknown-name", "put a condition without the index under `when` of the rule"
                )
        for rule in (*program.rules, *program.created):
            for name in self.spec.indices.keys() & ({*rule.sources[0].holes} ^ {*rule.targets[0].holes}):
                message = f"{rule.name} folds or opens {{{name}}}, which has a guard"
                self.report.add(
                    rule.span, message, "op-mismatch", "a guarded index must be in both the source and the target names"
                )
        read = [p for rule in (*program.rules, *program.created) for p in rule.sources]
        for pattern in (*read, *(tie.alias for tie in program.ties), *(p for p, _ in program.ignored)):
            for hole in pattern.holes.values():
                if hole.name in self.spec.indices and (hole.shift or not hole.is_index):
                    at = pattern.span.within(max(0, pattern.text.find("{" + hole.name)), len(hole.name) + 2)
                    message = f"{{{hole.name}}} has a guard, so it must be a plain index here"
                    hint = "shift the index of the target instead" if hole.shift else "give it another name"
                    self.report.add(at, message, "name-syntax", hint)

    def disjoint(self, patterns: list[tuple[Pattern, str]], verb: str, kind: str) -> None:
        for n, (pattern, what) in enumerate(patterns):
            for other, whose in patterns[:n]:
                guards = [pattern.holes.keys() & self.spec.indices, other.holes.keys() & self.spec.indices]
                if all(guards) and guards[0] != guards[1]:
                    continue  # other numbers, which are compared when the guards have values
                name = common_name(pattern, other)
                if name is not None:
                    self.report.add(
                        pattern.span,
                        f"this rule ({what}) and the one at line {other.span.line} ({whose}) both {verb} {name!r}",
                        kind,
                        "each tensor belongs to one rule; the order of rules has no meaning",
                    )

    def check_names(self, program: Program) -> None:
        spec = self.spec
        known = [*spec.arguments, *spec.facts]
        for name in spec.facts:
            if name in spec.arguments:
                self.report.add(
                    spec.facts[name].span,
                    f"{name!r} is an argument and a fact",
                    "duplicate-name",
                    "a fact is computed, an argument is given; keep one",
                )
        self.check_models()
        self.check_source_fields(program)
        claimed = (
            [p for r in program.rules for p in r.sources]
            + [t.alias for t in program.ties]
            + [p for p, _ in program.ignored]
        )
        for expr in expressions(program):
            self.attempt(expr)
        self.report.settle()
        for tie in program.ties if not program.keep_all else ():
            if not any(common_name(tie.owner, pattern) for pattern in claimed):
                message = f"no rule of this spec reads {tie.owner.text!r}"
                hint = nearest(tie.owner.text, [p.text for p in claimed]) or "both names of a tie are source names"
                self.report.add(tie.owner.span, message, "unknown-tensor", hint)
        for expr in expressions(program):
            for name in sorted(expr.names - {n for n, guard in spec.indices.items() if guard is expr}):
                if name not in known:
                    self.report.add(
                        expr.name_span(name),
                        f"{name!r} is neither an argument nor a fact",
                        "unknown-name",
                        nearest(name, known),
                    )
            for index in sorted(expr.indices & {*known}):
                message = f"the index {index!r} of this list is the name of an argument or fact"
                self.report.add(expr.span, message, "duplicate-name", "rename the index")
            for function, text, span in expr.asked:
                self.check_asked(function, text, span, claimed, program.keep_all, expr.indices)
                if function == "equal" and not any(fact is expr for fact in spec.facts.values()):
                    message = "equal reads data, so it is allowed in a fact only"
                    self.report.add(span, message, "expression-syntax", "make it a fact and use the fact")
        self.check_cycles()
        for example in spec.examples:
            for name, (_, span) in example.items():
                if name not in known:
                    self.report.add(
                        span, f"{name!r} is neither an argument nor a fact", "unknown-name", nearest(name, known)
                    )

    def check_models(self) -> None:
        """Released models are recognised by facts or arguments that exist, and set arguments that exist."""
        spec = self.spec
        for model in spec.models:
            for name in model.when.keys() - {*spec.facts, *spec.arguments}:
                message = f"{model.name} is recognised by {name!r}, which is neither an argument nor a fact"
                self.report.add(model.span, message, "unknown-name", nearest(name, [*spec.facts, *spec.arguments]))
            for name in model.sets.keys() - spec.arguments.keys():
                message = f"{model.name} sets {name!r}, which is no argument"
                self.report.add(model.span, message, "unknown-name", nearest(name, spec.arguments))
            if common := model.when.keys() & model.sets.keys():
                message = f"{model.name} sets what it is recognised by: {min(common)}"
                self.report.add(model.span, message, "duplicate-name", "leave one of them out")

    def check_source_fields(self, program: Program) -> None:
        """A field of the source's config is read, fixed or unread: one of the three. Where a pattern of unread fields also
        matches one that is read or fixed, that one counts."""
        spec = self.spec
        read = {*spec.arguments, *spec.facts}
        named = {pattern.text for pattern, _ in program.unread if pattern.is_name}
        for name, field in spec.fixed.items():
            if name in read or name in named:
                other = "an argument or a fact" if name in read else "unread"
                message = f"the field {name!r} is fixed, and it is {other}"
                self.report.add(field.span, message, "duplicate-name", "decide which")
        for pattern, _ in program.unread:
            if pattern.is_name and pattern.text in read:
                message = f"the field {pattern.text!r} is unread, and it is an argument or a fact"
                self.report.add(pattern.span, message, "duplicate-name", "decide which")

        writable = {*read, *spec.fixed}
        for omitted in spec.layout.omit:
            if omitted.value not in writable:
                message = f"{omitted.value!r} is omitted, and it is neither an argument, a fact nor fixed"
                self.report.add(omitted.span, message, "unknown-name", nearest(omitted.value, writable))

    def check_asked(
        self, function: str, text: str, span: Span, claimed: list[Pattern], keep_all: bool, indices: frozenset[str]
    ) -> None:
        try:
            pattern = parse_pattern(text, span)
        except Refusal as refusal:
            self.report.absorb(refusal)
            return
        free = [
            part for part in pattern.parts if not isinstance(part, str) and getattr(part, "name", "") not in indices
        ]
        if (function in ("dim", "equal") or pattern.holes.keys() & indices) and free:
            self.report.add(
                span,
                f"{function} takes the name of one tensor; {text} matches many",
                "name-syntax",
                "write a number for the index, as in layers.0",
            )
        elif function != "exists" and not keep_all and not any(common_name(pattern, c) for c in claimed):
            self.report.add(
                span, f"no rule of this spec reads {text!r}", "unknown-tensor", nearest(text, [c.text for c in claimed])
            )

    def check_cycles(self) -> None:
        derived = {name: a.derive for name, a in self.spec.arguments.items() if a.derive}
        facts = {**self.spec.facts, **derived}
        state: dict[str, int] = {}

        def visit(name: str) -> None:
            state[name] = 1
            own = {name} - derived.keys()  # in a fact its own name is the value given
            for other in sorted((facts[name].names & facts.keys()) - own):
                if state.get(other) == 1:
                    self.report.add(
                        facts[name].name_span(other),
                        f"the {'argument' if other in derived else 'fact'} {other!r} depends on itself",
                        "circular-fact",
                        "measure one of them with dim or count, or make it an argument",
                    )
                elif other not in state:
                    visit(other)
            state[name] = 2

        for name in facts:
            if name not in state:
                visit(name)


def expressions(program: Program) -> list[Expr]:
    """Every expression of a program, in the order of the spec."""
    spec = program.spec
    found = [
        *spec.facts.values(),
        *(a.derive for a in spec.arguments.values() if a.derive),
        *spec.indices.values(),
        *(e for e, _ in spec.require),
        *(f.expr for f in spec.config if f.expr),
    ]
    found += spec.tokenizer.named.values() if spec.tokenizer else []
    found += [f.expr for f in spec.processor.fields if f.expr] if spec.processor else []
    found += [f.expr for f in (*spec.layout.fields, *spec.layout.constants) if f.expr]
    rules = (*program.rules, *program.created)
    found += [r.when for r in rules if r.when] + [t.when for t in program.ties if t.when]
    found += [size for r in rules for op, _ in r.steps for size in op.sizes_used() if isinstance(size, Expr)]
    found += [e for given in spec.verify_inputs for e in (*given.shape, given.below) if e]
    return found
