"""Other row orders of the projections in one module, to see whether their rotary layout is the one at fault.

A rotary embedding rotates pairs of channels. Some models store the two channels of a pair side by side ("interleaved"),
Transformers stores first channels and second channels in two halves of a head ("half").
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from compiler.plan.plan import Plan
from compiler.program.program import Rule
from compiler.verify.job import RowOrder

MOST = 64  # of one plan
_ROPE_TO = {"half": "rope_to_half", "interleaved": "rope_to_interleaved"}


@dataclass(frozen=True)
class LayoutChange:
    """The projections `modules` of every layer with their rows in the layout `to`, and the rules that write them."""

    modules: tuple[str, ...]
    rows: tuple[RowOrder, ...]
    rules: tuple[Rule, ...]
    to: str

    @property
    def op(self) -> str:
        """The op of the language that reorders rows like this."""
        return _ROPE_TO[self.to]


def layout_changes(plan: Plan, config: Mapping[str, Any]) -> list[LayoutChange]:
    """One projection, or two of one module, in each layout."""
    projections: dict[str, dict[str, list[tuple[str, Rule]]]] = {}  # module -> projection -> its tensors
    heads = list(dict.fromkeys(_heads(config)))
    sizes: dict[str, tuple[int, int]] = {}
    for group in plan.groups:
        for target in group.target_list:
            module, _, kind = re.sub(r"\d+", "{}", target.name).rpartition(".")
            parent, _, projection = module.rpartition(".")
            size = next((each for each in heads if target.shape and target.shape[0] in each.rows), None)
            if size and (len(target.shape) == 2 or kind == "bias"):
                projections.setdefault(parent, {}).setdefault(projection, []).append((target.name, group.rule))
                sizes[target.name] = (size.head_dim, size.rotary_dim)
    found = []
    for parts in projections.values():
        for names in (*((name,) for name in parts), *combinations(parts, 2)):
            tensors = [pair for name in names for pair in parts[name]]
            rules = tuple(dict.fromkeys(rule for _, rule in tensors))
            for to in _ROPE_TO:
                rows = tuple(RowOrder(tensor, *sizes[tensor], to) for tensor, _ in tensors)
                found.append(LayoutChange(names, rows, rules, to))
    return found[:MOST]


@dataclass(frozen=True)
class _Heads:
    """The rows of a head, of the part of it that is rotated, and of all query or all key heads."""

    head_dim: int
    rotary_dim: int
    rows: tuple[int, ...]


def _heads(config: Mapping[str, Any]) -> Iterator[_Heads]:
    """The heads of this config and of those in it."""
    heads = next((n for key in ("num_attention_heads", "n_head", "num_heads") if (n := config.get(key))), 0)
    width = next((n for key in ("hidden_size", "n_embd", "d_model") if (n := config.get(key))), 0)
    size = config.get("head_dim") or (width // heads if isinstance(heads, int) and heads else 0)
    rope = config.get("rope_parameters") or {}
    share = config.get("partial_rotary_factor") or config.get("rotary_pct") or rope.get("partial_rotary_factor") or 1.0
    if isinstance(size, int) and size > 1 and heads:
        keys = config.get("num_key_value_heads") or heads
        yield _Heads(size, int(size * share) // 2 * 2, (heads * size, keys * size))
    for value in config.values():
        if isinstance(value, Mapping):
            yield from _heads(value)
