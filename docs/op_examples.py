"""What every op does to a small tensor, cell by cell: the content of the pictures of docs/ops.md.

An example is a rule as a spec writes it. The compiler reads its op. Where the op moves bytes, the byte layout says which
cell of a source each cell of the result is. Where it computes, its kernel runs, and runs again with one cell changed, which
shows what depends on that cell.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compiler.dtypes import ITEM_SIZES
from compiler.language.parser import load_spec
from compiler.layout.array import Array, LayoutAlgebra, source
from compiler.ops.algebra import Bundle, Op
from compiler.program.build import build_program
from compiler.program.program import Rule

CHANGE = 17  # added to a cell to see what depends on it; both halves of a byte change
QUIET = 7  # the colour of a cell without an origin
HEAD = "spec: 1\nname: picture\nsummary: a picture\nsource: {}\ntarget: {model: LlamaForCausalLM}\n"
Colour = Callable[[int, int], int]  # of the cell in this row and column


@dataclass(frozen=True)
class Source:
    """A source tensor. `numbers`: its values in C order, of `dtype`, for an op that computes."""

    shape: tuple[int, ...]
    colour: Colour
    numbers: Sequence[float] = ()
    dtype: str = "float32"


@dataclass(frozen=True)
class Example:
    """A rule, and the tensor of each name that it reads."""

    rule: str
    sources: Mapping[str, Source]

    @property
    def computes(self) -> bool:
        return any(one.numbers for one in self.sources.values())


@dataclass(frozen=True)
class Cell:
    text: str
    colour: int


@dataclass(frozen=True)
class Drawn:
    """A named tensor as cells in C order."""

    name: str
    shape: tuple[int, ...]
    cells: Sequence[Cell]


def _one(colour: int) -> Colour:
    return lambda row, column: colour


def _by_row(row: int, column: int) -> int:
    return 2 * row


def _neighbours(row: int, column: int) -> int:
    """Heads of four rows differ in colour, the two rows of a rotary pair in its strength."""
    return 2 * (row // 4) + row % 2


def _halves(row: int, column: int) -> int:
    return 2 * (row // 4) + row // 2 % 2


_RULE = "transform:\n- name: op\n  from: a.weight\n  to: b.weight\n  "
_FP8 = (1.0, 2.0, 4.0, 3.0, 2.0, 1.0, 3.0, 4.0)
_FP4 = (0x21, 0x43, 0x65, 0xA7) * 4
# Name of the picture, which begins with the word of its op -> what is drawn.
EXAMPLES = {
    "split": Example(
        "transform:\n- name: op\n  from: qkv.weight\n  to: [q.weight, k.weight, v.weight]\n  split: 0\n  sizes: [2, 1, 1]",
        {"qkv.weight": Source((4, 3), lambda row, column: (0, 0, 2, 4)[row])},
    ),
    "concat": Example(
        "transform:\n- name: op\n  from: [gate.weight, up.weight]\n  to: gate_up.weight\n  concat: 0",
        {"gate.weight": Source((2, 3), _one(0)), "up.weight": Source((2, 3), _one(2))},
    ),
    "copy": Example(
        "transform:\n- name: op\n  from: norm.weight\n  to: [norm_1.weight, norm_2.weight]\n  copy: 2",
        {"norm.weight": Source((4,), _one(0))},
    ),
    "stack": Example(
        "transform:\n- name: op\n  from: experts.{e}.weight\n  to: experts.weight\n  stack: e",
        {f"experts.{n}.weight": Source((2, 3), _one(2 * n)) for n in range(3)},
    ),
    "unstack": Example(
        "transform:\n- name: op\n  from: kv.weight\n  to: kv.{n}.weight\n  unstack: n\n  axis: 1",
        {"kv.weight": Source((3, 2), lambda row, column: 2 * column)},
    ),
    "rearrange": Example(
        _RULE + "rearrange: (group row) column -> row (group column)\n  sizes: {group: 2}",
        {"a.weight": Source((4, 2), lambda row, column: 2 * (row // 2))},
    ),
    "rearrange-unit": Example(_RULE + "rearrange: row column -> row 1 column", {"a.weight": Source((3, 2), _by_row)}),
    "rope_to_half": Example(_RULE + "rope_to_half: 2", {"a.weight": Source((8, 2), _neighbours)}),
    "rope_to_interleaved": Example(_RULE + "rope_to_interleaved: 2", {"a.weight": Source((8, 2), _halves)}),
    "transpose": Example(_RULE + "transpose: true", {"a.weight": Source((2, 3), _by_row)}),
    "interleave": Example(_RULE + "interleave: 2", {"a.weight": Source((6, 2), lambda row, column: 2 * (row // 3))}),
    "deinterleave": Example(_RULE + "deinterleave: 2", {"a.weight": Source((6, 2), lambda row, column: 2 * (row % 2))}),
    "cast": Example(_RULE + "cast: bfloat16", {"a.weight": Source((2,), _one(0), (3.14159265, 0.1))}),
    "pad": Example(_RULE + "pad: {from: 3, to: 5, fill: 0}", {"a.weight": Source((3, 3), _one(0), range(1, 10))}),
    "crop": Example(
        _RULE + "crop: {from: 5, to: 3}", {"a.weight": Source((5, 3), lambda row, column: 0 if row < 3 else QUIET)}
    ),
    "affine": Example(_RULE + "affine: {scale: 2, shift: 1}", {"a.weight": Source((2, 3), _by_row, range(1, 7))}),
    "create": Example(
        "create:\n  norm.bias: {like: norm.weight, shape: [4], fill: zeros}",
        {"norm.weight": Source((4,), _one(0), (1.5, 0.5, 2, 1))},
    ),
    "normalize": Example(_RULE + "normalize: 1", {"a.weight": Source((2, 2), _by_row, (3, 4, 6, 8))}),
    "sum": Example(_RULE + "sum: {parts: 2}", {"a.weight": Source((4,), _by_row, (1, 2, 10, 20))}),
    "dequantize-blocks": Example(
        "transform:\n- name: op\n  from: [a.weight, a.scale]\n  to: b.weight\n"
        "  dequantize: {format: blocks, block: [2, 2], dtype: float32}",
        {
            "a.weight": Source((2, 4), lambda row, column: 2 * (column // 2), _FP8, "float8_e4m3fn"),
            "a.scale": Source((1, 2), lambda row, column: 2 * column, (0.5, 10.0)),
        },
    ),
    "dequantize-mxfp4": Example(
        "transform:\n- name: op\n  from: [a.blocks, a.scales]\n  to: b.weight\n  dequantize: {format: mxfp4, dtype: float32}",
        {
            "a.blocks": Source((1, 16), lambda row, column: 2 * (column % 2), _FP4, "uint8"),
            "a.scales": Source((1,), _one(4), (128,), "uint8"),
        },
    ),
    "lora": Example(
        "transform:\n- name: op\n  from: [w.weight, w.lora.A.weight, w.lora.B.weight]\n  to: w.weight\n  lora: {rank: 1, scale: 1}",
        {
            "w.weight": Source((2, 3), _by_row, (1, 1, 1, 1, 1, 1)),
            "w.lora.A.weight": Source((1, 3), _one(QUIET), (1, 2, 3)),
            "w.lora.B.weight": Source((2, 1), _by_row, (10, 100)),
        },
    ),
}


@dataclass(frozen=True)
class ReadRule:
    """The rule of an example and its op, with the name of each source by slot and index."""

    rule: Rule
    op: Op
    slots: Sequence[Mapping[tuple[int, ...], str]]

    def apply(self, of: Callable[[str], Any], algebra: Any) -> Bundle[Any]:
        """What the op makes of the tensors `of` the names, in that algebra."""
        sources = tuple({key: of(name) for key, name in slot.items()} for slot in self.slots)
        return self.op.apply(Bundle(sources, self.rule.folded), algebra)


def read(example: Example) -> ReadRule:
    """The op of an example, as the compiler reads it."""
    program = build_program(load_spec("picture.yaml", f"{HEAD}{example.rule}\n"))
    (rule,) = (*program.rules, *program.created)
    ((op, _),) = rule.steps
    slots: list[dict[tuple[int, ...], str]] = [{} for _ in rule.sources if rule.kind != "create"]
    for name in example.sources if slots else ():
        slot, captures = next((n, c) for n, p in enumerate(rule.sources) if (c := p.match(name)) is not None)
        slots[slot][tuple(int(captures[hole]) for hole in rule.folded)] = name
    return ReadRule(rule, op.bind(lambda size, whole=True: size), slots)


def result(example: Example) -> tuple[list[Drawn], list[Drawn]]:
    """The tensors before and after the op of an example."""
    read_rule = read(example)
    before, made = (_computed if example.computes else _moved)(example, read_rule.apply)
    after = [
        Drawn(pattern.fill({hole: str(n) for hole, n in zip(made.holes, key, strict=True)}), *tensor)
        for pattern, slot in zip(read_rule.rule.targets, made.slots, strict=True)
        for key, tensor in slot.items()
    ]
    return before, after


def _coloured(example: Example) -> dict[str, list[int]]:
    """The colours of the cells of each source, in C order."""
    return {
        name: [
            one.colour(*divmod(n, one.shape[-1]) if len(one.shape) > 1 else (n, 0)) for n in range(math.prod(one.shape))
        ]
        for name, one in example.sources.items()
    }


def _moved(example: Example, after: Callable[..., Bundle[Any]]) -> tuple[list[Drawn], Bundle[Any]]:
    """A letter for each row of the sources and a digit for each column, and where the byte layout puts them."""
    colours, letters, cells = _coloured(example), itertools.count(ord("a")), {}
    for name, one in example.sources.items():
        width = one.shape[-1] if len(one.shape) > 1 else 1
        rows = [chr(next(letters)) for _ in range(math.prod(one.shape) // width)]
        texts = [f"{row}{n}" if width > 1 else row for row in rows for n in range(width)]
        cells[name] = [Cell(text, colour) for text, colour in zip(texts, colours[name], strict=True)]
    before = [Drawn(name, one.shape, cells[name]) for name, one in example.sources.items()]
    bundle = after(lambda name: source(name, "uint8", example.sources[name].shape), LayoutAlgebra())
    return before, bundle.map(lambda array: (array.shape, [cells[name][at] for name, at in origins(array)]))


def origins(array: Array) -> list[tuple[str, int]]:
    """The source, and the element of it, of each element of an array of bytes, in C order."""
    found: dict[tuple[int, ...], tuple[str, int]] = {}
    for piece in array.pieces:
        size = ITEM_SIZES[piece.types[0]]
        for counts in itertools.product(*(range(a.length) for axis in piece.axes for a in axis.atoms)):
            left, offset, place = iter(counts), piece.offset, []
            for axis in piece.axes:
                at = axis.origin
                for atom in axis.atoms:
                    count = next(left)
                    at, offset = at + count * atom.step, offset + count * atom.stride
                place.append(at)
            found[tuple(place)] = (piece.source, offset // size)
    return [found[place] for place in itertools.product(*map(range, array.shape))]


def _computed(example: Example, after: Callable[..., Bundle[Any]]) -> tuple[list[Drawn], Bundle[Any]]:
    """The numbers of the sources and those that the kernel makes of them. A result has the first colour among the cells
    that it depends on."""
    import torch

    from compiler.ops.kernels import TorchAlgebra

    tensors = {
        name: torch.tensor(list(one.numbers)).to(getattr(torch, one.dtype)).reshape(one.shape)
        for name, one in example.sources.items()
    }
    colours = _coloured(example)
    bundle = after(tensors.__getitem__, TorchAlgebra())
    numbers = bundle.map(lambda tensor: tensor.float().flatten().tolist())
    found = bundle.map(lambda tensor: [QUIET] * tensor.numel())
    for name, tensor in tensors.items():
        for place, colour in enumerate(colours[name]):
            flat = tensor.float().flatten()
            flat[place] += CHANGE
            changed = {**tensors, name: flat.to(tensor.dtype).reshape(tensor.shape)}
            others = after(changed.__getitem__, TorchAlgebra())
            for slot, was, now in zip(found.slots, numbers.slots, others.slots, strict=True):
                for key, old in slot.items():
                    values = now[key].float().flatten().tolist()
                    slot[key][:] = [
                        colour if mine == QUIET and a != b else mine
                        for mine, a, b in zip(old, was[key], values, strict=True)
                    ]
    made = [
        {
            key: (
                tuple(tensor.shape),
                [Cell(f"{x:.6g}", c) for x, c in zip(numbers.slots[n][key], found.slots[n][key], strict=True)],
            )
            for key, tensor in slot.items()
        }
        for n, slot in enumerate(bundle.slots)
    ]
    before = [
        Drawn(
            name, one.shape, [Cell(_written(x, one.dtype), c) for x, c in zip(one.numbers, colours[name], strict=True)]
        )
        for name, one in example.sources.items()
    ]
    return before, Bundle(tuple(made), bundle.holes)


def _written(number: float, dtype: str) -> str:
    return f"{int(number):02x}" if dtype == "uint8" else f"{number:.6g}"
