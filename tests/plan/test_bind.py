"""Rules against the names of a checkpoint: what no compilation can see is reported at the rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest

from compiler.diagnostics import Diagnostic, Refusal
from compiler.language.parser import load_spec
from compiler.plan.bind import bind
from compiler.plan.notes import IntegerTensors
from compiler.plan.plan import Plan
from compiler.plan.source_checks import integer_tensors
from compiler.program.environment import Environment, NamedShapes
from compiler.program.loading import compile_spec

HEAD = """
spec: 1
name: small
summary: a small spec
source: {weights: "*.pth"}
target: {model: LlamaForCausalLM}
arguments: {parts: 2, heads: 2}
"""


class Form(NamedTuple):
    shape: tuple[int, ...]
    dtype: str = "float32"


def planned(
    rules: str, names: Mapping[str, Form], reverse: bool = False, dtype: str | None = None, **values: Any
) -> Plan:
    program = compile_spec(load_spec("small.yaml", HEAD + rules))
    return bind(program, names, Environment(program, NamedShapes(names), values), dtype=dtype, reverse=reverse)


def problems(*args: Any, **named: Any) -> list[Diagnostic]:
    with pytest.raises(Refusal) as caught:
        planned(*args, **named)
    return list(caught.value.diagnostics)


def written(plan: Plan) -> dict[str, tuple[tuple[int, ...], str]]:
    return {target.name: (tuple(target.shape), target.dtype) for target in plan.targets}


STACK = """
transform:
  - {name: experts, from: "x.{i}.e.{e}.w", to: "y.{i}.w", stack: e}
"""
EXPERTS = {f"x.0.e.{n}.w": Form((4, 2)) for n in range(3)}


def test_numbers_of_a_name_are_stacked() -> None:
    assert written(planned(STACK, EXPERTS)) == {"y.0.w": ((3, 4, 2), "float32")}


def test_parts_of_two_types_are_cast_before_they_are_joined() -> None:
    mixed = EXPERTS | {"x.0.e.1.w": Form((4, 2), "float16")}
    (problem,) = problems(STACK, mixed)
    message = "experts: it joins the types float16, float32: x.0.e.0.w, x.0.e.1.w, x.0.e.2.w"
    assert (problem.message, problem.kind, problem.span.line) == (message, "mixed-dtypes", 10)
    assert problem.hint == "cast all tensors with --dtype"
    plan = planned(STACK, mixed, dtype="bfloat16")
    assert written(plan) == {"y.0.w": ((3, 4, 2), "bfloat16")}
    assert [type(op).__name__ for op in plan.groups[0].ops] == ["Cast", "Stack"]
    (problem,) = problems(STACK, EXPERTS | {"x.0.e.1.w": Form((4, 2), "int8")}, dtype="bfloat16")
    assert problem.hint == "--dtype casts floating-point tensors only"


def test_a_rule_that_joins_needs_all_its_sources() -> None:
    """The numbers of each name are complete by themselves; together they are not."""
    join = """
transform:
  - {name: fused, from: ["x.{i}.a.{e}.w", "x.{i}.b.{e}.w"], to: "y.{i}.w", steps: [{stack: e}, {concat: 1}]}
"""
    names = {f"x.0.{part}.{n}.w": Form((4, 2)) for n in range(2) for part in "ab"}
    assert written(planned(join, names)) == {"y.0.w": ((2, 8, 2), "float32")}
    del names["x.0.b.1.w"]
    (problem,) = problems(join, names)
    assert problem.message == "the rule fused joins several tensors, but there is only x.0.a.0.w, x.0.a.1.w, x.0.b.0.w"
    assert (problem.kind, problem.span.line) == ("missing-tensor", 10)


def test_sizes_that_cannot_be_computed() -> None:
    """All rules are looked at."""
    cut = """
transform:
  - {name: cut, from: x, to: [a, b], split: 0, sizes: ["8 // (parts - heads)", 4]}
  - {name: other, from: y, to: [c, d], split: 0, sizes: ["8 % (parts - heads)", 4]}
"""
    found = problems(cut, {"x": Form((8, 2)), "y": Form((8, 2))})
    assert [(d.kind, d.span.line) for d in found] == [("expression-value", 10), ("expression-value", 11)]
    assert found[0].message == "8 // (parts - heads): integer division or modulo by zero"


def test_a_name_that_a_rule_writes_and_the_checkpoint_has() -> None:
    (problem,) = problems("keep: all\nrename: {x: y}\n", {"x": Form((2,)), "y": Form((2,))})
    assert problem.message == "y would be written twice; the other rule is at line 9"
    assert problem.kind == "written-twice"


def test_a_tensor_that_is_tied_to_one_of_several() -> None:
    """Reversed, the alias is another name of one tensor; a rule that makes several has none to give."""
    rules = """
transform:
  - {name: fused, from: [a, b], to: x, concat: 0, sizes: [4, 4]}
keep: [k]
tie: {c: a, l: k}
"""
    source = {name: Form((4, 2)) for name in "abckl"}
    assert written(planned(rules, source)) == {"x": ((8, 2), "float32"), "k": ((4, 2), "float32")}
    (problem,) = problems(rules, {"x": Form((8, 2)), "k": Form((4, 2))}, reverse=True)
    assert problem.message == "c is tied to a, one of several tensors that fused makes"
    assert (problem.kind, problem.span.line) == ("irreversible-rule", 12)
    alone = planned(rules.replace("c: a, ", ""), {"x": Form((8, 2)), "k": Form((4, 2))}, reverse=True)
    assert written(alone) == dict.fromkeys("abkl", ((4, 2), "float32"))


INTEGERS = {"a.weight": Form((4, 2), "int32"), "a.table": Form((4, 2), "int64"), "count": Form((), "int64")}
KEPT = """
keep: [a.weight, a.table, count]
"""
CAST = """
keep: [a.table, count]
transform:
  - {name: weight, from: a.weight, to: a.weight, cast: float32}
"""


def test_weights_of_integers_must_be_cast() -> None:
    """A table of integers is reported only; a single number is a counter."""
    with pytest.raises(Refusal, match=r"weights that are integers: a\.weight \(int32\)") as refused:
        list(integer_tensors(planned(KEPT, INTEGERS)))
    assert refused.value.diagnostics[0].kind == "quantized-weights"
    (note,) = integer_tensors(planned(CAST, INTEGERS))
    assert note == IntegerTensors((("a.table", "int64"),))
