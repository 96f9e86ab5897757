"""A `Difference` as lines of text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from compiler.plan_report.difference import Difference, FieldChange, Making
from compiler.plan_report.text import WIDTH, Paint, plain, wrapped


def difference_text(found: Difference, paint: Paint = plain, width: int = WIDTH) -> list[str]:
    """The difference in lines: `-` is before, `+` is after."""
    lines = [paint("heading", f"{found.after} compared with {found.before}")]
    if found.classes[0] != found.classes[1]:
        lines += ["", f"target class: {found.classes[0]} -> {found.classes[1]}"]
    for change in found.changes:
        some = f"  x {change.count}" if change.count > 1 else ""
        only = "" if change.before and change.after else f"  only {found.after if change.after else found.before}"
        lines += ["", paint("heading", change.target) + some + only]
        for sign, role, making in (("-", "error", change.before), ("+", "note", change.after)):
            if making is not None:
                lines += [paint(role, line) for line in _making(sign, making, width)]
    for sign, role, names in (("-", "error", found.unread), ("+", "note", found.newly_read)):
        who = found.before if sign == "-" else found.after
        lines += [""] * bool(names)
        lines += [line for name in names for line in wrapped(f"{paint(role, sign)} read by {who} only: {name}", width)]
    if found.config:
        lines += ["", paint("heading", "config.json")]
    for one in found.config:
        lines += _field(one, paint, width)
    return [*lines, "", *wrapped(_sum(found), width)]


def _making(sign: str, making: Making, width: int) -> Iterator[str]:
    shape = f"[{', '.join(map(str, making.shape))}] {making.dtype}"
    yield from wrapped(f"  {sign} {making.rule}  {making.place}  {shape}", width)
    yield from wrapped(f"      from {', '.join(making.sources) or 'no tensor'}", width)
    if making.steps:
        yield from wrapped(f"      {'; '.join(making.steps)}", width)


def _field(one: FieldChange, paint: Paint, width: int) -> list[str]:
    """One line if it fits, else three."""
    before, after = (f"{found[0]} ({found[1]})" if found else "not written" for found in (one.before, one.after))
    if len(one.field) + len(before) + len(after) + 10 <= width:
        return [f"    {one.field}: {paint('error', before)} -> {paint('note', after)}"]
    sides = [
        paint(role, line)
        for role, text in (("error", f"- {before}"), ("note", f"+ {after}"))
        for line in wrapped(f"      {text}", width)
    ]
    return [f"    {one.field}:", *sides]


def _sum(found: Difference) -> str:
    changed = sum(change.count for change in found.changes)
    if not changed and not found.config and found.classes[0] == found.classes[1]:
        return (
            f"no difference: {found.equal_tensors:,} tensors and {found.equal_fields} fields of config.json are equal"
        )
    return (
        f"{changed:,} tensors differ, {found.equal_tensors:,} are equal; {len(found.config)} fields of config.json "
        f"differ, {found.equal_fields} are equal"
    )
