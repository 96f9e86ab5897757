"""Makes docs/images/qkv-light.svg and qkv-dark.svg: where the rows of a fused QKV matrix go, for grouped heads.

The ribbons are the byte ranges of a shipped spec's plan, made from the headers of a recorded checkpoint of
tests/data/oracles; nothing about the layout is written here.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from html import escape
from pathlib import Path

from compiler.executor.execute import arrange_group
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.layout.array import Array
from compiler.program.loading import load_program

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
SPEC, CASE = "internlm2_llama", ROOT / "tests/data/oracles/internlm2/grouped/source"
WIDTH, BAR, GAP, TOP, ROW = 760, 26, 26, 60, 4.0  # in pixels: the picture, a bar, between bars, above, a row
LEFT, RIGHT = 194, 540  # where the bars begin
FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"


@dataclass(frozen=True)
class Theme:
    """Colours: of the background, of text, of quieter text, and of each target's ribbons."""

    name: str
    paper: str
    ink: str
    quiet: str
    ribbons: tuple[str, ...]


THEMES = (
    Theme("light", "#ffffff", "#1f2328", "#59636e", ("#0969da", "#1a7f37", "#bc4c00")),
    Theme("dark", "#0d1117", "#f0f6fc", "#9198a1", ("#4493f8", "#3fb950", "#f0883e")),
)


@dataclass(frozen=True)
class Ribbon:
    """`count` rows that stay together: from `start` of the source to `to` of the target number `target`."""

    target: int
    start: int
    to: int
    count: int


def ribbons(array: Array, target: int, first: int, row: int) -> list[Ribbon]:
    """The runs of rows of one target. `first`: the source's byte offset; `row`: the bytes of one of its rows."""
    places: list[tuple[int, int]] = []  # (row of the target, row of the source)
    for piece in array.pieces:
        lattice = piece.axes[0]
        for counts in itertools.product(*(range(atom.length) for atom in lattice.atoms)):
            moved = list(zip(counts, lattice.atoms, strict=True))
            offset = piece.offset - first + sum(n * atom.stride for n, atom in moved)
            places.append((lattice.origin + sum(n * atom.step for n, atom in moved), offset // row))
    runs: list[Ribbon] = []
    for to, start in sorted(places):
        last = runs[-1] if runs else None
        if last and (to, start) == (last.to + last.count, last.start + last.count):
            runs[-1] = Ribbon(target, last.start, last.to, last.count + 1)
        else:
            runs.append(Ribbon(target, start, to, 1))
    return runs


def picture(theme: Theme) -> str:
    """The SVG."""
    prepared = prepare(load_program(SPEC), Request([CASE]))
    group = next(g for g in prepared.plan.groups if g.rule.name == "qkv")
    source = prepared.checkpoint.tensors[group.source_names[0]]
    rows = source.shape[0]
    row = source.nbytes // rows
    arrays = [array for slot in arrange_group(group, prepared.checkpoint).slots for array in slot.values()]
    head = prepared.plan.values["head_dim"]
    bars = list(itertools.accumulate((a.shape[0] * ROW + GAP for a in arrays), initial=float(TOP)))
    middle = TOP + (bars[-1] - GAP - TOP - rows * ROW) / 2
    height = int(bars[-1] - GAP + 34)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-labelledby="title">',
        f'<title id="title">{escape(_title(prepared.plan.values, rows))}</title>',
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="{theme.paper}"/>',
        f'<text x="{LEFT + BAR}" y="34" text-anchor="end" {_font(theme.ink, 15, bold=True)}>trainer: one matrix</text>',
        f'<text x="{RIGHT}" y="34" {_font(theme.ink, 15, bold=True)}>Transformers: three</text>',
    ]
    for number, array in enumerate(arrays):
        for run in ribbons(array, number, source.offset, row):
            lines += _ribbon(run, middle, bars[number], theme)
    lines += _heads(LEFT, middle, rows // head, head, theme)
    for number, array in enumerate(arrays):
        lines += _heads(RIGHT, bars[number], array.shape[0] // head, head, theme)
        text, centre = group.target_list[number], bars[number] + array.shape[0] * ROW / 2
        lines += _label(RIGHT + BAR + 14, centre, text.name.split(".")[-2] + ".weight", text.shape, "start", theme)
    lines += _label(LEFT - 14, middle + rows * ROW / 2, "wqkv.weight", source.shape, "end", theme)
    return "\n".join([*lines, "</svg>"]) + "\n"


def _title(values: dict[str, object], rows: int) -> str:
    heads, groups = values["num_attention_heads"], values["num_key_value_heads"]
    return (
        f"The {rows} rows of a fused QKV matrix with {heads} query heads and {groups} key and value heads: each group of query "
        "heads, its key head and its value head go to three matrices"
    )


def _font(colour: str, size: int, *, bold: bool = False, mono: bool = False) -> str:
    weight = ' font-weight="600"' * bold
    return f'font-family="{MONO if mono else FONT}" font-size="{size}" fill="{colour}"{weight}'


def _ribbon(run: Ribbon, left: float, right: float, theme: Theme) -> list[str]:
    a, b = left + run.start * ROW, right + run.to * ROW
    size = run.count * ROW
    colour = theme.ribbons[run.target % len(theme.ribbons)]
    begin, end = LEFT + BAR, RIGHT
    bend = (begin + end) / 2
    path = (
        f"M{begin} {a:g}C{bend:g} {a:g} {bend:g} {b:g} {end} {b:g}V{b + size:g}"
        f"C{bend:g} {b + size:g} {bend:g} {a + size:g} {begin} {a + size:g}Z"
    )
    return [
        f'<path d="{path}" fill="{colour}" fill-opacity="0.28"/>',
        f'<rect x="{LEFT}" y="{a:g}" width="{BAR}" height="{size:g}" fill="{colour}"/>',
        f'<rect x="{RIGHT}" y="{b:g}" width="{BAR}" height="{size:g}" fill="{colour}"/>',
    ]


def _heads(x: int, y: float, count: int, head: int, theme: Theme) -> list[str]:
    """The lines between the heads of a bar."""
    return [
        f'<path d="M{x} {y + n * head * ROW:g}h{BAR}" stroke="{theme.paper}" stroke-width="1.5"/>'
        for n in range(1, count)
    ]


def _label(x: float, y: float, name: str, shape: tuple[int, ...], anchor: str, theme: Theme) -> list[str]:
    size = " × ".join(map(str, shape))
    return [
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" {_font(theme.ink, 14, mono=True)}>{escape(name)}</text>',
        f'<text x="{x:g}" y="{y + 18:g}" text-anchor="{anchor}" {_font(theme.quiet, 13)}>{size}</text>',
    ]


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for one in THEMES:
        (IMAGES / f"qkv-{one.name}.svg").write_text(picture(one), encoding="utf-8")
