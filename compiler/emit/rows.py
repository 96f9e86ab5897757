"""The rules of a program as rows of plain names, as the name mappings of other programs need them.

Takes a Program. Returns a row for each rule and choice of words. A name is a text in which `#` is an index that all names
of the row share, in the same order, and `*` an index that a step folds or opens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from compiler.diagnostics import Diagnostic, Refusal, Span
from compiler.language.expression import Expr
from compiler.language.name_pattern import Hole, Pattern
from compiler.ops.algebra import Op
from compiler.program.program import Program, Rule
from compiler.render.index_range import choices, fixed, listable
from compiler.render.python_source import inside
from compiler.templating import banner

INDEX, FOLDED = "#", "*"
SAMPLE = "7"  # the number of an index in a sample name


@dataclass(frozen=True)
class Row:
    """Turns the tensors `sources` into `targets` by `ops`; a rename has none."""

    rule: Rule
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    ops: tuple[Op, ...]

    @property
    def steps(self) -> tuple[Op, ...]:
        return comparable(self.ops)

    @property
    def key(self) -> tuple[object, ...]:
        """What the row does, whichever rule it is of."""
        return self.sources, self.targets, self.steps


def inexpressible(span: Span, message: str, hint: str = "convert with `mapspec run`") -> Diagnostic:
    """The problem of a rule that a form lacks something for."""
    return Diagnostic(span, message, "inexpressible-rule", hint)


def rows(program: Program, form: str, lacks: Callable[[Row], str]) -> list[Row]:
    """The rows of a program, each once. `form` is how messages call what is emitted; `lacks` says what it lacks for a row,
    or nothing.

    Raises Refusal: `inexpressible-rule` for names that are no list of texts and indices, for tensors that the source
    lacks, for a step that mixes elements of several tensors of one name, for two rules that read one name under
    different conditions, and for what the form lacks.
    """
    problems: list[Diagnostic] = []
    if program.spec.target.model is None:
        message = f"the target has code of its own; {form} is for classes of a known library"
        problems.append(inexpressible(program.spec.target.span, message))
    for rule in program.created:
        message = f"{form} cannot make {rule.targets[0]}, which the source lacks"
        problems.append(inexpressible(rule.span, message))
    found: dict[tuple[object, ...], Row] = {}
    for rule in program.rules:
        if problem := _problem(rule):
            message = f"{form} cannot express {rule.name or rule.sources[0]}: {problem}"
            problems.append(inexpressible(rule.span, message))
            continue
        for row in _of(rule):
            found.setdefault(row.key, row)
    readers: dict[str, Row] = {}
    for row in found.values():
        for source in row.sources:
            if (other := readers.setdefault(source, row)) is not row:
                condition = row.rule.when or other.rule.when
                text = f"{form} cannot express the condition {condition.text if condition else ''}: "
                names = [sample(one.targets[0]) for one in (row, other)]
                how = "by other steps" if names[0] == names[1] else f"here and {names[1]} elsewhere"
                text += f"{sample(source)} becomes {names[0]} {how}"
                hint = "convert with `mapspec run`, which evaluates the condition"
                problems.append(inexpressible(row.rule.span, text, hint))
    problems = problems or [
        inexpressible(row.rule.span, f"{form} cannot express {row.rule.name}: {problem}")
        for row in found.values()
        if (problem := lacks(row))
    ]
    if problems:
        raise Refusal(problems)
    return [*found.values()]


def heading(program: Program) -> dict[str, Any]:
    """What the template of every form says of its program."""
    return {
        "banner": banner(program.spec.name.value),
        "name": program.spec.name.value,
        "summary": inside(program.spec.summary),
        "class_name": program.spec.target.class_name,
    }


def without_groups(pattern: Pattern) -> str:
    """The regular expression of a pattern, without names of groups."""
    return re.sub(r"\?P<\w+>", "?:", pattern.regex)


def comparable(ops: Sequence[Op]) -> tuple[Op, ...]:
    """The ops, with sizes as texts: equal for the same code."""
    return tuple(op.bind(lambda size, **_: size.text if isinstance(size, Expr) else size) for op in ops)


def sample(name: str) -> str:
    """A name that a row reads or writes."""
    return name.replace(INDEX, SAMPLE).replace(FOLDED, SAMPLE)


def _problem(rule: Rule) -> str:
    """Why the names of a rule are no rows; empty where they are."""
    for pattern in (*rule.sources, *rule.targets):
        if not listable(pattern):
            return f"the names of {pattern} cannot be listed"
        if any(hole.shift for hole in pattern.holes.values()):
            return f"it counts the index of {pattern} from another number"
    indices = [_indices(pattern, rule) for pattern in (*rule.sources, *rule.targets)]
    if any(each != indices[0] for each in indices):
        return "its names have the same indices in another order"
    if any(INDEX in str(part) or FOLDED in str(part) for p in (*rule.sources, *rule.targets) for part in p.parts
           if isinstance(part, str)):  # fmt: skip
        return f"its names contain {INDEX} or {FOLDED}"
    return ""


def _indices(pattern: Pattern, rule: Rule) -> list[str]:
    """The free indices of a name, in its order."""
    return [name for name, hole in pattern.holes.items() if hole.is_index and name in rule.outer]


def _of(rule: Rule) -> Iterator[Row]:
    """The rows of a rule."""
    words = [n for n, h in rule.sources[0].holes.items() if not h.is_index]
    for choice in choices([rule.sources[0]], words):
        sources, targets = (
            [_text(fixed(p, choice), rule.outer) for p in side] for side in (rule.sources, rule.targets)
        )
        yield Row(rule, tuple(sources), tuple(targets), tuple(op for op, _ in rule.steps))


def _text(pattern: Pattern, outer: Sequence[str]) -> str:
    return "".join(
        (INDEX if part.name in outer else FOLDED)
        if isinstance(part, Hole)
        else pattern.fill({})
        if not isinstance(part, str)
        else part
        for part in pattern.parts
    )
