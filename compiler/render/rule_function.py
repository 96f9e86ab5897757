"""A rule's ops as a function of a converter: `wq.unflatten(0, (n_heads, -1, 2)).transpose(1, 2).flatten(0, 2)`.

Takes a `Rule`, returns a `Function` of finished lines; the template only lays them out.
"""

from __future__ import annotations

import ast
import keyword
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from compiler.language.expression import Expr
from compiler.language.name_pattern import Pattern
from compiler.ops import arithmetic, structural
from compiler.ops.algebra import Op, Size
from compiler.program.program import Rule
from compiler.render.python_source import ExprPrinter


@dataclass(frozen=True)
class Function:
    """A rule's ops as a function of the converter. `results` are what it returns, in the order of the targets."""

    name: str
    parameters: tuple[tuple[str, str], ...]  # name, annotation
    sizes: tuple[tuple[str, str], ...]  # parameter, the expression that the caller passes
    comments: tuple[str, ...]
    body: tuple[str, ...]
    results: tuple[str, ...]
    returns: str
    reals: frozenset[str]  # the parameters among `sizes` that need not be whole
    kernels: frozenset[str]  # the functions of `kernels` that it calls


def print_rule(rule: Rule, printer: ExprPrinter) -> Function:
    """The function that does what `rule` does to its tensors."""
    return _RulePrinter(rule, printer).function()


