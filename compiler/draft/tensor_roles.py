"""Groups tensor names into families and finds the role of each family from the words in its name.

`name_families` replaces layer and expert numbers by indices, as in `layers.{i}.attention.wq.weight`. `assign_roles`
adds the role: query projection, norm before the MLP, and so on. A role is a guess, since names may mislead;
`NameFamily.clear` is False where the words are ambiguous.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

Shape = tuple[int, ...]
_NUMBER = re.compile(r"(?<![^.])[0-9]+(?![^.])|(?<=\.weight)[0-9]+$|(?<=\.bias)[0-9]+$")
_COUNTED = re.compile(r"((?<![^.])[A-Za-z_]*[A-Za-z])_?([0-9]{1,3})(?![^.])")  # a word that ends in a number
_LEAVES = frozenset(["weight", "bias", "w", "b", "scale", "kernel", "gamma", "beta"])
HOLES = "ie"
# A fused matrix -> the roles of its parts, in the usual order.
FUSED = {"qkv": ("q", "k", "v"), "kv": ("k", "v")}

# Role -> pattern of the whole module name in lower case.
_ATTENTION = {
    "q": r"(linear_|w_?|c_|to_)?q(uery)?(_proj|_lin|_linear)?",
    "k": r"(linear_|w_?|c_|to_)?k(ey)?(_proj|_lin|_linear)?",
    "v": r"(linear_|w_?|c_|to_)?v(alue)?(_proj|_lin|_linear)?",
    "kv": r"(linear_|w_?|c_|to_)?(kv|key_value)(_proj)?",
    "qkv": r".*(qkv|query_key_value|w_pack|c_attn|in_proj).*|att_proj|attn?_in",
    "o": r"w_?o|o_proj|out_proj|output_proj|output|proj|dense|c_proj|linear_proj|out|w_out|to_out|attn_out",
}
_MLP = {
    "gate_up": r"gate_up(_proj)?|w13|up_gate|ff_proj|input_linear|.*fused.*",
    "gate": r"gate(_proj)?|wg|w_?1|fc_1|wi_0",
    "up": r"up(_proj)?|w_?3|fc_2|inner_proj|wi_1",
    "down": r"2|down(_proj)?|w_?2|proj|output_proj|c_proj|fc2|linear_fc2|dense_4h_to_h|w_out|out|output|wo|ff_out|output_linear",
    "in": r"0|fc|fc1|c_fc|dense_h_to_4h|w_in|linear_fc1|up_proj",
}
_UNAMBIGUOUS = frozenset(["gate", "up", "down", "gate_proj", "up_proj", "down_proj", "gate_up_proj"])
_NORMS = (
    ("q_norm", r"(norm_q|q_?(layer_?)?norm|q_ln|query_(layer_?)?norm)$"),
    ("k_norm", r"(norm_k|k_?(layer_?)?norm|k_ln|key_(layer_?)?norm)$"),
    ("norm_after_mlp", r"post_(feed_?forward|mlp|ffn)"),
    ("norm_2", r"pre_(feed_?forward|mlp|ffn)"),
    ("norm_after_attention", r"post_(self_)?att"),
    ("norm_2", r"feed_?forward|ffn|ff_|mlp|norm_?2|ln_?2|linear_fc1|final|after$"),
    ("norm_1", r"input|att|sa_|norm_?1|ln_?1|linear_qkv|(^|\.)ln$|pre_norm|before$"),
)


@dataclass(frozen=True)
class NameFamily:
    """Tensors whose names differ in indices only. `text` is their name pattern; `names` holds every name in the order of
    its indices, `shapes` the shape of each, `numbers` the values of each index. `spelling` is the text as it is compared
    with other names: `block2.{i}` as `block.1.{i}`."""

    text: str
    shapes: tuple[Shape, ...]
    dtype: str
    numbers: tuple[frozenset[int], ...]
    names: tuple[str, ...]
    role: str = "other"
    part: str = "weight"
    clear: bool = True
    spelling: str = ""

    @property
    def level(self) -> int:
        return len(self.numbers)

    @property
    def shape(self) -> Shape:
        """The shape of the first tensor: of all, unless the family is `mixed`."""
        return self.shapes[0]

    @property
    def mixed(self) -> bool:
        """Whether the shape differs from layer to layer."""
        return len({*self.shapes}) > 1

    def with_shape(self, text: str, shape: Shape) -> NameFamily:
        """The same tensors under another pattern and with one other shape."""
        return replace(self, text=text, shapes=(shape,) * len(self.shapes))

    def each(self) -> list[NameFamily]:
        """Every tensor as a family of its own."""
        if self.level:
            return [one for part in self.unfold() for one in part.each()]
        return [replace(self, text=literal_pattern(self.names[0]))]

    def unfold(self) -> list[NameFamily]:
        """The tensors with each value of the last index as a family of their own."""
        hole, count = HOLES[self.level - 1], len(self.numbers[-1])

        def filled(text: str, number: int) -> str:
            return text.replace(f"{{{hole}}}", str(number)).replace(rf"(?P<{hole}>\d+)", str(number))

        return [
            replace(self, text=filled(self.text, n), spelling=filled(self.spelling, n),
                    shapes=self.shapes[n::count], names=self.names[n::count], numbers=self.numbers[:-1])
            for n in range(count)
        ]  # fmt: skip

    def apart(self) -> list[NameFamily]:
        """The tensors of two indices as families with one, divided by the index with which the shape changes."""
        stages = self.by_stage()
        layers = self.unfold()
        return layers if any(one.mixed for one in stages) and not any(one.mixed for one in layers) else stages

    def by_stage(self) -> list[NameFamily]:
        """The tensors with each value of the first of two indices as a family with the other."""
        outer, inner = HOLES[0], HOLES[1]
        count = len(self.numbers[1])

        def filled(text: str, number: int) -> str:
            for hole, mark in ((outer, str(number)), (inner, None)):
                for form in ("{{{}}}", r"(?P<{}>\d+)"):
                    text = text.replace(form.format(hole), mark if mark is not None else form.format(outer))
            return text

        return [
            replace(self, text=filled(self.text, n), spelling=filled(self.spelling, n), numbers=self.numbers[1:],
                    shapes=self.shapes[n * count : (n + 1) * count], names=self.names[n * count : (n + 1) * count])
            for n in range(len(self.numbers[0]))
        ]  # fmt: skip

    def first(self) -> str:
        """The name pattern of the first tensor."""
        return literal_pattern(self.names[0])

    def dim(self, axis: int) -> str:
        """The expression of the spec language for one axis of the first tensor."""
        return f"dim({json.dumps(self.first(), ensure_ascii=False)}, {axis})"

    def count(self) -> str:
        """The expression that counts the tensors."""
        return f"count({json.dumps(self.text, ensure_ascii=False)})"


def literal_pattern(name: str) -> str:
    """The name pattern that matches this name only."""
    return name if _readable(name) else f"/^{re.escape(name)}$/"


def _readable(name: str) -> bool:
    """Whether a name means itself as a name pattern: it has no braces and is not written between slashes."""
    return not re.search(r"[{}]", name) and not (name.startswith("/") and name.endswith("/"))


def name_families(shapes: Mapping[str, tuple[Shape, str]]) -> list[NameFamily]:
    """Families of the tensors {name: (shape, element type)}, with their roles.

    A number becomes an index where all names that share the text before it count from 0 without a gap. Numbers with
    leading zeros stay as they are: an index is never written so.
    """
    by_prefix: dict[str, set[str]] = {}  # text before a number, earlier numbers as # -> the numbers
    by_template: dict[str, set[str]] = {}  # the same within one template, the name with every number as #
    for name in shapes:
        template = _NUMBER.sub("#", name)
        for prefix, number in _numbers(name):
            by_prefix.setdefault(prefix, set()).add(number)
            by_template.setdefault(f"{template}\n{prefix}", set()).add(number)
    counting = {
        prefix for prefix, found in by_prefix.items() if len(found) > 1 and found == {*map(str, range(len(found)))}
    }
    members: dict[str, list[_Member]] = {}
    for name in shapes:
        template = _NUMBER.sub("#", name)
        numbers = list(_numbers(name))
        indexed = [n for n, (prefix, _) in enumerate(numbers)
                   if prefix in counting and by_template[f"{template}\n{prefix}"] == by_prefix[prefix]]  # fmt: skip
        member = _Member(
            name, tuple(_NUMBER.split(name)), tuple(number for _, number in numbers), (*indexed[: len(HOLES)],)
        )
        members.setdefault(member.text, []).append(member)
    families = [family for found in members.values() for family in _regular(found, shapes)]
    return assign_roles(_spelled(families))


def _spelled(families: Sequence[NameFamily]) -> list[NameFamily]:
    """The families with their spelling: numbers at the end of words that count from 1 or 0 are written as numbers from 0."""
    counted: dict[str, set[int]] = {}
    for family in families:
        for found in _COUNTED.finditer(family.text):
            counted.setdefault(family.text[: found.end(1)], set()).add(int(found[2]))

    def spelled(text: str) -> str:
        def number(found: re.Match[str]) -> str:
            numbers = counted[text[: found.end(1)]]
            first = min(numbers)
            whole = len(numbers) > 1 and first < 2 and numbers == {*range(first, first + len(numbers))}
            return f"{found[1]}.{int(found[2]) - first}" if whole else found[0]

        return _COUNTED.sub(number, text)

    return [replace(family, spelling=spelled(family.text)) for family in families]


@dataclass(frozen=True)
class _Member:
    """A tensor of a family: the text between the numbers of its name, the numbers, and which of them are indices."""

    name: str
    pieces: tuple[str, ...]
    numbers: tuple[str, ...]
    indexed: tuple[int, ...]

    @property
    def text(self) -> str:
        marks = [None if n in self.indexed else number for n, number in enumerate(self.numbers)]
        return _pattern(self.pieces, marks)

    @property
    def values(self) -> tuple[int, ...]:
        return tuple(int(self.numbers[n]) for n in self.indexed)


def _regular(members: Sequence[_Member], shapes: Mapping[str, tuple[Shape, str]]) -> Iterable[NameFamily]:
    """The members as one family if they have every combination of their indices and as many axes.

    Otherwise the first index is written as a number: a rule that reads one layer must read the same of all.
    """
    rows = sorted(members, key=lambda member: (member.values, member.name))
    values = tuple(map(frozenset, zip(*(member.values for member in rows), strict=True)))
    whole = len(rows) == math.prod(map(len, values)) and all(v == {*range(len(v))} for v in values)
    ranks = {len(shapes[member.name][0]) for member in rows}
    if values and (not whole or len(ranks) > 1):
        apart: dict[str, list[_Member]] = {}
        for member in rows:
            one = replace(member, indexed=member.indexed[1:])
            apart.setdefault(one.text, []).append(one)
        for found in apart.values():
            if len(found) == 1:
                yield _family([replace(found[0], indexed=())], shapes)
            else:
                yield from _regular(found, shapes)
        return
    yield _family(rows, shapes)


def _family(rows: Sequence[_Member], shapes: Mapping[str, tuple[Shape, str]]) -> NameFamily:
    values = tuple(map(frozenset, zip(*(member.values for member in rows), strict=True)))
    names = tuple(member.name for member in rows)
    dtype = shapes[names[0]][1]
    return NameFamily(rows[0].text, tuple(shapes[name][0] for name in names), dtype, values, names)


def _pattern(pieces: Sequence[str], numbers: Sequence[str | None]) -> str:
    """The name pattern of the text between numbers; where a number is None, an index."""
    holes = iter(HOLES)
    if _readable("0".join(pieces)):
        marks = [number if number is not None else f"{{{next(holes)}}}" for number in numbers]
        return "".join(piece + mark for piece, mark in zip(pieces, [*marks, ""], strict=True))
    marks = [number if number is not None else rf"(?P<{next(holes)}>\d+)" for number in numbers]
    body = "".join(re.escape(piece) + mark for piece, mark in zip(pieces, [*marks, ""], strict=True))
    return f"/^{body}$/"


def _numbers(name: str) -> Iterable[tuple[str, str]]:
    """Each number of a name that may be an index, and the text before it with earlier numbers as #."""
    prefix, last = "", 0
    for found in _NUMBER.finditer(name):
        prefix += name[last : found.start()]
        yield prefix, found[0]
        prefix += "#"
        last = found.end()


