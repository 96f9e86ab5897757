"""What `--reverse` writes into a folder: the source as its trainer keeps it, which converts again without any argument.

Every spec, on a made-up source of its first example: forward, reversed into a folder, forward again from that folder.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.commands import run
from support.oracle_cases import Case
from support.parity import ORACLES
from support.synthetic import folder_image, image, synthetic

from compiler.checkpoints.config_file import read_config_file
from compiler.diagnostics import Refusal
from compiler.jobs.convert import convert
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.output.pth_layout import Wrapping, lay_out
from compiler.plan.plan import TargetTensor
from compiler.program.loading import load_program

SPECS = sorted(path.stem for path in (Path(__file__).parents[2] / "specs").glob("*.yaml"))
LOSSY = [name for name in SPECS if any(rule.loss for rule in load_program(name).rules)]
OWN_CODE = [name for name in SPECS if load_program(name).spec.target.model is None]
SEVERAL = [name for name in SPECS if load_program(name).spec.sources]  # whose sources are not written
EXACT = [name for name in SPECS if name not in (*LOSSY, *OWN_CODE, *SEVERAL)]


def settled(out: Path) -> dict[str, str]:
    names = ("config.json", "generation_config.json")
    return {name: (out / name).read_text() for name in names if (out / name).exists()}


CASES = [(name, n) for name in EXACT for n in range(len(load_program(name).spec.examples))]


@pytest.mark.parametrize(("name", "example"), CASES)
def test_the_folder_converts_again_by_itself(tmp_path: Path, name: str, example: int) -> None:
    program = load_program(name)
    made = synthetic(program, example, finite=True)
    source = made.save(tmp_path, program.spec.weights)
    quick = {"check": False, "checksums": False}
    convert(program, Request([source], assigned=made.arguments, **quick), tmp_path / "one")
    convert(program, Request([tmp_path / "one"], reverse=True, **quick), tmp_path / "back")
    convert(program, Request([tmp_path / "back"], **quick), tmp_path / "two")
    assert folder_image(tmp_path / "two") == folder_image(tmp_path / "one")
    assert settled(tmp_path / "two") == settled(tmp_path / "one")


def test_an_argument_that_is_called_like_a_field(tmp_path: Path) -> None:
    """gpt-fast's `rope_scaling` is not that of config.json, which a folder made by torchao's word for it has beside it."""
    case = Case(ORACLES / "gpt_fast" / "llama_scaled_tied")
    quick = {"check": False, "checksums": False}
    convert(case.program, replace(case.request, **quick), tmp_path / "one")
    convert(case.program, Request([tmp_path / "one"], reverse=True, **quick), tmp_path / "back")
    convert(case.program, Request([tmp_path / "back"], **quick), tmp_path / "two")
    assert settled(tmp_path / "two") == settled(tmp_path / "one")
    assert '"llama3"' in (tmp_path / "two" / "config.json").read_text()
    (tmp_path / "back" / "mapspec.json").write_text('{"settings":' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(Refusal, match="use_scaled_rope has no value"):
        prepare(case.program, Request([tmp_path / "back"], **quick))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["minimind", "nanogpt"])
def test_a_model_of_its_own_code_too(tmp_path: Path, name: str) -> None:
    case = Case(ORACLES / {"minimind": "minimind/dense_small", "nanogpt": "nanogpt/trained_bias"}[name])
    program, quick = load_program(name), {"check": False, "checksums": False}
    convert(program, replace(case.request, **quick), tmp_path / "one")
    convert(program, Request([tmp_path / "one"], reverse=True, **quick), tmp_path / "back")
    convert(program, Request([tmp_path / "back"], **quick), tmp_path / "two")
    assert folder_image(tmp_path / "two") == folder_image(tmp_path / "one")
    assert settled(tmp_path / "two") == settled(tmp_path / "one")


@pytest.mark.parametrize("version", ["version_0", "version_1", "version_3"])
def test_dictionaries_in_dictionaries(tmp_path: Path, version: str) -> None:
    """Megatron-LM's language model has some, whose keys have dots, and its loader asks for them one by one."""
    case = Case(ORACLES / "megatron_gpt2" / version)
    quick = {"check": False, "checksums": False}
    convert(case.program, replace(case.request, **quick), tmp_path / "one")
    back = Request([tmp_path / "one"], assigned=case.request.assigned, reverse=True, **quick)  # type: ignore[arg-type]
    convert(case.program, back, tmp_path / "back")
    ours = torch.load(tmp_path / "back" / "model_optim_rng.pt", weights_only=False)
    theirs = torch.load(case.request.source[0], weights_only=False)
    assert keys(ours["model"]) == keys(theirs["model"])
    assert float(ours["checkpoint_version"]) == float(theirs.get("checkpoint_version", 0))
    stack = {"version_3": "encoder"}.get(version, "transformer")
    ours, theirs = ours["model"]["language_model"], theirs["model"]["language_model"]
    assert image(ours[stack]) == image(theirs[stack])
    for part in ours["embedding"]:
        assert image(ours["embedding"][part]) == image(theirs["embedding"][part])


def keys(tree: Any) -> Any:
    """The keys of dictionaries in dictionaries."""
    return {key: keys(value) for key, value in tree.items()} if isinstance(tree, dict) else None


def test_names_of_two_dictionaries(tmp_path: Path) -> None:
    """A dictionary is left before the next begins, and a name that merely begins alike is in none."""
    targets = [TargetTensor(name, (1,), "uint8") for name in ("a.b.w.x", "a.c.w.x", "a.bc.w", "b.w")]
    file = lay_out("x.pt", targets, Wrapping(("model",), dictionaries=("a", "a.b", "a.b.w", "b")))
    (tmp_path / "x.pt").write_bytes(bytes(file.size))
    file.finish(tmp_path / "x.pt")
    loaded = torch.load(tmp_path / "x.pt", weights_only=True)
    assert keys(loaded["model"]) == {
        "a": {"b": {"w": {"x": None}}, "c.w.x": None, "bc.w": None},
        "b": {"w": None},
    }


