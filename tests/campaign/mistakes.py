"""Plausible mistakes in a spec: each is what a person gets wrong who reads the original's code, and most still load.

`mistakes` lists them for one spec, `chosen` takes a sample with every kind in it. A mistake is a kind, the place in the
spec, the change, and the changed spec as text (JSON, which is YAML).
"""

from __future__ import annotations

import ast
import copy
import difflib
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from support.spec_mutations import Pairs, slip, text, tree

from compiler.language import document
from compiler.ops.step_readers import READERS

Path = tuple[Any, ...]
Edit = Callable[[Pairs], None]
DIM = re.compile(r"dim\(\"[^\"]+\", ([0-9])\)")
# Words that people take for each other in names of one shape.
TWINS = (("q_", "k_"), ("query", "key"), ("gate", "up"), ("w1", "w3"), ("k_", "v_"))
ACTIVATIONS = {"silu": "gelu", "gelu": "silu", "gelu_pytorch_tanh": "gelu", "quick_gelu": "gelu", "relu": "gelu"}
# Keys of a transform or of a step that are not an op.
NO_OP = {"name", "from", "to", "when", "steps", "sizes", "parts", "axis", "only"}
NEAR = 3  # fields of the class that are tried in place of another


@dataclass(frozen=True)
class Mistake:
    """`subject`: the field or the expression that was dropped, where the kind is one that drops a check."""

    kind: str
    place: str
    change: str
    text: str = field(repr=False)
    subject: str = ""


@dataclass(frozen=True)
class _Draft:
    kind: str
    path: Path
    change: str
    edit: Edit
    subject: str = ""


@dataclass(frozen=True)
class Known:
    """What the mistakes depend on beside the text: `shapes` of each target pattern in each example (None where a pattern
    is not used), the names of the spec's sizes, and the config fields that the class has."""

    shapes: Mapping[str, Sequence[Any]]
    sizes: Sequence[str]
    fields: Sequence[str]


def chosen(path: str, known: Known, dice: random.Random, count: int) -> list[Mistake]:
    """A sample: one of each kind in turn, until there are `count` (0: all of them)."""
    root = tree(document.read_document(path))
    kinds: dict[str, list[_Draft]] = {}
    for draft in _drafts(root, known, dice):
        kinds.setdefault(draft.kind, []).append(draft)
    for drafts in kinds.values():
        dice.shuffle(drafts)
    order = sorted(kinds)
    dice.shuffle(order)
    taken: list[_Draft] = []
    while any(kinds.values()) and (count == 0 or len(taken) < count):
        for kind in order:
            if kinds[kind] and (count == 0 or len(taken) < count):
                taken.append(kinds[kind].pop())
    before, made = text(root), []
    for draft in taken:
        changed = copy.deepcopy(root)
        draft.edit(changed)
        if (after := text(changed)) != before:
            place = "/".join(map(str, draft.path))
            made.append(Mistake(draft.kind, place, draft.change, after, draft.subject))
    return made


def _drafts(root: Pairs, known: Known, dice: random.Random) -> Iterator[_Draft]:
    yield from _targets(root, known)
    yield from _config(root, known, dice)
    yield from _dictionaries(root, dice)
    yield from _axes(root)
    yield from _arguments(root, dice)
    yield from _steps(root, known)
    yield from _parts(root, known)
    yield from _checks(root)


# ---------------------------------------------------------------------------------------------------------------------
# The tree


def get(node: Any, path: Path) -> Any:
    """The value at a path; None where there is none."""
    for key in path:
        if isinstance(node, Pairs):
            node = next((value for name, value in node.items if name == key), None)
        elif isinstance(node, list):
            node = node[key]
        else:
            return None
    return node


def put(root: Pairs, path: Path, value: Any) -> None:
    holder = get(root, path[:-1])
    if isinstance(holder, Pairs):
        for pair in holder.items:
            if pair[0] == path[-1]:
                pair[1] = value
    else:
        holder[path[-1]] = value


def drop(root: Pairs, path: Path) -> None:
    holder = get(root, path[:-1])
    if isinstance(holder, Pairs):
        holder.items[:] = [pair for pair in holder.items if pair[0] != path[-1]]
    else:
        del holder[path[-1]]


