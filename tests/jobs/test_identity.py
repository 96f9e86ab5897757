"""`run hf`: a state dict whose tensors have the names of their Transformers class becomes what `save_pretrained` writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from compiler.cli.main import main
from compiler.jobs.detect import detect
from compiler.jobs.request import Request
from compiler.program.loading import load_program

TRAINERS = Path(__file__).parent.parent / "data" / "trainers"
SIZES: dict[str, Any] = {
    "vocab_size": 17, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 4, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def dense(**fields: Any) -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**{**SIZES, "num_hidden_layers": 1, "tie_word_embeddings": False, **fields}))


def experts() -> PreTrainedModel:
    fields = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "mlp_only_layers": [1]}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **fields, tie_word_embeddings=True))


def renamed_experts() -> PreTrainedModel:
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=3, num_experts_per_tok=2))


def saved(model: PreTrainedModel, place: Path, change: Callable[[dict[str, Any]], Any] = dict, **config: Any) -> Path:
    """A trainer's folder: config.json and the state dict, as `change` makes it."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(place)
    if config:
        path = place / "config.json"
        path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | config).items() if v != "absent"}))
    torch.save(change(dict(model.state_dict())), place / "model.pth")
    return place / "model.pth"


def run(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as done:
        main(["run", *map(str, words)])
    return int(done.value.code or 0)


def same(out: Path, wanted: dict[str, torch.Tensor]) -> None:
    found = load_file(out / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert [n for n in wanted if found[n].dtype != wanted[n].dtype or not torch.equal(found[n], wanted[n])] == []


def lightning(state: dict[str, Any]) -> dict[str, Any]:
    return {"state_dict": {f"model._orig_mod.{name}": t for name, t in state.items()}, "global_step": 3}


def wrapped(state: dict[str, Any]) -> dict[str, Any]:
    return {f"module._fsdp_wrapped_module.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("change", [dict, lightning, wrapped])
@pytest.mark.parametrize("make", [dense, experts, renamed_experts])
def test_the_tensors_of_save_pretrained(make: Callable[[], PreTrainedModel], change: Any, tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path / "folder")
    source = saved(model, tmp_path / "run", change)
    assert run("hf", source, tmp_path / "out") == 0
    same(tmp_path / "out", load_file(tmp_path / "folder" / "model.safetensors"))
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = torch.arange(5)[None]
    with torch.no_grad():
        assert torch.equal(loaded.eval()(tokens).logits, model.eval()(tokens).logits)


@pytest.mark.parametrize("case", ["fsdp2/actor", "fsdp2/actor/..", "accelerate/checkpoint-2", "zero1/run", "zero3/run"])
def test_folders_of_trainers(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = TRAINERS / case
    if case.endswith(".."):  # the folder of a step, with that of the actor in it
        source = tmp_path / "global_step_4"
        source.mkdir()
        (source / "actor").symlink_to(TRAINERS / "fsdp2/actor")
    assert run("hf", source, tmp_path / "out") == 0
    wanted = load_file(TRAINERS / case.split("/", maxsplit=1)[0] / "expected.safetensors")
    found = load_file(tmp_path / "out" / "model.safetensors")
    dropped = {name for name in wanted if "inv_freq" in name or (case.startswith("zero") and name == "lm_head.weight")}
    lost = {n for n in found if "up_proj" in n or "input_layernorm" in n} if case.startswith("zero1") else set()
    assert found.keys() - lost == wanted.keys() - dropped
    assert all(torch.equal(found[name], wanted[name].to(found[name].dtype)) for name in found.keys() - lost)
    if case.startswith("zero"):
        assert "inv_freq: the class computes it and does not save it" in capsys.readouterr().err


def test_auto_and_detect_take_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also before a spec whose names fit: the config names the class."""
    model = dense()
    source = saved(model, tmp_path / "run", lightning)
    assert run("auto", source, tmp_path / "out", "--dtype", "bfloat16") == 0
    assert "using the spec hf" in capsys.readouterr().err
    same(tmp_path / "out", {name: tensor.bfloat16() for name, tensor in model.state_dict().items()})
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["dtype"], config["architectures"]) == ("bfloat16", ["Qwen3ForCausalLM"])
    fits = detect(Request([source]), [load_program("qwen3")])
    assert [(fit.spec, fit.status) for fit in fits] == [("hf", "fits"), ("qwen3", "fits")]
    (tmp_path / "run" / "config.json").unlink()
    assert [fit.spec for fit in detect(Request([source]), [load_program("qwen3")])] == ["qwen3"]


def test_an_archive_of_numpy(tmp_path: Path) -> None:
    model = dense()
    source = saved(model, tmp_path / "run")
    source.unlink()
    numpy.savez(tmp_path / "run" / "weights.npz", **{n: t.numpy() for n, t in model.state_dict().items()})
    assert run("hf", tmp_path / "run", tmp_path / "out") == 0
    same(tmp_path / "out", model.state_dict())


def test_what_stands_with_the_config_is_copied(tmp_path: Path) -> None:
    """verl keeps config, tokenizer and generation settings in a folder inside that of the ranks."""
    source = saved(dense(), tmp_path / "actor")
    place = tmp_path / "actor" / "huggingface"
    place.mkdir()
    (tmp_path / "actor" / "config.json").rename(place / "config.json")
    generation = '{"temperature": 0.5, "eos_token_id": [2, 3]}'
    (place / "generation_config.json").write_text(generation)
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
    }
    (place / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert run("hf", source, tmp_path / "out") == 0
    assert (tmp_path / "out" / "generation_config.json").read_text() == generation
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text()) == tokenizer
    assert run("hf", source, tmp_path / "out", "--force") == 0


def test_plan_names_the_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = saved(experts(), tmp_path / "run")
    with pytest.raises(SystemExit) as done:
        main(["plan", "hf", str(source)])
    shown = capsys.readouterr().out
    assert done.value.code == 0
    assert "config.json:0" not in shown
    assert "tied    lm_head.weight = model.embed_tokens.weight" in shown
    if "gate_up_proj" in shown:  # fused in memory, since transformers 5
        assert "mlp.experts.{0-2}.up_proj.weight" in shown


def test_a_config_of_another_model_is_not_taken(tmp_path: Path) -> None:
    source = saved(dense(), tmp_path / "run", num_hidden_layers=2, layer_types="absent")
    fit = next(fit for fit in detect(Request([source]), []) if fit.spec == "hf")
    assert fit.status == "near"
    assert "missing" in fit.reasons[0]


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {n: t for n, t in state.items() if n != name}


def more(**tensors: torch.Tensor) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: state | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "config", "kind", "says"),
    [
        (without(NORM), {}, "missing-tensor", f"1 tensors are missing: {NORM}"),
        (more(model__norms__weight=torch.ones(8)), {}, "unclaimed-tensor", "has no model.norms.weight"),
        (more(model__norm__weight=torch.ones(9)), {}, "wrong-shape", f"{NORM} has shape [9]"),
        (dict, {"tie_word_embeddings": True}, "untied-weights", "lm_head.weight differs from model.embed_tokens.weight"),
        (dict, {"architectures": ["Qwen9ForCausalLM"]}, "unknown-class", "name no class of Transformers"),
        (dict, {"model_type": "foo"}, "other-architecture", "its model_type is 'foo', and that of"),
        (dict, {"architectures": "absent"}, "unknown-class", "it names no class"),
        (dict, {"architectures": "Qwen3ForCausalLM"}, "wrong-type", 'write ["Qwen3ForCausalLM"]'),
        (dict, {"num_hidden_layers": "1"}, "wrong-type", 'config.json: num_hidden_layers is "1", but must be a positive integer'),
        (dict, {"vocab_size": None}, "wrong-type", "config.json: vocab_size is null, but must be a positive integer"),
        (dict, {"auto_map": {"AutoModel": "my.Model"}}, "unknown-class", "name no class of Transformers"),
        (dict, {"quantization_config": {"quant_method": "fp8"}}, "quantized-weights", "says that weights are quantized by fp8, but no"),
    ],
)  # fmt: skip
def test_what_does_not_fit(
    change: Any, config: dict[str, Any], kind: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = saved(dense(), tmp_path / "run", change, **config)
    assert run("hf", source, tmp_path / "out") == 1
    errors = capsys.readouterr().err
    assert f"[{kind}]" in errors
    assert says in errors
    assert not (tmp_path / "out").exists()


def test_no_config_and_no_reverse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = saved(dense(), tmp_path / "run")
    config = (tmp_path / "run" / "config.json").rename(tmp_path / "elsewhere.json")
    assert run("hf", source, tmp_path / "out") == 1
    assert "[missing-config]" in capsys.readouterr().err
    assert run("hf", source, tmp_path / "out", "--config", config) == 0
    assert run("hf", tmp_path / "out", tmp_path / "back.pth", "--reverse") == 2
    assert "has no reverse" in capsys.readouterr().err


@pytest.mark.parametrize("absent", ["lm_head.weight", "model.embed_tokens.weight"])
def test_one_name_of_a_tie_is_enough(absent: str, tmp_path: Path) -> None:
    model = dense(tie_word_embeddings=True)
    source = saved(model, tmp_path / "run", without(absent))
    assert run("hf", source, tmp_path / "out") == 0
    same(tmp_path / "out", {n: t for n, t in model.state_dict().items() if n != "lm_head.weight"})
