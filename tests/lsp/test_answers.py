"""What an editor is shown, from texts and positions alone. `@` marks the cursor."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.lsp.analysis import TargetAnswers, analyse, definitions, read_tree
from compiler.lsp.answers import complete, definition, hover, name_forms
from compiler.lsp.cursor import place_of

PATH = "litgpt_qwen2.yaml"
TEXT = (Path(__file__).parents[2] / "specs" / PATH).read_text()
TARGET = TargetAnswers(
    "Qwen2ForCausalLM",
    {
        "model.norm.weight": (64,),
        "model.layers.0.mlp.up_proj.weight": (160, 64),
        "model.layers.1.mlp.up_proj.weight": (160, 64),
        "lm_head.weight": (128, 64),
    },
    ("hidden_act", "hidden_size", "use_cache"),
    {"model.layers.{}.mlp.up_proj.weight": (("intermediate_size",), ("n_embd", "q_rows")), "model.norm.weight": ((),)},
    {"head_size": 8, "n_head": 8},
)


def marked(text: str) -> tuple[str, str, int, int]:
    """The arguments of a question about the place of `@`."""
    before, _, after = text.partition("@")
    return PATH, before + after, before.count("\n"), len(before) - before.rfind("\n") - 1


def typed(old: str, new: str) -> tuple[str, str, int, int]:
    """The spec with a part exchanged for what someone has typed so far."""
    assert old in TEXT
    return marked(TEXT.replace(old, new, 1))


# ---------------------------------------------------------------------------------------------------------------------


def test_a_sound_text_has_no_diagnostics() -> None:
    found = analyse(PATH, TEXT)
    assert found.diagnostics == ()
    assert found.program is not None


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("    split: 0", "    splitt: 0", "unknown-key"),
        ("kv_rows: n_query_groups *", "kv_rows: n_query_group *", "unknown-name"),
        ("keep:\n", "keep: [\n", "yaml-syntax"),
        ("    split: 0\n", "", "ambiguous-step"),
    ],
)
def test_a_mistake_has_a_place(old: str, new: str, kind: str) -> None:
    assert old in TEXT
    text = TEXT.replace(old, new, 1)
    found = analyse(PATH, text)
    assert found.program is None
    assert kind in {d.kind for d in found.diagnostics}
    line = next(d.span.line for d in found.diagnostics if d.kind == kind)
    assert abs(line - 1 - text[: text.index(new or "- name: qkv")].count("\n")) <= 1


def test_a_warning_leaves_the_program() -> None:
    found = analyse(PATH, TEXT.replace("facts:\n", 'facts:\n  spare: dim("transformer.ln_f.weight", 0)\n', 1))
    assert [(d.kind, d.warning) for d in found.diagnostics] == [("unused-name", True)]
    assert found.program is not None


def test_another_yaml_file_has_no_answers() -> None:
    """Editors send every YAML file; a spec has the key `spec`."""
    other = "services:\n  web: {image: x}\nfacts: {a: 1, b: a}\n"
    spec = other + "spec: 1\n"
    assert analyse("compose.yaml", other).diagnostics == ()
    assert analyse("compose.yaml", spec).diagnostics != ()
    for text, answers in ((other, False), (spec, True)):
        assert bool(complete("compose.yaml", text, 0, 1)) == answers
        assert bool(definition("compose.yaml", text, 2, 18)) == answers
        assert bool(hover("compose.yaml", text, 2, 18)) == answers


# ---------------------------------------------------------------------------------------------------------------------

PLACES = [
    # the text; the keys above; whether a key, whether a value can be written
    ("a:\n  b:\n  - c: {d: [x, @", ("a", "b", "c", "d"), False, True),
    ("a:\n  b: 1\n  @", ("a",), True, False),
    ("a: {b: {c: 1}, @", ("a",), True, False),
    ("a: {b: x.{i}.y, @", ("a",), True, False),
    ("a: {b: x.{i@", ("a", "b"), False, True),
    ("a:\n  - {b: 1,\n     c: @", ("a", "c"), False, True),
    ("a:\n  - @", ("a",), True, True),
    ("a: 1\nb@", (), True, False),
    ('a: "{b: @', ("a",), False, True),
    ("a:\n  'x y': @", ("a", "x y"), False, True),
    ("a: 1 # b: @", (), False, False),
    ("@", (), True, False),
]


@pytest.mark.parametrize(("text", "keys", "key", "value"), PLACES)
def test_place(text: str, keys: tuple[str, ...], key: bool, value: bool) -> None:
    _, content, line, character = marked(text)
    place = place_of(content, line, character)
    assert (place.keys, place.key, place.value) == (keys, key, value)


COMPLETED = [
    # what is in the spec; what is typed in its place; what is offered, of which kind; what is not
    ("transformer.ln_f.weight: model.norm.weight", "transformer.ln_f.weight: model.n@", "model.norm.weight:tensor", "lm_head.weight"),
    ("{p}: q_rows", "{p}: q_@", "q_rows:fact", "model.norm.weight head_size"),
    ("model.layers.{i}.self_attn.q_proj.{p}: q_rows", "model.layers.{i}.mlp.@", "model.layers.{i}.mlp.up_proj.weight:tensor", "n_head"),
    ("name: lm_head.weight,", "name: lm_@,", "lm_head.weight:tensor", "name"),
    ("kv_rows: n_query_groups * head_size", "kv_rows: n_query_groups * @", "head_size:fact n_head:argument dim:function", "hidden_size"),
    ("kv_rows: n_query_groups * head_size", 'kv_rows: dim("n_@', "", "n_head"),
    ("n_embd == q_rows", "n_embd == q_@", "q_rows:fact", "n_embd"),
    ("when: not tie_word", "when: not tie_@", "tie_word_embeddings:argument", "head_size"),
    ("set: {hidden_act: silu", "set: {hidden_act: silu, use_@", "use_cache:field", "hidden_size n_head"),
    ("copy: [intermediate_size", "copy: [h@", "head_size:fact hidden_size:field", "dim"),
    ("    split: 0", "    s@", "split:key steps:key", "name"),
    ("    split: 0", "    cast: b@", "bfloat16:word", "float16"),
    ("tie:\n", "t@\ntie:\n", "tie:key transform:key", "name"),
    ("- {padded_vocab_size", "- {pad@", "padded_vocab_size:fact", "dim"),
    ("n_head: {help", "n_head: {@help", "help:key guess:key", "n_head"),
    ("rope_base: 1000000.0", "rope_base: n@", "", "n_head"),
    ("summary: LitGPT", "summary: n@", "", "n_head name"),
    ("# what model", "# n@", "", "n_head name"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "offered", "others"), COMPLETED)
def test_completion(old: str, new: str, offered: str, others: str) -> None:
    found = {one.label: one for one in complete(*typed(old, new), TARGET)}
    assert {*offered.split()} <= {f"{one.label}:{one.kind}" for one in found.values()}
    assert not {*others.split()} & found.keys()


def test_a_completion_replaces_what_is_typed() -> None:
    (one,) = complete(*typed("{p}: q_rows", "{p}: q_r@"), TARGET)
    assert (one.label, one.length, one.detail) == ("q_rows", 3, "n_head * head_size")


def test_without_answers_of_the_class_its_names_are_not_offered() -> None:
    assert complete(*typed("transformer.ln_f.weight: model.norm.weight", "transformer.ln_f.weight: model.@")) == []


def test_numbers_of_names_are_indices() -> None:
    shapes = {"a.0.b.1.w2": (1,), "a.1.b.1.w2": (3,), "w": (2,)}
    assert name_forms(shapes) == {"a.{i}.b.{j}.w2": (1,), "w": (2,)}


# ---------------------------------------------------------------------------------------------------------------------

HOVERED = [
    ("model.norm.weight", "model.n@orm.weight", ["1 tensor of Qwen2ForCausalLM", "shape `[64]`"]),
    ("up_proj.weight", "up_@proj.weight", ["2 tensors", "`[intermediate_size, n_embd]` = `[160, 64]`"]),
    ("head_size: dim", "head@_size: dim", ["fact `head_size`", ".attn.proj.weight", "`8` in the first example"]),
    ("n_query_groups * head_size", "n_query_groups * @head_size", ["fact `head_size`"]),
    ("n_head: {", "n@_head: {", ["argument `n_head`", "the number of attention heads"]),
    ("    split: 0", "    sp@lit: 0", ["Cut along this axis"]),
    ("transformer.wte.weight: ", "transformer.wte@.weight: ", []),
    ("summary: LitGPT", "summary: Lit@GPT", []),
]


@pytest.mark.parametrize(("old", "new", "texts"), HOVERED)
def test_hover(old: str, new: str, texts: list[str]) -> None:
    shown = hover(*typed(old, new), TARGET)
    assert bool(shown) == bool(texts)
    assert [text for text in texts if text not in shown] == []


DEFINED = [
    ("kv_rows: n_query_groups *", "kv_rows: n_@query_groups *", "  n_query_groups: "),
    ("when: not tie_word", "when: not tie@_word", "  tie_word_embeddings: false"),
    ("{p}: q_rows", "{p}: @q_rows", "  q_rows: n_head"),
    ("hidden_size: n_embd", "hidden_size: n_embd@", "  n_embd: dim"),
    ("transformer.h.{i}.attn.proj.weight: ", "transformer.h.{i}.attn.@proj.weight: ", ""),
    ("summary: LitGPT", "summary: n_@head", ""),
]


@pytest.mark.parametrize(("old", "new", "line"), DEFINED)
def test_definition(old: str, new: str, line: str) -> None:
    question = typed(old, new)
    span = definition(*question)
    if not line:
        assert span is None
        return
    assert span is not None
    assert (span.column, question[1].splitlines()[span.line - 1].startswith(line)) == (3, True)


def test_a_name_within_the_name_of_a_tensor_is_no_name() -> None:
    text = 'spec: 1\nfacts:\n  rows: dim("a", 0)\n  other: dim("a.rows", 0) + rows\n'
    assert definition(*marked(text.replace("a.rows", "a.r@ows"))) is None
    span = definition(*marked(text.replace("+ rows", "+ r@ows")))
    assert span is not None
    assert (span.line, span.column) == (3, 3)


def test_a_line_that_is_not_yaml_yet_hides_nothing() -> None:
    text = "facts:\n  a: 1\n  b: [\nexample: {a: 1}\n"
    assert {*definitions(read_tree("x.yaml", text, 2))} == {"a"}
    assert read_tree("x.yaml", text, 0) is None


def test_names_of_the_class_where_a_tensor_is_created() -> None:
    found = (
        complete(*typed("tie:", "create:\n  model.n@\ntie:"), TARGET)
        if "tie:" in TEXT
        else complete(*typed("keep:", "create:\n  model.n@\nkeep:"), TARGET)
    )
    assert [one.label for one in found] == ["model.norm.weight"]


def test_nothing_is_shown_about_nothing() -> None:
    """Beside the words, a name that is no pattern, and one that the class does not have."""
    assert hover(*typed("keep:\n", "keep:\n@\n"), TARGET) == ""
    assert hover(*typed("model.norm.weight", "model.n@orm.{i"), TARGET) == ""
    assert hover(*typed("model.norm.weight", "model.n@orms.weight"), TARGET) == ""
    assert hover(*typed("model.norm.weight", "model.n@orm.weight"), TARGET) != ""