# ---------------------------------------------------------------------------------------------------------------------


def assign_roles(families: Iterable[NameFamily]) -> list[NameFamily]:
    """The same families with their roles."""
    families = list(families)
    experts = any(re.search(r"expert|moe|_exps", family.text) or family.level > 1 for family in families)
    found = [_with_role(family, experts) for family in families]
    present = {family.role for family in found}
    after = {"norm_after_mlp"} <= present or ("norm_2" in present and "norm_after_attention" in present)
    if not after:  # then the norm after attention is the one before the MLP
        found = [replace(f, role="norm_2") if f.role == "norm_after_attention" else f for f in found]
    explicit = {f.text.rsplit(".", 2)[0] for f in found if f.role == "gate" and "g" in _stem(f.text)[-1]}
    downs = {
        f.text.rsplit(".", 2)[0] for f in found if f.role == "down" and not re.fullmatch(r"w_?2", _stem(f.text)[-1])
    }
    for n, family in enumerate(found):
        where, leaf = family.text.rsplit(".", 2)[0], _stem(family.text)[-1]
        second = re.fullmatch(r"w_?2", leaf) and where in downs
        if (re.fullmatch(r"w_?1", leaf) and where in explicit) or second:
            found[n] = replace(family, role="up", clear=False)
        elif family.role == "in" and "gate" in present and leaf == "up_proj":
            found[n] = replace(family, role="up")
    return found


