"""Makes docs/images/ops/*.svg: the examples of docs/op_examples.py, before and after their op.

A picture follows the reader's light or dark scheme.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from op_examples import EXAMPLES, Drawn, result

FOLDER = Path(__file__).parent / "images" / "ops"
CELL, ROW, GAP, TITLE, ARROW = 24, 22, 18, 20, 44  # in pixels
LETTER = 8  # the width of a letter
MOST = 8  # columns that are drawn

STYLE = """<style>
text{font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;text-anchor:middle;fill:#1f2328}
.n{text-anchor:start}.q{fill:#59636e}.p{fill:#fff}.a{stroke:#59636e;fill:none}
.c0{fill:#a8cdfb}.c1{fill:#ddeeff}.c2{fill:#a3d9ae}.c3{fill:#dcf5e1}.c4{fill:#fbc69a}.c5{fill:#feecdc}.c6{fill:#e3c8f5}.c7{fill:#e6e9ed}
@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.q{fill:#9198a1}.p{fill:#0d1117}.a{stroke:#9198a1}
.c0{fill:#1f4f8f}.c1{fill:#14294a}.c2{fill:#1d6430}.c3{fill:#12331d}.c4{fill:#8a4513}.c5{fill:#42240e}.c6{fill:#5e3a7a}.c7{fill:#30363d}}
</style>"""


def picture(word: str) -> str:
    """The SVG of an example."""
    before, after = result(EXAMPLES[word])
    longest = max(len(cell.text) for drawn in (*before, *after) for cell in drawn.cells)
    cell = max(CELL, LETTER * longest + 8)
    sizes = [[_size(drawn, cell) for drawn in side] for side in (before, after)]
    widths = [max(width for width, _ in side) for side in sizes]
    heights = [sum(height for _, height in side) + GAP * (len(side) - 1) for side in sizes]
    width, height = GAP * 2 + sum(widths) + ARROW, GAP * 2 + max(heights)
    lines = []
    for side, left, tall in zip((before, after), (GAP, GAP + widths[0] + ARROW), heights, strict=True):
        top = GAP + (max(heights) - tall) // 2
        for drawn in side:
            lines += _tensor(drawn, left, top, cell)
            top += _size(drawn, cell)[1] + GAP
    x, y = GAP + widths[0] + 10, GAP + (max(heights) + TITLE) // 2
    arrow = f'<path class="a" d="M{x} {y}h{ARROW - 20}m-6-5l6 5-6 5"/>'
    top = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
    title = f"<title>{escape(alt(word))}</title>"
    paper = f'<rect class="p" width="{width}" height="{height}" rx="8"/>'
    return "\n".join([top, title, STYLE, paper, *lines, arrow, "</svg>"]) + "\n"


def alt(word: str) -> str:
    """What a picture shows, in words."""
    before, after = result(EXAMPLES[word])

    def side(tensors: Sequence[Drawn]) -> str:
        return ", ".join(f"{drawn.name} [{', '.join(map(str, drawn.shape))}]" for drawn in tensors)

    return f"{word}: {side(before)} becomes {side(after)}"


def _planes(drawn: Drawn) -> tuple[int, int, int]:
    """How many matrices a tensor is drawn as, their rows and columns. A vector is one row."""
    rows, columns = (1, *drawn.shape)[-2:]
    return math.prod(drawn.shape[:-2]), rows, columns


def _size(drawn: Drawn, cell: int) -> tuple[int, int]:
    planes, rows, columns = _planes(drawn)
    drawn_columns = min(columns, MOST + 1)
    width = planes * drawn_columns * cell + (planes - 1) * GAP
    return max(width, LETTER * len(_label(drawn))), TITLE + rows * ROW


def _label(drawn: Drawn) -> str:
    return f"{drawn.name} {' × '.join(map(str, drawn.shape))}"


def _tensor(drawn: Drawn, left: int, top: int, cell: int) -> Iterator[str]:
    planes, rows, columns = _planes(drawn)
    shown = columns if columns <= MOST + 1 else MOST
    size = " × ".join(map(str, drawn.shape))
    yield f'<text class="n" x="{left}" y="{top + 11}">{escape(drawn.name)} <tspan class="q">{size}</tspan></text>'
    boxes: dict[int, str] = {}
    texts: list[str] = []
    for plane, row in itertools.product(range(planes), range(rows)):
        y = top + TITLE + row * ROW
        for column in range(shown):
            x = left + plane * (shown * cell + GAP) + column * cell
            one = drawn.cells[(plane * rows + row) * columns + column]
            boxes[one.colour] = boxes.get(one.colour, "") + f"M{x} {y}h{cell - 2}v{ROW - 2}h-{cell - 2}z"
            texts.append(f'<text x="{x + cell // 2 - 1}" y="{y + 14}">{one.text}</text>')
        if shown < columns:
            texts.append(f'<text class="q" x="{left + shown * cell + cell // 2}" y="{y + 14}">…</text>')
    for colour, path in sorted(boxes.items()):
        yield f'<path class="c{colour}" d="{path}"/>'
    yield "".join(texts)


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for stale in FOLDER.glob("*.svg"):
        stale.unlink()
    for example in EXAMPLES:
        (FOLDER / f"{example}.svg").write_text(picture(example), encoding="utf-8")
