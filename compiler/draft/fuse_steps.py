"""Steps that split a fused tensor into its parts, or concatenate parts into one, found from shapes and names.

`split_steps` and `concat_steps` take the name families of the fused tensor and of its parts and return a `Fused`: the
steps, the size of each part, and the open question. Queries, keys and values may be stored one after the other or
interleaved by groups; shapes do not reveal which.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from compiler.draft.reshape_steps import TRANSPOSE, Step, reshape
from compiler.draft.sizes import Sizes
from compiler.draft.tensor_roles import NameFamily
from compiler.ops.rearrange_notation import ROPE_TO_HALF

BLOCKS = "shapes do not reveal whether queries, keys and values are stored one after the other (as here) or interleaved by heads"
GROUPS = "shapes do not reveal whether queries, keys and values are interleaved by groups (as here) or stored one after the other"
ORDER = "shapes do not reveal which part comes first: if the order is another, exchange the names in this rule"
IN_GROUPS: tuple[Step, ...] = (
    {"rearrange": "(group row) ... -> group row ...", "sizes": {"group": "num_key_value_heads"}},
    {"split": 1, "sizes": ["num_attention_heads // num_key_value_heads * head_dim", "head_dim", "head_dim"]},
    {"rearrange": "group row ... -> (group row) ...", "sizes": {"group": "num_key_value_heads"}},
)
IN_HEADS: tuple[Step, ...] = (  # the same, of a class whose queries, keys and values all have as many heads
    {"rearrange": "(group row) ... -> group row ...", "sizes": {"group": "num_attention_heads"}},
    {"split": 1},
    {"rearrange": "group row ... -> (group row) ...", "sizes": {"group": "num_attention_heads"}},
)
PAIRED: Step = {"rearrange": ROPE_TO_HALF, "sizes": {"pair": "head_dim // 2", "two": 2}, "only": [0, 1]}
_INTERLEAVED = re.compile(r"wqkv|linear_qkv|query_key_value")


@dataclass(frozen=True)
class Fused:
    """Steps of a split or a concatenation. `name_sizes`: the size of each part, written after its name."""

    steps: tuple[Step, ...]
    name_sizes: tuple[str, ...] = ()
    question: str = ""
    certain: bool = False


def split_steps(whole: NameFamily, parts: Sequence[NameFamily], sizes: Sizes) -> Fused | None:
    """Steps from one source tensor to several target tensors, or None."""
    if whole.role.endswith("qkv") and len(parts) == 1:
        return _reorder_fused(whole, parts[0])
    inner = _oriented(whole, parts)
    if inner is None:
        return None
    shape, after, flipped = inner
    rows = [part.shape[1] if flipped else part.shape[0] for part in parts]
    if shape[0] != sum(rows):
        return _split_stacked(whole, parts)
    if whole.role.endswith("qkv"):
        return _split_attention(whole, rows, after, sizes)
    return Fused((*after, {"split": 0}), question=ORDER)


def _oriented(whole: NameFamily, parts: Sequence[NameFamily]) -> tuple[tuple[int, ...], tuple[Step, ...], bool] | None:
    """The shape that is split along its first axis, the steps that produce it, and whether the parts are transposed.

    None where the parts have another number of indices than the fused tensor."""
    if any(part.level != whole.level or len(part.shape) != len(whole.shape) for part in parts):
        return (whole.shape, (), False) if all(p.level == whole.level + 1 for p in parts) else None
    if len(whole.shape) == 2 and whole.shape[1] != parts[0].shape[1] and whole.shape[0] == parts[0].shape[1]:
        return whole.shape[::-1], (TRANSPOSE,), False
    return whole.shape, (), False


def _split_stacked(whole: NameFamily, parts: Sequence[NameFamily]) -> Fused | None:
    """Gate and up of all experts in one tensor: [experts, 2 inner, width] or [experts, width, 2 inner]."""
    if len(whole.shape) != 3 or len(parts) != 2 or any(len(p.shape) != 2 or p.level != whole.level + 1 for p in parts):
        return None
    high, wide = parts[0].shape
    if whole.shape[1:] == (2 * high, wide):
        return Fused(({"split": 1}, {"unstack": "e"}), question=ORDER)
    if whole.shape[1:] == (wide, 2 * high):
        return Fused(({"rearrange": "e a b -> e b a"}, {"split": 1}, {"unstack": "e"}), question=ORDER)
    return None


def _split_attention(whole: NameFamily, rows: Sequence[int], before: tuple[Step, ...], sizes: Sizes) -> Fused:
    width = sizes["head_dim"]
    usual = list(rows) == [sizes["num_attention_heads"] * width, *[sizes["num_key_value_heads"] * width] * 2]
    if not usual and len(set(rows)) == 1:
        return Fused((*before, {"split": 0}), question=BLOCKS)
    if not _INTERLEAVED.search(whole.text):
        return Fused((*before, {"split": 0}), ("q_rows", "kv_rows", "kv_rows"), BLOCKS)
    return Fused((*before, *IN_GROUPS), question=GROUPS)


def _reorder_fused(whole: NameFamily, target: NameFamily) -> Fused | None:
    """Steps between two fused tensors whose parts may be interleaved differently."""
    found = reshape(whole, target)
    if found is None:
        return None
    ours, theirs = (bool(_INTERLEAVED.search(family.text)) for family in (whole, target))
    if ours == theirs or found.steps:
        return Fused(found.steps, question=GROUPS if ours else BLOCKS)
    text = "(three head row) ... -> (head three row) ..." if theirs else "(head three row) ... -> (three head row) ..."
    step: Step = {"rearrange": text, "sizes": {"three": "3", "head": "num_attention_heads"}}
    return Fused((step,), question=BLOCKS)


def concat_steps(parts: Sequence[NameFamily], whole: NameFamily, sizes: Sizes) -> Fused | None:
    """Steps from several source tensors to one target tensor, or None."""
    if all(part.level == whole.level + 1 for part in parts):
        return _stack_halves(parts, whole)
    if any(part.level != whole.level for part in parts):
        return None
    shapes = [part.shape for part in parts]
    rest = whole.shape[1:]
    if (
        all(len(s) == len(whole.shape) and s[1:] == rest for s in shapes)
        and sum(s[0] for s in shapes) == whole.shape[0]
    ):
        attention = whole.role.endswith("qkv")
        name_sizes = ("q_rows", "kv_rows", "kv_rows") if attention else ()
        return Fused(({"concat": 0},), name_sizes, BLOCKS if attention else ORDER)
    # Parts that must be reshaped first, all by the same step.
    for axis in range(len(whole.shape)):
        if whole.shape[axis] % len(parts):
            continue
        length = whole.shape[axis] // len(parts)
        shape = (*whole.shape[:axis], length, *whole.shape[axis + 1 :])
        # One step reshapes all of them, so all have the same number of heads.
        found = [reshape(replace(part, role="q"), part.with_shape("", shape)) for part in parts]
        if all(f is not None and f.steps == found[0].steps for f in found if found[0]) and found[0] is not None:
            return Fused((*found[0].steps, {"concat": axis}), question=BLOCKS if whole.role.endswith("qkv") else ORDER)
    return None


def _stack_halves(parts: Sequence[NameFamily], whole: NameFamily) -> Fused | None:
    """Gate and up of each expert into one tensor of all: [experts, 2 inner, width]."""
    high, *rest = parts[0].shape
    same = all(part.shape == parts[0].shape for part in parts)
    if same and whole.shape == (len(parts[0].numbers[-1]), len(parts) * high, *rest):
        return Fused(({"stack": "e"}, {"concat": 1}), question=ORDER)
    return None