def _stem(text: str) -> list[str]:
    parts = [part for part in re.sub(r"\{.\}", "", text.lower()).split(".") if part] or [text.lower()]
    return parts[:-1] if parts[-1] in _LEAVES and len(parts) > 1 else parts


def _with_role(family: NameFamily, experts: bool) -> NameFamily:
    parts = _stem(family.text)
    last = family.text.lower().rsplit(".", 1)[-1]
    part = "bias" if last in ("bias", "b", "beta") or last.startswith("b_") or last.endswith("_bias") else "weight"
    leaf, path = re.sub(r"_e[fd]+$|^b_", lambda m: "w_" if m[0] == "b_" else "", parts[-1]), ".".join(parts)
    leaf = re.sub(
        r"^(?:attn|ffn)_(?=(?:q|k|v|qkv|output|gate|up|down)$|(?:gate|up|down)_exps$)", "", leaf
    ).removesuffix("_exps")
    # A layer that is unlike the others keeps its number in its name.
    if family.level == 0 and not re.search(r"\.\d+\..*(att|mlp|ffn|feed_?forward)", family.text):
        return replace(family, role=_role_outside_layers(path, leaf), part=part)
    shared = "shared_" if "shared" in path else ""
    router = (
        experts
        and family.level < 2
        and (leaf in ("gate", "ffn_gate_inp") or "router" in path)
        and not re.search(r"experts?\.|_exps", path)
    )
    expert = "expert_" if (family.level > 1 or re.search(r"expert|moe|_exps", path)) and not shared else ""
    if re.search(r"norm|(^|[._])ln", leaf) and not re.search(r"(proj|dense)$", leaf):
        label = path if leaf.startswith("layer_norm") or leaf in ("norm", "ln", "layernorm") else leaf
        role = next((role for role, words in _NORMS if re.search(words, label)), "norm_other")
        return replace(family, role=role, part=part)
    if leaf == "inv_freq":
        return replace(family, role="frequencies", part=part)
    if router:
        return replace(family, role="router", part=part)
    inner = re.search(r"(?:^|\.)(intermediate|output)(?:\.dense|_dense)$", path)
    if inner and "att" not in path:  # the two matrices of an MLP that has no module of its own
        return replace(family, role=expert + ("in" if inner[1] == "intermediate" else "down"), part=part)
    feeding = bool(re.search(r"mlp|ffn|feed_?forward|(^|\.)ff|moe|expert", path))
    attending = not feeding or bool(re.search(r"att", path))
    for table, prefix in ((_ATTENTION, ""), (_MLP, shared or expert)):
        if (table is _ATTENTION) != attending:
            continue
        for role, words in table.items():
            if re.fullmatch(words, leaf):
                clear = role not in ("gate", "up", "gate_up") or leaf in _UNAMBIGUOUS
                return replace(family, role=prefix + role, part=part, clear=clear)
    for role in ("gate_up", "in", "down") if not feeding else ():  # an MLP whose matrices belong to the block itself
        if re.fullmatch(_MLP[role], leaf):
            return replace(family, role=role, part=part, clear=role != "gate_up")
    return replace(family, part=part)


def _role_outside_layers(path: str, leaf: str) -> str:
    if re.search(r"norm|(^|[._])ln", leaf):
        return "embedding_norm" if "emb" in path else "final_norm"
    if leaf == "inv_freq":
        return "frequencies"
    if re.search(r"(^|[._])(pos|wpe|w_pos)|position", path):
        return "positions"
    if re.search(r"(^|[._])(seg|segments?|token_type)([._]|$)", path):
        return "segments"
    own = re.sub(r"\.(fc|linear|dense|proj|decoder)$", "", path).rpartition(".")[2]
    if re.search(r"head|unembed|embed_out|classifier", own) or leaf in (
        "output",
        "output_layer",
        "final_proj",
        "w_out",
    ):
        return "head"
    if re.search(r"emb|wte|(^|\.)tok", path):
        return "embedding"
    return "other"
