"""Ops as Python: an expression where one line is enough, else a function.

Takes the ops of a rule between two of its `stack` and `unstack` steps, which `rule_steps` prints as loops. Rules with the
same ops share one function, named after what it does.
"""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from compiler.language.expression import Expr
from compiler.language.name_pattern import Pattern
from compiler.ops import arithmetic, lossy, rearrange_notation, structural
from compiler.ops.algebra import Op, Size
from compiler.render.python_source import ExprPrinter

SUGAR = {
    rearrange_notation.ROPE_TO_HALF: "rope_to_half",
    rearrange_notation.ROPE_TO_INTERLEAVED: "rope_to_interleaved",
    rearrange_notation.INTERLEAVE: "interleave",
    rearrange_notation.DEINTERLEAVE: "deinterleave",
    rearrange_notation.TRANSPOSE: "transpose",
}
FEW = 3  # from so many variables on, a method is applied to all in one line
# The shapes that an op needs although torch accepts others: a condition over the tensors and values of the kernel.
_FITS = {
    "add_low_rank": "({1}.shape, {2}.shape) == (({3}, {0}.shape[1]), ({0}.shape[0], {3}))",
    "dequantize_blocks": "{0}.ndim > 1 and {1}.shape == (*{0}.shape[:-2], -(-{0}.shape[-2] // {2}), -(-{0}.shape[-1] // {3}))",
    "dequantize_mxfp4": "{0}.shape == (*{1}.shape, 16)",
    "pad": "{0}.shape[{1}] == {2}",
}


@dataclass(frozen=True)
class Function:
    """A function of the converter. `body` holds its lines."""

    name: str
    signature: str
    returns: str
    body: tuple[str, ...]


class Functions:
    """The functions of one converter, each printed once, and the kernels that they call."""

    def __init__(self, printer: ExprPrinter, reserved: frozenset[str]) -> None:
        self.printer = printer
        self.reserved = reserved
        self.made: dict[tuple[str, ...], Function] = {}
        self.kernels: set[str] = set()

    def call(self, ops: Sequence[Op], tensors: list[str], sources: list[str], targets: list[str], rule: str) -> str:
        """The code that applies `ops` to `tensors`, which are code. Parameters and results are named after `sources` and
        `targets`. The name of the rule is added to that of a function whose name is taken."""
        if code := self.inline(ops, tensors):
            return code
        plain = _Body(ops, [f"t{n}" for n in range(len(tensors))], [f"o{n}" for n in range(len(targets))], self.printer)
        neutral = plain.lines(lambda size, n: f"s{n}")
        if neutral not in self.made:
            words = ["w"] if len(tensors) == 1 else sources
            self.made[neutral] = self.function(_Body(ops, words, targets, self.printer), sources, rule)
        self.printer.helpers |= plain.helpers
        self.kernels |= plain.kernels
        return f"{self.made[neutral].name}({', '.join([*tensors, *plain.sizes])})"

    def function(self, body: _Body, words: list[str], rule: str) -> Function:
        lines = body.lines(body.named)
        name = _name(body.ops, words, body.targets)
        taken = {function.name for function in self.made.values()} | self.reserved
        if name in taken:
            name = f"{_name(body.ops, (), ())}_{rule}"
        while name in taken or keyword.iskeyword(name):
            name += "_"
        parameters = [f"{tensor}: Tensor" for tensor in body.tensors]
        parameters += [f"{size}: {'float' if real else 'int'}" for size, real in body.parameters]
        returns = "Tensor" if body.results == 1 else f"tuple[{', '.join(['Tensor'] * body.results)}]"
        return Function(name, ", ".join(parameters), returns, lines)

    def inline(self, ops: Sequence[Op], tensors: list[str]) -> str:
        """The code of a single op that needs no function; empty for anything else."""
        if not ops:
            return ", ".join(tensors)
        if len(ops) > 1:
            return ""
        match ops[0]:
            case structural.Concat():
                self.printer.helpers.add("concat")
                return concat(ops[0], ", ".join(tensors), self.printer.size)
            case arithmetic.Computed() if ops[0].kernel not in _FITS and ops[0].takes == len(tensors):
                self.kernels.add(ops[0].kernel)
                return f"{ops[0].kernel}({', '.join([*tensors, *values(ops[0], self.printer.size)])})"
            case structural.Rearrange(left=left, right=right) if not all(len(g) == 1 for g in (*left, *right)):
                return ""
            case structural.Rearrange() | structural.Cast() | structural.Split() | arithmetic.Crop() if (
                len(tensors) == 1
            ):
                return tensors[0] + method(ops[0], self.printer.size)
        return ""


