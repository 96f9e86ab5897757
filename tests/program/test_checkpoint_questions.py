"""Expressions that ask a checkpoint: lists over its layers, alternatives of a name, equal tensors; and their printed form."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from compiler.diagnostics import Refusal, Span
from compiler.jobs.prepare import Request, prepare
from compiler.language.expression import parse_expr
from compiler.program.environment import NamedShapes
from compiler.program.inverse import TensorShape
from compiler.program.loading import load_program
from compiler.render.python_source import ExprPrinter

SPECS = Path(__file__).parent.parent.parent / "specs"
TENSORS = {
    "blocks.0.rel": TensorShape((27, 8)), "blocks.1.rel": TensorShape((51, 8)), "blocks.2.rel": TensorShape((27, 8)),
    "conv.weight_v": TensorShape((6, 4)), "out": TensorShape((4, 2)), "emb": TensorShape((4, 2)),
}  # fmt: skip
NAMES = {"depth": 3, "sizes": [4, 8, 16], "n": 1}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('[i for i in range(depth) if dim("blocks.{i}.rel", 0) > 27]', [1]),
        ('[dim("blocks.{i}.rel", 0) for i in range(1, depth)]', [51, 27]),
        ('[dim("blocks.{i-1}.rel", 0) for i in range(1, depth)]', [27, 51]),
        ('[exists("blocks.{i}.rel|blocks.{i}.abs") for i in range(4)]', [True, True, True, False]),
        ("[2 * size + n for size in sizes]", [9, 17, 33]),
        ("max([size // 2 for size in sizes])", 8),
        ("sizes[-1]", 16),
        ("sizes[n]", 8),
        ("sizes[1:]", [8, 16]),
        ("sizes[: depth - 1]", [4, 8]),
        ("int(log2(sizes[2]))", 4),
        ('dim("conv.weight|conv.weight_v", 0)', 6),
        ('exists("conv.weight|conv.weight_v")', True),
        ('exists("conv.weight|conv.w")', False),
        ('count("blocks.{i}.rel|conv.{p:weight|weight_v}")', 4),
        ('equal("out", "emb")', True),
        ('equal("out", "conv.weight_v")', False),
        ('equal("out", "none")', False),
    ],
)
def test_the_value_and_the_printed_form(text: str, value: Any) -> None:
    shapes = NamedShapes(TENSORS, lambda one, other: True)
    expr = parse_expr(text, Span("here"))
    assert expr.evaluate(NAMES, shapes) == value
    plain = {name: tensor.shape for name, tensor in TENSORS.items()}
    places = {
        "f": SimpleNamespace(**NAMES),
        "shapes": plain,
        "source": plain,
        "math": math,
        "matches": lambda names, pattern: [name for name in names if re.fullmatch(pattern, name)],
        "same": lambda one, other: one == other,
    }
    assert eval(ExprPrinter("f")(expr), places) == value


def test_the_index_of_a_list_is_no_name_of_the_spec() -> None:
    expr = parse_expr('[i * depth for i in range(n) if dim("blocks.{i}.rel", 0)]', Span(""))
    assert expr.names == {"depth", "n"}
    assert [text for _, text, _ in expr.asked] == ["blocks.{i}.rel"]


def test_data_is_compared_once() -> None:
    asked = []

    def compare(one: str, other: str) -> bool:
        asked.append((one, other))
        return False

    shapes = NamedShapes(TENSORS, compare)
    assert not shapes.equal("out", "emb")
    assert not shapes.equal("out", "emb")
    assert asked == [("out", "emb")]
    with pytest.raises(Refusal, match="give the fact a value"):
        parse_expr('equal("out", "emb")', Span("here")).evaluate({}, NamedShapes(TENSORS))


# ---------------------------------------------------------------------------------------------------------------------
# In a spec


def spec(folder: Path, *changes: tuple[str, str]) -> str:
    """`llama` with texts replaced."""
    text = (SPECS / "llama.yaml").read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    (folder / "llama.yaml").write_text(text)
    return str(folder / "llama.yaml")


@pytest.mark.parametrize(
    ("fact", "kind"),
    [
        ('[dim("model.layers.{i}.input_layernorm.weight", 0) for i in range(num_hidden_layers)]', None),
        ('[dim("model.layers.{j}.input_layernorm.weight", 0) for i in range(num_hidden_layers)]', "name-syntax"),
        ('[count("model.layers.{i}.{p:a|b}.weight") for i in range(2)]', "name-syntax"),
        ("[hidden_size for hidden_size in range(2)]", "duplicate-name"),
        ('dim("model.norm.weight|model.final.weight", 0)', "unknown-tensor"),
    ],
)
def test_what_a_list_may_ask(fact: str, kind: str | None, tmp_path: Path) -> None:
    path = spec(tmp_path, ("facts:", f"facts:\n  mine: >-\n    {fact}"))
    if kind is None:
        load_program(path)
        return
    with pytest.raises(Refusal) as refusal:
        load_program(path)
    assert kind in {d.kind for d in refusal.value.diagnostics}


def test_equal_belongs_into_a_fact(tmp_path: Path) -> None:
    path = spec(tmp_path, ("require:", 'require:\n  not equal("lm_head.weight", "model.embed_tokens.weight"): no'))
    with pytest.raises(Refusal, match="allowed in a fact only"):
        load_program(path)


def test_a_field_may_be_computed_from_others(tmp_path: Path) -> None:
    """`width` is the only fact; `hidden_size` is a field of the config that another field names."""
    text = (SPECS / "baichuan_llama.yaml").read_text()
    assert "hidden_size" in text
    (tmp_path / "small.yaml").write_text(
        """
