"""Program to Plan: every name concrete, every size an integer.

`bind` claims each tensor of a checkpoint for one rule, forms the groups that each application of a rule reads, checks
that no index has a gap and no rule misses a tensor, and runs the shape rule of every op. It reads names and shapes
only. Reversed, the same function binds the inverse rules to the other side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from compiler.diagnostics import Refusal, Report, Span, listed, nearest
from compiler.dtypes import FLOATING, ITEM_SIZES
from compiler.environment import Environment, Signature
from compiler.names import Pattern, options
from compiler.ops import Bundle, Cast, Key, Op, OpError, ShapeAlgebra
from compiler.program import Program, Rule


@dataclass(frozen=True)
class Target:
    """One tensor to write: shape in elements, dtype by its torch name."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        size = ITEM_SIZES[self.dtype]
        for length in self.shape:
            size *= length
        return size


@dataclass(frozen=True)
class Group:
    """One application of one rule: the source names, the bound ops, the targets in the places where they come out."""

    rule: Rule
    sources: Bundle[str]
    ops: tuple[Op, ...]
    targets: Bundle[Target]

    @property
    def source_names(self) -> list[str]:
        return [name for slot in self.sources.slots for name in slot.values()]

    @property
    def target_list(self) -> list[Target]:
        return [target for slot in self.targets.slots for target in slot.values()]


@dataclass(frozen=True)
class Plan:
    """What the executor does. `ties` are (alias, owner) pairs to check; `ignored` name with reason."""

    program: Program
    groups: tuple[Group, ...]
    ties: tuple[tuple[str, str], ...]
    ignored: tuple[tuple[str, str], ...]
    values: Mapping[str, Any]
    config: Mapping[str, Any]
    reverse: bool = False

    @property
    def targets(self) -> list[Target]:
        return [target for group in self.groups for target in group.target_list]

    @property
    def dtype(self) -> str:
        """The floating type that most bytes have."""
        totals: dict[str, int] = {}
        for target in self.targets:
            if target.dtype in FLOATING:
                totals[target.dtype] = totals.get(target.dtype, 0) + target.nbytes
        return max(totals, key=totals.__getitem__, default="float32")


def bind(
    program: Program, signature: Signature, env: Environment, *, dtype: str | None = None, reverse: bool = False
) -> Plan:
    """Bind a program to the names and shapes of one checkpoint. Raises Refusal with all that does not fit."""
    binder = _Binder(program, signature, env, dtype, reverse)
    binder.claim()
    binder.report.settle()
    binder.check_complete()
    binder.report.settle()
    groups = binder.groups()
    binder.report.settle()
    config = {} if reverse else {f.name: env.evaluate(f.expr) if f.expr else f.constant for f in program.spec.config}
    return Plan(
        program,
        tuple(groups),
        tuple(binder.ties),
        tuple(binder.ignored),
        {n: env[n] for n in env.values},
        config,
        reverse,
    )


@dataclass
class _Claims:
    """What one rule has claimed: outer captures -> slot -> inner key -> name, and the index tuples seen."""

    groups: dict[tuple[str, ...], list[dict[Key, str]]] = field(default_factory=dict)


