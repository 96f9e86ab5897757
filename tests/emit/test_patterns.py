"""The patterns of a mapping: short where that is enough, longer where a short one would match another name."""

from __future__ import annotations

import pytest

from compiler.diagnostics import Refusal, Span
from compiler.emit.patterns import Renaming, patterns, reverse
from compiler.emit.rows import Row
from compiler.language.name_pattern_parser import parse_pattern
from compiler.program.program import Rule

HERE = Span("x.yaml", 3, 5)


def renamed(*names: tuple[str, str]) -> list[Row]:
    """Rows of renames; `#` is an index."""
    rows = []
    for source, target in names:
        pair = [(parse_pattern(name.replace("#", "{i}"), HERE),) for name in (source, target)]
        rows.append(Row(Rule("rename", "", pair[0], pair[1], (), None, HERE), (source,), (target,), ()))
    return rows


def texts(*names: tuple[str, str]) -> list[tuple[str, str]]:
    return [(entry.source, entry.target) for entry in patterns(renamed(*names)).renamings]


def test_what_both_sides_end_with_is_left_out() -> None:
    assert texts(("layers.#.wo.weight", "h.#.o_proj.weight"), ("layers.#.wo.bias", "h.#.o_proj.bias")) == [
        (r"^layers\.", "h."),
        (r"\.wo\.", ".o_proj."),
    ]


def test_a_pattern_grows_where_it_would_match_another_name() -> None:
    """`.norm.` is a part of another name, which stays as it is; the complete name is not."""
    found = texts(("h.#.norm.weight", "h.#.ln.weight"), ("h.#.attn.norm.weight", "h.#.attn.norm.weight"))
    assert found == [(r"^h\.(\d+)\.norm\.weight", r"h.\1.ln.weight")]


def test_a_pattern_grows_for_the_way_back_too() -> None:
    """Saving would take `.out.` of the second name for the result of the first."""
    found = texts(("h.#.o.weight", "h.#.out.weight"), ("h.#.mlp.out.weight", "h.#.mlp.out.weight"))
    assert found == [(r"^h\.(\d+)\.o\.weight", r"h.\1.out.weight")]


def test_two_prefixes_that_become_one_are_not_renamed_by_their_prefix() -> None:
    found = texts(("dense.#.w.weight", "h.#.mlp.weight"), ("sparse.#.w.weight", "h.#.moe.weight"))
    assert found == [
        (r"^dense\.(\d+)\.w\.weight", r"h.\1.mlp.weight"),
        (r"^sparse\.(\d+)\.w\.weight", r"h.\1.moe.weight"),
    ]


def test_exchanged_names_are_rejected() -> None:
    """Every renaming is tried on every name, so that the second would undo the first."""
    with pytest.raises(Refusal, match=r"x\.yaml:3:5: no pattern tells .* \[inexpressible-rule\]"):
        patterns(renamed(("h.#.a.weight", "h.#.b.weight"), ("h.#.b.weight", "h.#.a.weight")))


def test_reverse() -> None:
    assert reverse(Renaming(r"^h\.(\d+)\.o\.weight", r"l.\1.out.weight")) == (r"^l.(\d+).out.weight", r"h.\1.o.weight")