class _Body:
    """The lines of a function. `sizes` is the code that a caller passes for sizes, `parameters` the names of the sizes
    and whether each may be a fraction."""

    def __init__(self, ops: Sequence[Op], tensors: list[str], targets: list[str], printer: ExprPrinter) -> None:
        self.ops, self.tensors, self.targets, self.printer = ops, tensors, targets, printer
        self.sizes: list[str] = []
        self.parameters: list[tuple[str, bool]] = []
        self.kernels: set[str] = set()
        self.helpers: set[str] = set()
        self.results = 0
        self.axes: dict[str, str] = {}  # code of a size -> the axis of a notation that has it

    def lines(self, name: Callable[[Size | float, int], str]) -> tuple[str, ...]:
        """The body. `name` returns the parameter for the nth size."""
        self.sizes, self.parameters, self.axes = [], [], {}
        lines: list[str] = []
        slots = list(self.tensors)

        def size(value: Any, real: bool = False) -> str:
            if not isinstance(value, Expr):
                return repr(value)
            code = self.printer(value)
            if code not in self.sizes:
                self.sizes.append(code)
                self.parameters.append((name(value, len(self.sizes)), real))
            return self.parameters[self.sizes.index(code)][0]

        for op in self.ops:
            if isinstance(op, structural.Rearrange):
                self.axes |= {self.printer(s): axis for axis, s in op.sizes if isinstance(s, Expr)}
                chosen = [slots[n] for n in op.only] or slots
                lines.append(f"# {', '.join(chosen)}: {op}" if op.only else f"# {op}")
                lines += _each(chosen, method(op, size))
            elif isinstance(op, structural.Split):
                last = all(
                    not isinstance(o, structural.Split | structural.Concat) for o in self.ops[self.ops.index(op) + 1 :]
                )
                made = (
                    self.targets if last and len(self.targets) == op.parts else [f"part_{n}" for n in range(op.parts)]
                )
                lines.append(f"{', '.join(made)} = {slots[0]}{method(op, size)}")
                slots = list(made)
            elif isinstance(op, structural.Concat):
                self.helpers.add("concat")
                lines.append(f"joined = {concat(op, ', '.join(slots), size)}")
                slots = ["joined"]
            elif isinstance(op, arithmetic.Computed):
                self.kernels.add(op.kernel)
                slots = self.computed(op, slots, lines, size)
            else:
                lines += _each(slots, method(op, size))
        self.results = len(slots)
        return (*_returned(lines, slots),)

    def computed(
        self, op: arithmetic.Computed, slots: list[str], lines: list[str], size: Callable[..., str]
    ) -> list[str]:
        """Append the calls of a kernel, which takes one slot or all. Returns the slots that come out."""
        passed = values(op, size)
        extra = {"add_low_rank": "rank", "pad": "of"}.get(op.kernel)
        checked = [size(getattr(op, extra))] if extra else passed
        groups = [[slot] for slot in slots] if op.takes == 1 else [slots]
        for group in groups:
            if op.kernel in _FITS:
                given = [*group, passed[0], *checked] if op.kernel == "pad" else [*group, *checked]
                lines.append(f"fits = {_FITS[op.kernel].format(*given)}")
                shapes = ", ".join(f"{{list({tensor}.shape)}}" for tensor in group)
                lines.append(f'require(fits, f"{op.word} does not fit the shapes {shapes}")')
            result = group[0] if op.takes == 1 else "result"
            lines.append(f"{result} = {op.kernel}({', '.join([*group, *passed])})")
        return slots if op.takes == 1 else ["result"]

    def named(self, size: Size | float, n: int) -> str:
        """The name of a parameter: the axis that has this size, else the name that the spec uses."""
        assert isinstance(size, Expr)
        axis = self.axes.get(self.printer(size), "")
        wanted = axis or (size.text if size.text.isidentifier() else f"size_{n}")
        taken = {*self.tensors, *self.targets, *(name for name, _ in self.parameters), "joined", "result", "torch"}
        while wanted in taken or keyword.iskeyword(wanted):
            wanted += "_"
        return wanted