class _Binder:
    def __init__(
        self, program: Program, signature: Signature, env: Environment, dtype: str | None, reverse: bool
    ) -> None:
        self.program, self.signature, self.env, self.dtype, self.reverse = program, signature, env, dtype, reverse
        self.report = Report()
        active = [rule for rule in program.rules if env.holds(rule.when)]
        if reverse:
            for rule in active:
                if rule.loss:
                    self.report.add(
                        rule.span, f"the rule {rule.name or rule.kind} has no inverse: {rule.loss}", "irreversible-rule"
                    )
            self.report.settle()
        self.rules = [rule.reversed() for rule in active] if reverse else active
        self.claims = [_Claims() for _ in self.rules]
        self.ties: list[tuple[str, str]] = []
        self.ignored: list[tuple[str, str]] = []
        self.kept: list[str] = []
        self.indices: dict[str, set[int]] = {}  # text before an index -> its values
        self.seen: dict[tuple[int, int], set[tuple[str, ...]]] = {}  # (rule, slot) -> captures

    # -----------------------------------------------------------------------------------------------------------------

    def claim(self) -> None:
        """Every name to the one rule, tie or ignore that it belongs to."""
        sources = [(n, k, p) for n, rule in enumerate(self.rules) for k, p in enumerate(rule.sources)]
        ties = [tie for tie in self.program.ties if self.env.holds(tie.when)] if not self.reverse else []
        ignored = self.program.ignored if not self.reverse else ()
        nobody: list[str] = []
        for name in self.signature:
            found: list[tuple[str, Span]] = []
            for n, k, pattern in sources:
                captures = pattern.match(name)
                if captures is not None:
                    found.append((self.rules[n].name or self.rules[n].kind, self.rules[n].span))
                    self.take(n, k, pattern, name, captures)
            for tie in ties:
                captures = tie.alias.match(name)
                if captures is not None:
                    found.append(("tie", tie.alias.span))
                    self.ties.append((name, tie.owner.fill(captures)))
            for pattern, reason in ignored:
                if pattern.match(name) is not None:
                    found.append(("ignore", pattern.span))
                    self.ignored.append((name, reason))
            if not found and self.program.keep_all:
                self.kept.append(name)
            elif not found:
                nobody.append(name)
            elif len(found) > 1:
                lines = listed(f"line {span.line} ({what})" for what, span in found)
                self.report.add(found[0][1], f"{name} is claimed by more than one rule: {lines}", "claimed-twice")
        for alias, owner in self.ties:
            if owner not in self.signature:
                self.report.add(
                    Span(self.program.spec.path),
                    f"{alias} is tied to {owner}, which the checkpoint lacks",
                    "missing-tensor",
                    nearest(owner, self.signature),
                )
        if nobody:
            patterns = [p.text for _, _, p in sources]
            self.report.add(
                Span(self.program.spec.path),
                f"{len(nobody)} tensor{'s' * (len(nobody) != 1)} of the checkpoint "
                f"{'have' if len(nobody) != 1 else 'has'} no rule: {listed(nobody)}",
                "unclaimed-tensor",
                nearest(nobody[0], patterns) or "another spec may fit: see compile detect",
            )

    def take(self, n: int, k: int, pattern: Pattern, name: str, captures: dict[str, str]) -> None:
        rule, prefix = self.rules[n], ""
        for part in pattern.parts:
            if isinstance(part, str):
                prefix += part
                continue
            text = captures.get(part.name, "") if hasattr(part, "name") else ""
            if hasattr(part, "name") and part.is_index:
                if text != str(int(text)):
                    self.report.add(
                        pattern.span,
                        f"{name} holds the index {text}, which is not how a number is written",
                        "padded-index",
                        "rename the tensors, or match the index with a regex of your own",
                    )
                self.indices.setdefault(prefix, set()).add(int(text) + part.shift)
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
            gaps = sorted(set(range(max(values) + 1)) - values)
            if gaps:
                self.report.add(
                    Span(self.program.spec.path),
                    f"the checkpoint has no {prefix}{gaps[0]}, though it has {prefix}{max(values)}",
                    "index-gap",
                    "part of the checkpoint is missing",
                )
        self.report.settle()
        missing: list[str] = []
        for n, rule in enumerate(self.rules):
            for k, pattern in enumerate(rule.sources):
                seen = self.seen.get((n, k), set())
                wanted = self.expected(pattern)
                absent = [pattern.fill(dict(zip(pattern.holes, c, strict=True))) for c in wanted if c not in seen]
                if len(absent) == len(wanted):
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

    def expected(self, pattern: Pattern) -> list[tuple[str, ...]]:
        """The captures that a complete checkpoint has for a pattern."""
        found: list[tuple[tuple[str, ...], str]] = [((), "")]
        for part in pattern.parts:
            if isinstance(part, str):
                found = [(c, prefix + part) for c, prefix in found]
            elif hasattr(part, "name") and part.is_index:
                found = [
                    ((*c, str(v - part.shift)), prefix + "#")
                    for c, prefix in found
                    for v in sorted(self.indices.get(prefix, ()))
                    if v >= part.shift
                ]
            elif hasattr(part, "name") and (words := options(part)) is not None:
                found = [((*c, word), prefix + word) for c, prefix in found for word in words]
            else:
                return []  # an open-ended pattern: nothing tells what else it should have matched
        return [c for c, _ in found]

    # -----------------------------------------------------------------------------------------------------------------

    def groups(self) -> list[Group]:
        order = {name: n for n, name in enumerate(self.signature)}
        groups: list[Group] = []
        for n, rule in enumerate(self.rules):
            if not self.claims[n].groups:
                continue
            try:
                ops = tuple(op.bind(self.env.number) for op, _ in rule.steps)
            except Refusal as refusal:
                self.report.absorb(refusal)
                continue
            for outer, slots in self.claims[n].groups.items():
                group = self.group(
                    rule, ops, dict(zip(rule.outer, outer, strict=True)), Bundle(tuple(slots), rule.folded)
                )
                if group is not None:
                    groups.append(group)
        groups += [self.kept_group(name) for name in self.kept]
        if self.reverse:
            groups += self.aliases(groups)
        groups.sort(key=lambda g: order[g.source_names[0]])
        self.check_written(groups)
        return groups

    def group(self, rule: Rule, ops: tuple[Op, ...], outer: dict[str, str], sources: Bundle[str]) -> Group | None:
        names = [name for slot in sources.slots for name in slot.values()]
        if len({frozenset(slot) for slot in sources.slots}) != 1:
            self.report.add(
                rule.span, f"the rule {rule.name} has only {listed(names)} of what it joins", "missing-tensor"
            )
            return None
        dtypes = {self.signature[name].dtype for name in names}
        if len(dtypes) != 1 and self.dtype is None:
            self.report.add(
                rule.span,
                f"the rule {rule.name} joins tensors of the types {listed(sorted(dtypes))}: {listed(names, 4)}",
                "mixed-dtypes",
                "convert all with --dtype",
            )
            return None
        dtype = self.signature[names[0]].dtype
        if self.dtype is not None and all(d in FLOATING for d in dtypes) and dtypes != {self.dtype}:
            ops = (*ops, Cast(self.dtype)) if len(dtypes) == 1 else (Cast(self.dtype), *ops)
        bundle = sources_map(sources, self.signature)
        places = dict(zip(map(id, ops), (span for _, span in rule.steps), strict=False))
        for op in ops:
            try:
                bundle = op.apply(bundle, ShapeAlgebra())
            except OpError as error:
                shapes = listed(f"{name} {list(self.signature[name].shape)}" for name in names)
                self.report.add(
                    places.get(id(op), rule.span), f"{rule.name}: {error}", "shape-mismatch", f"it reads {shapes}"
                )
                return None
            if isinstance(op, Cast):
                dtype = op.dtype
        slots = tuple(
            {
                key: Target(pattern.fill(outer | dict(zip(bundle.holes, map(str, key), strict=True))), shape, dtype)
                for key, shape in slot.items()
            }
            for pattern, slot in zip(rule.targets, bundle.slots, strict=True)
        )
        return Group(rule, sources, ops, Bundle(slots, bundle.holes))

    def kept_group(self, name: str) -> Group:
        dtype = self.signature[name].dtype
        ops: tuple[Op, ...] = ()
        if self.dtype is not None and dtype in FLOATING and dtype != self.dtype:
            ops, dtype = (Cast(self.dtype),), self.dtype
        rule = Rule("keep", "", (), (), (), None, Span(self.program.spec.path))
        return Group(
            rule, Bundle(({(): name},)), ops, Bundle(({(): Target(name, tuple(self.signature[name].shape), dtype)},))
        )

    def aliases(self, groups: list[Group]) -> list[Group]:
        """Reversed, a tie writes its alias again, as the source's trainer does."""
        by_target = {target.name: group for group in groups for target in group.target_list}
        found = []
        for tie in self.program.ties:
            if not self.env.holds(tie.when):
                continue
            for owner, group in by_target.items():
                captures = tie.owner.match(owner)
                if captures is None:
                    continue
                alias = tie.alias.fill(captures)
                if len(group.target_list) != 1:
                    self.report.add(
                        tie.alias.span,
                        f"{alias} is tied to {owner}, one of several tensors that {group.rule.name} makes",
                        "irreversible-rule",
                    )
                    continue
                targets = group.targets.map(lambda target, name=alias: replace(target, name=name))  # type: ignore[misc]
                found.append(replace(group, targets=targets))
        return found

    def check_written(self, groups: list[Group]) -> None:
        writers: dict[str, Group] = {}
        for group in groups:
            for target in group.target_list:
                if target.name in writers:
                    first = writers[target.name].rule
                    self.report.add(
                        group.rule.span,
                        f"{target.name} would be written twice, also by the rule at line {first.span.line}",
                        "written-twice",
                    )
                writers[target.name] = group


def sources_map(sources: Bundle[str], signature: Signature) -> Bundle[tuple[int, ...]]:
    """The shapes of a bundle of names."""
    return Bundle(
        tuple({key: tuple(signature[name].shape) for key, name in slot.items()} for slot in sources.slots),
        sources.holes,
    )
