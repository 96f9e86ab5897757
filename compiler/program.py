"""Spec to Program: rules with patterns and ops, checked for everything that needs no sizes.

Reads a `Spec`, returns a `Program` free of sizes, or refuses with every problem at once: names that do not parse,
indices that nothing binds, ops that do not follow from each other, two rules that claim one name, words that no
argument or fact defines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from compiler import document, notation, ops
from compiler.algebra import OpError, Size
from compiler.diagnostics import Refusal, Report, Span, listed, nearest
from compiler.exprs import Expr, parse_expr
from compiler.names import Pattern
from compiler.ops import Op
from compiler.spec import Entry, Named, Spec, Step, Text, Transform
from compiler.spelling import parse_pattern


@dataclass(frozen=True)
class Rule:
    """What becomes of the tensors that `sources` name: `steps` in order, then the names of `targets`.

    The indices in both are free: each value of them is one application. Those only in `sources` are folded by a
    `stack`, those only in `targets` opened by an `unstack`.
    """

    kind: str
    name: str
    sources: tuple[Pattern, ...]
    targets: tuple[Pattern, ...]
    steps: tuple[tuple[Op, Span], ...]
    when: Expr | None
    span: Span

    @cached_property
    def outer(self) -> tuple[str, ...]:
        """The free indices, in the order of the first source name."""
        return tuple(hole for hole in self.sources[0].holes if hole in self.targets[0].holes)

    @cached_property
    def folded(self) -> tuple[str, ...]:
        """The indices of the sources that the targets lack."""
        return tuple(hole for hole in self.sources[0].holes if hole not in self.targets[0].holes)

    @cached_property
    def loss(self) -> str:
        """Why the rule cannot be reversed exactly; empty when it can."""
        if op := next((op for op, _ in self.steps if not op.exact), None):
            return op.loss
        if loose := next((p for p in self.sources if p.free_parts), None):
            return f"{loose} matches texts that no index captures, so that the name could not be written back"
        return ""

    def reversed(self) -> Rule:
        """The rule that undoes this one."""
        steps = tuple((op.inverse(), span) for op, span in reversed(self.steps))
        return Rule(self.kind, self.name, self.targets, self.sources, steps, self.when, self.span)


@dataclass(frozen=True)
class Tie:
    alias: Pattern
    owner: Pattern
    when: Expr | None


@dataclass(frozen=True)
class Program:
    """A checked spec. `keep_all` keeps every name that nothing else claims."""

    spec: Spec
    rules: tuple[Rule, ...]
    ties: tuple[Tie, ...]
    ignored: tuple[tuple[Pattern, str], ...]

    @property
    def keep_all(self) -> bool:
        return self.spec.keep_all


def build_program(spec: Spec) -> Program:
    """The Program of a Spec, its parts checked one by one. Raises Refusal; `checks` judges the whole."""
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
                source, target = self.pattern(entry.source), self.pattern(entry.target)
                if source and target and (rule := self.renamed(kind, entry, source, target)):
                    rules.append(rule)
        seen: dict[str, Span] = {}
        for transform in spec.transform:
            if transform.name.value in seen:
                self.report.add(
                    transform.name.span,
                    f"two steps are called {transform.name}",
                    "duplicate-name",
                    f"the first stands at line {seen[transform.name.value].line}",
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
        return Program(spec, tuple(rules), tuple(ties), tuple(ignored))

    def bound(self, pattern: Pattern, holes: Iterable[str], where: str) -> bool:
        missing = [hole for hole in pattern.holes if hole not in holes]
        for hole in missing:
            start = max(0, pattern.text.find("{" + hole))
            self.report.add(
                pattern.span.within(start, len(hole) + 2),
                f"nothing binds the index {{{hole}}} of {pattern}",
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
                op = self.op(step, transform, slots)
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
                f"{transform.name}: the targets lack the index {{{left[0]}}}",
                "unbound-index",
                f"fold it: stack: {left[0]}",
            )
        if unbound := [h for h in written[0].holes if h not in patterns[0].holes and h not in opened]:
            self.report.add(
                written[0].span,
                f"nothing binds the index {{{unbound[0]}}} of {written[0]}",
                "unbound-index",
                f"open it: unstack: {unbound[0]}",
            )
        if unused := [h for h in opened if h not in written[0].holes]:
            self.report.add(
                written[0].span,
                f"{transform.name}: unstack opens {{{unused[0]}}}, which the targets lack",
                "unbound-index",
            )
        if slots != len(written):
            self.report.add(
                transform.targets[0].pattern.span,
                f"{transform.name}: the ops make {slots} tensor{'s' * (slots != 1)}, for {len(written)} name{'s' * (len(written) != 1)}",
                "op-mismatch",
            )
        if len(self.report.diagnostics) > before:
            return None
        return Rule(
            "transform", transform.name.value, patterns, written, tuple(steps), transform.when, transform.name.span
        )

    # -----------------------------------------------------------------------------------------------------------------

    def op(self, step: Step, transform: Transform, slots: int) -> Op:
        values = step.values
        value = document.plain(values[step.word])
        extra = {
            "split": ("sizes", "parts"),
            "concat": ("sizes",),
            "stack": ("axis",),
            "unstack": ("axis",),
            "rearrange": ("sizes",),
        }
        for word in ("sizes", "parts", "axis"):
            if word in values and word not in extra.get(step.word, ()):
                self.report.add(values[word].span, f"{step.word} takes no {word!r}", "unknown-key")
        axis = document.plain(values["axis"]) if "axis" in values else 0
        match step.word, value:
            case "split", int(along):
                sizes = self.sizes(values, transform.targets)
                parts = (
                    len(sizes)
                    if sizes
                    else document.plain(values["parts"])
                    if "parts" in values
                    else len(transform.targets)
                )
                return ops.Split(along, parts, sizes)  # type: ignore[arg-type]
            case "concat", int(along):
                return ops.Concat(along, slots, self.sizes(values, transform.sources))
            case "stack", str(hole):
                return ops.Stack(hole, axis)  # type: ignore[arg-type]
            case "unstack", str(hole):
                return ops.Unstack(hole, axis)  # type: ignore[arg-type]
            case "rearrange", str(text):
                node = values.get("sizes")
                named = {k.text: self.size(v) for k, v in node.entries} if isinstance(node, document.Mapping) else {}
                return notation.parse_rearrange(text, named, values["rearrange"].span)
            case "cast", str(dtype):
                return ops.Cast(dtype)
            case "rope_to_half", _:
                return self.rope(notation.ROPE_TO_HALF, values["rope_to_half"])
            case "rope_to_interleaved", _:
                return self.rope(notation.ROPE_TO_INTERLEAVED, values["rope_to_interleaved"])
            case "transpose", True:
                return notation.parse_rearrange(notation.TRANSPOSE, {}, step.span)
        raise AssertionError(f"the schema lets {step.word}: {value!r} through")

    def rope(self, text: str, heads: document.Node) -> Op:
        return notation.parse_rearrange(text, {"head": self.size(heads), "two": 2}, heads.span)

    def size(self, node: document.Node) -> Size:
        assert isinstance(node, document.Scalar)
        return node.value if isinstance(node.value, int) else parse_expr(node.text.strip(), node.span)

    def sizes(self, values: Mapping[str, document.Node], beside: tuple[Named, ...]) -> tuple[Size, ...] | None:
        node = values.get("sizes")
        if isinstance(node, document.Sequence):
            return tuple(self.size(item) for item in node.items)
        found = [n.size for n in beside if n.size is not None]
        if not found:
            return None
        return tuple(int(e.text) if e.text.isdecimal() else parse_expr(e.text, e.span) for e in found)

    # -----------------------------------------------------------------------------------------------------------------