def rename(root: Pairs, path: Path, name: str) -> None:
    for pair in get(root, path[:-1]).items:
        if pair[0] == path[-1]:
            pair[0] = name


def entries(node: Any) -> list[Any]:
    """The keys of a mapping, or the numbers of a list."""
    if isinstance(node, Pairs):
        return [key for key, _ in node.items]
    return list(range(len(node))) if isinstance(node, list) else []


def leaves(node: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    for key in entries(node):
        inner = get(node, (key,))
        if isinstance(inner, Pairs | list):
            yield from leaves(inner, (*path, key))
        else:
            yield (*path, key), inner


def setting(path: Path, value: Any) -> Edit:
    return lambda root: put(root, path, value)


def dropping(path: Path) -> Edit:
    return lambda root: drop(root, path)


# ---------------------------------------------------------------------------------------------------------------------
# Target names


def _places(root: Pairs) -> dict[str, Path]:
    """Target pattern -> the place of its text; not of those that stand as a key, nor of names that are kept."""
    found: dict[str, Path] = {}
    for key in entries(get(root, ("rename",))):
        value = get(root, ("rename", key))
        path: Path = ("rename", key, "to") if isinstance(value, Pairs) else ("rename", key)
        found[str(get(root, path))] = path
    for n in entries(get(root, ("transform",))):
        to = get(root, ("transform", n, "to"))
        if isinstance(to, str):
            found[to] = ("transform", n, "to")
        elif isinstance(to, list):
            found |= {str(name): ("transform", n, "to", k) for k, name in enumerate(to)}
    return found


def _targets(root: Pairs, known: Known) -> Iterator[_Draft]:
    for (one, a), (other, b) in combinations(_places(root).items(), 2):
        if re.findall(r"\{[^}]*\}", one) != re.findall(r"\{[^}]*\}", other):
            continue
        shapes = list(zip(known.shapes.get(one, ()), known.shapes.get(other, ()), strict=False))
        both = [(x, y) for x, y in shapes if x is not None and y is not None]
        kind = "targets of different shapes"
        if both and all(x == y for x, y in both):
            kind = "targets of one shape"
        for x, y in TWINS:
            if one.replace(x, y) == other or other.replace(x, y) == one:
                kind = f"{x.strip('_')} and {y.strip('_')}"

        def edit(root: Pairs, a: Path = a, b: Path = b, one: str = one, other: str = other) -> None:
            put(root, a, other)
            put(root, b, one)

        yield _Draft(kind, a, f"{one} <-> {other}", edit)


# ---------------------------------------------------------------------------------------------------------------------
# Config


def _config(root: Pairs, known: Known, dice: random.Random) -> Iterator[_Draft]:
    places: dict[str, Path] = {}  # field -> where
    for section in ("copy", "rename", "derive", "set"):
        for key in entries(get(root, ("config", section))):
            name = get(root, ("config", section, key)) if section == "copy" else key
            places[str(name)] = ("config", section, key)
    free = [name for name in known.fields if name not in places]
    for name, path in places.items():
        yield _Draft("config field dropped", path, name, dropping(path))
        yield _Draft("config key misspelled", path, word := _slipped(name, dice), _keyed(path, word))
        for word in difflib.get_close_matches(name, free, NEAR, 0.5):
            yield _Draft("config key of another field", path, f"{name} -> {word}", _keyed(path, word))
        if path[1] == "set":
            yield from _constants(get(root, path), path, dice)
    for (one, a), (other, b) in combinations(places.items(), 2):
        if "set" not in (a[1], b[1]):
            yield _Draft("config fields exchanged", a, f"{one} <-> {other}", _exchanged(a, b, one, other))
    for section in ("set", "derive"):  # nested keys
        for path, _ in leaves(get(root, ("config", section)), ("config", section)):
            for depth in range(4, len(path) + 1):
                if isinstance(path[depth - 1], str):
                    name = path[depth - 1]
                    yield _Draft(
                        "nested key misspelled", path[:depth], name, _keyed(path[:depth], _slipped(name, dice))
                    )
                    yield _Draft("nested field dropped", path[:depth], name, dropping(path[:depth]))


def _slipped(name: str, dice: random.Random) -> str:
    return next(word for _ in range(99) if (word := slip(name, dice)) != name and word.isidentifier())


def _keyed(path: Path, name: str) -> Edit:
    """A field under another name."""

    def edit(root: Pairs) -> None:
        if path[1] != "copy":
            rename(root, path, name)
            return
        value = get(root, path)
        drop(root, path)
        _renamed(root).append([name, value])

    return edit


def _renamed(root: Pairs) -> list[Any]:
    """The entries of `config: {rename: ...}`, which may have to be made."""
    if get(root, ("config", "rename")) is None:
        get(root, ("config",)).items.append(["rename", Pairs([])])
    found: list[Any] = get(root, ("config", "rename")).items
    return found


def _exchanged(a: Path, b: Path, one: str, other: str) -> Edit:
    """Each of two fields with the value of the other."""

    def edit(root: Pairs) -> None:
        values = {a: get(root, b), b: get(root, a)}
        for path, name in ((a, one), (b, other)):
            if path[1] == "copy":
                put(root, path, None)
                _renamed(root).append([name, values[path]])
            else:
                put(root, path, values[path])
        listed = get(root, ("config", "copy"))
        if isinstance(listed, list):
            listed[:] = [name for name in listed if name is not None]

    return edit


def _constants(value: Any, path: Path, dice: random.Random) -> Iterator[_Draft]:
    if isinstance(value, Pairs | list):
        for inner, leaf in leaves(value, path):
            yield from _constants(leaf, inner, dice)
    else:
        for other in _others(value, dice):
            yield _Draft("constant changed", path, f"{value!r} -> {other!r}", setting(path, other))


def _others(value: Any, dice: random.Random) -> list[Any]:
    match value:
        case bool():
            return [not value]
        case int():
            return [value * 2 or 1, value + 1]
        case float():
            return [value * 10 or 1.0, value / 2 or 0.5]
        case str():
            return [ACTIVATIONS.get(value) or _slipped(value, dice)] if value.isidentifier() else []
        case None:
            return [16]
    return []


def _dictionaries(root: Pairs, dice: random.Random) -> Iterator[_Draft]:
    """Dictionaries inside of expressions: the parts of a nested config, or of a RoPE scaling."""
    for path, value in leaves(root):
        if not isinstance(value, str) or path[0] not in ("facts", "config") or "{" not in value:
            continue
        try:
            parsed = ast.parse(value.strip(), mode="eval")
        except SyntaxError:
            continue
        keys = [(n, k) for n, d in enumerate(_dicts(parsed)) for k in range(len(d.keys))]
        for n, k in keys:
            again = ast.parse(value.strip(), mode="eval")
            one = _dicts(again)[n]
            key = one.keys[k]
            if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
                continue
            name = key.value
            one.keys[k] = ast.Constant(_slipped(name, dice))
            yield _Draft("nested key misspelled", path, name, setting(path, ast.unparse(again)))
            again = ast.parse(value.strip(), mode="eval")
            one = _dicts(again)[n]
            del one.keys[k], one.values[k]
            yield _Draft("nested field dropped", path, name, setting(path, ast.unparse(again)))
            if k:
                again = ast.parse(value.strip(), mode="eval")
                one = _dicts(again)[n]
                one.values[k], one.values[k - 1] = one.values[k - 1], one.values[k]
                edit = setting(path, ast.unparse(again))
                yield _Draft("nested fields exchanged", path, f"{name} and the one before", edit)


def _dicts(parsed: ast.AST) -> list[ast.Dict]:
    return [node for node in ast.walk(parsed) if isinstance(node, ast.Dict)]


# ---------------------------------------------------------------------------------------------------------------------
# Sizes and arguments


def _axes(root: Pairs) -> Iterator[_Draft]:
    for path, value in leaves(root):
        if isinstance(value, str) and path[0] in ("facts", "arguments", "config"):
            for found in DIM.finditer(value):
                other = {"0": "1", "1": "0"}.get(found[1], "0")
                after = value[: found.start(1)] + other + value[found.end(1) :]
                yield _Draft("axis of a size", path, f"{found[0]} -> {other}", setting(path, after))
    for path, value in leaves(get(root, ("transform",)), ("transform",)):
        if path[-1] in ("split", "concat", "stack", "axis") and isinstance(value, int):
            yield _Draft("axis of an op", path, f"{value} -> {1 - min(value, 1)}", setting(path, 1 - min(value, 1)))
    for key in entries(get(root, ("source", "merge"))):
        path = ("source", "merge", key)
        path = (*path, "axis") if isinstance(get(root, path), Pairs) else path
        if isinstance(value := get(root, path), int):
            yield _Draft("axis of a merge", path, f"{value} -> {1 - value}", setting(path, 1 - value))


def _arguments(root: Pairs, dice: random.Random) -> Iterator[_Draft]:
    for name in entries(get(root, ("arguments",))):
        path: Path = ("arguments", name)
        for key in ("default", "guess") if isinstance(get(root, path), Pairs) else ():
            if key in entries(get(root, path)):
                path = (*path, key)
        value = get(root, path)
        if not isinstance(value, Pairs):
            for other in _others(value, dice)[:1]:
                yield _Draft("default of an argument", path, f"{value!r} -> {other!r}", setting(path, other), name)


# ---------------------------------------------------------------------------------------------------------------------
# Ops


def _steps(root: Pairs, known: Known) -> Iterator[_Draft]:
    for n in entries(get(root, ("transform",))):
        base: Path = ("transform", n)
        places: list[Path] = [base, *((*base, "steps", k) for k in entries(get(root, (*base, "steps"))))]
        for place in places:
            node = get(root, place)
            for word in [key for key in entries(node) if key in READERS and key not in NO_OP and isinstance(key, str)]:
                path = (*place, word)
                rotary = word.startswith("rope")
                last = place != base and len(get(root, (*base, "steps"))) == 1
                gone = (*base, "steps") if last else place if place != base else path
                kind = "rotary op dropped" if rotary else "op dropped"
                yield _Draft(kind, path, word, dropping(gone))
                value = get(root, path)
                if rotary and isinstance(value, str | int):
                    for other in [name for name in known.sizes if name != value]:
                        yield _Draft("heads of a rotary op", path, f"{value} -> {other}", setting(path, other))


def _parts(root: Pairs, known: Known) -> Iterator[_Draft]:
    """Parts of a split or a concat in another order, and sizes of an op."""
    for n in entries(get(root, ("transform",))):
        base: Path = ("transform", n)
        inner = [(*base, "steps", k, "sizes") for k in entries(get(root, (*base, "steps")))]
        for path in ((*base, "from"), (*base, "to"), (*base, "sizes"), *inner):
            node = get(root, path)
            keys = entries(node)
            for a, b in combinations(range(len(keys)), 2) if path[-1] != "sizes" or isinstance(node, list) else ():

                def edit(root: Pairs, path: Path = path, a: int = a, b: int = b) -> None:
                    node = get(root, path)
                    parts = node.items if isinstance(node, Pairs) else node
                    parts[a], parts[b] = parts[b], parts[a]

                if str(get(node, (keys[a],))) != str(get(node, (keys[b],))) or path[-1] != "sizes":
                    yield _Draft("parts in another order", path, f"{a} and {b}", edit)
            for key in keys if path[-1] == "sizes" or isinstance(node, Pairs) else ():
                value = get(node, (key,))
                for other in [name for name in known.sizes if name != value]:
                    yield _Draft("size of an op", (*path, key), f"{value} -> {other}", setting((*path, key), other))


# ---------------------------------------------------------------------------------------------------------------------
# Checks


def _checks(root: Pairs) -> Iterator[_Draft]:
    for section, kind in ((("source", "fixed"), "fixed field dropped"), (("require",), "requirement dropped")):
        for key in entries(get(root, section)):
            yield _Draft(kind, (*section, key), str(key), dropping((*section, key)), str(key))
    for key in entries(get(root, ("tie",))):
        yield _Draft("tie dropped", ("tie", key), str(key), dropping(("tie", key)))


def kinds_of(mistakes: Iterable[Mistake]) -> list[str]:
    return sorted({mistake.kind for mistake in mistakes})
