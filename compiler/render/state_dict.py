"""The tables of names and the body of `convert_state_dict`.

Takes a Program. Returns the rows of the tables and the lines of the function. Renames become rows; all other rules become
statements in loops over their indices, and rules with the same loops share them. The code pops each tensor from the
source: a missing tensor is a KeyError, and a tensor that is left over is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.diagnostics import refuse
from compiler.language.expression import Expr
from compiler.language.name_pattern import Hole, Pattern
from compiler.ops.arithmetic import Full
from compiler.program.program import Program, Rule
from compiler.render.index_range import RESERVED, IndexRange, IndexRanges, by_prefix, choices, fixed, listable, words
from compiler.render.python_source import ExprPrinter, comment, f_string, in_f_string, inside, names_regex, quoted, raw
from compiler.render.rule_function import Function, Functions
from compiler.render.rule_steps import Block, RuleSteps, name_code

MOST_ROWS = 12  # of one rule in a table
MOST_COLUMNS = 110  # of a line that ends with a comment
FEW = 2  # so many renames with a condition are statements; more of them are a table


@dataclass(frozen=True)
class Row:
    source: str
    target: str
    condition: str  # code; empty for a row without a condition


class StateDict:
    """The conversion of a state dict as code. Raises Refusal for a rule that cannot be written as a loop."""

    def __init__(self, program: Program, printer: ExprPrinter) -> None:
        self.program, self.printer = program, printer
        self.ranges = IndexRanges(program, printer)
        self.functions = Functions(printer, RESERVED)
        self.rows: list[Row] = []
        self.used: dict[str, IndexRange] = {}  # the ranges of the table
        self.first, self.ties, self.rest, self.last = Block(), Block(), Block(), Block()
        for rule in (*program.rules, *program.created):  # registers the variables of all loops
            for each in by_prefix(rule) if all(map(listable, rule.sources)) else ():
                for name in [n for n, hole in each.sources[0].holes.items() if hole.is_index]:
                    self.ranges.of(each.sources, name, rule.when)
        # Ranges that are not empty in any complete checkpoint.
        self.demanded: set[str] = set()
        for rule in program.rules:
            for each in by_prefix(rule) if all(map(listable, rule.sources)) else ():
                names = [name for name, hole in each.sources[0].holes.items() if hole.is_index]
                found = [self.ranges.of(each.sources, name, rule.when) for name in names]
                self.demanded |= {index.code for index in found if index.always or not rule.when}
        guarded = [rule for rule in program.rules if rule.when and self.tabular(rule)]
        self.table_of_guarded = sum(len(list(self.renamings(rule))) for rule in guarded) > FEW
        for tie in program.ties:
            self.tie(tie.alias, tie.owner, tie.when)
        for rule in program.created:
            self.create(rule)
        for rule in program.rules:
            if self.tabular(rule) and (not rule.when or self.table_of_guarded):
                self.tabulate(rule)
            elif all(listable(pattern) for pattern in rule.sources):
                self.apply(rule)
            else:
                self.match(rule)
        for pattern, reason in program.ignored:
            self.ignore(pattern, reason)

    @property
    def lines(self) -> list[str]:
        """The body of `convert_state_dict`."""
        found = [*self.first.lines(), *self.ties.lines(), *self.table(), *self.rest.lines(), *self.last.lines()]
        if self.program.keep_all:
            return [*found, "for name in list(source):", "    yield name, source.pop(name)"]
        return [*found, "require(not source, f\"no rule claims {', '.join(source)}\")"]

    @property
    def made(self) -> list[Function]:
        return [*self.functions.made.values()]

    @property
    def comment(self) -> str:
        """The ranges of the indices in the table."""
        return "".join(f"{',' if n else ', for'} {name} in {r.code}" for n, (name, r) in enumerate(self.used.items()))

    # -----------------------------------------------------------------------------------------------------------------
    # Renames as a table

    def tabular(self, rule: Rule) -> bool:
        """Whether a rule is a rename that fits a table: its names depend only on indices, which are equal on both sides."""
        patterns = (*rule.sources, *rule.targets)
        if (
            rule.steps
            or not all(map(listable, patterns))
            or any("{" in str(p) or "}" in str(p) for p in _literal(patterns))
        ):
            return False
        if any(hole.shift for pattern in patterns for hole in pattern.holes.values()):
            return False
        if len([*self.renamings(rule)]) > MOST_ROWS:
            return False
        if not rule.when:
            return True
        sources = [source for source, _ in self.renamings(rule)]
        found = [self.ranges.of([source], name, rule.when) for source in sources for name in source.holes]
        counted = all(index.shared or not index.count for index in found)
        return counted and all(index.certain or index.code in self.demanded for index in found)

    def renamings(self, rule: Rule) -> list[tuple[Pattern, Pattern]]:
        """Source and target for each choice of words. Only indices are left as holes."""
        source, target = rule.sources[0], rule.targets[0]
        holes = [name for name, hole in source.holes.items() if not hole.is_index]
        return [(fixed(source, choice), fixed(target, choice)) for choice in choices([source], holes)]

    def tabulate(self, rule: Rule) -> None:
        for source, target in self.renamings(rule):
            found = {name: self.ranges.of([source], name, rule.when) for name in source.holes}
            for index in found.values():
                self.used[index.variable] = index
                self.count(index, self.first)
                self.demand(index, self.first)
            names = [
                quoted(
                    "".join(f"{{{found[p.name].variable}}}" if isinstance(p, Hole) else str(p) for p in pattern.parts)
                )
                for pattern in (source, target)
            ]
            self.rows.append(Row(names[0], names[1], self.printer(rule.when) if rule.when else ""))

    def table(self) -> list[str]:
        """The loop over the rows."""
        always, guarded = [r for r in self.rows if not r.condition], [r for r in self.rows if r.condition]
        if not self.rows:
            return []
        renamed = [] if self.kept else ["*STATE_DICT_MAPPING.items()"] if always else []
        if self.kept:
            renamed = ["*zip(KEPT, KEPT, strict=True)"]
        if guarded:
            renamed.append("*((old, new) for old, new, when in OPTIONAL_MAPPING if when(f))")
        together = ", ".join(renamed)
        each = f"[{together}]" if guarded else "STATE_DICT_MAPPING.items()"
        pair, old, new = "old, new", "old", "new"
        if self.kept and not guarded:
            each, pair, old, new = "KEPT", "name", "name", "name"
        header = f"for {pair} in {each}:"
        if not self.used:
            return [header, f"    yield {new}, source.pop({old})"]
        given = ", ".join(f"{name}={name}" for name in self.used)
        lines = [
            f'for {name} in {index.code} if "{{{name}}}" in {old} else range(1):' for name, index in self.used.items()
        ]
        lines.append(f"yield {new}.format({given}), source.pop({old}.format({given}))")
        return [header, *("    " * (n + 1) + line for n, line in enumerate(lines))]

    @property
    def kept(self) -> bool:
        """Whether all rows without a condition have the same name on both sides."""
        rows = [row for row in self.rows if not row.condition]
        return bool(rows) and all(row.source == row.target for row in rows)

    # -----------------------------------------------------------------------------------------------------------------
    # Everything else as statements

    def apply(self, rule: Rule) -> None:
        """Add the statements of a rule whose names depend only on indices and listed words."""
        if len(rule.folded) > 1:
            holes = " and ".join(f"{{{hole}}}" for hole in rule.folded)
            refuse(rule.span, f"{rule.name} folds {holes}; a step folds one index", "op-mismatch")
        for each in by_prefix(rule):
            self.looped(each)

    def looped(self, rule: Rule) -> None:
        source = rule.sources[0]
        guard = [f"if {self.printer(rule.when)}:"] if rule.when else []
        top = self.rest.below(guard)
        headers, variables = [*guard], dict[str, str]()
        for name, hole in source.holes.items():
            if hole.is_index:
                index = self.ranges.of(rule.sources, name, rule.when)
                self.count(index, top if rule.when and not index.shared else self.first)
                self.demand(index, self.first if index.code in self.demanded else top)
                variables[name] = index.variable
                if name not in rule.folded:
                    headers.append(f"for {index.variable} in {index.code}:")
            else:
                variables[name] = name if name not in RESERVED else f"{name}_"
                headers.append(f"for {variables[name]} in ({', '.join(map(quoted, words(hole)))}):")
        folded = [self.ranges.of(rule.sources, name, rule.when) for name in rule.folded]
        self.steps(rule, self.rest.below(headers), len(headers), variables, folded)

    def steps(
        self, rule: Rule, block: Block, depth: int, variables: dict[str, str], folded: list[IndexRange], first: str = ""
    ) -> None:
        counters = [index.count.partition(" ")[0] for index in self.ranges.counts.values()]
        taken = [*RESERVED, *variables.values(), *counters]
        RuleSteps(rule, block, depth, variables, folded, self.functions, taken, first).print()

    def count(self, index: IndexRange, block: Block) -> None:
        """Add the assignment that a range needs."""
        if index.count and index.count not in block.first:
            block.first.append(index.count)

    def demand(self, index: IndexRange, block: Block) -> None:
        """Add a check that a range is not empty, where `read_sizes` has not checked it: a rule must read some tensor."""
        counter = index.code.removeprefix("range(").removesuffix(")")
        start = f"require({counter if counter.replace('.', '').isidentifier() else index.code}, "
        if not index.certain and not any(line.startswith(start) for line in block.first):
            block.first.append(f"{start}{quoted(f'there is no {index.names}')})")

    # -----------------------------------------------------------------------------------------------------------------
    # Names that need a regular expression, ties, ignored names, constants

    def match(self, rule: Rule) -> None:
        """Add the statements of a rule whose names cannot be listed: it reads every name that matches."""
        source = rule.sources[0]
        self.printer.helpers.add("matches")
        outer = [name for name in source.holes if name not in rule.folded]
        if rule.folded:
            refuse(rule.span, f"{rule.name} folds an index beside a part of the names that cannot be listed", "op-mismatch",
                   "write the words of that part as {p:a|b}")  # fmt: skip
        found = f"found = matches(source, {raw(names_regex(source, outer))})"
        guard = [f"if {self.printer(rule.when)}:"] if rule.when else []
        top = self.rest.below(guard)
        top.items += [found, f'require(found, "there is no {inside(source.text)}")']
        for name in [n for n, hole in source.holes.items() if hole.is_index and n not in self.program.spec.indices]:
            top.items += _gapless(source, name)
        block = Block("for match in found:")
        top.items.append(block)
        block = self.numbers_of(source, block)
        variables = {name: self.matched(source.holes[name]) for name in outer}
        self.steps(rule, block, 3 + bool(guard), variables, [], "match[0]")

    def matched(self, hole: Hole) -> str:
        """The text that a match has for a hole. For an index, its number without the shift."""
        text = f"match['{hole.name}']"  # between the double quotes of an f-string
        if not hole.is_index:
            return text
        return f"int({text})" + (f" {'-' if hole.shift > 0 else '+'} {abs(hole.shift)}" if hole.shift else "")

    def numbers_of(self, pattern: Pattern, block: Block) -> Block:
        """The block for matches whose indices fulfil the conditions of the spec."""
        conditions = []
        for name, hole in pattern.holes.items():
            if hole.shift > 0:
                conditions.append(f"int(match[{quoted(name)}]) >= {hole.shift}")
            if name in self.program.spec.indices:
                code = ExprPrinter("f", self.printer.helpers, name, f"int(match[{quoted(name)}])")
                conditions.append(code(self.program.spec.indices[name]))
        return block.below([f"if {' and '.join(conditions)}:"] if conditions else [])

    def tie(self, alias: Pattern, owner: Pattern, when: Expr | None) -> None:
        """Add the check that a tied tensor equals its owner. It is not written."""
        condition = self.printer(when) if when else ""
        if alias.is_name and owner.is_name:
            a, b = quoted(str(alias)), quoted(str(owner))
            message = quoted(f"{alias} should equal {owner} but differs from it")
            if len(self.program.ties) == 1 and not self.program.merged:
                self.ties.items += [
                    f"if {' and '.join([condition] * bool(when) + [f'{a} in source'])}:",
                    f"    alias, owner = source.pop({a}).contiguous(), source[{b}].contiguous()",
                    "    equal = torch.equal(alias.view(torch.uint8), owner.view(torch.uint8))  # bits: a NaN equals itself",
                    f"    require(equal, {message})",
                ]
                return
            self.printer.helpers.add("same")
            conditions = [condition] * bool(when) + [f"{a} in source"]
            self.ties.items += [
                f"if {' and '.join(conditions)}:",
                f"    require(same(source.pop({a}), source[{b}]), {message})",
            ]
            return
        self.printer.helpers |= {"matches", "same"}
        regex = raw(names_regex(alias, alias.holes))
        block = self.ties.below([f"if {condition}:"] * bool(when) + [f"for match in matches(source, {regex}):"])
        block = self.numbers_of(alias, block)
        written = f_string(owner, lambda hole: self.matched(alias.holes[hole.name]))
        message = 'f"{match[0]} differs from the tensor that it should equal"'
        block.items.append(f"require(same(source.pop(match[0]), source[{written}]), {message})")

    def ignore(self, pattern: Pattern, reason: str) -> None:
        """Add the statements that drop ignored tensors."""
        holes = list(pattern.holes)
        if listable(pattern) and not any(hole.is_index for hole in pattern.holes.values()):
            names = [str(fixed(pattern, choice).parts[0]) for choice in choices([pattern], holes)]
            if len(names) <= FEW:
                self.last.items += [f"source.pop({quoted(name)}, None)  {comment(reason)}" for name in names]
                return
        self.printer.helpers.add("matches")
        guarded = [name for name in holes if name in self.program.spec.indices]
        header = f"for match in matches(source, {raw(names_regex(pattern, guarded))}):"
        long = len(header) + len(reason) > MOST_COLUMNS
        block = Block(header if long else f"{header}  {comment(reason)}")
        self.last.items += [comment(reason), block] if long else [block]
        self.numbers_of(pattern, block).items.append("del source[match[0]]")

    def create(self, rule: Rule) -> None:
        """Add the tensors that the source lacks, before the tensors whose type or shape they have are popped."""
        step = rule.steps[0][0]
        assert isinstance(step, Full)
        source = rule.sources[0]

        def made(like: str) -> str:
            if step.shape is None:
                return f"torch.full_like({like}, {step.fill})"
            return f"{like}.new_full(({', '.join(map(self.printer.size, step.shape))},), {step.fill})"

        guard = [f"if {self.printer(rule.when)}:"] if rule.when else []
        if listable(source):
            holes = [name for name, hole in source.holes.items() if not hole.is_index]
            for choice in choices([source], holes):
                like, target = fixed(source, choice), fixed(rule.targets[0], choice)
                found = {name: self.ranges.of([like], name, rule.when) for name in like.holes}
                for index in found.values():
                    self.count(index, self.first if index.shared else self.ties.below(guard))
                variables = {name: index.variable for name, index in found.items()}
                block = self.ties.below([*guard, *(f"for {i.variable} in {i.code}:" for i in found.values())])
                block.items.append(
                    f"yield {name_code(target, variables)}, {made(f'source[{name_code(like, variables)}]')}"
                )
            return
        self.printer.helpers.add("matches")
        regex = raw(names_regex(source, source.holes))
        block = self.numbers_of(source, self.ties.below([*guard, f"for match in matches(source, {regex}):"]))
        written = f_string(rule.targets[0], lambda hole: self.matched_shifted(hole, source))
        block.items.append(f"yield {written}, {made('source[match[0]]')}")

    def matched_shifted(self, hole: Hole, source: Pattern) -> str:
        sign = f" {'+' if hole.shift > 0 else '-'} {abs(hole.shift)}" if hole.shift else ""
        return self.matched(source.holes[hole.name]) + sign


def _gapless(pattern: Pattern, name: str) -> list[str]:
    """The lines that reject a gap in the numbers of an index."""
    number, shift = f"int(match[{quoted(name)}])", pattern.holes[name].shift
    least = f" if {number} >= {shift}" if shift > 0 else ""
    return [
        f"numbers = sorted({{{number} for match in found{least}}})",
        f"complete = numbers == list(range({f'{shift}, {shift} + ' if shift else ''}len(numbers)))",
        f'require(complete, f"the checkpoint has only the numbers {{numbers}} of {in_f_string(pattern.text)}")',
    ]


def _literal(patterns: Sequence[Pattern]) -> list[str]:
    return [part for pattern in patterns for part in pattern.parts if isinstance(part, str)]
