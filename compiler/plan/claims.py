"""Which rule reads which tensor of a checkpoint.

Each name is claimed by the one rule, tie or ignore that matches it. Then the claims are checked for completeness: an
index runs from 0 without a gap, and a rule that reads one layer reads all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from compiler.diagnostics import Report, Span, listed, nearest
from compiler.language.name_pattern import MOST_DIGITS, Hole, Pattern, options
from compiler.language.name_pattern_overlap import count_components
from compiler.ops.algebra import Key
from compiler.program.environment import Environment, TensorTable
from compiler.program.program import Program, Rule

MOST_LISTED = 24  # numbers that a hint lists


@dataclass
class Claims:
    """What one rule has claimed: outer captures -> slot -> inner key -> name."""

    groups: dict[tuple[str, ...], list[dict[Key, str]]] = field(default_factory=dict)


class Claimant:
    """Claims the names of `signature` for `rules` (those whose guard is true, reversed if the plan is)."""

    def __init__(
        self, program: Program, rules: list[Rule], signature: TensorTable, env: Environment, reverse: bool
    ) -> None:
        self.program, self.rules, self.signature, self.env, self.reverse = program, rules, signature, env, reverse
        self.report = Report()
        self.claims = [Claims() for _ in rules]
        self.ties: list[tuple[str, str]] = []
        self.ignored: list[tuple[str, str]] = []
        self.unruled: list[str] = []
        self.made: list[
            tuple[str, float]
        ] = []  # reversed: tensors that `create` wrote, and the value of all their elements
        self.indices: dict[str, set[int]] = {}  # text before an index -> its values
        self.least: dict[str, int] = {}  # text before an index -> its first number
        self.readers: dict[str, set[tuple[str, int]]] = {}  # text before an index -> its names and their shifts
        self.first_reader: dict[str, Pattern] = {}  # text before an index -> the pattern that read it first
        self.seen: dict[tuple[int, int], set[tuple[str, ...]]] = {}  # (rule, slot) -> captures

    def claim(self) -> None:
        """Assign every name to the one rule, tie or ignore that matches it."""
        sources = [(n, k, p) for n, rule in enumerate(self.rules) for k, p in enumerate(rule.sources)]
        ties = [tie for tie in self.program.ties if self.env.holds(tie.when)] if not self.reverse else []
        ignored = self.program.ignored if not self.reverse else ()
        created = [rule for rule in self.program.created if self.reverse and self.env.holds(rule.when)]
        unclaimed: list[str] = []
        lengths = [count_components(pattern) for _, _, pattern in sources]
        # Number of components -> the patterns that may match such names.
        fitting: dict[int, list[tuple[int, int, Pattern]]] = {}
        for name in self.signature:
            claims: list[tuple[str, Span]] = []
            length = name.count(".") + 1
            if length not in fitting:
                fitting[length] = [s for s, n in zip(sources, lengths, strict=True) if n is None or n == length]
            for n, k, pattern in fitting[length]:
                captures = self.env.match(pattern, name)
                if captures is not None:
                    claims.append((self.rules[n].name or self.rules[n].kind, self.rules[n].span))
                    self.take(n, k, pattern, name, captures)
            for tie in ties:
                captures = self.env.match(tie.alias, name)
                if captures is not None:
                    claims.append(("tie", tie.alias.span))
                    self.ties.append((name, tie.owner.fill(captures)))
            for pattern, reason in ignored:
                if self.env.match(pattern, name) is not None:
                    claims.append(("ignore", pattern.span))
                    self.ignored.append((name, reason))
            for rule in created:
                if self.env.match(rule.targets[0], name) is not None:
                    claims.append(("create", rule.span))
                    self.made.append((name, rule.steps[0][0].fill))  # type: ignore[attr-defined]
            if not claims and self.program.keep_all:
                self.unruled.append(name)
            elif not claims:
                unclaimed.append(name)
            elif len(claims) > 1:
                lines = listed(f"line {span.line} ({what})" for what, span in claims)
                self.report.add(claims[0][1], f"{name} is claimed by more than one rule: {lines}", "claimed-twice")
        for alias, owner in self.ties:
            if owner not in self.signature:
                self.report.add(
                    Span(self.program.spec.path),
                    f"{alias} is tied to {owner}, which the checkpoint does not have",
                    "missing-tensor",
                    nearest(owner, self.signature),
                )
        if unclaimed:
            patterns = [p.text for _, _, p in sources]
            self.report.add(
                Span(self.program.spec.path),
                f"{len(unclaimed)} tensor{'s' * (len(unclaimed) != 1)} of the checkpoint "
                f"{'have' if len(unclaimed) != 1 else 'has'} no rule: {listed(unclaimed)}",
                "unclaimed-tensor",
                self.exchanged(unclaimed[0])
                or nearest(unclaimed[0], patterns)
                or "another spec may fit: run `mapspec detect`",
            )

    def exchanged(self, name: str) -> str:
        """A hint where `name` is one that the spec writes in this direction."""
        rules = [rule if self.reverse else rule.reversed() for rule in self.rules if self.reverse or not rule.loss]
        sources = [p for rule in (self.program.rules if self.reverse else rules) for p in rule.sources]
        if not any(self.env.match(pattern, name) is not None for pattern in sources):
            return ""
        return (
            "these are the names of the source: leave out --reverse, or give the converted folder"
            if self.reverse
            else "these are the names of a converted folder: --reverse converts it back"
        )

    def take(self, n: int, k: int, pattern: Pattern, name: str, captures: dict[str, str]) -> None:
        rule, prefix = self.rules[n], ""
        for part in pattern.parts:
            if isinstance(part, str):
                prefix += part
                continue
            text = captures[part.name] if isinstance(part, Hole) else ""
            if isinstance(part, Hole) and part.is_index:
                number = int(text[:MOST_DIGITS])
                if text != str(number):
                    self.report.add(
                        pattern.span,
                        f"{name[:200]} has the index {text[:40]} with leading zeros",
                        "padded-index",
                        "rename the tensors, or match the index with a regex",
                    )
                self.indices.setdefault(prefix, set()).add(number + part.shift)
                self.first_reader.setdefault(prefix, pattern)
                least = max(0, part.shift)
                self.least[prefix] = min(least, self.least.get(prefix, least))
                self.readers.setdefault(prefix, set()).add((part.name, part.shift))
                prefix += "#"
            else:
                prefix += text
        outer = tuple(captures[hole] for hole in rule.outer)
        inner = tuple(int(captures[hole]) for hole in rule.folded)
        slots = self.claims[n].groups.setdefault(outer, [{} for _ in rule.sources])
        slots[k][inner] = name
        self.seen.setdefault((n, k), set()).add(tuple(captures[hole] for hole in pattern.holes))

    # -----------------------------------------------------------------------------------------------------------------

    def check_complete(self) -> None:
        """Indices run from 0 without a gap, and a rule that reads one layer reads all of them."""
        for prefix, values in self.indices.items():
            if (gap := self.gap(prefix)) is not None:
                pattern = self.first_reader[prefix]
                numbers = sorted(values)
                hole = next((h for h, _ in self.readers[prefix]), "i")
                listing = f"{{{hole}:{'|'.join(map(str, numbers))}}}"
                hint = "a layer is missing from the checkpoint"
                if len(numbers) <= MOST_LISTED:
                    hint += f"; if the numbers have gaps by design, list them in the name: {listing}"
                self.report.add(
                    pattern.span,
                    f"{pattern} reads every number from {self.least[prefix]} on, but the checkpoint has no {prefix}{gap}; "
                    f"it has {listed(numbers)}",
                    "index-gap",
                    hint,
                )
        self.report.settle()
        missing: list[str] = []
        for n, rule in enumerate(self.rules):
            for k, pattern in enumerate(rule.sources):
                seen = self.seen.get((n, k), set())
                wanted = self.expected(pattern)
                absent = [pattern.fill(dict(zip(pattern.holes, c, strict=True))) for c in wanted if c not in seen]
                if not seen:
                    self.report.add(
                        pattern.span,
                        f"the checkpoint has no {pattern}",
                        "missing-tensor",
                        nearest(absent[0], self.signature) if absent else "",
                    )
                else:
                    missing += absent
        if missing:
            self.report.add(
                Span(self.program.spec.path),
                f"{len(missing)} tensor{'s are' if len(missing) != 1 else ' is'} missing: {listed(missing)}",
                "missing-tensor",
            )

    def gap(self, prefix: str) -> int | None:
        """The first missing number after `prefix`, of those that some rule reads."""
        number = self.least[prefix]
        # Runs over the existing numbers: one absurd index must not cost a billion steps.
        for value in sorted(value for value in self.indices[prefix] if value >= number):
            for missing in range(number, value):
                if any(missing >= s and self.env.admits(hole, str(missing - s)) for hole, s in self.readers[prefix]):
                    return missing
            number = value + 1
        return None

    def expected(self, pattern: Pattern) -> list[tuple[str, ...]]:
        """The captures of a pattern in a complete checkpoint."""
        partial: list[tuple[tuple[str, ...], str]] = [((), "")]
        for part in pattern.parts:
            if isinstance(part, str):
                partial = [(c, prefix + part) for c, prefix in partial]
            elif isinstance(part, Hole) and part.is_index:
                partial = [
                    ((*c, str(v - part.shift)), prefix + "#")
                    for c, prefix in partial
                    for v in sorted(self.indices.get(prefix, ()))
                    if v >= part.shift and self.env.admits(part.name, str(v - part.shift))
                ]
            elif isinstance(part, Hole) and (words := options(part)) is not None:
                partial = [((*c, word), prefix + word) for c, prefix in partial for word in words]
            else:
                return []  # an open-ended pattern: what else it should match is unknown
        return [c for c, _ in partial]
