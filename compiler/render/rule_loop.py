"""The loops of a converter: each finds the tensors of one rule by their names and yields what the rule makes of them.

Takes a `Rule`, returns finished lines; the template only lays them out.
"""

from __future__ import annotations

import re
from typing import Any

from compiler.diagnostics import refuse
from compiler.language.name_pattern import Hole, Pattern, options
from compiler.ops.arithmetic import Full
from compiler.ops.structural import Unstack
from compiler.program.program import Rule
from compiler.render.python_source import ExprPrinter, f_string, inside, quoted, raw
from compiler.render.rule_function import Function, short_names


def applied(rule: Rule, function: Function, printer: ExprPrinter) -> dict[str, Any]:
    """The loop that applies one rule. Refuses a rule that folds two indices, or opens two but not as its first steps."""
    first = rule.sources[0]
    opened = [op.hole for op, _ in rule.steps if isinstance(op, Unstack)]
    for holes, verb, most in ((rule.folded, "folds", 1), (opened, "opens", 2 if _opens_first(rule) else 1)):
        if len(holes) > most:
            message = f"{rule.name} {verb} {' and '.join(f'{{{h}}}' for h in holes)}; a step {verb} one index"
            refuse(rule.span, message, "op-mismatch")
    trigger = "".join(
        f"(?P<{p.name}>{p.regex})"
        if isinstance(p, Hole) and p.name not in rule.folded
        else str(p.shift)
        if isinstance(p, Hole)
        else _raw_part(p)
        for p in first.parts
    )
    lines = _found(first, rule.folded)
    passed: list[str] = []
    for n, (pattern, (variable, _)) in enumerate(zip(rule.sources, function.parameters, strict=True)):
        name = f_string(pattern, lambda h: _number(h) if h.name in rule.folded else _index(h, first))
        if rule.folded:
            hole = rule.folded[0]
            if n == 0:
                lines.append(f"{hole}_count = sum(1 for _ in matches(source, {_counting(pattern, rule)}))")
            lines.append(f"every_{variable} = [{name} for {hole} in range({hole}_count)]")
            lines.append(f"claimed.update(every_{variable})")
            passed.append(f"[source[name] for name in every_{variable}]")
        elif n == 0:
            lines.append("claimed.add(match[0])")
            passed.append("source[match[0]]")
        else:
            lines.append(f"{variable} = {name}")
            lines.append(f"claimed.add({variable})")
            passed.append(f"source[{variable}]")
    call = f"{function.name}({', '.join([*passed, *(value for _, value in function.sizes)])})"
    writes = [f_string(p, lambda h: _number(h) if h.name in opened else _index(h, first)) for p in rule.targets]
    if len(writes) == 1 and not opened:
        lines.append(f"yield {writes[0]}, {call}")
    else:
        results = [f"result_{n}" for n in range(len(writes))] if len(writes) > 1 else ["result"]
        results = list(short_names(rule.targets)) if len(set(short_names(rule.targets))) == len(writes) else results
        lines.append(f"{', '.join(results)} = {call}")
        for name, result in zip(writes, results, strict=True):
            if len(opened) == 2:
                axis = rule.steps[0][0].axis  # type: ignore[attr-defined]
                lines.append(f"{opened[1]}_count = len({result}) // source.shapes[match[0]][{axis}]")
                lines.append(f"for n, tensor in enumerate({result}):")
                lines.append(f"    {', '.join(opened)} = divmod(n, {opened[1]}_count)")
                lines.append(f"    yield {name}, tensor")
            elif opened:
                lines += [f"for {opened[0]}, tensor in enumerate({result}):", f"    yield {name}, tensor"]
            else:
                lines.append(f"yield {name}, {result}")
    return {
        "name": rule.name,
        "pattern": raw(trigger),
        "lines": lines,
        "condition": printer(rule.when) if rule.when else "",
    }


def _opens_first(rule: Rule) -> bool:
    """Whether a rule of one source opens its indices before all else."""
    first = [isinstance(op, Unstack) for op, _ in rule.steps[:2]]
    return first == [True, True] and len(rule.sources) == 1


