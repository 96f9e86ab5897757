"""Objects beside the weights as plain data: pickles of real classes, none of which is imported when they are read."""

from __future__ import annotations

import pickle
import sys
from collections import OrderedDict
from typing import Any

import pytest

from compiler.checkpoints.formats.pickle_machine import load
from compiler.checkpoints.formats.pickle_plain import LeftOut, Plain, shown

HERE = __name__


class Slotted:
    __slots__ = ("heads", "width")

    def __init__(self, heads: int, width: int) -> None:
        self.heads, self.width = heads, width


class Both(Slotted):
    """Attributes in slots and in a dictionary."""

    def __init__(self) -> None:
        super().__init__(2, 8)
        self.name = "both"


class Sizes(list[int]):
    pass


class Steps(list[int]):
    """A list with attributes."""


class Named(OrderedDict[str, int]):
    pass


class Counter:
    """Its state is no dictionary."""

    def __getstate__(self) -> int:
        return 12

    def __setstate__(self, state: int) -> None: ...


class Node:
    """What a config library keeps: content, and references to the parent that lead around."""

    def __init__(self, content: Any, parent: Any = None) -> None:
        self._content, self._parent = content, parent


class Leaf:
    def __init__(self, value: Any, parent: Any) -> None:
        self._val, self._parent = value, parent


def plain(value: Any) -> Any:
    tree, _ = load(pickle.dumps(value), "file")
    return Plain().of(tree)


def steps() -> Steps:
    made = Steps([1, 2])
    made.every = 5  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Slotted(4, 16), {"__class__": f"{HERE}.Slotted", "heads": 4, "width": 16}),
        (Both(), {"__class__": f"{HERE}.Both", "name": "both", "heads": 2, "width": 8}),
        (Sizes([3, 4]), [3, 4]),
        (steps(), {"__class__": f"{HERE}.Steps", "every": 5, "__values__": [1, 2]}),
        (Named(a=1), {"__class__": f"{HERE}.Named", "a": 1}),
        (Counter(), {"__class__": f"{HERE}.Counter", "__state__": 12}),
        ({(1, "a"): 2, Slotted: 3, b"x": 4}, {"(1, a)": 2, f"{HERE}.Slotted": 3, "<bytes>": 4}),
        ([b"12345", {7}], ["<5 bytes>", [7]]),
    ],
    ids=["slots", "slots and attributes", "list", "list and attributes", "dict", "state", "keys", "values"],
)
def test_an_object_as_plain_data(value: Any, expected: Any) -> None:
    assert plain(value) == expected


def test_nodes_of_omegaconf_are_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their parents, which contain them, are not followed."""
    monkeypatch.setitem(sys.modules, "omegaconf", sys.modules[HERE])
    for kind, module in ((Node, "omegaconf.dictconfig"), (Leaf, "omegaconf.nodes")):
        monkeypatch.setattr(kind, "__module__", module)
        monkeypatch.setitem(sys.modules, module, sys.modules[HERE])
    root = Node({})
    root._content = {"heads": Leaf(4, root), "inner": Node({"width": Leaf(8, root)}, root)}
    assert plain(root) == {"heads": 4, "inner": {"width": 8}}


def test_what_is_left_out() -> None:
    nested: list[Any] = []
    for _ in range(60):
        nested = [nested]
    with pytest.raises(LeftOut, match="too large or nested too deeply"):
        plain(nested)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.b", "a.b"),
        ("a\x1b[2Jb", r"'a\x1b[2Jb'"),
        (("model", 3), "(model, 3)"),
        (tuple("abcde"), "(a, b, c, d, ...)"),
        (("x\n",), r"('x\n')"),
        ("y" * 400, "y" * 300 + "..."),
        (b"z" * 400, repr(b"z" * 300)[:300] + "..."),
    ],
)
def test_a_name_in_a_message(name: object, text: str) -> None:
    assert shown(name) == text
