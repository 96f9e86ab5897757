"""Computes the labels of a spec's axes: the expressions over facts and arguments that fit every example.

A label that happens to fit would reject legitimate shapes. So it must also fit variants of the examples in which one size is
doubled; an axis keeps all expressions that fit, and a run rejects a length only if none of them gives it. Expressions are
the names of the spec, the arithmetic that the spec itself writes, multiples and products. An axis whose length varies
between the layers of one example gets no label.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Any

from compiler.diagnostics import Refusal, Span
from compiler.language.expression import parse_expr
from compiler.language.name_pattern import Pattern
from compiler.ops.algebra import Bundle
from compiler.program.axis_labels import AxisLabels, Shape, name_form
from compiler.program.consistency import expressions
from compiler.program.environment import NamedShapes
from compiler.program.program import Program
from compiler.proof.example_sizes import BoundExample

FACTORS = (2, 3, 4)
LEAST = 8
MOST_LABELS = 6  # of one axis; more that fit tell nothing
# Form -> for each example that has it, the shapes of its tensors.
Found = dict[str, dict[int, set[tuple[int, ...]]]]


def axis_labels(program: Program, examples: Sequence[BoundExample]) -> AxisLabels:
    """The labels of a program that is proven by these examples."""
    source: Found = defaultdict(lambda: defaultdict(set))
    target: Found = defaultdict(lambda: defaultdict(set))
    for n, example in enumerate(examples):
        for group in example.plan.groups:
            sources = group.sources
            if any(op.word == "dequantize" for op, _ in group.rule.steps):
                sources = Bundle(sources.slots[:1], sources.holes)  # the lengths of scales are quotients, rounded up
            for form, name in _forms(group.rule.sources, sources):
                source[form][n].add(tuple(example.source[name]))
            shapes = {t.name: t.shape for t in group.target_list}
            for form, name in _forms(group.rule.targets, group.targets.map(lambda t: t.name)):  # type: ignore[arg-type,return-value]
                target[form][n].add(shapes[name])
    candidates = _Candidates(program, examples)
    return AxisLabels(
        *(
            {form: shape for form in sorted(side) if (shape := candidates.shape(side[form]))}
            for side in (source, target)
        )
    )


def _forms(patterns: tuple[Pattern, ...], bundle: Bundle[str]) -> Iterator[tuple[str, str]]:
    for n, slot in enumerate(bundle.slots):
        for name in slot.values():
            if (form := name_form(patterns[n] if patterns else None, name)) is not None:
                yield form, name


class _Candidates:
    """Expressions and their values in each example."""

    def __init__(self, program: Program, examples: Sequence[BoundExample]) -> None:
        names = [
            name
            for name in (*program.spec.facts, *program.spec.arguments)
            if not name.endswith("token_id") and any(_is_length(example.values[name]) for example in examples)
        ]
        self.names = {name: _values(name, examples) for name in names}
        # Short axes fit many names by chance, such as a number of layers; only a fact that is one `dim` labels them.
        self.measured = {name for name, fact in program.spec.facts.items() if _is_dim(fact.tree)}
        self.written = {text: _values(text, examples) for text in _arithmetic(program, {*names})}
        # A name that is 1 in every example makes products that fit whatever its factor fits.
        factors = [name for name in names if any(value > 1 for value in self.names[name].values())]
        made = [f"{k} * {name}" for name in factors for k in FACTORS]
        for a, b in combinations_with_replacement(factors, 2):
            if f"{a} * {b}" not in self.written and f"{b} * {a}" not in self.written:
                made.append(f"{a} * {b}")
        self.made = {text: _values(text, examples) for text in made}

    def shape(self, found: Mapping[int, set[tuple[int, ...]]]) -> Shape | None:
        """The labels of each axis; None where tensors differ in rank."""
        ranks = {len(shape) for shapes in found.values() for shape in shapes}
        if len(ranks) != 1:
            return None
        return tuple(
            self.axis({n: {s[axis] for s in shapes} for n, shapes in found.items()}) for axis in range(ranks.pop())
        )

    def axis(self, lengths: Mapping[int, set[int]]) -> tuple[str, ...]:
        if any(len(values) != 1 for values in lengths.values()):
            return ()
        wanted = {n: next(iter(values)) for n, values in lengths.items()}
        if set(wanted.values()) == {1}:
            return ("1",)

        def fitting(table: Mapping[str, Mapping[int, int]]) -> list[str]:
            return [text for text, values in table.items() if all(values.get(n) == v for n, v in wanted.items())]

        if min(wanted.values()) < LEAST:
            return tuple(
                name for name in fitting(self.names) if name in self.measured and len(set(wanted.values())) > 1
            )
        stated, made = [*fitting(self.names), *fitting(self.written)], fitting(self.made)
        if not stated and len(set(wanted.values())) < 2:
            return ()  # one length fits some product by chance
        labels = [*stated, *made]
        return tuple(labels) if len(labels) <= MOST_LABELS else ()


def _is_dim(tree: ast.expr) -> bool:
    return isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id == "dim"


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _values(text: str, examples: Sequence[BoundExample]) -> dict[int, int]:
    """Example -> value, where it is a length."""
    expr = parse_expr(text, Span(""))
    found: dict[int, int] = {}
    for n, example in enumerate(examples):
        try:
            value = expr.evaluate(example.values, NamedShapes({}))
        except Refusal:
            continue
        if _is_length(value):
            found[n] = value
    return found


def _arithmetic(program: Program, names: set[str]) -> list[str]:
    """The arithmetic over `names` in the expressions of a spec: `n_heads * head_dim` in a requirement."""
    found: dict[str, None] = {}
    for expr in expressions(program):
        for node in ast.walk(expr.tree):
            if isinstance(node, ast.BinOp) and _only(node, names):
                found.setdefault(ast.unparse(node))
    return [*found]


def _only(tree: ast.AST, names: set[str]) -> bool:
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    plain = not any(isinstance(node, ast.Call | ast.IfExp | ast.Subscript | ast.Compare) for node in ast.walk(tree))
    return plain and bool(used) and {node.id for node in used} <= names
