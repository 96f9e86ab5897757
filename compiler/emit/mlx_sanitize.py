"""Renders a Program as `sanitize(weights, args)` for mlx-lm, which calls such a function on the arrays of a checkpoint.

Arrays of mlx have numpy's methods; a rearrangement is a reshape, an exchange of axes and a reshape. Sizes come from the
model's `args`, whose fields are those of config.json. Source: mlx-lm 0.32, utils.load_model and Model.sanitize.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass

from compiler.diagnostics import Refusal
from compiler.emit.config_sizes import ConfigSizes
from compiler.emit.rows import FOLDED, INDEX, Row, heading, inexpressible, rows, without_groups
from compiler.language.expression import Expr
from compiler.language.name_pattern import Pattern
from compiler.ops.algebra import Op
from compiler.ops.arithmetic import Crop
from compiler.ops.structural import Concat, Rearrange, Split, Stack, Unstack
from compiler.program.program import Program
from compiler.render.python_source import inside, raw
from compiler.render.rule_function import short_names
from compiler.templating import environment, formatted

FORM = "sanitize of mlx-lm"
_TAKEN = ("sanitize", "taken", "unstacked", "re", "mx", "Any", "RENAMED", "DROPPED")


def render(program: Program) -> str:
    """The text of the module. Raises Refusal: `inexpressible-rule`, for every rule that the form cannot express."""
    found = rows(program, FORM, _problem)
    functions = Functions(ConfigSizes(program.spec, "args"))
    rules = [functions.rule(row) for row in found if row.ops]
    if missing := [*functions.sizes.parameters]:
        message = f"{FORM} takes sizes from config.json, which has no field for {', '.join(missing)}"
        raise Refusal([inexpressible(program.spec.name.span, message)])
    context = {
        **heading(program),
        "renamings": [
            (raw(_regex(row.sources[0])), raw(_written(row.targets[0])))
            for row in found
            if not row.ops and row.sources != row.targets
        ],
        "rules": rules,
        "functions": [(name, lines[0], lines[1:]) for lines, name in functions.made.items()],
        "dropped": [(raw(without_groups(p)), inside(reason)) for p, reason in program.ignored],
    }
    return formatted(environment().get_template("emit/mlx.py.jinja").render(**context))


def _problem(row: Row) -> str:
    """What the form lacks for a row; empty where it has all."""
    for n, op in enumerate(row.ops):
        if any(isinstance(size, Expr) and size.asked for size in op.sizes_used()):
            return "a size reads other tensors of the checkpoint"
        match op:
            case Stack() if n:
                return "an index can be folded in the first step only"
            case Unstack() if n + 1 < len(row.ops):
                return "an axis can become an index in the last step only"
            case Stack() | Unstack() | Concat() | Split() | Rearrange() | Crop():
                continue
            case _:
                return f"it has no operation for {op.word}"
    return ""


def _regex(name: str) -> str:
    """The regular expression of a name, with a group for each index."""
    return re.escape(name).replace(re.escape(INDEX), r"(\d+)").replace(re.escape(FOLDED), "0")


def _written(name: str) -> str:
    """The replacement that writes a name; a folded or opened index stays `*`."""
    for n in range(1, name.count(INDEX) + 1):
        name = name.replace(INDEX, rf"\{n}", 1)
    return name


@dataclass(frozen=True)
class Rule:
    """`pattern` finds the first source; `sources` and `targets` are lists of names, `function` the name of a function."""

    pattern: str
    sources: str
    targets: str
    function: str


class Functions:
    """The functions of the rules, named after them; rules with the same steps share one."""

    def __init__(self, sizes: ConfigSizes) -> None:
        self.sizes = sizes
        self.made: dict[tuple[str, ...], str] = {}  # parameters and lines -> name

    def rule(self, row: Row) -> Rule:
        """A rule, and the function that makes the list of its arrays."""
        sources, targets = (f"[{', '.join(raw(_written(n)) for n in side)}]" for side in (row.sources, row.targets))
        words = [self.words(row.rule.sources, len(row.sources)), self.words(row.rule.targets, len(row.targets))]
        lines = (", ".join(f"{word}: mx.array" for word in words[0]), *self.lines(row.ops, *words))
        name = re.sub(r"\W", "_", row.rule.name)
        while name in self.made.values() or name in _TAKEN or keyword.iskeyword(name):
            name += "_"
        return Rule(raw(_regex(row.sources[0])), sources, targets, self.made.setdefault(lines, name))

    def words(self, patterns: Sequence[Pattern], count: int) -> list[str]:
        return ["w"] if count == 1 else short_names(patterns, ["mx", "args", "w"])

    def lines(self, ops: Sequence[Op], slots: list[str], targets: list[str]) -> list[str]:
        lines: list[str] = []
        for op in ops:
            match op:
                case Stack(axis=axis):
                    lines += [f"{slot} = mx.stack({slot}, {axis})" for slot in slots]
                case Unstack(axis=axis):
                    return [*lines, f"return [{', '.join(f'unstacked({slot}, {axis})' for slot in slots)}]"]
                case Split(axis=axis, sizes=given, parts=parts):
                    first, slots = slots[0], targets if len(targets) == parts else [f"part_{n}" for n in range(parts)]
                    ends = [" + ".join(map(self.sizes.size, (given or ())[:n])) for n in range(1, parts)]
                    cut = f"[{', '.join(ends)}]" if given else str(parts)
                    lines.append(f"{', '.join(slots)} = mx.split({first}, {cut}, {axis})")
                case Concat(axis=axis):
                    lines.append(f"w = mx.concatenate([{', '.join(slots)}], {axis})")
                    slots = ["w"]
                case Crop(axis=axis, to=to):
                    lines.append(f"{slots[0]} = mx.split({slots[0]}, [{self.sizes.size(to)}], {axis})[0]")
                case Rearrange():
                    chosen = [slots[n] for n in op.only] or slots
                    lines.append(f"# {', '.join(chosen)}: {op}" if op.only else f"# {op}")
                    lines += [f"{slot} = {self.rearranged(op, slot)}" for slot in chosen]
        return [*lines, f"return [{', '.join(slots)}]"]

    def rearranged(self, op: Rearrange, w: str) -> str:
        """`w.reshape(heads, -1, 2, *w.shape[1:]).swapaxes(1, 2).reshape(-1, *w.shape[1:])` for the notation."""
        given = {name: _factor(self.sizes.size(size)) for name, size in op.sizes}
        lengths: dict[str, str] = {}
        for axis, group in enumerate(op.left):
            known = [given[name] for name in group if name in given]
            divided = f"{w}.shape[{axis}]" + "".join(f" // {size}" for size in known)
            lengths |= {name: given.get(name, divided) for name in group}
        names = [name for group in op.left for name in group]
        order = [names.index(name) for group in op.right for name in group]
        rest = [f"*{w}.shape[{len(op.left)} :]"] if op.rest else []
        inner = ", ".join([*(lengths[name] for name in names), *rest])
        outer = ", ".join([*(" * ".join(_factor(lengths[n]) for n in group) or "1" for group in op.right), *rest])
        moved = [n for n, at in enumerate(order) if n != at]
        text = w if len(names) == len(op.left) else f"{w}.reshape({inner})"
        if len(moved) == 2:
            text += f".swapaxes({moved[0]}, {moved[1]})"
        elif moved:
            others = f", *range({len(names)}, {w}.ndim + {len(names) - len(op.left)})" if op.rest else ""
            text += f".transpose({', '.join(map(str, order))}{others})"
        return text if len(names) == len(op.right) else f"{text}.reshape({outer})"


def _factor(code: str) -> str:
    """A size as a factor of a product."""
    return f"({code})" if " " in code else code
