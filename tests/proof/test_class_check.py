"""The last check of a conversion: what would not load is not written, and the message names the cause."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.synthetic import synthetic

from compiler.diagnostics import Refusal
from compiler.executor import preconditions
from compiler.jobs.convert import convert
from compiler.jobs.request import Request
from compiler.model_folder.card import MANIFEST
from compiler.program.loading import load_program
from compiler.program.program import Program
from compiler.proof import class_check
from compiler.target import ask_class, signature_cache
from compiler.target.class_signature import ClassSignature
from compiler.target.signature_cache import ClassQuestion

ROOT = Path(__file__).parents[2]
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def llama(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The spec `llama` under another name: without recorded labels of axes, so that the class alone judges shapes."""
    path = tmp_path_factory.mktemp("spec") / "plain.yaml"
    path.write_text((ROOT / "specs" / "llama.yaml").read_text().replace("name: llama\n", "name: plain\n"))
    return load_program(str(path))


def source(path: Path, change: Callable[[Tensors], None] = lambda tensors: None) -> tuple[Path, dict[str, Any]]:
    """A small checkpoint for the spec `llama`, changed."""
    made = synthetic(load_program("llama"), 0, "float32", finite=True)
    tensors = {name: tensor.clone() for name, tensor in made.tensors.items()}
    change(tensors)
    torch.save(tensors, path / "model.pth")
    return path / "model.pth", dict(made.arguments)


def narrower(tensors: Tensors) -> None:
    """In all layers, so that no rule sees a layer that differs from another."""
    for name in tensors:
        if name.endswith("up_proj.weight"):
            tensors[name] = tensors[name][:-4].clone()


def taller(tensors: Tensors) -> None:
    tensors["model.norm.weight"] = torch.ones(3, 3)


def empty(tensors: Tensors) -> None:
    tensors["model.norm.weight"] = torch.ones(())


def one_layer(tensors: Tensors) -> None:
    tensors["model.layers.1.mlp.down_proj.weight"] = torch.ones(8, 8)


@pytest.mark.parametrize("change", [narrower, taller, empty, one_layer])
def test_what_the_class_cannot_load_is_not_written(
    tmp_path: Path, llama: Program, change: Callable[[Tensors], None]
) -> None:
    path, arguments = source(tmp_path, change)
    with pytest.raises(Refusal) as caught:
        convert(llama, Request([path], assigned=arguments), tmp_path / "out")
    assert {d.kind for d in caught.value.diagnostics} <= {"wrong-shape", "shape-mismatch"}
    assert all(d.span.line for d in caught.value.diagnostics), "the rule's place"
    assert [p.name for p in tmp_path.iterdir()] == ["model.pth"]


def test_the_message_names_both_shapes_and_the_field(tmp_path: Path, llama: Program) -> None:
    path, arguments = source(tmp_path, narrower)
    with pytest.raises(Refusal) as caught:
        convert(llama, Request([path], assigned=arguments), tmp_path / "out")
    first = caught.value.diagnostics[0]
    assert "mlp.up_proj.weight is [" in first.message
    assert "LlamaForCausalLM with this config needs [" in first.message
    assert "intermediate_size in config.json" in first.hint


def test_without_the_check_it_is_written_and_says_so(tmp_path: Path, llama: Program) -> None:
    path, arguments = source(tmp_path, taller)
    convert(llama, Request([path], assigned=arguments, check=False), tmp_path / "out")
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["class_check"] == "skipped"
    assert "not compared with the class" in (tmp_path / "out" / "README.md").read_text()
    path, arguments = source(tmp_path)
    convert(llama, Request([path], assigned=arguments), tmp_path / "right")
    assert json.loads((tmp_path / "right" / MANIFEST).read_text())["class_check"] == "passed"
    assert "not compared with the class" not in (tmp_path / "right" / "README.md").read_text()


@pytest.mark.parametrize("spoil", ["shape", "extra", "missing", "config"])
def test_a_reverse_reads_only_what_its_config_claims(tmp_path: Path, spoil: str) -> None:
    path, arguments = source(tmp_path)
    convert(load_program("llama"), Request([path], assigned=arguments), tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    match spoil:
        case "shape":
            for name in [n for n in tensors if n.endswith("up_proj.weight")]:
                tensors[name] = tensors[name][:-4].clone()
        case "extra":
            tensors["model.layers.0.self_attn.q_proj.bias"] = torch.ones(8)
        case "missing":
            del tensors["model.layers.1.input_layernorm.weight"]
        case "config":
            config["intermediate_size"] += 8
    save_file(tensors, tmp_path / "out" / "model.safetensors")
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(Refusal):
        convert(load_program("llama"), Request([tmp_path / "out"], reverse=True), tmp_path / "back.pth")
    assert not (tmp_path / "back.pth").exists()


def test_a_right_reverse_passes(tmp_path: Path) -> None:
    path, arguments = source(tmp_path)
    convert(load_program("llama"), Request([path], assigned=arguments), tmp_path / "out")
    convert(load_program("llama"), Request([tmp_path / "out"], reverse=True), tmp_path / "back.pth")
    assert (tmp_path / "back.pth").exists()


def test_plan_checks_without_writing(tmp_path: Path) -> None:
    path, arguments = source(tmp_path, narrower)
    words = [f"--set={name}={json.dumps(value)}" for name, value in arguments.items()]
    command = [sys.executable, "-m", "compiler", "plan", "llama", str(path), "--check", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "[wrong-shape]" in done.stderr
    path, _ = source(tmp_path)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "has the same names, shapes and ties" in done.stderr


def test_a_run_that_fails_early_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    real = ask_class.PendingAnswer.stop
    monkeypatch.setattr(ask_class.PendingAnswer, "stop", lambda self: (started.append(self), real(self))[1])
    monkeypatch.setattr("compiler.executor.execute.write_folder", lambda *_, **__: 1 / 0)
    path, arguments = source(tmp_path)
    with pytest.raises(ZeroDivisionError):
        convert(load_program("llama"), Request([path], assigned=arguments), tmp_path / "out")
    assert len(started) == 1


def answered(monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any], dict[str, str]], None]) -> None:
    """The class answers with other shapes or ties."""

    def cached(question: ClassQuestion) -> ClassSignature:
        signature = signature_cache.ask(question)
        shapes, ties = dict(signature.shapes), dict(signature.ties)
        change(shapes, ties)
        return replace(signature, shapes=shapes, ties=ties)

    monkeypatch.setattr(signature_cache, "cached", cached)


