"""What a rule does to its tensors, in a word: the page colours an edge by it, and labels it with the words of the ops."""

from __future__ import annotations

import math
from collections.abc import Sequence

from compiler.ops.algebra import Op
from compiler.ops.structural import Cast, Concat, Rearrange, Split, Stack, Unstack

# A rule is shown as the first of these that any of its ops is; as a copy if none is.
COMPUTE, STACK, SPLIT, PERMUTE, COPY = "compute", "stack", "split", "permute", "copy"
_KINDS: dict[type[Op], str] = {Split: SPLIT, Concat: SPLIT, Stack: STACK, Unstack: STACK, Rearrange: PERMUTE}


def effect(ops: Sequence[Op]) -> str:
    """`compute`: values change; `stack`: names become an axis, or an axis names; `split`: a tensor becomes several, or
    several one; `permute`: elements change places; `copy`: bytes are copied in their order."""
    kinds = {PERMUTE if _moves(op) else COPY for op in ops if isinstance(op, Rearrange)}
    kinds |= {_KINDS.get(type(op), COMPUTE) for op in ops if not isinstance(op, Rearrange)}
    return next((kind for kind in (COMPUTE, STACK, SPLIT, PERMUTE) if kind in kinds), COPY)


def label(ops: Sequence[Op]) -> str:
    """The words of the ops, each once: `permute`, `split`, `cast to float16`. A reshape counts only if it is alone."""
    words = list(dict.fromkeys(map(_word, ops)))
    return " · ".join([word for word in words if word != "reshape"] or words)


def repeated_name(ops: Sequence[Op], times: int, length: int) -> str:
    """The spec's name for the outermost of the axes that a `rearrange` makes of `length` rows, if it is `times` long: `head`
    of `(head two pair)`; else ``."""
    for op in ops:
        if isinstance(op, Rearrange):
            sizes = {name: size for name, size in op.sizes if isinstance(size, int)}
            first, *rest = op.right[0]
            if sizes.get(first, length // math.prod(sizes.get(name, 1) for name in rest)) == times:
                return first
    return ""


def _word(op: Op) -> str:
    if isinstance(op, Cast):
        return f"cast to {op.dtype}"
    if not isinstance(op, Rearrange):
        return op.word.replace("_", " ")
    if not _moves(op):
        return "reshape"
    axes = [name for group in op.left for name in group]
    plain = all(len(group) == 1 for group in (*op.left, *op.right))
    return "transpose" if plain and len(axes) == 2 and not op.rest else "permute"


def _moves(op: Rearrange) -> bool:
    """Whether it changes the order of elements, and not their grouping into axes alone."""
    return [name for group in op.left for name in group] != [name for group in op.right for name in group]
