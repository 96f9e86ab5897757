"""Steps as a spec writes them, `split: 0` with its sizes beside it, to ops.

The schema has checked their form. Raises Refusal for sizes that do not parse and keys of another op.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from compiler.diagnostics import listed, nearest, refuse
from compiler.language import document
from compiler.language.expression import parse_expr
from compiler.language.spec import Named, Step, Transform
from compiler.ops import arithmetic, lossy, rearrange_notation, structural
from compiler.ops.algebra import Op, Size

_SUGAR = ("rope_to_half", "rope_to_interleaved", "transpose", "interleave", "deinterleave")


def op_of(step: Step, transform: Transform, slots: int) -> Op:
    """The op that a step of `transform` writes, where `slots` tensors arrive. Raises Refusal."""
    values = step.values
    value = document.plain(values[step.word])
    extra = {
        "split": ("sizes", "parts"),
        "concat": ("sizes",),
        "stack": ("axis",),
        "unstack": ("axis",),
        "rearrange": ("sizes", "only"),
        **dict.fromkeys(_SUGAR, ("only",)),
    }
    for word in ("sizes", "parts", "axis", "only"):
        if word in values and word not in extra.get(step.word, ()):
            refuse(values[word].span, f"{step.word} takes no {word!r}", "unknown-key")
    axis = document.plain(values["axis"]) if "axis" in values else 0
    match step.word, value:
        case "split", int(along):
            sizes = _sizes(values, transform.targets)
            parts = (
                len(sizes)
                if sizes
                else document.plain(values["parts"])
                if "parts" in values
                else len(transform.targets)
            )
            return structural.Split(along, parts, sizes)  # type: ignore[arg-type]
        case "concat", int(along):
            sizes = _sizes(values, transform.sources)
            if sizes and len(sizes) != slots:
                refuse(step.span, f"concat joins {slots} tensors but has {len(sizes)} sizes", "op-mismatch")
            return structural.Concat(along, slots, sizes)
        case "stack", str(hole):
            return structural.Stack(hole, axis)  # type: ignore[arg-type]
        case "unstack", str(hole):
            return structural.Unstack(hole, axis)  # type: ignore[arg-type]
        case "cast", str(dtype):
            return structural.Cast(dtype)
        case "normalize", int(along):
            return lossy.Normalize(along)
        case "pad" | "crop" | "affine" | "dequantize" | "lora", _:
            return _computed(step)
    return _rearrangement(step)


def _rearrangement(step: Step) -> Op:
    """A rearrangement as it is written, or by the friendly name of one."""
    node = step.values[step.word]
    assert isinstance(node, document.Scalar)
    match step.word:
        case "rearrange":
            text = str(node.value)
            found = rearrange_notation.parse_rearrange(text, _axes(text, step.values.get("sizes")), node.span)
        case "rope_to_half" | "rope_to_interleaved":
            text = (
                rearrange_notation.ROPE_TO_HALF
                if step.word == "rope_to_half"
                else rearrange_notation.ROPE_TO_INTERLEAVED
            )
            found = rearrange_notation.parse_rearrange(text, {"head": size_of(node), "two": 2}, node.span)
        case "interleave" | "deinterleave":
            text = rearrange_notation.INTERLEAVE if step.word == "interleave" else rearrange_notation.DEINTERLEAVE
            found = rearrange_notation.parse_rearrange(text, {"part": size_of(node)}, step.span)
        case "transpose":
            found = rearrange_notation.parse_rearrange(rearrange_notation.TRANSPOSE, {}, step.span)
        case _:
            raise AssertionError(f"the schema lets {step.word} through")
    only = step.values.get("only")
    return replace(found, only=tuple(document.plain(only))) if only else found  # type: ignore[arg-type]


def _axes(text: str, sizes: document.Node | None) -> dict[str, Size]:
    """The sizes of axes by name. Raises Refusal for an axis that the notation lacks."""
    entries = sizes.entries if isinstance(sizes, document.Mapping) else ()
    axes = set(re.findall(r"[A-Za-z_]\w*", text))
    for key, _ in entries:
        if key.text not in axes:
            hint = nearest(key.text, axes) or f"the axes are {listed(sorted(axes))}"
            refuse(key.span, f"{key.text!r} is not an axis of {text}", "rearrange-syntax", hint)
    return {key.text: size_of(value) for key, value in entries}


def _computed(step: Step) -> Op:
    """An op whose numbers are given as a mapping."""
    node = step.values[step.word]
    assert isinstance(node, document.Mapping)
    given = {key.text: value for key, value in node.entries}
    plain = {name: document.plain(value) for name, value in given.items()}
    dtype, axis = str(plain.get("dtype", "bfloat16")), plain.get("axis", 0)
    match step.word, plain.get("format"):
        case "pad", _:
            fill = float(plain["fill"])  # type: ignore[arg-type]
            return arithmetic.Pad(axis, size_of(given["from"]), size_of(given["to"]), fill)  # type: ignore[arg-type]
        case "crop", _:
            return arithmetic.Crop(axis, size_of(given["from"]), size_of(given["to"]))  # type: ignore[arg-type]
        case "affine", _:
            return arithmetic.Affine(_real(given.get("scale"), 1.0), _real(given.get("shift"), 0.0))
        case "lora", _:
            return lossy.Lora(size_of(given["rank"]), _real(given.get("scale"), 1.0))
        case "dequantize", "mxfp4":
            return lossy.DequantizeMxfp4(dtype)
    block = given.get("block")
    if not isinstance(block, document.Sequence):
        refuse(node.span, "dequantize by blocks needs the block size", "missing-size", "block: [128, 128]")
    rows, columns = map(size_of, block.items)
    return lossy.DequantizeBlocks(rows, columns, dtype)


def _real(node: document.Node | None, default: float) -> arithmetic.Real:
    if node is None:
        return default
    assert isinstance(node, document.Scalar)
    return float(node.value) if isinstance(node.value, int | float) else parse_expr(node.text.strip(), node.span)


def size_of(node: document.Node) -> Size:
    assert isinstance(node, document.Scalar)
    return node.value if isinstance(node.value, int) else parse_expr(node.text.strip(), node.span)


def _sizes(values: Mapping[str, document.Node], beside: tuple[Named, ...]) -> tuple[Size, ...] | None:
    node = values.get("sizes")
    if isinstance(node, document.Sequence):
        return tuple(size_of(item) for item in node.items)
    found = [n.size for n in beside if n.size is not None]
    if not found:
        return None
    return tuple(int(e.text) if e.text.isdecimal() else parse_expr(e.text, e.span) for e in found)
