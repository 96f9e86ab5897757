"""Checks that the examples of a spec tell its sizes apart.

A rule or fact that uses the wrong size goes unnoticed when the right one has the same value in every example: heads
that are as many as key-value heads, a vocabulary as large as the width. Takes a Program and what each example was bound
to; returns diagnostics at the fact, the argument or the op, each with example values that separate the two sizes.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from compiler.diagnostics import Diagnostic, Refusal, Span
from compiler.language.expression import Expr
from compiler.ops.algebra import Op
from compiler.ops.structural import Concat, Rearrange, Split
from compiler.plan.plan import Group, Plan
from compiler.program.program import Program, Rule

Values = Mapping[str, Any]
MOST_EXAMPLES = 8


@dataclass(frozen=True)
class BoundExample:
    """One example: the values it gives, the values of all arguments and facts, the source's shapes, and the plan."""

    given: Values
    values: Values
    source: Mapping[str, tuple[int, ...]]
    plan: Plan


def check_examples(
    program: Program, examples: Sequence[BoundExample], bind: Callable[[Values], BoundExample]
) -> list[Diagnostic]:
    """Pairs of sizes that are equal in every example, and heads of different widths in one attention.

    `bind` binds the program to another example, or raises Refusal; it is used to find values that separate a pair.
    """
    hint = _Separation(examples, bind)
    found = [*_equal_sizes(program, examples, hint), *_equal_parts(program, examples), *_uneven_heads(examples)]
    return sorted(set(found))


def separating_examples(
    program: Program, examples: Sequence[BoundExample], bind: Callable[[Values], BoundExample]
) -> list[Values]:
    """Examples which, added to these, separate the pairs of sizes that can be separated; each changes one value."""
    found: list[BoundExample] = []
    while len(found) < MOST_EXAMPLES:
        hint = _Separation(examples, bind)
        for _ in _equal_sizes(program, [*examples, *found], hint):
            if hint.found is not None:
                break
        if hint.found is None:
            break
        found.append(hint.found)
    return [example.given for example in found]


def varied(examples: Sequence[BoundExample], bind: Callable[[Values], BoundExample]) -> list[BoundExample]:
    """Each example with one of its sizes doubled, as far as that proves. What fits the examples by chance fits none of
    the variants that change it."""
    found = []
    for example in examples:
        for name, value in example.given.items():
            if _is_size(value) and value and not name.endswith("token_id"):
                try:
                    found.append(bind({**example.given, name: 2 * value}))
                except (Refusal, ArithmeticError, TypeError, ValueError):
                    continue
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Which names are sizes


def size_names(program: Program, examples: Sequence[BoundExample]) -> list[str]:
    """The facts and arguments that are used as sizes: by an op, measured from shapes, or in the expression of such a
    fact; only those that are integers (or None) in every example."""
    spec = program.spec
    measured = {name for name in spec.facts if _is_measured(program, name, frozenset())}
    used = {name for _, _, size in _op_sizes(program) for name in size.names} | measured
    used |= {name for fact in measured for name in _value_names(spec.facts[fact])}
    return [
        name
        for name in (*spec.facts, *spec.arguments)
        if name in used and all(_is_size(example.values[name]) for example in examples)
    ]