def _each(slots: Sequence[str], call: str) -> list[str]:
    """The lines that apply a method to each of some variables."""
    if len(slots) < FEW:
        return [f"{slot} = {slot}{call}" for slot in slots]
    together = ", ".join(slots)
    return [f"{together} = (each{call} for each in ({together}))"]


def _returned(lines: list[str], slots: list[str]) -> list[str]:
    """The lines with a `return` at the end. The last assignment becomes the `return` where it makes all results."""
    together = f"{', '.join(slots)} = "
    if lines[-1].startswith(together) and " for each in " not in lines[-1]:
        return [*lines[:-1], f"return {lines[-1].removeprefix(together)}"]
    return [*lines, f"return {', '.join(slots)}"]


def method(op: Op, size: Callable[..., str]) -> str:
    """An op on one tensor, as method calls."""
    match op:
        case structural.Rearrange():
            return rearranged(op, size)
        case structural.Cast(dtype=dtype):
            return f".to(torch.{dtype})"
        case structural.Split(axis=axis, sizes=sizes) if sizes:
            return f".split([{', '.join(map(size, sizes))}], dim={axis})"
        case structural.Split(axis=axis, parts=parts):  # fails where the parts are not equal, unlike chunk
            return f".unflatten({axis}, ({parts}, -1)).unbind({axis if axis >= 0 else axis - 1})"
        case arithmetic.Crop(axis=axis, of=of, to=to):  # fails where the axis is not `of` long, unlike narrow
            return f".split([{size(to)}, {_rest(of, to, size)}], dim={axis})[0]"
    raise TypeError(op)


def _rest(of: Size, to: Size, size: Callable[..., str]) -> str:
    return f"{of - to}" if isinstance(of, int) and isinstance(to, int) else f"{size(of)} - {size(to)}"


def concat(op: structural.Concat, tensors: str, size: Callable[..., str]) -> str:
    """A call of the helper `concat`."""
    return f"concat([{tensors}], {', '.join([str(op.axis), *map(size, op.sizes or ())])})"


def values(op: arithmetic.Computed, size: Callable[..., str]) -> list[str]:
    """The values that a kernel takes after its tensors, as code."""
    if isinstance(op, lossy.Lora | arithmetic.Affine):
        return [size(value) if isinstance(value, Expr) else repr(value) for value in op.values]
    return [
        f'"{value}"' if isinstance(value, str) else size(value) if isinstance(value, Expr) else repr(value)
        for value in op.values
    ]


def rearranged(op: structural.Rearrange, size: Callable[..., str]) -> str:
    """`.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)` for the notation."""
    sizes = {name: size(s) for name, s in op.sizes}
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


def _name(ops: Sequence[Op], sources: Sequence[str], targets: Sequence[str]) -> str:
    """A name for what ops do: `rope_to_half`, `split_qkv`, `concat_gate_up`, `rearrange_c_attn`."""
    words = [SUGAR.get(str(op), op.word) if isinstance(op, structural.Rearrange) else op.word for op in ops]
    telling = next((word for word in ("split", "concat") if word in words), "")
    if telling:
        return "_".join([telling, *_together(targets if telling == "split" else sources)])
    return "_".join([*dict.fromkeys(words), *(sources if words == ["rearrange"] else ())])


def _together(names: Sequence[str]) -> list[str]:
    """`qkv` for q_proj, k_proj, v_proj; `gate`, `up` for gate_proj, up_proj."""
    stems = [re.sub(r"_proj$", "", name) for name in names]
    return ["".join(stems)] if stems and all(len(stem) == 1 for stem in stems) else stems


def short_names(patterns: Sequence[Pattern], taken: Sequence[str] = ()) -> list[str]:
    """A variable for each pattern: its last component besides weight and bias, `q_proj` of `self_attn.q_proj.weight`."""
    found: list[str] = []
    for pattern in patterns:
        words = [w for w in re.split(r"\.", pattern.fill(dict.fromkeys(pattern.holes, "0"))) if not w.isdecimal()]
        words = [w for w in words if w not in ("weight", "bias")] or words or ["tensor"]
        name = re.sub(r"\W", "_", words[-1])
        name = name if name.isidentifier() and not keyword.iskeyword(name) else f"t_{name}"
        while name in found or name in taken:
            name += "_"
        found.append(name)
    return found
