"""The loops of a converter: each finds the tensors of one rule by their names and yields what the rule makes of them.

Takes a `Rule`, returns finished lines; the template only lays them out.
"""

from __future__ import annotations

import re
from typing import Any

from compiler.arithmetic import Full
from compiler.functions import Function, short_names
from compiler.names import Hole, Pattern
from compiler.printing import ExprPrinter, f_string, raw
from compiler.program import Rule


def applied(rule: Rule, function: Function, printer: ExprPrinter) -> dict[str, Any]:
    """The loop that applies one rule."""
    first = rule.sources[0]
    trigger = "".join(
        f"(?P<{p.name}>{p.regex})"
        if isinstance(p, Hole) and p.name not in rule.folded
        else "0"
        if isinstance(p, Hole)
        else _raw_part(p)
        for p in first.parts
    )
    lines: list[str] = []
    passed: list[str] = []
    for n, (pattern, (variable, _)) in enumerate(zip(rule.sources, function.parameters, strict=True)):
        name = f_string(pattern, lambda h: h.name if h.name in rule.folded else _index(h))
        if rule.folded:
            hole = rule.folded[0]
            if n == 0:
                lines.append(f"{hole}_count = sum(1 for _ in matches(source, {_counting(pattern, rule)}))")
            lines.append(f"{variable} = [{name} for {hole} in range({hole}_count)]")
            lines.append(f"claimed.update({variable})")
            passed.append(f"[source[name] for name in {variable}]")
        elif n == 0:
            lines.append("claimed.add(match[0])")
            passed.append("source[match[0]]")
        else:
            lines.append(f"{variable} = {name}")
            lines.append(f"claimed.add({variable})")
            passed.append(f"source[{variable}]")
    call = f"{function.name}({', '.join([*passed, *(value for _, value in function.sizes)])})"
    opened = [h for h in rule.targets[0].holes if h not in first.holes]
    writes = [f_string(p, lambda h: h.name if h.name in opened else _index(h)) for p in rule.targets]
    if len(writes) == 1 and not opened:
        lines.append(f"yield {writes[0]}, {call}")
    else:
        results = [f"result_{n}" for n in range(len(writes))] if len(writes) > 1 else ["result"]
        results = list(short_names(rule.targets)) if len(set(short_names(rule.targets))) == len(writes) else results
        lines.append(f"{', '.join(results)} = {call}")
        for name, result in zip(writes, results, strict=True):
            if opened:
                lines += [f"for {opened[0]}, tensor in enumerate({result}):", f"    yield {name}, tensor"]
            else:
                lines.append(f"yield {name}, {result}")
    return {
        "name": rule.name,
        "pattern": raw(trigger),
        "lines": lines,
        "condition": printer(rule.when) if rule.when else "",
    }


def created(rule: Rule, printer: ExprPrinter) -> dict[str, Any]:
    """The loop that makes the constants of one rule of `create`."""
    step = rule.steps[0][0]
    assert isinstance(step, Full)
    name, like = f_string(rule.targets[0], _index), "source[match[0]]"
    if step.shape is None:
        made = f"torch.full_like({like}, {step.fill})"
    else:
        made = f"{like}.new_full(({', '.join(map(printer.size, step.shape))},), {step.fill})"
    return {
        "name": "what the source lacks",
        "pattern": raw(rule.sources[0].regex),
        "lines": [f"yield {name}, {made}"],
        "condition": printer(rule.when) if rule.when else "",
    }


def _counting(pattern: Pattern, rule: Rule) -> str:
    """An f-string of the regular expression of one application's tensors."""
    text = ""
    for part in pattern.parts:
        if isinstance(part, Hole):
            text += r"\d+" if part.name in rule.folded else "{" + _index(part) + "}"
        else:
            text += _raw_part(part).replace("{", "{{").replace("}", "}}")
    return f'rf"{text}"'


def _raw_part(part: Any) -> str:
    """The regular expression of a part that is no hole."""
    return re.escape(part) if isinstance(part, str) else Pattern("", (part,), None).regex  # type: ignore[arg-type]


def _index(hole: Hole) -> str:
    return (
        f"int(match['{hole.name}']) {'+' if hole.shift > 0 else '-'} {abs(hole.shift)}"
        if hole.shift
        else f"match['{hole.name}']"
    )
