"""Parses einops' notation, `(head pair two) ... -> (head two pair) ...`, to a `Rearrange`.

Friendly names such as `rope_to_half` and `transpose` are fixed texts of this notation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from compiler.diagnostics import Span, listed, nearest, refuse
from compiler.ops.algebra import Op, Size
from compiler.ops.structural import Rearrange
from compiler.ops.written_step import StepReader, WrittenStep

# The pairs of a rotary embedding in each head: from interleaved (x0 y0 x1 y1 ...) to halves (x0 x1 ... y0 y1 ...).
ROPE_TO_HALF = "(head pair two) ... -> (head two pair) ..."
ROPE_TO_INTERLEAVED = "(head two pair) ... -> (head pair two) ..."
TRANSPOSE = "a b -> b a"
INTERLEAVE = "(part row) ... -> (row part) ..."
DEINTERLEAVE = "(row part) ... -> (part row) ..."

_TOKEN = re.compile(r"\s*(?:(\.\.\.)|([A-Za-z_]\w*)|([()])|(1)(?!\w))")


def parse_rearrange(text: str, sizes: Mapping[str, Size], span: Span) -> Rearrange:
    """Read einops' notation (https://einops.rocks/api/rearrange). Raises Refusal with the place of the mistake."""
    left_text, arrow, right_text = text.partition("->")
    if not arrow:
        refuse(span, "a rearrangement needs two sides with '->' between them", "rearrange-syntax", "as in: a b -> b a")
    left, left_rest = _side(left_text, span)
    right, right_rest = _side(right_text, span.within(len(left_text) + 2, max(1, len(right_text))))
    left_names = [name for group in left for name in group]
    right_names = [name for group in right for name in group]
    for names in (left_names, right_names):
        for name in names:
            if names.count(name) > 1:
                refuse(span, f"the axis {name!r} is given twice on one side", "rearrange-syntax")
    if only := sorted(set(left_names) ^ set(right_names)):
        refuse(
            span,
            f"the axis {only[0]!r} is on one side only",
            "rearrange-syntax",
            "both sides must have the same axes",
        )
    if left_rest != right_rest:
        refuse(span, "'...' is on one side only", "rearrange-syntax")
    if strange := sorted(set(sizes) - set(left_names)):
        refuse(
            span,
            f"{strange[0]!r} has a size but is not an axis",
            "rearrange-syntax",
            f"the axes are {', '.join(left_names)}",
        )
    for side, groups in (("left", left), ("right", right)):
        for group in groups:
            unknown = [name for name in group if name not in sizes]
            if len(unknown) > 1:
                refuse(
                    span,
                    f"the {side} side needs the size of {unknown[0]!r} or of {unknown[1]!r}",
                    "missing-size",
                    "both sides need known sizes, so that the step can be reversed",
                )
    return Rearrange(left, right, left_rest, tuple(sizes.items()))


def _side(text: str, span: Span) -> tuple[tuple[tuple[str, ...], ...], bool]:
    groups: list[tuple[str, ...]] = []
    inside: list[str] | None = None
    rest, at = False, 0
    while at < len(text.rstrip()):
        token = _TOKEN.match(text, at)
        if token is None:
            refuse(
                span.within(at),
                f"{text[at:].strip()[:10]!r} is not expected here",
                "rearrange-syntax",
                "axes are names, grouped by ( )",
            )
        at = token.end()
        dots, name, bracket, one = token.groups()
        if rest:
            refuse(span, "'...' must be last", "rearrange-syntax", "name the axes that follow it")
        if dots and inside is None:
            rest = True
        elif name:
            groups.append((name,)) if inside is None else inside.append(name)
        elif one and inside is None:
            groups.append(())
        elif bracket == "(" and inside is None:
            inside = []
        elif bracket == ")" and inside is not None:
            groups.append(tuple(inside))
            inside = None
        else:
            refuse(span, f"{token[0].strip()!r} is not expected here", "rearrange-syntax")
    if inside is not None:
        refuse(span, "'(' is not closed", "rearrange-syntax")
    return tuple(groups), rest


# ---------------------------------------------------------------------------------------------------------------------
# The words of the language that mean a rearrangement


def _read_rearrange(written: WrittenStep) -> Op:
    text, sizes = str(written.value), written.axis_sizes()
    axes = set(re.findall(r"[A-Za-z_]\w*", text))
    for key in sizes:
        if key.text not in axes:
            hint = nearest(key.text, axes) or f"the axes are {listed(sorted(axes))}"
            refuse(key.span, f"{key.text!r} is not an axis of {text}", "rearrange-syntax", hint)
    return _only(written, parse_rearrange(text, {key.text: size for key, size in sizes.items()}, written.node.span))


def _named(notation: str, part: str = "", **sizes: Size) -> StepReader:
    """A friendly name of a rearrangement; the value of its word is the size of the axis `part`."""

    def read(written: WrittenStep) -> Op:
        given = {part: written.size()} if part else {}
        return _only(
            written, parse_rearrange(notation, {**given, **sizes}, written.node.span if part else written.span)
        )

    return StepReader(read, ("only",))


def _only(written: WrittenStep, op: Rearrange) -> Rearrange:
    return replace(op, only=tuple(written.modifier("only", ())))


READERS = {
    "rearrange": StepReader(_read_rearrange, ("sizes", "only")),
    "rope_to_half": _named(ROPE_TO_HALF, "head", two=2),
    "rope_to_interleaved": _named(ROPE_TO_INTERLEAVED, "head", two=2),
    "transpose": _named(TRANSPOSE),
    "interleave": _named(INTERLEAVE, "part"),
    "deinterleave": _named(DEINTERLEAVE, "part"),
}
