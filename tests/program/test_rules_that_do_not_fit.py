"""Rules of a spec that contradict each other or the language, and facts that the target does not reveal."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from compiler.diagnostics import Diagnostic, Refusal
from compiler.language.parser import load_spec
from compiler.program.inverse import SourceShapes
from compiler.program.lint import lint
from compiler.program.loading import compile_spec, load_program

HEAD = """
spec: 1
name: small
summary: a small spec
source: {weights: "*.pth"}
target: {model: LlamaForCausalLM}
arguments: {heads: 2}
"""
CODE = """
spec: 1
name: own_small
summary: a small spec
source: {weights: "*.pth"}
target: {remote_code: own_small, classes: {config: OwnConfig, model: OwnForCausalLM}}
"""


def problems(text: str, head: str = HEAD) -> list[Diagnostic]:
    with pytest.raises(Refusal) as caught:
        compile_spec(load_spec("small.yaml", head + text))
    return list(caught.value.diagnostics)


@pytest.mark.parametrize(
    ("text", "message", "kind", "hint", "line"),
    [
        ("keep: all\nfacts: {n: 'count(\"a.{\")'}\n", "this '{' is not closed", "name-syntax", "write an index as {i}, a choice as {p:q|k}", 9),
        ("transform:\n  - {name: x, from: a, to: b, cast: float16, steps: [{cast: float32}]}\n", "'cast' next to 'steps'", "ambiguous-step", "move it into the list", 9),
    ],
    ids=["pattern", "steps"],
)  # fmt: skip
def test_a_mistake(text: str, message: str, kind: str, hint: str, line: int) -> None:
    (found,) = problems(text)
    assert (found.message, found.kind, found.hint, found.span.line) == (message, kind, hint, line)


def test_a_spec_is_a_mapping() -> None:
    with pytest.raises(Refusal) as caught:
        load_spec("small.yaml", "- a\n- b\n")
    (found,) = caught.value.diagnostics
    assert (found.message, found.kind, found.hint) == (
        "a spec is a mapping of keys", "wrong-type", "the first key is 'spec: 1'",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "message", "hint"),
    [
        ("{name: x, from: a, to: {b: 4, c: 4}, copy: 2}",
         "x: no split uses the sizes beside the names under 'to'", "only split has sizes there"),
        ("{name: x, from: {\"b.{i}\": 4, \"c.{i}\": 4}, to: [y, z], stack: i}",
         "x: no concat uses the sizes beside the names under 'from'", "only concat has sizes there"),
        ("{name: x, from: a, to: {b: 4, c: 4}, steps: [{split: 0, parts: 2}]}",
         "x: both the sizes and the number of parts are given", "leave one out"),
        ("{name: x, from: a, to: [b, c], steps: [{split: 0, parts: 2, sizes: [4, 4]}]}",
         "x: both the sizes and the number of parts are given", "leave one out"),
        ("{name: x, from: a, to: {b: 4, c: 4}, steps: [{split: 0, sizes: [4, 4]}]}",
         "x: the sizes are given twice", None),
    ],
)  # fmt: skip
def test_sizes_that_nothing_uses(steps: str, message: str, hint: str | None) -> None:
    found = {d.message: d for d in lint(compile_spec(load_spec("small.yaml", f"{HEAD}transform:\n  - {steps}\n")))}
    assert found[message].kind == "op-mismatch"
    assert hint is None or found[message].hint == hint


def test_a_target_of_remote_code_is_complete() -> None:
    found = problems("keep: all\n", CODE)
    assert "a target of remote code needs 'classes' and 'blocks'" in {d.message for d in found}


def source(text: str, target: Mapping[str, tuple[int, ...]]) -> SourceShapes:
    return SourceShapes(compile_spec(load_spec("small.yaml", HEAD + text)), target)


def test_what_the_target_reveals_of_the_source() -> None:
    rules = """
rename: {"a.{i}": "x.{i}"}
transform:
  - {name: experts, from: "b.{i}.{e}", to: "y.{i}", stack: e}
"""
    shapes = source(rules, {"x.0": (2, 3), "x.1": (2, 3), "y.0": (4, 2)})
    assert (shapes.dim("a.0", 1), shapes.count("a.{i}")) == (3, 2)
    for asked, message in (
        (lambda: shapes.count("b.{i}.{e}"), "the number of b.{i}.{e} does not follow from the target"),
        (lambda: shapes.equal("a.0", "a.1"), "whether a.0 equals a.1 does not follow from the target"),
    ):
        with pytest.raises(LookupError) as caught:
            asked()
        assert caught.value.args == (f"{message}; give the fact a value",)
    with pytest.raises(LookupError, match=r"no rule reads a tensor a\.2; did you mean"):
        shapes.dim("a.2", 0)


def test_a_guard_that_decides_a_shape() -> None:
    """Of two rules for one tensor, the one that holds says whether its shape is that of the target."""
    rules = """
arguments: {turned: false}
rename:
  a: {to: x, when: not turned}
transform:
  - {name: x, from: a, to: x, transpose: true, when: turned}
"""
    program = compile_spec(load_spec("small.yaml", HEAD.replace("arguments: {heads: 2}\n", "") + rules))
    for turned in (False, True):
        shapes = SourceShapes(program, {"x": (2, 3)})
        shapes.holds = lambda guard, turned=turned: guard is None or (guard.text == "turned") == turned  # type: ignore[misc]
        if turned:
            with pytest.raises(LookupError) as caught:
                shapes.dim("a", 0)
            message = "the shape of a does not follow from the target, because another rule changes it"
            assert caught.value.args == (f"{message}; give the fact a value",)
        else:
            assert shapes.dim("a", 0) == 2
    shapes = SourceShapes(program, {"x": (2, 3)})
    shapes.holds = lambda guard: shapes.dim("a", 0) == 2
    with pytest.raises(LookupError, match=r"the shape of a decides which of the rules at lines \d+ and \d+ applies"):
        shapes.dim("a", 0)


@pytest.mark.parametrize(("name", "hint"), [("lama", "did you mean 'llama'?"), ("specs/lama.yaml", "did you mean 'llama'?"), ("qqqqq", "")])  # fmt: skip
def test_a_spec_that_is_not_there(name: str, hint: str) -> None:
    with pytest.raises(Refusal) as caught:
        load_program(name)
    (found,) = caught.value.diagnostics
    assert (found.message, found.kind) == ("no such spec: neither a file nor a shipped spec", "unreadable-file")
    assert (found.span.path, found.hint) == (name, hint)
    assert load_program("llama").spec.name.value == "llama"
