"""Program to Plan: every name concrete, every size an integer.

`bind` assigns each tensor of a checkpoint to one rule, forms a group for each application of a rule, checks that no index
has a gap and no rule lacks a tensor, and runs the shape rule of every op. It reads names and shapes only. Reversed, it
binds the inverse rules to the names of the target.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from compiler.diagnostics import Refusal, Report, Span, listed
from compiler.dtypes import FLOATING
from compiler.ops.algebra import Bundle, Op, OpError, ShapeAlgebra
from compiler.ops.arithmetic import Full
from compiler.ops.structural import Cast
from compiler.plan.claims import Claimant
from compiler.plan.config_values import check_config_values
from compiler.plan.plan import Group, Plan, TargetTensor
from compiler.plan.shape_check import check_shapes
from compiler.process import uncollected
from compiler.program.environment import Environment, TensorTable
from compiler.program.program import Program, Rule


@uncollected()
def bind(
    program: Program, signature: TensorTable, env: Environment, *, dtype: str | None = None, reverse: bool = False
) -> Plan:
    """Bind a program to the names and shapes of one checkpoint. Raises Refusal with every problem."""
    binder = _Binder(program, signature, env, dtype, reverse)
    binder.claimant.claim()
    binder.claimant.report.settle()
    binder.claimant.check_complete()
    binder.claimant.report.settle()
    groups = binder.groups()
    binder.report.settle()
    config = {} if reverse else {f.name: env.evaluate(f.expr) if f.expr else f.constant for f in program.spec.config}
    check_config_values(program, env, config)
    special = program.spec.tokenizer
    plan = Plan(
        program,
        tuple(groups),
        tuple(binder.claimant.ties),
        tuple(binder.claimant.ignored),
        {n: env[n] for n in env.found},
        config,
        reverse,
        tuple(binder.claimant.made),
        _processor(program, env) if not reverse else {},
        {text: env.evaluate(place) for text, place in special.named.items()} if special and not reverse else {},
    )
    check_shapes(plan, signature, env)
    return plan


def _processor(program: Program, env: Environment) -> dict[str, Any]:
    """The fields of preprocessor_config.json."""
    section = program.spec.processor
    if section is None:
        return {}
    values = {f.name: env.evaluate(f.expr) if f.expr else f.constant for f in section.fields}
    return {**section.classes, **values}


class _Binder:
    def __init__(
        self, program: Program, signature: TensorTable, env: Environment, dtype: str | None, reverse: bool
    ) -> None:
        self.program, self.signature, self.env, self.dtype, self.reverse = program, signature, env, dtype, reverse
        self.report = Report()
        active = [rule for rule in program.rules if env.holds(rule.when)]
        if reverse:
            for rule in active:
                if rule.irreversible:
                    name = rule.name or rule.kind
                    self.report.add(
                        rule.span, f"the rule {name} has no inverse: {rule.irreversible}", "irreversible-rule"
                    )
            self.report.settle()
        self.rules = [rule.reversed() for rule in active] if reverse else active
        self.claimant = Claimant(program, self.rules, signature, env, reverse)
        self.claims = self.claimant.claims

    def groups(self) -> list[Group]:
        order = {name: n for n, name in enumerate(self.signature)}
        groups: list[Group] = []
        for n, rule in enumerate(self.rules):
            try:
                ops = tuple(op.bind(self.env.number) for op, _ in rule.steps)
            except Refusal as refusal:
                self.report.absorb(refusal)
                continue
            for outer, slots in self.claims[n].groups.items():
                captures = dict(zip(rule.outer, outer, strict=True))
                if not ops:
                    groups.append(self.renamed(rule, slots[0][()], rule.targets[0].fill(captures)))
                elif group := self.group(rule, ops, captures, Bundle(tuple(slots), rule.folded)):
                    groups.append(group)
        keep_rule = Rule("keep", "", (), (), (), None, Span(self.program.spec.path))
        groups += [self.renamed(keep_rule, name, name) for name in self.claimant.unruled]
        if self.reverse:
            groups += self.aliases(groups)
        groups.sort(key=lambda g: order[g.source_names[0]])
        if not self.reverse:
            groups += self.created()
        self.check_written(groups)
        return groups

    def group(self, rule: Rule, ops: tuple[Op, ...], outer: dict[str, str], sources: Bundle[str]) -> Group | None:
        names = [name for slot in sources.slots for name in slot.values()]
        if len({frozenset(slot) for slot in sources.slots}) != 1:
            self.report.add(
                rule.span,
                f"the rule {rule.name} joins several tensors, but there is only {listed(names)}",
                "missing-tensor",
            )
            return None
        try:
            ops, dtypes = self.typed(ops, sources)
        except OpError as error:
            hint = "--dtype casts floating-point tensors only" if self.dtype else "cast all tensors with --dtype"
            self.report.add(rule.span, f"{rule.name}: {error}: {listed(names, 4)}", "mixed-dtypes", hint)
            return None
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
        slots = tuple(
            {
                key: TargetTensor(
                    pattern.fill(outer | dict(zip(bundle.holes, map(str, key), strict=True))), shape, dtype
                )
                for key, shape in slot.items()
            }
            for pattern, slot, dtype in zip(rule.targets, bundle.slots, dtypes, strict=True)
        )
        return Group(rule, sources, ops, Bundle(slots, bundle.holes))

    def typed(self, ops: tuple[Op, ...], sources: Bundle[str]) -> tuple[tuple[Op, ...], tuple[str, ...]]:
        """The ops including the cast of `--dtype`, and the dtypes of the results. Raises OpError."""
        slots = [sorted({self.signature[name].dtype for name in slot.values()}) for slot in sources.slots]
        floating = all(dtype in FLOATING for dtypes in slots for dtype in dtypes)
        if mixed := next((dtypes for dtypes in slots if len(dtypes) > 1), None):
            problem = OpError(f"it joins the types {listed(mixed)}")
        else:
            try:
                results = result_types(ops, tuple(dtype for (dtype,) in slots))
                if self.dtype is not None and floating and set(results) != {self.dtype}:
                    return (*ops, Cast(self.dtype)), (self.dtype,) * len(results)
                return ops, results
            except OpError as error:
                problem = error
        if self.dtype is None or not floating:
            raise problem
        ops = (Cast(self.dtype), *ops)
        return ops, result_types(ops, (self.dtype,) * len(slots))

    def created(self) -> list[Group]:
        """The groups of `create`: a constant for each source tensor that matches `like`."""
        groups: list[Group] = []
        for rule in self.program.created if not self.report.diagnostics else ():
            for name in self.signature if self.env.holds(rule.when) else ():
                captures = self.env.match(rule.sources[0], name)
                if captures is None:
                    continue
                like, step = self.signature[name], rule.steps[0][0].bind(self.env.number)
                assert isinstance(step, Full)
                shape = step.result() if step.shape is not None else tuple(like.shape)
                dtype = self.dtype if self.dtype is not None and like.dtype in FLOATING else like.dtype
                made = TargetTensor(rule.targets[0].fill(captures), shape, dtype)
                op = replace(step, shape=shape, dtype=dtype)
                groups.append(Group(rule, Bundle(()), (op,), Bundle(({(): made},))))
        return groups

    def renamed(self, rule: Rule, source: str, target: str) -> Group:
        """A group that only renames a tensor, and casts it to the type of `--dtype`."""
        dtype = self.signature[source].dtype
        ops: tuple[Op, ...] = ()
        if self.dtype is not None and dtype in FLOATING and dtype != self.dtype:
            ops, dtype = (Cast(self.dtype),), self.dtype
        made = TargetTensor(target, tuple(self.signature[source].shape), dtype)
        return Group(rule, Bundle(({(): source},)), ops, Bundle(({(): made},)))

    def aliases(self, groups: list[Group]) -> list[Group]:
        """Reversed: the groups that write the aliases of ties, which the source's trainer writes too."""
        by_target = {target.name: group for group in groups for target in group.target_list}
        copies = []
        for tie in self.program.ties:
            if not self.env.holds(tie.when):
                continue
            for owner, group in by_target.items():
                captures = self.env.match(tie.owner, owner)
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
                copies.append(replace(group, targets=targets))
        return copies

    def check_written(self, groups: list[Group]) -> None:
        writers: dict[str, Group] = {}
        for group in groups:
            for target in group.target_list:
                if target.name in writers:
                    first = writers[target.name].rule
                    self.report.add(
                        group.rule.span,
                        f"{target.name} would be written twice; the other rule is at line {first.span.line}",
                        "written-twice",
                    )
                writers[target.name] = group


def sources_map(sources: Bundle[str], signature: TensorTable) -> Bundle[tuple[int, ...]]:
    """The shapes of a bundle of names."""
    return Bundle(
        tuple({key: tuple(signature[name].shape) for key, name in slot.items()} for slot in sources.slots),
        sources.holes,
    )


def result_types(ops: tuple[Op, ...], dtypes: tuple[str, ...]) -> tuple[str, ...]:
    """The dtypes of the results of a chain of ops. Raises OpError."""
    for op in ops:
        dtypes = op.dtypes(dtypes)
    return dtypes