NORM, HEAD, EMBED = "model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"
OF_CLASS = "LlamaForCausalLM with this config"


@pytest.mark.parametrize(
    ("change", "kind", "message", "hint"),
    [
        (
            lambda shapes, ties: shapes.update({"model.norms.weight": (3,)}),
            "missing-tensor",
            f"{OF_CLASS} needs model.norms.weight, which the conversion does not write",
            f"did you mean '{NORM}'?",
        ),
        (
            lambda shapes, ties: shapes.update({"q": (3,)}),
            "missing-tensor",
            f"{OF_CLASS} needs q, which the conversion does not write",
            "the checkpoint is incomplete, or the config states more layers than it has",
        ),
        (
            lambda shapes, ties: (shapes.pop(NORM), shapes.update({"model.norms.weight": (3,)})),
            "unknown-target",
            f"{OF_CLASS} has no tensor {NORM}",
            "did you mean 'model.norms.weight'?",
        ),
        (
            lambda shapes, ties: (shapes.pop(NORM), ties.update({NORM: EMBED})),
            "unknown-target",
            f"{OF_CLASS} shares {NORM} with {EMBED} and would ignore the one that is written",
            "the config has tie_word_embeddings: true, which is its default in some classes",
        ),
    ],
    ids=["near name", "no name", "unknown", "shared"],
)
def test_what_the_class_has_otherwise(
    tmp_path: Path, llama: Program, monkeypatch: pytest.MonkeyPatch, change: Any, kind: str, message: str, hint: str
) -> None:
    path, arguments = source(tmp_path)
    answered(monkeypatch, change)
    with pytest.raises(Refusal) as caught:
        convert(llama, Request([path], assigned=arguments), tmp_path / "out")
    found = {d.kind: d for d in caught.value.diagnostics}
    assert (found[kind].message, found[kind].hint) == (message, hint)
    assert bool(found[kind].span.line) == (kind == "unknown-target"), "the rule's place, where a rule writes it"


def test_a_head_that_is_not_written_because_it_is_tied(
    tmp_path: Path, llama: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, arguments = source(tmp_path, lambda tensors: tensors.update({HEAD: tensors[EMBED]}))
    answered(monkeypatch, lambda shapes, ties: shapes.update({HEAD: shapes[EMBED]}))
    with pytest.raises(Refusal, match=f"needs {HEAD}, which the conversion does not write") as caught:
        convert(llama, Request([path], assigned=arguments), tmp_path / "out")
    assert caught.value.diagnostics[0].hint == "the class shares it only where the config has tie_word_embeddings: true"


def test_a_reverse_reads_a_tied_tensor_that_an_older_release_wrote(
    tmp_path: Path, llama: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, arguments = source(tmp_path)
    convert(llama, Request([path], assigned=arguments), tmp_path / "out")
    answered(monkeypatch, lambda shapes, ties: (shapes.pop(NORM), ties.update({NORM: EMBED})))
    with pytest.raises(Refusal, match=f"{NORM} differs from {EMBED}, but LlamaForCausalLM with this config"):
        convert(llama, Request([tmp_path / "out"], reverse=True), tmp_path / "back.pth")
    assert not (tmp_path / "back.pth").exists()
    with monkeypatch.context() as patched:
        patched.setattr(preconditions, "equal_tensors", lambda *_: True)
        convert(llama, Request([tmp_path / "out"], reverse=True), tmp_path / "back.pth")
    answered(monkeypatch, lambda shapes, ties: shapes.update({"q": (3,)}))
    with pytest.raises(Refusal, match="needs q, which the folder lacks"):
        convert(llama, Request([tmp_path / "out"], reverse=True), tmp_path / "again.pth")


@pytest.mark.parametrize(
    ("rows", "hint"),
    [
        (77, "77 is num_experts * expert_size in config.json; compare them with the checkpoint"),
        (7, "7 is num_experts in config.json; compare it with the checkpoint"),
        (10**6 + 3, "compare the fields of config.json with the checkpoint"),
    ],
)
def test_the_fields_that_give_a_size(
    tmp_path: Path, llama: Program, monkeypatch: pytest.MonkeyPatch, rows: int, hint: str
) -> None:
    path, arguments = source(tmp_path)
    written = class_check.config_written
    more = {"num_experts": 7, "expert_size": 11, "own_switch": True, "own_count": 1}
    monkeypatch.setattr(class_check, "config_written", lambda *args: written(*args) | more)
    answered(monkeypatch, lambda shapes, ties: shapes.update({NORM: (rows,)}))
    with pytest.raises(Refusal) as caught:
        convert(llama, Request([path], assigned=arguments), tmp_path / "out")
    (problem,) = caught.value.diagnostics
    assert (problem.kind, problem.hint) == ("wrong-shape", hint)
