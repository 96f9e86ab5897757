"""An `Overview` as lines of text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from compiler.diagnostics import printable

if TYPE_CHECKING:
    from compiler.plan.config_table import ConfigRow
    from compiler.plan_report.overview import Line, Overview, OverviewSide

WIDTH = 100
MOST_VALUE = 32  # columns of a value in the table of config.json; a longer one gets lines of its own
_OF_CONFIG = {"guess": "doubt", "default": "doubt", "released model": "note", "spec": "dim"}  # kind of origin -> role

Paint = Callable[[str, str], str]  # of a role and a text: the text in the colour of the role


def plain(role: str, text: str) -> str:
    return text


def text(view: Overview, paint: Paint = plain, width: int = WIDTH) -> list[str]:
    """The plan in lines of at most `width` columns; longer names get longer lines."""
    lines = [f"{paint('heading', view.spec)}: {view.summary}"]
    for line in view.lines:
        lines += ["", paint("heading", line.rule) + _fitted(line.rule, _facts(line), width)]
        lines += [part for side in line.sources for part in _tensor("    ", side, width)]
        for n, side in enumerate(line.targets):
            lines += _tensor("    " if n else " -> ", side, width)
        lines += [f"    {paint('doubt', 'lossy:')} {reason}" for reason in line.lossy]
    lines += [""] * bool(view.ties or view.ignored)
    for alias, owner, equal in view.ties:
        lines += wrapped(f"tied    {alias} = {owner}, written once; {equal}", width)
    for name, reason in view.ignored:
        lines += wrapped(f"ignored {name}: {reason}", width)
    lines += config_lines(view.config_table, paint, width)
    totals = view.totals
    lines += [""]
    in_table = {row.argument or row.field for row in view.config_table if row.kind in ("default", "guess")}
    if others := [f"{name}={value!r}" for name, value in view.defaults.items() if name not in in_table]:
        lines += wrapped(f"other defaults used: {', '.join(others)}", width)
    lossy = [line.rule for line in view.lines if line.lossy]
    lines += wrapped("lossy: " + (", ".join(dict.fromkeys(lossy)) if lossy else "nothing"), width)
    read = f"{totals['source_tensors']:,} tensors, {size(totals['source_bytes'])}"
    made = f"{totals['target_tensors']:,} tensors, {size(totals['target_bytes'])}"
    lines += [f"reads   {read}", f"writes  {made}: {view.target}"]
    return [*lines, f"disk    {size(totals['disk_bytes'])}", f"memory  about {size(totals['peak_bytes'])} at most"]


def config_lines(rows: Sequence[ConfigRow], paint: Paint = plain, width: int = WIDTH) -> list[str]:
    """The table of config.json: a line for each field, with its value and origin."""
    if not rows:
        return []
    shown = [row for row in rows if not row.repeats]
    first = max(len(row.field) for row in shown)
    second = max([len(row.text) for row in shown if len(row.text) <= MOST_VALUE], default=8)
    lines = ["", paint("heading", "config.json")]
    for row in shown:
        value = printable(row.text)
        room = max(20, width - first - second - 8)
        named = row.argument and row.argument != row.field and row.kind in ("default", "guess")
        origin, *more = wrapped(printable(row.origin + f" of {row.argument}" * bool(named)), room, "") or [""]
        role = _OF_CONFIG.get(row.kind, "message")
        # The value of a mapping is below, so that the columns stay.
        lines.append(
            f"    {row.field:{first}}  {value if len(value) <= second else '':{second}}  {paint(role, origin)}"
        )
        lines += [" " * (first + second + 8) + paint(role, part) for part in more]
        lines += wrapped(f"        {value}", width) if len(value) > second else []
    if repeated := [row.field for row in rows if row.repeats]:
        lines += wrapped(f"    and, for other versions of Transformers: {', '.join(repeated)}", width)
    return lines


def _facts(line: Line) -> list[str]:
    moved = "computed" if line.moves < 0 else f"{line.moves} range{'s' * (line.moves != 1)}"
    if line.moves > 0 and not line.run:
        moved = "cast"
    times = [f"x {line.count}"] if line.count > 1 else []
    place = f"{line.file}:{line.line}" if line.line else line.file
    return [place, *times, size(line.nbytes), moved, *line.ops]


def _fitted(first: str, words: list[str], width: int) -> str:
    """`words` after `first`, wrapped to the width."""
    lines, room = [""], width - len(first)
    for word in words:
        if len(lines[-1]) + len(word) + 2 > room and lines[-1].strip():
            lines.append("   ")
            room = width
        lines[-1] += "  " + word
    return "\n".join(lines)


def wrapped(words: str, width: int, indent: str = "        ") -> list[str]:
    return textwrap.wrap(words, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _tensor(lead: str, side: OverviewSide, width: int) -> list[str]:
    shape = f"[{', '.join(map(str, side.shape))}]"
    symbols = f"[{', '.join(side.symbols)}]"
    behind = f"{shape}{f' = {symbols}' * (symbols != shape)} {side.dtype}"
    if len(lead) + 46 + len(behind) <= width and len(side.name) <= 46:
        return [f"{lead}{side.name:46} {behind}"]
    if len(lead) + len(side.name) + 1 + len(behind) <= width:
        return [f"{lead}{side.name} {behind}"]
    return [lead + side.name, f"        {behind}"]


def size(count: int) -> str:
    """Bytes as text: `1.2 GB`."""
    value, units = float(count), ["bytes", "kB", "MB", "GB", "TB", "PB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{count:,} bytes" if units[0] == "bytes" else f"{value:.3g} {units[0]}"
