"""`compile detect` and `compile run auto`: by names, shapes and container, and by nothing that a config claims."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.error_runs import SHAPES, weights
from support.parity import ORACLES
from support.synthetic import synthetic

from compiler.cli.main import main
from compiler.diagnostics import Refusal
from compiler.jobs.detect import Fit, detect, known_specs, unique
from compiler.jobs.request import Request
from compiler.program.loading import load_program

PROGRAMS = known_specs()
SMALL = Path(__file__).parent.parent / "errors" / "runs"
# A folder of another project's checkpoint -> the spec that it is for.
SOURCES = {
    "litgpt/llama_gqa_fused_qkv": "litgpt_llama",
    "litgpt/qwen3": "litgpt_qwen3",
    "litgpt/mixtral": "litgpt_mixtral",
    "litgpt/gpt_neox": "litgpt_gpt_neox",
    "meta_llama/llama3_2shard_gqa": "meta_llama",
}


def statuses(fits: list[Fit]) -> dict[str, str]:
    return {fit.spec: fit.status for fit in fits}


@pytest.mark.parametrize("case", SOURCES)
def test_a_checkpoint_finds_its_spec(case: str) -> None:
    fits = detect(Request([ORACLES / case / "source"]), PROGRAMS)
    assert statuses(fits)[SOURCES[case]] == "fits"
    # Where others fit as well, they read the very same names: LitGPT calls Llama's, Mistral's and Phi-3's alike.
    alike = {fit.spec for fit in fits if fit.status == "fits"}
    assert alike <= ({"litgpt_llama", "litgpt_mistral", "litgpt_phi3"} if "llama_gqa" in case else {SOURCES[case]})
    assert statuses(fits)["nanogpt"] == "no"


def test_what_a_config_claims_is_not_asked(tmp_path: Path) -> None:
    """The config says another model type; the names and shapes decide."""
    made = synthetic(load_program("phi3_llama"), 0, finite=True)
    save_file({n: t.clone() for n, t in made.tensors.items()}, tmp_path / "model.safetensors")
    fields = {**made.arguments, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    fits = detect(Request([tmp_path]), PROGRAMS)
    assert fits[0].spec == "phi3_llama"
    assert fits[0].status == "fits"
    (tmp_path / "config.json").unlink()
    fits = detect(Request([tmp_path]), PROGRAMS)
    assert (fits[0].spec, fits[0].status) == ("phi3_llama", "asks")
    assert set(fits[0].asks) == {"num_attention_heads", "num_key_value_heads"}


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    made = dict(synthetic(load_program("llama"), 0, finite=True).tensors)
    del made["model.layers.0.mlp.up_proj.weight"]
    made["extra.weight"] = torch.zeros(2)
    torch.save(made, tmp_path / "model.pth")
    fit = next(fit for fit in detect(Request([tmp_path / "model.pth"]), PROGRAMS) if fit.spec == "llama")
    assert fit.status == "near"
    assert "extra.weight" in " ".join(fit.reasons)


def test_a_folder_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights(str(tmp_path / "model.safetensors"), SHAPES)
    words = ["detect", str(tmp_path / "model.safetensors"), "--set", "num_attention_heads=4"]
    with pytest.raises(SystemExit) as done:
        main(words)
    assert done.value.code == 1
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        main([*words, "--specs", str(SMALL), "--json"])
    assert done.value.code == 0
    first = json.loads(capsys.readouterr().out)["fits"][0]
    assert (first["spec"], first["status"], first["container"]) == ("small", "fits", True)


def test_auto_takes_the_one_that_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["run", "auto", str(ORACLES / "litgpt/qwen3/source"), str(tmp_path / "out")])
    assert done.value.code == 0
    assert "using the spec litgpt_qwen3" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_two_that_fit_are_refused() -> None:
    one = Fit("a", "", "", "fits", 1.0, True, (), ())
    other = Fit("b", "", "", "fits", 1.0, True, (), ())
    near = Fit("c", "", "", "near", 0.9, True, (), ("it lacks x",))
    own_code = Fit("0", "", "", "fits", 1.0, True, (), (), standard=False)
    assert unique([one, near], Path("x")) is one
    assert unique([own_code, one, near], Path("x")) is one
    assert unique([own_code, near], Path("x")) is own_code
    with pytest.raises(Refusal, match="2 specs fit: a, b"):
        unique([one, other, near], Path("x"))
    with pytest.raises(Refusal, match="the closest is c: it lacks x"):
        unique([near], Path("x"))


def fit(spec: str, **fields: Any) -> Fit:
    return replace(Fit(spec, f"about {spec}", "", "fits", 1.0, True, (), ()), **fields)


def test_the_expected_file_name_decides_between_two() -> None:
    named, other = fit("a"), fit("b", container=False)
    assert unique([other, named], Path("x")) is named
    with pytest.raises(Refusal, match="2 specs fit: a, b"):
        unique([fit("a", container=False), other], Path("x"))


def test_a_file_name_of_another_model_is_a_doubt() -> None:
    with pytest.raises(Refusal) as caught:
        unique([fit("a", doubt="mistral")], Path("x"))
    (problem,) = caught.value.diagnostics
    assert (problem.message, problem.kind) == ("a fits, but the file names mention mistral", "ambiguous-spec")
    assert problem.hint == "to use it: mapspec run a x OUT; else `mapspec draft` writes a new spec"


@pytest.mark.parametrize(("answers", "chosen"), [(["1"], "a"), (["b\n"], "b"), (["", "3", "c", " 2 \n"], "b")])
def test_a_person_chooses_between_equals(answers: list[str], chosen: str) -> None:
    """By number or name; anything else is asked again."""
    asked: list[str] = []
    given = iter(answers)

    def ask(question: str) -> str:
        asked.append(question)
        return next(given)

    found = unique([fit("a"), fit("b"), fit("c", status="near")], Path("x"), ask)
    assert found.spec == chosen
    assert asked == ["several specs fit:\n  1  a: about a\n  2  b: about b\nwhich one? "] * len(answers)


def test_a_folder_of_specs_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"nowhere: no such folder of specs \[unreadable-file\]"):
        known_specs([tmp_path / "nowhere"])