RECORDED = {
    "litgpt/llama31_scaled": "model_config.yaml",
    "litgpt/falcon_7b": "model_config.yaml",
    "litgpt/olmo2": "model_config.yaml",
    "mistral_inference/mixtral_window": "params.json",
    "olmo1/olmo1_fused": "config.yaml",
}
# OLMo keeps the size of the padded embedding apart; of these fields the other names decide.
APART = {"vocab_size", "mlp_ratio", "multi_query_attention", "hf_config", "name", "padding_multiple"}


@pytest.mark.parametrize("name", RECORDED)
def test_the_config_is_the_trainers_own(tmp_path: Path, name: str) -> None:
    """Every field that it states is stated so by the config that the trainer wrote itself."""
    case = Case(ORACLES / name)
    convert(case.program, replace(case.request, check=False), tmp_path / "one")
    convert(case.program, Request([tmp_path / "one"], reverse=True, check=False), tmp_path / "back")
    ours, theirs = (read_config_file(p / RECORDED[name]) for p in (tmp_path / "back", case.folder / "source"))
    holder = case.program.spec.layout.holder
    ours, theirs = (ours[holder], theirs[holder]) if holder else (ours, theirs)
    assert {n: value for n, value in ours.items() if n in theirs and n not in APART} == {
        n: value for n, value in theirs.items() if n in ours and n not in APART
    }
    assert len(ours.keys() & theirs.keys()) > 8


def test_the_arguments_in_a_torch_file(tmp_path: Path) -> None:
    """`model_args` beside the weights, as nanoGPT has them; a namespace where Megatron has one."""
    case = Case(ORACLES / "nanogpt" / "trained_bias")
    convert(case.program, case.request, tmp_path / "one")
    convert(case.program, Request([tmp_path / "one"], reverse=True), tmp_path / "back")
    ours = torch.load(tmp_path / "back" / "ckpt.pt", weights_only=True)
    theirs = torch.load(case.request.source[0], weights_only=True)
    assert ours["model_args"] == theirs["model_args"]
    assert ours["model"].keys() == {n for n in theirs["model"] if not n.endswith(".attn.bias")}
    values = {"a": None, "b": True, "c": -5, "d": 1 << 70, "e": 0.5, "f": ["é", {"g": [False]}]}
    target = TargetTensor("w", (2,), "float32")
    wrapping = Wrapping(("model", "inner"), {"args": values}, ("args",))
    file = lay_out("x.pt", [target], wrapping)
    (tmp_path / "x.pt").write_bytes(bytes(file.size))
    file.finish(tmp_path / "x.pt")
    read = torch.load(tmp_path / "x.pt", weights_only=False)
    assert isinstance(read["args"], argparse.Namespace)
    assert vars(read["args"]) == values
    assert torch.equal(read["model"]["inner"]["w"], torch.zeros(2))


def test_a_file_is_still_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = synthetic(load_program("qwen3"), finite=True)
    source = made.save(tmp_path, "*.pth")
    given = [word for name, value in made.arguments.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    assert run(capsys, "run", "qwen3", source, tmp_path / "one", "--no-check", *given)[0] == 0
    for name in ("back.pth", "back.safetensors"):
        assert run(capsys, "run", "--reverse", "qwen3", tmp_path / "one", tmp_path / name, "--no-check")[0] == 0
    safe = load_file(tmp_path / "back.safetensors")
    assert image(safe) == image(torch.load(tmp_path / "back.pth", weights_only=True)) == image(made.tensors)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_stated_argument_overrides_the_manifest(tmp_path: Path) -> None:
    """The manifest has the lowest rank: torchtune's folder has no config of its own, and `--set` counts."""
    program = load_program("torchtune_llama")
    made = synthetic(program, finite=True)
    quick = {"check": False, "checksums": False}
    convert(program, Request([made.save(tmp_path, "*.pt")], assigned=made.arguments, **quick), tmp_path / "one")
    convert(program, Request([tmp_path / "one"], reverse=True, **quick), tmp_path / "back")
    assert json.loads((tmp_path / "back" / "mapspec.json").read_text())["settings"]["num_heads"] == 8
    (tmp_path / "back" / "config.json").unlink()
    plan = prepare(program, Request([tmp_path / "back"], assigned={"max_seq_len": 99}, **quick)).plan  # type: ignore[arg-type]
    assert (plan.config["num_attention_heads"], plan.config["max_position_embeddings"]) == (8, 99)
    (tmp_path / "back" / "mapspec.json").unlink()
    with pytest.raises(Refusal, match="num_heads has no value"):
        prepare(program, Request([tmp_path / "back"], **quick))  # type: ignore[arg-type]


def test_what_cannot_be_known_is_asked_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the manifest of the first conversion, torchao's word for a scaling is unknown; nothing is written."""
    program = load_program("gpt_fast_llama")
    made = synthetic(program, finite=True)
    quick = {"check": False, "checksums": False}
    convert(program, Request([made.save(tmp_path, "*.pth")], assigned=made.arguments, **quick), tmp_path / "one")
    (tmp_path / "one" / "mapspec.json").unlink()
    words = ("run", "--reverse", "gpt_fast_llama", tmp_path / "one", tmp_path / "back", "--no-check")
    status, _, err = run(capsys, *words)
    if status:
        assert "use_scaled_rope=VALUE" in err
        assert not (tmp_path / "back").exists()
    assert run(capsys, *words, "--force", "--set", "use_scaled_rope=false")[0] == 0
