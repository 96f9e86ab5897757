"""`mapspec draft` on the command line: where the spec goes, what is printed beside it, and what decides questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.synthetic import synthetic

from compiler.cli.main import dispatch
from compiler.diagnostics import Diagnostic, Refusal, Span
from compiler.jobs.convert import convert
from compiler.jobs.request import Request
from compiler.language.parser import load_spec
from compiler.program.loading import load_program

LAYER = {
    "self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32), "self_attn.v_proj": (16, 32), "self_attn.o_proj": (32, 32),
    "mlp.gate_proj": (48, 32), "mlp.up_proj": (48, 32), "mlp.down_proj": (32, 48), "input_layernorm": (32,),
    "post_attention_layernorm": (32,),
}  # fmt: skip
SHAPES = {f"model.layers.{i}.{name}.weight": shape for i in range(2) for name, shape in LAYER.items()}
SHAPES |= {"model.embed_tokens.weight": (64, 32), "lm_head.weight": (64, 32), "model.norm.weight": (32,)}
SETTINGS = (
    "num_attention_heads=4", "hidden_act=silu", "rms_norm_eps=1e-5", "rope_theta=1e4", "max_position_embeddings=64",
    "rope_scaling=null",
)  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_file({name: torch.zeros(shape) for name, shape in SHAPES.items()}, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def draft(source: Path, *words: object, settings: tuple[str, ...] = SETTINGS) -> int:
    given = [word for setting in settings for word in ("--set", setting)]
    return dispatch(["draft", str(source), "--target", "LlamaForCausalLM", *given, *map(str, words)])


def test_the_spec_goes_to_standard_output(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert draft(source, settings=SETTINGS[1:]) == 0
    printed = capsys.readouterr()
    spec = load_spec("draft.yaml", printed.out)
    assert (spec.name.value, spec.target.class_name) == ("draft", "LlamaForCausalLM")
    assert printed.err == "note: 1 question to decide, under 'undecided'\n"


def test_json_has_the_spec_its_questions_and_the_notes(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert draft(source, "--json", "--reference", "own.py:Model", settings=SETTINGS[1:]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert load_spec("draft.yaml", found["spec"]).target.class_name == "LlamaForCausalLM"
    assert found["undecided"].keys() == {"num_attention_heads"}
    assert found["notes"] == ["own.py:Model was not run: no question has alternatives that logits could tell apart"]
    assert printed.err == ""


def test_a_file_and_the_next_command(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = source.parent / "own.yaml"
    assert draft(source, "-o", out) == 0
    assert capsys.readouterr() == (f"wrote {out}\nnext: mapspec {out}\n", "")
    assert load_spec(out).name.value == "own"
    assert draft(source, "-o", source.parent / "quiet.yaml", "-q") == 0
    assert capsys.readouterr().out == f"wrote {source.parent / 'quiet.yaml'}\n"
    assert draft(source, "-o", source.parent / "quieter.yaml", "-qq") == 0
    assert capsys.readouterr() == ("", "")


def test_a_file_that_cannot_be_written(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = source.parent / "missing" / "own.yaml"
    assert draft(source, "-o", out) == 1
    assert capsys.readouterr().err == f"{out}: cannot be written: No such file or directory [output-unwritable]\n"


def test_a_model_is_not_run_where_tensors_have_no_source(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {name: torch.zeros(shape) for name, shape in SHAPES.items() if name != "model.norm.weight"}
    save_file(tensors, source)
    assert draft(source, "--reference", "own.py:Model") == 0
    assert "own.py:Model was not run: the draft has no source for model.norm.weight" in capsys.readouterr().err


def test_a_draft_that_does_not_bind_says_why(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: Any) -> None:
        raise Refusal([Diagnostic(Span("draft.yaml"), f"problem {n}", "shape-mismatch") for n in range(7)])

    monkeypatch.setattr("compiler.draft.decide_by_example.plan_of", refused)
    assert draft(source) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"note: the draft does not bind to this checkpoint yet: problem {n}" for n in range(5)]


def test_a_converted_folder_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of gate and up, which names alone do not tell apart here, the bytes say which is which."""
    program = load_program("litgpt_llama")
    made = synthetic(program, 0, "float32")
    (tmp_path / "in").mkdir()
    save_file({n: t.clone() for n, t in made.tensors.items()}, tmp_path / "in" / "model.safetensors")
    convert(program, Request([tmp_path / "in"], assigned=made.arguments), tmp_path / "out")

    def asked(*words: object) -> set[str]:
        assert draft(tmp_path / "in", "--json", *words, settings=SETTINGS[1:]) == 0
        questions: dict[str, str] = json.loads(capsys.readouterr().out)["undecided"]
        return set(questions)

    before, after = asked(), asked("--like", tmp_path / "out")
    assert after < before
    assert {"transformer.h.{i}.mlp.fc_1.weight", "transformer.h.{i}.mlp.fc_2.weight"} & before - after