spec: 1
name: small
summary: one
target: {model: LlamaForCausalLM}
arguments: {heads: 4}
facts:
  width: dim("norm.weight", 0)
config:
  rename: {hidden_size: width, num_attention_heads: heads}
  derive: {head_dim: hidden_size // num_attention_heads, intermediate_size: 4 * hidden_size}
keep: [norm.weight]
"""
    )
    program = load_program(str(tmp_path / "small.yaml"))
    shapes = NamedShapes({"norm.weight": TensorShape((32,))})
    from compiler.program.environment import Environment

    env = Environment(program, shapes, {})
    values = {field.name: env.evaluate(field.expr) for field in program.spec.config if field.expr}
    assert values == {"hidden_size": 32, "num_attention_heads": 4, "head_dim": 8, "intermediate_size": 128}


# ---------------------------------------------------------------------------------------------------------------------
# A guard over shapes, reversed

GUARDED = """
spec: 1
name: guarded
summary: a padded vocabulary
target: {model: LlamaForCausalLM}
arguments: {vocab_size: 10}
facts:
  padded_vocab_size: dim("embed.weight", 0)
config: {copy: [vocab_size]}
rename:
  embed.weight: {to: model.embed_tokens.weight, when: vocab_size == padded_vocab_size}
transform:
  - name: tokens
    when: vocab_size < padded_vocab_size
    from: embed.weight
    to: model.embed_tokens.weight
    crop: {from: padded_vocab_size, to: vocab_size}
"""


def reverse(folder: Path, **assigned: Any) -> list[str]:
    (folder / "guarded.yaml").write_text(GUARDED)
    (folder / "source").mkdir()
    save_file({"model.embed_tokens.weight": torch.zeros(10, 4)}, folder / "source" / "model.safetensors")
    (folder / "source" / "config.json").write_text('{"vocab_size": 10}')
    request = Request([folder / "source"], reverse=True, assigned=assigned)
    plan = prepare(load_program(str(folder / "guarded.yaml")), request).plan
    return [f"{target.name} {list(target.shape)}" for target in plan.targets]


def test_a_guard_that_the_target_does_not_reveal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"decides which of the rules at lines \d+ and \d+ applies") as refusal:
        reverse(tmp_path)
    assert "give the fact a value" in str(refusal.value)


def test_a_fact_that_is_given_decides_the_guard(tmp_path: Path) -> None:
    assert reverse(tmp_path, padded_vocab_size=10) == ["embed.weight [10, 4]"]


def test_the_rule_that_loses_something_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="the cropped positions are lost"):
        reverse(tmp_path, padded_vocab_size=16)
