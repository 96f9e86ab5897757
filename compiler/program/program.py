"""A checked spec, free of sizes: rules of patterns and ops, ties, ignored names, and how files are merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from compiler.diagnostics import Span
from compiler.language.expression import Expr
from compiler.language.name_pattern import Pattern
from compiler.language.spec import Spec
from compiler.ops.algebra import Op
from compiler.ops.structural import Copy


@dataclass(frozen=True)
class Rule:
    """Turns the tensors of `sources` into those of `targets` by `steps`, in order.

    An index in both is free: each of its values is one application of the rule. An index only in `sources` is folded
    by `stack`, one only in `targets` is opened by `unstack`.
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
        if op := next((op for op, _ in self.steps if op.loss), None):
            return op.loss
        if loose := next((p for p in self.sources if p.free_parts), None):
            return f"{loose} matches texts that no index captures, so the source name cannot be restored"
        return ""

    @cached_property
    def irreversible(self) -> str:
        """Why --reverse cannot run the rule backwards; empty when it can, be it with values of the spec's own."""
        lost = next((op.loss for op, _ in self.steps if op.loss and not op.refills), "")
        return lost or ("" if any(op.loss for op, _ in self.steps) else self.loss)

    @cached_property
    def keeps_shape(self) -> bool:
        """Whether every target has the shape of its source: the rule only renames or copies."""
        return all(isinstance(op, Copy) for op, _ in self.steps)

    def reversed(self) -> Rule:
        """The inverse rule."""
        steps = tuple((op.inverse(), span) for op, span in reversed(self.steps))
        return Rule(self.kind, self.name, self.targets, self.sources, steps, self.when, self.span)


@dataclass(frozen=True)
class Tie:
    alias: Pattern
    owner: Pattern
    when: Expr | None


@dataclass(frozen=True)
class Merged:
    """A tensor that several files hold parts of. The parts are joined along `axis`, an expression over the first file's
    shapes, block by block; `lengths` are those of the first file's blocks, where they are not equal. Without an axis, each
    file has the tensors of a range of the index `by`."""

    pattern: Pattern
    axis: Expr | None
    blocks: int
    lengths: tuple[Expr, ...] = ()
    by: str = ""

    @property
    def expressions(self) -> tuple[Expr, ...]:
        return (*((self.axis,) if self.axis else ()), *self.lengths)


@dataclass(frozen=True)
class QuantizedBy:
    """The config.json at `path`, which says how weights are quantized."""

    path: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Program:
    """A checked spec. `keep_all` keeps every name that nothing else claims."""

    spec: Spec
    rules: tuple[Rule, ...]
    ties: tuple[Tie, ...]
    ignored: tuple[tuple[Pattern, str], ...]
    created: tuple[
        Rule, ...
    ] = ()  # they use the dtype and shape of their source, not its data; the one step is `arithmetic.Full`
    merged: tuple[Merged, ...] = ()
    unread: tuple[tuple[Pattern, str], ...] = ()  # fields of the source's config, and why they make no difference
    quantized_by: QuantizedBy | None = (
        None  # how the source's weights are quantized, if its config.json says that they are
    )

    def passes_over(self, field: str) -> bool:
        """Whether the spec says that a field of the source's config makes no difference."""
        return any(pattern.match(field) is not None for pattern, _ in self.unread)

    @property
    def keep_all(self) -> bool:
        return self.spec.keep_all
