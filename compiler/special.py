"""What a file of ranks (tiktoken) leaves out, as a spec says it under `tokenizer`.

Takes the part of a document, which the schema has judged; returns `Special`. With the places evaluated, it tells the
special tokens in the order of their ids. Refuses places that no token has or two have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compiler import document
from compiler.diagnostics import Span, refuse
from compiler.document import Node, Scalar
from compiler.exprs import Expr


@dataclass(frozen=True)
class Special:
    """The `pattern` that cuts a text into words, a Unicode form to `normalize` to or "", and `count` special tokens whose
    ids follow the ranks: those `named` with their places, the `others` numbered by `{n}`. `begins`: a text, with bos."""

    pattern: str
    normalize: str
    begins: bool
    count: int
    named: Mapping[str, Expr]
    others: str
    span: Span


def read_special(node: Node | None) -> Special | None:
    """What stands under `tokenizer`."""
    if not isinstance(node, document.Mapping):
        return None
    said, special = document.plain(node), node.get("special")
    assert isinstance(said, dict)
    assert isinstance(special, document.Mapping)
    named = special.get("named")
    places = named.entries if isinstance(named, document.Mapping) else ()
    return Special(
        pattern=said["pattern"],
        normalize=said.get("normalize", ""),
        begins=said.get("begins", False),
        count=said["special"]["count"],
        named={key.text: Expr(place.text.strip(), place.span) for key, place in places if isinstance(place, Scalar)},
        others=said["special"]["others"],
        span=node.span,
    )


def special_names(left_out: Special, places: Mapping[str, Any]) -> list[str]:
    """The special tokens in the order of their ids, which follow the ranks. Raises Refusal."""
    taken: dict[int, str] = {}
    for text, place in places.items():
        span = left_out.named[text].span
        if place is None:
            continue
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < left_out.count:
            refuse(span, f"the place of {text} is {place!r}, not one of 0 to {left_out.count - 1}", "wrong-value")
        if place in taken:
            refuse(span, f"{text} and {taken[place]} have one place", "wrong-value")
        taken[place] = text
    others = (left_out.others.replace("{n}", str(n)) for n in range(left_out.count))
    found = [taken[n] if n in taken else next(others) for n in range(left_out.count)]
    if len(set(found)) < len(found):
        refuse(left_out.span, "two special tokens have one text", "wrong-value", "{n} counts the others")
    return found