def _is_size(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _is_measured(program: Program, name: str, seen: frozenset[str]) -> bool:
    """Whether a fact depends on `dim` or `count`."""
    fact = program.spec.facts.get(name)
    if fact is None or name in seen:
        return False
    asks = any(node.id in ("dim", "count") for node in _value_nodes(fact.tree))
    return asks or any(_is_measured(program, other, seen | {name}) for other in _value_names(fact))


def _value_names(fact: Expr) -> frozenset[str]:
    """The names that the value of a fact is computed from; not those that only decide between values."""
    return fact.names & {node.id for node in _value_nodes(fact.tree)}


def _value_nodes(tree: ast.AST) -> Iterator[ast.Name]:
    """The names and functions of an expression outside of conditions."""
    if isinstance(tree, ast.Name):
        yield tree
    for child in ast.iter_child_nodes(tree):
        if not isinstance(tree, ast.Compare) and not (isinstance(tree, ast.IfExp) and child is tree.test):
            yield from _value_nodes(child)


def _op_sizes(program: Program) -> Iterator[tuple[Rule, Span, Expr]]:
    for rule in (*program.rules, *program.created):
        for op, span in rule.steps:
            yield from ((rule, span, size) for size in op.sizes_used() if isinstance(size, Expr))


# ---------------------------------------------------------------------------------------------------------------------
# Pairs that no example separates


def _equal_sizes(
    program: Program, examples: Sequence[BoundExample], hint: Callable[[str, str], str]
) -> Iterator[Diagnostic]:
    names = size_names(program, examples)
    equal = _required_pairs(program) | {frozenset((name, _alias(program, name))) for name in names}
    everywhere = {frozenset(pair) for pair in combinations(names, 2) if _same(pair, examples)} - equal
    for a, b in (pair for pair in combinations(names, 2) if frozenset(pair) in everywhere):
        message = f"{a} and {b} are equal in every example, so exchanging them would go unnoticed"
        yield Diagnostic(_place(program, b), message, "weak-example", hint(a, b))
    reported: set[tuple[Rule, frozenset[str]]] = set()
    for rule, span, size in _op_sizes(program):
        active = [example for example in examples if any(group.rule == rule for group in example.plan.groups)]
        for a in sorted(size.names & {*names}):
            for b in names:
                pair = frozenset((a, b))
                if (
                    a == b
                    or pair in equal
                    or pair in everywhere
                    or b in _branches(program, a)
                    or a in _branches(program, b)
                ):
                    continue
                if active and (rule, pair) not in reported and _same((a, b), active):
                    reported.add((rule, pair))
                    message = f"{rule.name or rule.kind}: {a} and {b} are equal in every example of this rule"
                    yield Diagnostic(span, message, "weak-example", hint(a, b))


def _same(pair: tuple[str, str], examples: Sequence[BoundExample]) -> bool:
    a, b = pair
    return all(example.values[a] is not None and example.values[a] == example.values[b] for example in examples)


def _place(program: Program, name: str) -> Span:
    spec = program.spec
    return spec.facts[name].span if name in spec.facts else spec.arguments[name].span


def _alias(program: Program, name: str) -> str:
    """The name that a fact repeats; else its own."""
    fact = program.spec.facts.get(name)
    return _alias(program, fact.text) if fact is not None and fact.text in program.spec.facts else name


def _branches(program: Program, name: str) -> set[str]:
    """The names that a fact has the value of in some case: `b if c else a` and `a or b` may be either."""
    fact = program.spec.facts.get(name)
    found: set[str] = set()
    trees: list[ast.expr] = [fact.tree] if fact is not None else []
    while trees:
        match trees.pop():
            case ast.Name(id=text):
                found.add(text)
            case ast.IfExp(body=body, orelse=orelse):
                trees += [body, orelse]
            case ast.BoolOp(values=values):
                trees += values
    return found


def _required_pairs(program: Program) -> set[frozenset[str]]:
    """The pairs that a requirement makes equal in every checkpoint: `a == b`, alone or joined by `and`."""
    found: set[frozenset[str]] = set()
    trees: list[ast.expr] = [expr.tree for expr, _ in program.spec.require]
    while trees:
        match trees.pop():
            case ast.BoolOp(op=ast.And(), values=values):
                trees += values
            case ast.Compare(left=left, ops=ops, comparators=others) if all(isinstance(op, ast.Eq) for op in ops):
                names = [node.id for node in (left, *others) if isinstance(node, ast.Name)]
                found |= {frozenset(pair) for pair in combinations(names, 2)}
    return found


def _equal_parts(program: Program, examples: Sequence[BoundExample]) -> Iterator[Diagnostic]:
    """Parts of a split or concat whose sizes differ in text and are equal in every example."""
    for rule in program.rules:
        for n, (op, span) in enumerate(rule.steps):
            if not isinstance(op, Split | Concat) or not op.sizes:
                continue
            texts = [size.text if isinstance(size, Expr) else str(size) for size in op.sizes]
            bound = [sizes for example in examples if (sizes := _part_sizes(rule, n, example.plan)) is not None]
            for a, b in combinations(range(len(texts)), 2):
                names = {frozenset(texts)} if texts[a].isidentifier() and texts[b].isidentifier() else set()
                if bound and texts[a] != texts[b] and not names and all(v[a] == v[b] for v in bound):
                    message = f"{rule.name}: {texts[a]} and {texts[b]} are equal in every example"
                    hint = "add an example in which they differ; else exchanging these parts would go unnoticed"
                    yield Diagnostic(span, message, "weak-example", hint)


def _part_sizes(rule: Rule, step: int, plan: Plan) -> Sequence[int] | None:
    for group in plan.groups:
        if group.rule == rule:
            op = group.ops[step]
            assert isinstance(op, Split | Concat)
            return [size for size in op.sizes or () if isinstance(size, int)]
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Heads


def _uneven_heads(examples: Iterable[BoundExample]) -> Iterator[Diagnostic]:
    """Rotary rearrangements of one attention whose numbers of heads give heads of different widths.

    Every number of heads that divides the rows fits the shape, so only the comparison of queries with keys shows a
    wrong one.
    """
    for example in examples:
        widths: dict[str, dict[Rule, tuple[int, int, Span]]] = {}
        for group in example.plan.groups:
            for op, (_, span) in zip(group.ops, group.rule.steps, strict=False):
                heads = _heads(op)
                if heads is None or len(group.target_list) != 1:
                    continue
                rows = group.target_list[0].shape[0] if group.target_list[0].shape else 0
                module = _module(group)
                if rows and rows % heads == 0:
                    widths.setdefault(module, {}).setdefault(group.rule, (heads, rows, span))
        for rules in widths.values():
            (first, (heads, rows, _)), *others = rules.items()
            for rule, (number, length, span) in others:
                if length // number != rows // heads:
                    message = (
                        f"{rule.name} cuts {length} rows into {number} heads of {length // number}, "
                        f"but {first.name} cuts {rows} into {heads} of {rows // heads}"
                    )
                    hint = "the heads of queries and keys have one width: one of the two numbers of heads is wrong"
                    yield Diagnostic(span, message, "uneven-heads", hint)


def _heads(op: Op) -> int | None:
    """The number of heads of a rearrangement that turns rotary pairs, or halves, within each head."""
    if not isinstance(op, Rearrange) or len(op.left) != 1 or len(op.right) != 1 or len(op.left[0]) != 3:
        return None
    head, one, other = op.left[0]
    sizes = dict(op.sizes)
    number = sizes.get(head)
    if op.right[0] != (head, other, one) or 2 not in (sizes.get(one), sizes.get(other)):
        return None
    return number if isinstance(number, int) else None


def _module(group: Group) -> str:
    """The module that holds the written projection: the name without its last two components."""
    return group.target_list[0].name.rsplit(".", 2)[0]


# ---------------------------------------------------------------------------------------------------------------------
# Values that separate a pair


class _Separation:
    """A hint with values of an example in which two sizes differ, tried on the first example that accepts them."""

    MOST_TRIES = 24

    def __init__(self, examples: Sequence[BoundExample], bind: Callable[[Values], BoundExample]) -> None:
        self.examples, self.bind, self.tries = examples, bind, 0
        self.found: BoundExample | None = None  # the first that separates a pair

    def __call__(self, a: str, b: str) -> str:
        for example in self.examples:
            for name in (b, a):
                for value in _others(example.values[name]):
                    if self.separates(example, {name: value}, a, b):
                        return f"add an example in which they differ, such as the first with {name}: {value}"
        value = self.examples[0].values[a] if self.examples else 0
        return f"add an example in which they differ, such as {a}: {2 * value}, {b}: {value}"

    def separates(self, example: BoundExample, change: Values, a: str, b: str) -> bool:
        self.tries += 1
        if self.tries > self.MOST_TRIES:
            return False
        try:
            other = self.bind({**example.given, **change})
        except (Refusal, ArithmeticError, TypeError, ValueError):
            return False
        if other.values[a] == other.values[b]:
            return False
        self.found = self.found or other
        return True


def _others(value: int) -> list[int]:
    """Other values of a size, those that divide or multiply it first: numbers of heads must divide others."""
    return [n for n in (2 * value, value // 2, value + 1) if n > 0 and n != value]
