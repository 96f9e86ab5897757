"""The language by its properties: what is read can be written back, and what is computed is what Python, YAML 1.2,
einops and torch compute.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import einops
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compiler.diagnostics import Refusal, Report, Span
from compiler.language.document import Mapping, Node, Scalar, Sequence, plain, read_document, scalar_value
from compiler.language.expression import FUNCTIONS, PURE, parse_expr
from compiler.language.name_pattern import Hole, Pattern, options
from compiler.language.name_pattern_overlap import common_name
from compiler.language.name_pattern_parser import parse_pattern
from compiler.ops import rearrange_notation, structural
from compiler.ops.algebra import Bundle, Op, OpError, ShapeAlgebra
from compiler.ops.kernels import TorchAlgebra
from compiler.ops.structural import Rearrange
from compiler.render.python_source import ExprPrinter

HERE = Span("here", 1, 1, 1, "")
quick = settings(max_examples=150, deadline=None)
quicker = settings(max_examples=60, deadline=None)

# ---------------------------------------------------------------------------------------------------------------------
# Names

WORDS = ["layers", "w", "q_proj", "weight", "a.b", "x-y", "0"]
CHOICES = ["q|k|v", "[a-z.]+", "up|down", "a|ab", "[ab]c?", "w(?:1|2)"]


@st.composite
def spellings(draw: st.DrawFn) -> tuple[str, str]:
    """One pattern in both spellings."""
    readable, regex = "", ""
    for letter in "abcd"[: draw(st.integers(1, 4))]:
        match draw(st.sampled_from(["word", "index", "choice"])):
            case "word":
                word = draw(st.sampled_from(WORDS))
                readable, regex = readable + word + ".", regex + re.escape(word) + r"\."
            case "index":
                readable, regex = readable + f"{{{letter}}}.", regex + rf"(?P<{letter}>\d+)\."
            case "choice":
                choice = draw(st.sampled_from(CHOICES))
                readable, regex = readable + f"{{{letter}:{choice}}}.", regex + rf"(?P<{letter}>{choice})\."
    return readable + "end", f"/^{regex}end$/"


def pattern(text: str) -> Pattern:
    return parse_pattern(text, HERE)


def names_of(draw: st.DrawFn, of: Pattern) -> str:
    """A name that a pattern matches."""
    parts = (
        part if isinstance(part, str) else draw(st.from_regex(re.compile(part.regex, re.ASCII), fullmatch=True))
        for part in of.parts
        if isinstance(part, (str, Hole))
    )
    return "".join(parts)


@quick
@given(st.data())
def test_a_name_is_written_as_it_was_read(data: st.DataObject) -> None:
    readable, regex = data.draw(spellings())
    name = names_of(data.draw, pattern(readable))
    captures = pattern(readable).match(name)
    assert captures is not None
    assert pattern(readable).fill(captures) == name
    assert pattern(regex).match(name) == captures
    assert pattern(regex).fill(captures) == name


@quick
@given(st.data())
def test_two_spellings_are_one_pattern(data: st.DataObject) -> None:
    readable, regex = data.draw(spellings())
    one, other = ([p if isinstance(p, str) else (p.name, p.body) for p in pattern(t).parts] for t in (readable, regex))
    assert one == other
    name = data.draw(st.text("layersw0123.qkv_", max_size=12))
    assert pattern(readable).match(name) == pattern(regex).match(name)


@quick
@given(st.integers(0, 9999), st.integers(-9, 9))
def test_a_shift_is_undone(index: int, shift: int) -> None:
    shifted = pattern(f"h.{{i{shift:+}}}.w")
    assume(index + shift >= 0)
    name = shifted.fill({"i": str(index)})
    assert name == f"h.{index + shift}.w"
    assert shifted.match(name) == {"i": str(index)}
    if shift > 0:
        assert shifted.match(f"h.{shift - 1}.w") is None


@quick
@given(st.data())
def test_overlap_is_decided(data: st.DataObject) -> None:
    """A witness is matched by both; where there is none, no name of the one is a name of the other."""
    one, other = pattern(data.draw(spellings())[0]), pattern(data.draw(spellings())[0])
    name = common_name(one, other)
    if name is not None:
        assert one.match(name) is not None
        assert other.match(name) is not None
    else:
        assert other.match(names_of(data.draw, one)) is None
        assert one.match(names_of(data.draw, other)) is None


@pytest.mark.parametrize(
    ("one", "other", "name"),
    [
        ("a.{i}.w", "a.0.w", "a.0.w"),
        ("a.{i}.w", "a.b.w", None),
        ("{p:q|k}.w", "{p:k|v}.w", "k.w"),
        ("{p:q|k}.w", "{p:v|o}.w", None),
        ("/a.*/", "/.*b/", "ab"),
        ("/a[^.]+/", "a.b", None),
        ("a.{i}.{j}", "a.{i}", None),
        ("/a.*z/", "a.b.z", "a.b.z"),
        ("{p:[a-z.]+}.w", "a.{i}.w", None),
        ("{p:[a-z0-9.]+}.w", "a.{i}.w", "a.0.w"),
    ],
)
def test_overlap_by_example(one: str, other: str, name: str | None) -> None:
    assert common_name(pattern(one), pattern(other)) == name
    assert common_name(pattern(other), pattern(one)) == name


@quick
@given(st.text("ab.{}:|()[]*+?\\^$/0i<>P=!-", max_size=20))
def test_any_text_is_a_pattern_or_refused(text: str) -> None:
    try:
        found = pattern(text)
    except Refusal:
        return
    found.match(text)


ANCHOR, SHAPE = "a pattern always matches the whole name", "every name must have each group once"
UNNAMED = "name it, (?P<i>...), or make it non-capturing, (?:...)"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("a.{i+1:q}", "only a plain index can be shifted", "write {i+1}"),
        ("a.{p:}", "the choice 'p' is empty", "write it as {p:q|k|v}"),
        ("{p:a.b}", "the '.' of the choice 'p' matches any character", r"write \. for a literal dot"),
        ("{p:ab|c.}", "the '.' of the choice 'p' matches any character", r"write \. for a literal dot"),
        ("{p:(?P<x>a)}", "a choice cannot contain a named group", ""),
        ("/a$b/", "an anchor inside the pattern is not allowed in a name pattern", ANCHOR),
        (r"/\ba/", "an anchor inside the pattern is not allowed in a name pattern", ANCHOR),
        ("/(?=a)b/", "a lookaround is not allowed in a name pattern", ANCHOR),
        ("/b(?<!a)/", "a lookaround is not allowed in a name pattern", ANCHOR),
        ("/(?P<i>a)(?P=i)/", "a back reference is not allowed in a name pattern", ""),
        ("/(?>ab)/", "the construct atomic_group is not allowed in a name pattern", ""),
        ("/(?i:a)/", "an inline flag is not allowed in a name pattern", ""),
        ("/(?i)a/", "an inline flag is not allowed in a name pattern", ""),
        ("/(?x)a b/", "an inline flag is not allowed in a name pattern", ""),
        ("/(a)/", "an unnamed group is not allowed in a name pattern", UNNAMED),
        ("/(?P<i>a)*/", "a named group within a repetition, an alternative or another group is not allowed", SHAPE),
        ("/a(?P<i>b)?/", "a named group within a repetition, an alternative or another group is not allowed", SHAPE),
        ("/(?P<i>a)|(?P<j>b)/", "a named group within a repetition, an alternative or another group is not", SHAPE),
        ("/(?P<i>a(?P<j>b))/", "a named group within a repetition, an alternative or another group is not", SHAPE),
    ],
)
def test_a_pattern_that_cannot_be_inverted_is_refused(text: str, message: str, hint: str) -> None:
    with pytest.raises(Refusal) as caught:
        pattern(text)
    (problem,) = caught.value.diagnostics
    assert problem.message.startswith(message)
    assert (problem.kind, problem.hint) == ("name-syntax", hint)


def test_a_group_that_does_not_capture_is_its_content() -> None:
    assert pattern("/(?:a(?:b))(?:c|d)/").parts == pattern("/ab[cd]/").parts


@pytest.mark.parametrize(
    ("text", "name"), [("/(?:left|right)_w/", "left_w"), ("/[^a]?b+/", "b"), ("/[^0aA_.]{2}/", "\0\0")]
)
def test_what_no_group_captures_is_written_in_its_shortest_form(text: str, name: str) -> None:
    assert pattern(text).fill({}) == name
    assert pattern(text).match(name) == {}


def test_all_texts_of_a_part_are_listed_unless_there_are_too_many() -> None:
    def listed(text: str) -> tuple[str, ...] | None:
        return options(pattern(text).holes["p"])

    assert listed("{p:a{1,2}|b}") == ("a", "aa", "b")
    assert listed("{p:[ab]{0,2}}") == ("", "a", "aa", "ab", "b", "ba", "bb")
    assert listed("{p:[^a]}") is None, "more than 64"
    assert listed("{p:a|[^a]b}") is None
    assert listed("{p:(?:[^a]x){0,2}}") is None
    assert listed("{p:a{1,5}}") is None, "more than 4 times"
    assert listed("{p:a+}") is None


def test_a_witness_of_unusual_characters() -> None:
    assert common_name(pattern("/[-+]/"), pattern("/[+*]/")) == "+"


# ---------------------------------------------------------------------------------------------------------------------
# Expressions


class NoShapes:
    """A checkpoint of one tensor."""

    def dim(self, name: str, axis: int) -> int:
        return {"t": (4, 6)}[name][axis]

    def count(self, pattern: str) -> int:
        return 3

    def exists(self, pattern: str) -> bool:
        return pattern == "t"


NAMES = {"n": 8, "m": 3, "x": 0.5, "flag": True, "text": "silu", "none": None, "d": {"a": 2}}


def _call(words: tuple[str, Any]) -> str:
    return f"{words[0]}({words[1]})"


def trees() -> st.SearchStrategy[str]:
    """Texts of the expression language."""
    leaves = st.one_of(
        st.integers(0, 99).map(str),
        st.sampled_from(["0.5", "1e-5", "True", "None", "'silu'", "'b'", "d['a']", "[1, 2]", *NAMES]),
        st.sampled_from(["dim('t', 0)", "dim('t', -1)", "count('h.{i}')", "exists('t')", "exists('u')"]),
    )

    def grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        binary = st.sampled_from(
            ["+", "-", "*", "/", "//", "%", "**", "==", "!=", "<", "<=", ">", ">=", "in", "and", "or"]
        )
        return st.one_of(
            st.tuples(inner, binary, inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
            st.tuples(inner, st.sampled_from(["is", "is not"]), st.sampled_from(["None", "True", "False"])).map(
                lambda t: f"({t[0]} {t[1]} {t[2]})"
            ),
            st.tuples(st.sampled_from(["-", "+", "not "]), inner).map(lambda t: f"({t[0]}{t[1]})"),
            st.tuples(inner, inner, inner).map(lambda t: f"({t[0]} if {t[1]} else {t[2]})"),
            st.tuples(inner, inner).map(lambda t: f"({t[0]} < {t[1]} <= n)"),
            st.tuples(st.sampled_from(["ceil", "int", "len"]), inner).map(_call),
            st.tuples(st.sampled_from(["min", "max", "round_up"]), st.tuples(inner, inner).map(", ".join)).map(_call),
            st.lists(inner, max_size=2).map(lambda items: f"[{', '.join(items)}]"),
            inner.map(lambda item: f"{{'a': {item}}}"),
        )

    return st.recursive(leaves, grow, max_leaves=8)


def python(text: str, names: dict[str, Any]) -> Any:
    """What Python itself makes of a text."""
    return eval(text, {"__builtins__": {}}, names)


def same(a: object, b: object) -> bool:
    return type(a) is type(b) and a == b


def answer(text: str) -> Any:
    """What the language makes of a text: its value, or the Refusal."""
    try:
        return parse_expr(text, HERE).evaluate(NAMES, NoShapes())
    except Refusal as refusal:
        return refusal


@settings(max_examples=300, deadline=None)
@given(trees())
@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_an_expression_has_the_value_that_python_gives(text: str) -> None:
    """Refused is what Python cannot compute, or what is out of our bounds; both at a place."""
    value = answer(text)
    try:
        wanted = python(text, {**PURE, **NAMES, **_questions()})
    except (ArithmeticError, TypeError, ValueError, LookupError) as error:
        wanted = error
    if not isinstance(value, Refusal):
        assert same(value, wanted)
        return
    assert all(d.span.path == "here" and d.kind.startswith(("expression", "missing")) for d in value.diagnostics)
    if not isinstance(wanted, Exception):
        assert any(bound in str(value) for bound in ("out of range", "too long", "formatting"))


def _questions() -> dict[str, Callable[..., Any]]:
    shapes = NoShapes()
    return {"dim": shapes.dim, "count": shapes.count, "exists": shapes.exists}


@settings(max_examples=300, deadline=None)
@given(trees())
@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_the_printed_form_has_the_same_value(text: str) -> None:

    value = answer(text)
    assume(not isinstance(value, Refusal))
    printed = ExprPrinter("f")(parse_expr(text, HERE))
    names = {"matches": lambda *_: [1, 2, 3], "bool": bool, "math": math}
    places = {"f": SimpleNamespace(**NAMES), "shapes": {"t": (4, 6)}, **names}
    assert same(value, python(printed, {**PURE, **places}))


ATTACKS = [
    "__import__('os').system('true')",
    "n.__class__",
    "(lambda: 1)()",
    "[x for x in [1] for y in [2]]",
    "[[y for y in [x]] for x in [1]]",
    "[x for x in [1] if x if x]",
    "[x for x, y in [[1, 2]]]",
    "{x for x in [1]}",
    "{x: x for x in [1]}",
    "(x for x in [1])",
    "[x for x in range(10 ** 9)]",
    "[x for x in range(1, 2, 3)]",
    "[x for x in range(n=1)]",
    "[x for x in n]",
    "range(3)",
    "log2(0)",
    "dim('t|u', 0, 1)",
    "equal('t')",
    "equal('t', n)",
    "f'{n}'",
    "open('x')",
    "(n := 3)",
    "9 ** 9 ** 9 ** 9",
    "'a' * 10 ** 9",
    "[0] * 10 ** 9",
    "'%999999999d' % 1",
    "d[n]",
    "(-8) ** x",
    "(n / 0)",
    "d['a':]",
    "{1, 2}",
    "1 + 2j",
    "b'x'",
    "...",
    "n << 99",
    "*n",
    "min(*[1])",
    "max(n, key=n)",
    "dim(text, 0)",
    "1e999",
    "yield",
    "await n",
    "n; n",
    "1)+(1",
    "1]+[1",
    "n) if (n",
    "",
    "(" * 300,
    "-" * 1500 + "1",
    "1" * 1999,
    "0 if " * 300,
    "\0",
    "\ud800",
]


@pytest.mark.parametrize("text", ATTACKS)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(Refusal):
        parse_expr(text, HERE).evaluate(NAMES, NoShapes())


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(max_size=40), st.text("n+-*/%()[]{}'\"., <>=!0123456789eifornlasdt:@#\\\n", max_size=40)))
def test_any_text_has_a_value_or_is_refused(text: str) -> None:
    try:
        parse_expr(text, HERE).evaluate(NAMES, NoShapes())
    except Refusal:
        return
    allowed = (
        ast.Expression,
        ast.expr,
        ast.expr_context,
        ast.operator,
        ast.cmpop,
        ast.boolop,
        ast.unaryop,
        ast.comprehension,
    )
    for node in ast.walk(ast.parse(f"({text}\n)", mode="eval")):
        assert isinstance(node, allowed)
        assert not isinstance(node, (ast.Lambda, ast.Attribute, ast.SetComp, ast.JoinedStr, ast.NamedExpr, ast.Await))


def test_every_function_is_known_to_the_properties() -> None:
    assert {
        "round_up",
        "ceil",
        "log2",
        "min",
        "max",
        "int",
        "len",
        "dim",
        "count",
        "exists",
        "equal",
    } == FUNCTIONS.keys()


# ---------------------------------------------------------------------------------------------------------------------
# Documents


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1.0e-5", 1e-5),
        (".5", 0.5),
        ("1.", 1.0),
        ("-3", -3),
        ("+7", 7),
        ("012", 12),
        ("0o17", 15),
        ("0xfF", 255),
        ("no", "no"),
        ("on", "on"),
        ("y", "y"),
        ("off", "off"),
        ("true", True),
        ("FALSE", False),
        ("tRue", "tRue"),
        ("~", None),
        ("null", None),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0b1", "0b1"),
        ("2024-01-01", "2024-01-01"),
        ("<<", "<<"),
        ("=", "="),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        (".", "."),
        ("-", "-"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    assert same(scalar_value(text), value)


def nodes(node: Node) -> list[Node]:
    found = [node]
    if isinstance(node, Sequence):
        found += [n for item in node.items for n in nodes(item)]
    elif isinstance(node, Mapping):
        found += [n for key, item in node.entries for n in (key, *nodes(item))]
    return found


PLAIN_WORDS = st.text("abcxyz019_./{}", min_size=1, max_size=8).filter(
    lambda t: t[0] not in "{}" and not any(c in t for c in "{}") and not t.startswith(".")
)
VALUES = st.recursive(
    st.one_of(PLAIN_WORDS, st.integers(-99, 99), st.booleans(), st.floats(-1e9, 1e9, allow_nan=False)),
    lambda inner: st.lists(inner, min_size=1, max_size=3) | st.dictionaries(PLAIN_WORDS, inner, min_size=1, max_size=3),
    max_leaves=10,
)


def written(value: Any, indent: str = "") -> str:
    """Block style, as a person writes it."""
    if isinstance(value, dict):
        lines = (f"{indent}{k!r}:{_after(v, indent)}" for k, v in value.items())
    elif isinstance(value, list):
        lines = (f"{indent}-{_after(v, indent)}" for v in value)
    else:
        return repr(value).lower() if isinstance(value, bool) else repr(value)
    return "\n".join(lines)


def _after(value: Any, indent: str) -> str:
    text = written(value, indent + "  ")
    return f"\n{text}" if isinstance(value, (dict, list)) else f" {text}"


@quick
@given(st.one_of(st.dictionaries(PLAIN_WORDS, VALUES, min_size=1, max_size=3), st.lists(VALUES, min_size=1)))
def test_a_document_is_read_with_every_place(value: Any) -> None:
    text = written(value)
    root = read_document("here", text)
    assert plain(root) == value
    for node in nodes(root):
        if isinstance(node, Scalar):
            line = text.splitlines()[node.span.line - 1]
            assert node.span.text == line
            assert line[node.span.column - 1 :][: node.span.length] == (node.text or "'")
            assert node.span.length == max(1, len(node.text))


def _deep(depth: int, opening: str = "[") -> str:
    return opening * depth


HOSTILE = [
    "!!python/object/apply:os.system ['true']",
    "a: !!int 3",
    "a: !custom x",
    "a: &x [*x]",
    "a: &x 1\nb: *x",
    "a: 1\na: 2",
    "? [a]\n: 1",
    "? {a: 1}\n: 1",
    "a: 1\n---\nb: 2",
    "",
    "# nothing\n",
    "a: .inf",
    "a: .nan",
    "a: 1e999",
    "a: " + "9" * 400,
    _deep(100_000),
    _deep(60) + "]" * 60,
    "a:\n" + "".join(f"{' ' * n}a:\n" for n in range(1, 60)),
    "[" + "1," * 60_000 + "]",
    "x" * 2_000_000,
    "a: \x00",
    "a: \x1b[2J",
    "a: 'unclosed",
    "a: [1, 2",
    "\t- a",
    "a: b: c",
    "%YAML 9.9\n---\na: 1",
    "a: @x",
    "<<: [1]\n<<: 2",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_document_is_refused(text: str) -> None:
    with pytest.raises(Refusal) as caught:
        read_document("here", text)
    assert len(str(caught.value)) < 3 * len(text) + 500
    assert all(d.span.path == "here" for d in caught.value.diagnostics)


@quick
@given(st.one_of(st.text(max_size=60), st.text("ab:-?[]{}&*!|>'\"%@`#,\n \t01.~=<", max_size=60)))
def test_any_text_is_a_document_or_refused(text: str) -> None:
    try:
        plain(read_document("here", text))
    except Refusal as refusal:
        str(refusal)


@quick
@given(st.binary(max_size=60))
def test_any_file_is_a_document_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(data)
    try:
        plain(read_document(path))
    except Refusal as refusal:
        str(refusal)


# ---------------------------------------------------------------------------------------------------------------------
# Ops

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


def tensor(shape: tuple[int, ...]) -> torch.Tensor:
    """Random bits, NaN included."""
    return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32).view(torch.float32)


def images(bundle: Bundle[torch.Tensor]) -> Any:
    bits = [
        {k: (tuple(t.shape), t.contiguous().view(torch.int32).tolist()) for k, t in s.items()} for s in bundle.slots
    ]
    return bits, bundle.holes


def shapes_of(bundle: Bundle[torch.Tensor]) -> Bundle[tuple[int, ...]]:
    return Bundle(tuple({k: tuple(t.shape) for k, t in s.items()} for s in bundle.slots), bundle.holes)


@st.composite
def applications(draw: st.DrawFn, word: str) -> tuple[Op, Bundle[torch.Tensor]]:
    """An op, and tensors that it fits."""
    shape = draw(SHAPES)
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    keys: list[tuple[int, ...]] = draw(st.sampled_from([[()], [(0,), (1,), (2,)]]))
    holes = ("e",) * bool(keys[0])
    match word:
        case "split" | "concat":
            sizes = tuple(draw(st.lists(st.integers(1, 4), min_size=2, max_size=4)))
            if draw(st.booleans()):
                sizes = (sizes[0],) * len(sizes)
            stated = sizes if len(set(sizes)) > 1 or draw(st.booleans()) else None
            pieces = [(*shape[:axis], s, *shape[axis:][1:]) for s in sizes]
            whole = (*shape[:axis], sum(sizes), *shape[axis:][1:])
            made = [whole] if word == "split" else pieces
            op: Op = (structural.Split if word == "split" else structural.Concat)(axis, len(sizes), stated)
            return op, Bundle(tuple({k: tensor(s) for k in keys} for s in made), holes)
        case "copy":
            return structural.Copy(draw(st.integers(2, 4))), Bundle(({k: tensor(shape) for k in keys},), holes)
        case "stack":
            axis = draw(st.integers(-len(shape) - 1, len(shape)))
            count, outer = draw(st.integers(1, 4)), draw(st.booleans())
            found = [(n, e) if outer else (e,) for n in range(1 + outer) for e in range(count)]
            holes = ("l", "e") if outer else ("e",)
            return structural.Stack("e", axis), Bundle(
                ({k: tensor(shape) for k in draw(st.permutations(found))},), holes
            )
        case "unstack":
            return structural.Unstack("e", axis), Bundle(({(): tensor(shape)},), ())
        case "rearrange":
            op, shape = draw(rearrangements())
            slots = draw(st.integers(1, 3))
            only = draw(st.sets(st.integers(0, slots - 1)))
            bundle = Bundle(tuple({k: tensor(shape) for k in keys} for _ in range(slots)), holes)
            return replace(op, only=tuple(sorted(only))), bundle
        case "cast":
            return structural.Cast("bfloat16"), Bundle(({k: tensor(shape) for k in keys},), holes)
    raise AssertionError(f"say here how tensors for {word!r} are made")


@st.composite
def rearrangements(draw: st.DrawFn) -> tuple[Rearrange, tuple[int, ...]]:
    """A rearrangement with a shape that it fits."""
    names = list("abcde"[: draw(st.integers(1, 5))])
    lengths = {name: draw(st.integers(1, 4)) for name in names}

    def grouped(order: list[str]) -> list[tuple[str, ...]]:
        groups: list[tuple[str, ...]] = []
        for name in order:
            if groups and draw(st.booleans()):
                groups[-1] += (name,)
            else:
                groups.append((name,))
        return groups

    left, right = grouped(names), grouped(draw(st.permutations(names)))
    rest = draw(st.booleans())

    def side(groups: list[tuple[str, ...]]) -> str:
        return " ".join([g[0] if len(g) == 1 else f"({' '.join(g)})" for g in groups] + ["..."] * rest)

    free = draw(st.sampled_from([None, *names]))
    sizes = {name: length for name, length in lengths.items() if name != free}
    op = rearrange_notation.parse_rearrange(f"{side(left)} -> {side(right)}", sizes, HERE)
    shape = [_product(lengths[n] for n in group) for group in left]
    return op, (*shape, *draw(st.lists(st.integers(1, 3), max_size=2) if rest else st.just([])))


def _product(numbers: Any) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result


CORE = [
    op for op in Op.__subclasses__() if op.__module__ == structural.__name__
]  # the ops that move numbers and make none
OPS = [op.word for op in CORE]


@pytest.mark.parametrize("word", [op.word for op in CORE if op.undo == "exact"])
@quicker
@given(data=st.data())
def test_the_inverse_gives_every_bit_back(word: str, data: st.DataObject) -> None:
    op, bundle = data.draw(applications(word))
    there = op.apply(bundle, TorchAlgebra())
    back = op.inverse().apply(there, TorchAlgebra())
    assert images(back)[1] == bundle.holes
    assert images(back) == images(bundle)
    assert op.inverse().inverse() == op


@pytest.mark.parametrize("word", OPS)
@quicker
@given(data=st.data())
def test_the_shape_rule_is_that_of_the_kernel(word: str, data: st.DataObject) -> None:
    op, bundle = data.draw(applications(word))
    made = op.apply(bundle, TorchAlgebra())
    assert shapes_of(made) == op.apply(shapes_of(bundle), ShapeAlgebra())
    assert (len(made.slots), made.holes) == op.arity(len(bundle.slots), bundle.holes)


@pytest.mark.parametrize("word", OPS)
@quicker
@given(data=st.data(), shape=st.lists(st.integers(0, 6), max_size=3).map(tuple))
def test_an_op_that_does_not_fit_says_so(word: str, data: st.DataObject, shape: tuple[int, ...]) -> None:
    """Wrong shapes end in an OpError from the shape rule, and the kernel takes whatever the rule lets through."""
    op, bundle = data.draw(applications(word))
    wrong = Bundle(({key: tensor(shape) for key in bundle.slots[0]}, *bundle.slots[1:]), bundle.holes)
    try:
        wanted = op.apply(shapes_of(wrong), ShapeAlgebra())
    except OpError:
        return
    assert shapes_of(op.apply(wrong, TorchAlgebra())) == wanted


def test_a_rearrangement_of_some_leaves_the_others() -> None:
    op = replace(rearrange_notation.parse_rearrange(rearrange_notation.TRANSPOSE, {}, HERE), only=(0, 2))
    made = op.apply(Bundle(tuple({(): tensor((2, 3))} for _ in range(3))), TorchAlgebra())
    assert [tuple(slot[()].shape) for slot in made.slots] == [(3, 2), (2, 3), (3, 2)]
    with pytest.raises(OpError, match="names tensor 2, counted from 0, of 2"):
        op.arity(2, ())


@quick
@given(rearrangements())
def test_a_rearrangement_is_that_of_einops(application: tuple[Rearrange, tuple[int, ...]]) -> None:
    op, shape = application
    whole = torch.arange(_product(shape)).reshape(shape)
    made = op.apply(Bundle(({(): whole},)), TorchAlgebra()).slots[0][()]
    assert torch.equal(made, einops.rearrange(whole, str(op), **dict(op.sizes)))


@quick
@given(st.text("ab ()->.1", max_size=16))
def test_any_text_is_a_rearrangement_or_refused(text: str) -> None:
    try:
        op = rearrange_notation.parse_rearrange(text, {}, HERE)
    except Refusal:
        return
    assert rearrange_notation.parse_rearrange(f"{op}", {}, HERE) == op


def test_the_names_of_rope_are_each_others_inverse() -> None:
    half = rearrange_notation.parse_rearrange(rearrange_notation.ROPE_TO_HALF, {"head": 2, "two": 2}, HERE)
    pairs = rearrange_notation.parse_rearrange(rearrange_notation.ROPE_TO_INTERLEAVED, {"head": 2, "two": 2}, HERE)
    rows = torch.arange(8)
    made = half.apply(Bundle(({(): rows},)), TorchAlgebra())
    assert made.slots[0][()].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert pairs.apply(made, TorchAlgebra()).slots[0][()].tolist() == rows.tolist()


# ---------------------------------------------------------------------------------------------------------------------
# Diagnostics


def test_a_report_is_sorted_and_says_each_thing_once() -> None:
    report = Report()
    for line in (3, 1, 3):
        report.add(Span("a", line, 1, 1, "text"), "wrong", "wrong-thing")
    with pytest.raises(Refusal) as caught:
        report.settle()
    assert [d.span.line for d in caught.value.diagnostics] == [1, 3]
    assert str(caught.value.diagnostics[0]) == "a:1:1: wrong [wrong-thing]\n  text\n  ^"
