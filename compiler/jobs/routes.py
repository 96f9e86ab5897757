"""Which layouts reach which by `--to`, and what a route loses.

Two specs meet if they have the same target class. Takes programs; returns routes. What depends on a checkpoint (its
sizes, arguments that the class has no field for) shows in `compile plan FROM SOURCE --to TO` only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from compiler.jobs.compose import target_of
from compiler.program.program import Program, Rule

EXACT, TOLERANCE, LOSSY, NONE = "exact", "tolerance", "lossy", "none"


@dataclass(frozen=True)
class Route:
    """From one layout to another by their class. `level`: `exact` (every bit arrives), `tolerance` (arithmetic rounds),
    `lossy` (something of the source cannot come back) or `none`; `reasons`: why it is not exact, or where it is not."""

    first: str
    second: str
    target: str
    level: str
    reasons: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def route(first: Program, second: Program) -> Route:
    """The route from one layout to another one of the same class."""
    into, out = list(_losses(first)), list(_losses(second))
    rounds = [f"{program.spec.name}: {word} rounds" for program in (first, second) for word in _rounding(program)]
    certain = [reason for reason, always in out if always]
    lossy = [reason for reason, always in into if always]
    level = NONE if certain else LOSSY if lossy else TOLERANCE if rounds else EXACT
    reasons = (*(reason for reason, _ in (*into, *out)), *rounds)
    target = first.spec.target.class_name
    return Route(first.spec.name.value, second.spec.name.value, target, level, tuple(dict.fromkeys(reasons)))


def routes(programs: Sequence[Program]) -> list[Route]:
    """Every route between two of these programs."""
    return [route(a, b) for a in programs for b in programs if a is not b and target_of(a) == target_of(b)]


def _losses(program: Program) -> Iterable[tuple[str, bool]]:
    """Why a program's rules cannot be reversed, each with whether that is so for every checkpoint."""
    for rule in program.rules:
        if rule.loss:
            yield f"{program.spec.name}: {_named(rule)}{rule.loss}", rule.when is None


def _named(rule: Rule) -> str:
    return f"where {rule.when.text}, " if rule.when is not None else ""


def _rounding(program: Program) -> list[str]:
    words = [op.word for rule in program.rules if not rule.loss for op, _ in rule.steps if op.undo == TOLERANCE]
    return list(dict.fromkeys(words))
