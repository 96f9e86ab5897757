"""The statements of one rule: the tensors that it pops, the functions that it calls, the loops, and what it yields.

A `stack` becomes a list over an index, an `unstack` a loop, a `copy` a variable, and the ops between them one call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from compiler.language.name_pattern import Hole, Pattern
from compiler.ops.algebra import Op
from compiler.ops.structural import Copy, Stack, Unstack
from compiler.program.program import Rule
from compiler.render.index_range import IndexRange
from compiler.render.python_source import f_string
from compiler.render.rule_function import Functions, short_names

LINE = 120  # columns


@dataclass
class Block:
    """Lines and blocks under a header. Blocks with the same header are one block."""

    header: str = ""
    first: list[str] = field(default_factory=list)  # lines that come before all items
    items: list[str | Block] = field(default_factory=list)

    def below(self, headers: Sequence[str]) -> Block:
        """The block under a path of headers. Blocks that do not exist yet are added."""
        block = self
        for header in headers:
            found = next((b for b in block.items if isinstance(b, Block) and b.header == header), None)
            if found is None:
                block.items.append(found := Block(header))
            block = found
        return block

    def lines(self) -> list[str]:
        inner = [*self.first]
        for item in self.items:
            inner += item.lines() if isinstance(item, Block) else [item]
        return [self.header, *(f"    {line}" for line in inner)] if self.header else inner


class RuleSteps:
    """Prints the steps of `rule` into `block`, which is nested `depth` levels deep.

    `variables` maps the indices of its names to variables. `folded` is the range that a `stack` loops over. No variable
    is named like one of `taken`. `first` is the code of the first source name where the pattern cannot give it.
    """

    def __init__(
        self,
        rule: Rule,
        block: Block,
        depth: int,
        variables: dict[str, str],
        folded: Sequence[IndexRange],
        functions: Functions,
        taken: Sequence[str],
        first: str = "",
    ) -> None:
        self.rule, self.block, self.depth, self.variables, self.folded = rule, block, depth, variables, folded
        self.functions, self.taken = functions, [*taken]
        self.sources, self.targets = short_names(rule.sources, taken), short_names(rule.targets, taken)
        names = [name_code(pattern, variables) for pattern in rule.sources]
        self.tensors = [f"source.pop({name})" for name in ([first, *names[1:]] if first else names)]
        self.popped = True  # whether `tensors` are `source.pop(...)`
        self.slots = len(self.tensors)
        self.segment: list[Op] = []

    def print(self) -> None:
        for op, _ in self.rule.steps:
            if isinstance(op, Stack):
                self.stack(op)
            elif isinstance(op, Unstack):
                self.unstack(op)
            elif isinstance(op, Copy):
                self.copy(op)
            else:
                self.slots, _ = op.arity(self.slots, ())
                self.segment.append(op)
        names = [name_code(pattern, self.variables) for pattern in self.rule.targets]
        if len(names) == 1:
            self.hoist(f"yield {names[0]}, ", self.targets)
        tensors = self.finish(self.targets)
        for name, tensor in zip(names, tensors, strict=True):
            self.block.items.append(f"yield {name}, {tensor}")

    def stack(self, op: Stack) -> None:
        self.functions.printer.helpers.add("stack")
        each = f"for {self.folded[0].variable} in {self.folded[0].code}"
        if not self.segment:
            self.tensors = [f"stack([{tensor} {each}], {op.axis})" for tensor in self.tensors]
        elif self.slots == 1:
            self.tensors = [f"stack([{self.call(self.parts())} {each}], {op.axis})"]
        else:
            parts = self.parts()
            code = f"(stack(each, {op.axis}) for each in zip(*({self.call(parts)} {each}), strict=True))"
            self.block.items.append(f"{', '.join(parts)} = {code}")
            self.tensors = parts
        self.segment.clear()
        self.popped = False

    def unstack(self, op: Unstack) -> None:
        parts = self.parts()
        tensors = self.finish(parts)
        if self.popped and self.slots == 1 and len(tensors[0]) > 60:  # the header of the loop would not fit
            word = short_names(self.rule.sources, [*self.taken, *self.parts()])[0]
            self.block.items.append(f"{word} = {tensors[0]}")
            tensors = [word]
        number = next(name for name in _variables(op.hole) if name not in self.taken)
        self.variables = {**self.variables, op.hole: number}
        each = f"{tensors[0]}.unbind({op.axis})"
        if self.slots > 1:
            each = f"zip({', '.join(f'{tensor}.unbind({op.axis})' for tensor in tensors)}, strict=True)"
        self.taken.append(number)  # nested loops need other variables
        parts = [next(name for name in _variables(part) if len(name) > 1 and name not in self.taken) for part in parts]
        together = parts[0] if self.slots == 1 else f"({', '.join(parts)})"
        self.block = self.block.below([f"for {number}, {together} in enumerate({each}):"])
        self.depth += 1
        self.taken += parts
        self.tensors, self.popped = parts, False

    def copy(self, op: Copy) -> None:
        (code,) = self.finish(self.sources[:1])
        if not code.isidentifier():
            self.block.items.append(f"{self.sources[0]} = {code}")
            code = self.sources[0]
        self.tensors, self.popped, self.slots = [code] * op.parts, False, op.parts

    def parts(self) -> list[str]:
        """Variables for the tensors at this point."""
        if len(self.targets) == self.slots:
            return self.targets
        return [f"part_{n}" for n in range(self.slots)] if self.slots > 1 else self.sources[:1]

    def call(self, parts: list[str]) -> str:
        """The ops so far on the tensors so far."""
        words = self.sources if len(self.tensors) == len(self.sources) else [f"w_{n}" for n in range(len(self.tensors))]
        return self.functions.call(self.segment, self.tensors, words, parts, self.rule.name)

    def finish(self, parts: list[str]) -> list[str]:
        """The tensors after the ops so far. Several tensors get a variable each."""
        if not self.segment:
            return self.tensors
        if len(parts) > 1:
            self.hoist(f"{', '.join(parts)} = ", parts)
        code = self.call(parts)
        self.segment.clear()
        if len(parts) == 1:
            return [code]
        self.block.items.append(f"{', '.join(parts)} = {code}")
        return parts

    def hoist(self, start: str, parts: list[str]) -> None:
        """Assign popped tensors to variables where the line would be too long otherwise."""
        code = self.call(parts) if self.segment else self.tensors[0]
        if self.popped and len(start) + len(code) + 4 * (self.depth + 1) > LINE:
            words = short_names(self.rule.sources, self.taken)
            self.block.items += [f"{word} = {tensor}" for word, tensor in zip(words, self.tensors, strict=True)]
            self.tensors, self.popped = words, False


def name_code(pattern: Pattern, variables: dict[str, str]) -> str:
    """The code of a tensor name."""

    def number(hole: Hole) -> str:
        sign = f" {'+' if hole.shift > 0 else '-'} {abs(hole.shift)}" if hole.shift else ""
        return variables[hole.name] + sign

    return f_string(pattern, number)


def _variables(hole: str) -> Iterator[str]:
    """Candidates for a loop variable."""
    yield hole
    yield from "ijkmn" if len(hole) == 1 else ()
    yield from (f"{hole}_{n}" for n in range(2, 1_000_000))