class _RulePrinter:
    def __init__(self, rule: Rule, printer: ExprPrinter) -> None:
        self.rule, self.printer = rule, printer
        self.passed: dict[str, str] = {}
        self.comments: list[str] = []
        self.body: list[str] = []
        self.reals: set[str] = set()
        self.kernels: set[str] = set()

    def function(self) -> Function:
        rule = self.rule
        names = short_names(rule.sources)
        many = bool(rule.folded)
        parameters = tuple((name, "list[Tensor]" if many else "Tensor") for name in names)
        slots = list(names)
        for op, _ in rule.steps:
            slots, many = self.step(op, slots, many)
        if len(slots) == 1:  # the last step is what is returned, under no name
            slots = [self.body.pop().removeprefix(f"{slots[0]} = ")]
        one = "list[Tensor]" if many else "Tensor"
        returns = one if len(slots) == 1 else f"tuple[{', '.join([one] * len(slots))}]"
        return Function(
            rule.name,
            parameters,
            tuple(self.passed.items()),
            tuple(self.comments),
            tuple(self.body),
            tuple(slots),
            returns,
            frozenset(self.reals),
            frozenset(self.kernels),
        )

    def size(self, size: Size) -> str:
        """A literal, or a parameter that carries the value of an expression."""
        if isinstance(size, int):
            return repr(size)
        text = self.printer(size)
        for name, passed in self.passed.items():
            if passed == text:
                return name
        name = size.text if size.text.isidentifier() else f"size_{len(self.passed) + 1}"
        self.passed[name] = text
        return name

    def step(self, op: Op, slots: list[str], many: bool) -> tuple[list[str], bool]:
        match op:
            case structural.Rearrange():
                code = self.rearranged(op)
                chosen = [slots[n] for n in op.only] or slots
                self.comments.append(f"# {', '.join(chosen)}: {op}" if op.only else f"# {op}")
                for slot in chosen:
                    self.body.append(f"{slot} = [t{code} for t in {slot}]" if many else f"{slot} = {slot}{code}")
                return slots, many
            case structural.Cast(dtype=dtype):
                for slot in slots:
                    self.body.append(
                        f"{slot} = [t.to(torch.{dtype}) for t in {slot}]"
                        if many
                        else f"{slot} = {slot}.to(torch.{dtype})"
                    )
                return slots, many
            case structural.Split(axis=axis, parts=parts, sizes=sizes):
                cut = (
                    f".split([{', '.join(map(self.size, sizes))}], dim={axis})"
                    if sizes
                    else f".chunk({parts}, dim={axis})"
                )
                results = (
                    short_names(self.rule.targets)
                    if len(self.rule.targets) == parts
                    else [f"part_{n}" for n in range(parts)]
                )
                value = f"map(list, zip(*(t{cut} for t in {slots[0]}), strict=True))" if many else f"{slots[0]}{cut}"
                self.body.append(f"{', '.join(results)} = {value}")
                return results, many
            case structural.Concat(axis=axis):
                joined = ", ".join(slots)
                code = (
                    f"[torch.cat(parts, dim={axis}) for parts in zip({joined}, strict=True)]"
                    if many
                    else f"torch.cat([{joined}], dim={axis})"
                )
                self.body.append(f"joined = {code}")
                return ["joined"], many
            case structural.Stack(axis=axis):
                for slot in slots:
                    self.body.append(f"{slot}_stack = torch.stack({slot}, dim={axis})")
                return [f"{slot}_stack" for slot in slots], False
            case structural.Unstack(axis=axis):
                for slot in slots:  # a second index counts within the first
                    each = f"[part for t in {slot} for part in t.unbind({axis})]"
                    self.body.append(f"{slot}_each = {each if many else f'list({slot}.unbind({axis}))'}")
                return [f"{slot}_each" for slot in slots], True
            case arithmetic.Crop(axis=axis, to=to):
                code = f".narrow({axis}, 0, {self.size(to)})"
                for slot in slots:
                    self.body.append(f"{slot} = [t{code} for t in {slot}]" if many else f"{slot} = {slot}{code}")
                return slots, many
            case arithmetic.Computed():
                return self.computed(op, slots, many), many
        raise TypeError(op)

    def computed(self, op: arithmetic.Computed, slots: list[str], many: bool) -> list[str]:
        """A call of the kernel, which takes all slots or one."""
        self.kernels.add(op.kernel)
        values = "".join(f", {self.value(value)}" for value in op.values)
        self.reals |= {self.value(v) for v in (getattr(op, name) for name in op.reals) if isinstance(v, Expr)}
        if op.takes == 1:
            for slot in slots:
                call = f"[{op.kernel}(t{values}) for t in {slot}]" if many else f"{op.kernel}({slot}{values})"
                self.body.append(f"{slot} = {call}")
            return slots
        joined = ", ".join(slots)
        call = (
            f"[{op.kernel}(*t{values}) for t in zip({joined}, strict=True)]"
            if many
            else f"{op.kernel}({joined}{values})"
        )
        self.body.append(f"result = {call}")
        return ["result"]

    def value(self, value: Any) -> str:
        if isinstance(value, str):
            return f'"{value}"'
        return repr(value) if isinstance(value, float) else self.size(value)

    def rearranged(self, op: structural.Rearrange) -> str:
        """`.unflatten(0, (n_heads, -1, 2)).transpose(1, 2).flatten(0, 2)` for the notation."""
        sizes = {name: self.size(size) for name, size in op.sizes}
        text, axis = "", 0
        for group in op.left:
            if len(group) > 1:
                text += f".unflatten({axis}, ({', '.join(sizes.get(name, '-1') for name in group)}))"
            elif not group:
                text += f".squeeze({axis})"
            axis += len(group)
        names = [name for group in op.left for name in group]
        order = [names.index(name) for group in op.right for name in group]
        moved = [n for n, at in enumerate(order) if n != at]
        if len(moved) == 2:
            text += f".transpose({moved[0]}, {moved[1]})"
        elif moved:
            text += f".movedim(({', '.join(str(order[n]) for n in moved)}), ({', '.join(map(str, moved))}))"
        for axis, group in enumerate(op.right):
            if len(group) > 1:
                text += f".flatten({axis}, {axis + len(group) - 1})"
            elif not group:
                text += f".unsqueeze({axis})"
        return text


@cache
def kernel_text(name: str) -> str:
    """The text of a function of `kernels`."""
    text = resources.files("compiler.ops").joinpath("kernels.py").read_text(encoding="utf-8")
    found = next(n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == name)
    return ast.get_source_segment(text, found) or ""


def short_names(patterns: tuple[Pattern, ...]) -> list[str]:
    """A variable name for each pattern: its last telling component, `q_proj` of `...self_attn.q_proj.weight`."""
    found: list[str] = []
    for pattern in patterns:
        words = [w for w in re.split(r"\.", pattern.fill(dict.fromkeys(pattern.holes, "0"))) if not w.isdecimal()]
        words = [w for w in words if w not in ("weight", "bias")] or words or ["tensor"]
        name = re.sub(r"\W", "_", words[-1])
        name = name if name.isidentifier() and not _is_keyword(name) else f"t_{name}"
        while name in found:
            name += "_"
        found.append(name)
    return found


def _is_keyword(name: str) -> bool:
    return keyword.iskeyword(name) or name in ("torch", "zip", "list", "t", "joined", "math")
