"""An `Overview` as lines of text for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compiler.plan_report.overview import Line, Overview, OverviewSide

WIDTH = 100


def text(view: Overview, colour: bool) -> list[str]:
    """The plan in lines of at most 100 columns; longer names get longer lines."""

    def bold(words: str) -> str:
        return f"\033[1m{words}\033[0m" if colour else words

    lines = [bold(view.spec) + f": {view.summary}"]
    for line in view.lines:
        lines += ["", bold(line.rule) + _fitted(line.rule, _facts(line))]
        lines += [part for side in line.sources for part in _tensor("    ", side)]
        for n, side in enumerate(line.targets):
            lines += _tensor("    " if n else " -> ", side)
        lines += [f"    lossy: {reason}" for reason in line.lossy]
    lines += [""] * bool(view.ties or view.ignored)
    for alias, owner, equal in view.ties:
        lines += _wrapped(f"tied    {alias} = {owner}, written once; {equal}")
    for name, reason in view.ignored:
        lines += _wrapped(f"ignored {name}: {reason}")
    totals = view.totals
    lines += [""]
    if view.defaults:
        lines += _wrapped("defaults used: " + ", ".join(f"{name}={value!r}" for name, value in view.defaults.items()))
    lossy = [line.rule for line in view.lines if line.lossy]
    lines += _wrapped("lossy: " + (", ".join(dict.fromkeys(lossy)) if lossy else "nothing"))
    read = f"{totals['source_tensors']:,} tensors, {size(totals['source_bytes'])}"
    made = f"{totals['target_tensors']:,} tensors, {size(totals['target_bytes'])}"
    lines += [f"reads   {read}", f"writes  {made}: {view.target}"]
    return [*lines, f"disk    {size(totals['disk_bytes'])}", f"memory  about {size(totals['peak_bytes'])} at most"]


def _facts(line: Line) -> list[str]:
    moved = "computed" if line.moves < 0 else f"{line.moves} range{'s' * (line.moves != 1)}"
    if line.moves > 0 and not line.run:
        moved = "cast"
    times = [f"x {line.count}"] if line.count > 1 else []
    place = f"{line.file}:{line.line}" if line.line else line.file
    return [place, *times, size(line.nbytes), moved, *line.ops]


def _fitted(first: str, words: list[str]) -> str:
    """`words` after `first`, wrapped to the width."""
    lines, room = [""], WIDTH - len(first)
    for word in words:
        if len(lines[-1]) + len(word) + 2 > room and lines[-1].strip():
            lines.append("   ")
            room = WIDTH
        lines[-1] += "  " + word
    return "\n".join(lines)


def _wrapped(words: str) -> list[str]:
    import textwrap

    return textwrap.wrap(words, WIDTH, subsequent_indent="        ", break_long_words=False, break_on_hyphens=False)


def _tensor(lead: str, side: OverviewSide) -> list[str]:
    shape = f"[{', '.join(map(str, side.shape))}]"
    symbols = f"[{', '.join(side.symbols)}]"
    behind = f"{shape}{f' = {symbols}' * (symbols != shape)} {side.dtype}"
    if len(lead) + 46 + len(behind) <= WIDTH and len(side.name) <= 46:
        return [f"{lead}{side.name:46} {behind}"]
    if len(lead) + len(side.name) + 1 + len(behind) <= WIDTH:
        return [f"{lead}{side.name} {behind}"]
    return [lead + side.name, f"        {behind}"]


def size(count: int) -> str:
    """Bytes as text: `1.2 GB`."""
    value, units = float(count), ["bytes", "kB", "MB", "GB", "TB", "PB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{count:,} bytes" if units[0] == "bytes" else f"{value:.3g} {units[0]}"
