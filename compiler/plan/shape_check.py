"""Compares the shapes of a plan with the recorded axis labels of its spec.

Without the target class this finds a tensor that is well formed by itself and does not fit the others: one projection of
another height than its layer's, a norm of two axes. Only a length that none of its labels gives is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

from compiler.diagnostics import Refusal, Report, Span, listed
from compiler.language.expression import parse_expr
from compiler.language.name_pattern import Pattern
from compiler.plan.plan import Group, Plan
from compiler.program.axis_labels import AxisLabels, Shape, name_form, recorded_labels
from compiler.program.environment import Environment, TensorTable


def check_shapes(plan: Plan, signature: TensorTable, env: Environment) -> None:
    """Compare every tensor of both sides with the labels of its axes. Raises Refusal: `wrong-shape`."""
    labels = recorded_labels(plan.program.spec)
    if labels is None:
        return
    wrong: dict[tuple[Span, str], list[tuple[str, tuple[int, ...]]]] = {}
    check, forms = _ShapeCheck(labels, env, plan.reverse), _Forms()
    for group in plan.groups:
        for form, name, shape in _tensors(group, signature, forms):
            if not check.fits(form, shape):
                wrong.setdefault((group.rule.span, form), []).append((name, shape))
    report = Report()
    # A wrong source makes wrong targets; each rule is reported once.
    for span, form in {span: (span, form) for span, form in reversed(wrong)}.values():
        (name, shape), *others = wrong[span, form]
        message = f"{name} has shape {list(shape)}, but {check.expected(form, shape)}"
        hint = f"so have {listed((other for other, _ in others), 4)}" if others else ""
        report.add(span, message, "wrong-shape", hint)
    report.settle()


class _Forms:
    """The forms of names; that of a pattern without choices is made once."""

    def __init__(self) -> None:
        self.fixed: dict[int, str | None] = {}

    def __call__(self, patterns: tuple[Pattern, ...], slot: int, name: str) -> str | None:
        if not patterns:
            return name_form(None, name)
        pattern = patterns[slot]
        key = id(pattern)
        if key not in self.fixed:
            chosen = any(not hole.is_index for hole in pattern.holes.values())
            self.fixed[key] = "" if chosen else name_form(pattern, name)
        return name_form(pattern, name) if self.fixed[key] == "" else self.fixed[key]


def _tensors(group: Group, signature: TensorTable, forms: _Forms) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(side and form, name, shape) of the tensors of a group; the form begins with `<` on the side that is read."""
    for n, slot in enumerate(group.sources.slots):
        for name in slot.values():
            if (form := forms(group.rule.sources, n, name)) is not None:
                yield "<" + form, name, tuple(signature[name].shape)
    # A tensor that only changes its name or dtype has the same labels on both sides.
    for n, made in enumerate(group.targets.slots if group.rule.steps else ()):
        for target in made.values():
            if (form := forms(group.rule.targets, n, target.name)) is not None:
                yield ">" + form, target.name, target.shape


class _ShapeCheck:
    def __init__(self, labels: AxisLabels, env: Environment, reverse: bool) -> None:
        sides = (labels.target, labels.source) if reverse else (labels.source, labels.target)
        self.labels: Mapping[str, Shape] = {
            mark + form: shape for mark, side in zip("<>", sides, strict=True) for form, shape in side.items()
        }
        self.env = env
        self.known: dict[str, int | None] = {}
        self.fits = cache(self._fits)

    def _fits(self, form: str, shape: tuple[int, ...]) -> bool:
        axes = self.labels.get(form)
        if axes is None:
            return True
        return len(axes) == len(shape) and all(map(self.admits, axes, shape))

    def admits(self, labels: tuple[str, ...], length: int) -> bool:
        values = [self.value(label) for label in labels]
        return not values or None in values or length in values

    def value(self, label: str) -> int | None:
        """The value of a label; None if it has none here."""
        if label not in self.known:
            try:
                value = self.env.evaluate(parse_expr(label, Span("")))
            except Refusal:
                value = None
            self.known[label] = value if isinstance(value, int) else None
        return self.known[label]

    def expected(self, form: str, shape: tuple[int, ...]) -> str:
        """The labels and the shape that they give; an axis without a label keeps its length."""
        axes = self.labels[form]
        if len(axes) != len(shape):
            names = ", ".join(axis[0] if axis else "..." for axis in axes)
            return f"must have {len(axes)} ax{'is' if len(axes) == 1 else 'es'}: [{names}]"
        named = [
            str(length) if not axis else axis[0] if axis[0] == "1" else f"{axis[0]} = {self.value(axis[0])}"
            for axis, length in zip(axes, shape, strict=True)
        ]
        return f"must have [{', '.join(named)}]"