def moved(rule: Rule, printer: ExprPrinter) -> dict[str, Any]:
    """The loop of a rename that no table of names can say."""
    source, target = rule.sources[0], rule.targets[0]
    name = f_string(target, lambda h: _index(h, source))
    return {
        "name": f"{source} -> {target}" if f"{source}{target}".isprintable() else "a name that no comment can hold",
        "pattern": raw(source.regex),
        "lines": [*_found(source), "claimed.add(match[0])", f"yield {name}, source[match[0]]"],
        "condition": printer(rule.when) if rule.when else "",
    }


def tabular(rule: Rule) -> bool:
    """Whether a rename fits a table: its indices are the same numbers on both sides, its names can be listed."""
    source, target = rule.sources[0], rule.targets[0]
    return not _open_ended(source) and all(h.shift == source.holes[n].shift == 0 for n, h in target.holes.items())


def written(pattern: Pattern, source: Pattern) -> str:
    """The name of `pattern` for a match of `source`, as code."""
    return quoted(str(pattern)) if pattern.is_name else f_string(pattern, lambda h: _index(h, source))


def created(rule: Rule, printer: ExprPrinter) -> dict[str, Any]:
    """The loop that makes the constants of one rule of `create`."""
    step = rule.steps[0][0]
    assert isinstance(step, Full)
    source = rule.sources[0]
    name, like = f_string(rule.targets[0], lambda h: _index(h, source)), "source[match[0]]"
    if step.shape is None:
        made = f"torch.full_like({like}, {step.fill})"
    else:
        made = f"{like}.new_full(({', '.join(map(printer.size, step.shape))},), {step.fill})"
    return {
        "name": "what the source lacks",
        "pattern": raw(rule.sources[0].regex),
        "lines": [*_found(source), f"yield {name}, {made}"],
        "condition": printer(rule.when) if rule.when else "",
    }


def _counting(pattern: Pattern, rule: Rule) -> str:
    """An f-string of the regular expression of one application's tensors."""
    texts = [p if isinstance(p, Hole) else _raw_part(p) for p in pattern.parts]
    plain = all(isinstance(t, Hole) or ('"' not in t and t.isprintable()) for t in texts)
    written = ""
    for text in texts:
        if isinstance(text, str):
            written += (text if plain else inside(text)).replace("{", "{{").replace("}", "}}")
        elif text.name in rule.folded:
            written += r"\d+" if plain else r"\\d+"
        else:
            written += "{" + _index(text, rule.sources[0]) + "}"
    return f'{"rf" if plain else "f"}"{written}"'


def _raw_part(part: Any) -> str:
    """The regular expression of a part that is no hole."""
    return re.escape(part) if isinstance(part, str) else Pattern("", (part,), None).regex  # type: ignore[arg-type]


def _found(source: Pattern, folded: tuple[str, ...] = ()) -> list[str]:
    """What to do first with a match: an index that counts from n on cannot be less, nor is it compared from 0 on."""
    least = {n: hole.shift for n, hole in source.holes.items() if hole.shift and n not in folded}
    if not least:
        return [] if _open_ended(source) else ["indexed.append(match)"]
    return [line for n, shift in least.items() for line in (f"if int(match['{n}']) < {shift}:", "    continue")]


def _open_ended(pattern: Pattern) -> bool:
    """Whether a pattern has names that nothing can list, so that none of them can be missed."""
    rest = (p for p in pattern.parts if not isinstance(p, str) and not (isinstance(p, Hole) and p.is_index))
    return any(not isinstance(part, Hole) or options(part) is None for part in rest)


def _index(hole: Hole, source: Pattern) -> str:
    """The number of a hole, from what a match of the source has in its place."""
    shift = hole.shift - source.holes[hole.name].shift
    return _plus(f"int(match['{hole.name}'])", shift) if shift else f"match['{hole.name}']"


def _number(hole: Hole) -> str:
    """The number of a hole whose variable counts from 0 on."""
    return _plus(hole.name, hole.shift) if hole.shift else hole.name


def _plus(code: str, shift: int) -> str:
    return f"{code} {'+' if shift > 0 else '-'} {abs(shift)}"
