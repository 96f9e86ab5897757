"""Derives the source's names, shapes and dtypes from the target's, by the inverse of each rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from compiler.diagnostics import Refusal, Report, Span, listed, nearest
from compiler.language.expression import Expr
from compiler.language.name_pattern_overlap import common_name
from compiler.language.name_pattern_parser import parse_pattern
from compiler.ops.algebra import Bundle, OpError, ShapeAlgebra
from compiler.ops.structural import Rearrange
from compiler.program.environment import Environment, NamedShapes
from compiler.program.program import Program, Rule


@dataclass(frozen=True)
class TensorShape:
    """A tensor without data."""

    shape: tuple[int, ...]
    dtype: str = "float32"


class SourceShapes:
    """Answers expressions about the source from the target's names and shapes, as far as that needs no sizes.

    Where guards decide which of several rules reads a tensor, its shape is that of the rule whose guard is true. A guard
    that depends on that shape itself cannot be decided.
    """

    def __init__(self, program: Program, target: Mapping[str, tuple[int, ...]]) -> None:
        self.program = program
        self.known: dict[str, TensorShape] = {}
        ends: dict[str, tuple[int, ...]] = {}  # of rules with ops: the shape of a target
        self.names: dict[str, Rule] = {}  # of rules with ops: the name is known, the shape not yet
        self.readers: dict[str, list[Rule]] = {}
        self.holds: Callable[[Expr | None], bool] | None = None  # decides guards; set by the environment that asks
        self.deciding: set[str] = set()
        for rule in program.rules:
            for name, shape in target.items():
                for pattern in rule.targets:
                    captures = pattern.match(name)
                    if captures is None:
                        continue
                    for source in rule.sources:
                        text = source.fill({h: captures.get(h, "0") for h in source.holes})
                        if rule not in self.readers.setdefault(text, []):
                            self.readers[text].append(rule)
                        if rule.keeps_shape:
                            self.known[text] = TensorShape(shape)
                        else:
                            self.names[text], ends[text] = rule, shape
        for text, rule in [*self.names.items()]:
            alone = text not in self.known and len(self.readers[text]) == 1
            if alone and (start := shape_before(rule, ends[text])) is not None:
                self.known[text] = TensorShape(start)
                del self.names[text]
        if program.keep_all:
            written = [pattern for rule in program.rules for pattern in rule.targets]
            self.known |= {
                n: TensorShape(s) for n, s in target.items() if not any(p.match(n) is not None for p in written)
            }
        for tie in program.ties:
            for name in [*self.known]:
                captures = tie.owner.match(name)
                if captures is not None:
                    self.known.setdefault(tie.alias.fill(captures), self.known[name])

    def dim(self, name: str, axis: int) -> int:
        if name in self.known and name in self.names and self.changed(name):
            raise LookupError(
                f"the shape of {name} does not follow from the target, because another rule changes it; "
                "give the fact a value"
            )
        if name in self.known:
            return NamedShapes(self.known).dim(name, axis)
        if name in self.names:
            raise LookupError(f"the shape of {name} does not follow from the target; give the fact a value")
        raise LookupError(f"no rule reads a tensor {name}; {nearest(name, self.known) or 'no name is similar'}")

    def changed(self, name: str) -> bool:
        """Whether a rule with ops reads a tensor that another rule only renames. Raises LookupError if undecidable."""
        lines = " and ".join(str(rule.span.line) for rule in self.readers[name])
        reason = (
            f"the shape of {name} decides which of the rules at lines {lines} applies, so the target does not reveal it"
        )
        if name in self.deciding:
            raise LookupError(reason)
        self.deciding.add(name)
        try:
            return self.holds is not None and any(self.holds(r.when) for r in self.readers[name] if not r.keeps_shape)
        except Refusal:
            raise LookupError(f"{reason}; give the fact a value") from None
        finally:
            self.deciding.discard(name)

    def count(self, pattern: str) -> int:
        parsed = parse_pattern(pattern, Span(""))
        if any(rule.folded and parsed.match(name) is not None for name, rule in self.names.items()):
            raise LookupError(f"the number of {pattern} does not follow from the target; give the fact a value")
        return sum(parsed.match(name) is not None for name in {*self.known, *self.names})

    def equal(self, one: str, other: str) -> bool:
        raise LookupError(f"whether {one} equals {other} does not follow from the target; give the fact a value")

    def exists(self, pattern: str) -> bool:
        parsed = parse_pattern(pattern, Span(""))
        if any(parsed.match(name) is not None for name in (*self.known, *self.names)):
            return True
        return any(common_name(parsed, source) for rule in self.names.values() for source in rule.sources)


def shape_before(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of a source that `rule` only rearranges by steps without sizes; None for other rules."""
    if len(rule.sources) != 1 or len(rule.targets) != 1:
        return None
    if not all(isinstance(op, Rearrange) and not [*op.sizes_used()] for op, _ in rule.steps):
        return None
    bundle = Bundle(({(): shape},), ())
    try:
        for op, _ in rule.reversed().steps:
            bundle = op.apply(bundle, ShapeAlgebra())
    except OpError:
        return None
    return bundle.slots[0][()]


def invert(program: Program, env: Environment, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorShape]:
    """The names and shapes of the source that becomes a target of these names and shapes. Raises Refusal."""
    source: dict[str, TensorShape] = {}
    report = Report()
    for rule in program.rules:
        if not env.holds(rule.when):
            continue
        back = rule.reversed()
        applications: dict[tuple[str, ...], list[dict[tuple[int, ...], tuple[int, ...]]]] = {}
        for name, shape in shapes.items():
            for k, pattern in enumerate(back.sources):
                captures = env.match(pattern, name)
                if captures is not None:
                    slots = applications.setdefault(tuple(captures[h] for h in back.outer), [{} for _ in back.sources])
                    slots[k][tuple(int(captures[h]) for h in back.folded)] = shape
        for outer, slots in applications.items():
            bundle, span = Bundle(tuple(slots), back.folded), rule.span
            dtypes: tuple[str, ...] = ("float32",) * len(slots)
            try:
                for op, span in back.steps:  # noqa: B007 - the step that fails names its place
                    bundle = op.bind(env.number).apply(bundle, ShapeAlgebra())
                    dtypes = op.dtypes(dtypes)
            except OpError as error:
                target_shapes = [
                    f"{p} {list(s)}"
                    for p, slot in zip(back.sources, slots, strict=True)
                    for s in dict.fromkeys(slot.values())
                ]
                report.add(
                    span,
                    f"{rule.name}: {error} (the step was run backwards from the target)",
                    "shape-mismatch",
                    f"the target has {listed(target_shapes, 4)}",
                )
                break
            except (Refusal, KeyError) as error:
                if isinstance(error, Refusal):
                    report.absorb(error)
                break
            captures = dict(zip(back.outer, outer, strict=True))
            for pattern, slot, dtype in zip(back.targets, bundle.slots, dtypes, strict=True):
                for key, shape in slot.items():
                    name = pattern.fill(captures | dict(zip(bundle.holes, map(str, key), strict=True)))
                    source[name] = TensorShape(shape, dtype)
    report.settle()
    if program.keep_all:
        written = [pattern for rule in program.rules if env.holds(rule.when) for pattern in rule.targets]
        source |= {n: TensorShape(s) for n, s in shapes.items() if not any(p.match(n) is not None for p in written)}
    for tie in program.ties:
        if env.holds(tie.when):
            for name in [*source]:
                captures = env.match(tie.owner, name)
                if captures is not None:
                    source[tie.alias.fill(captures)] = source[name]
    return source
