"""Arguments that differ from release to release: derived, recognised, asked for, or guessed with a warning."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from compiler.cli.notes import sentences
from compiler.diagnostics import Refusal
from compiler.jobs.convert import convert
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.plan.notes import Note
from compiler.plan.plan import Plan
from compiler.program.loading import load_program

SPEC = """
spec: 1
name: tiny
summary: A model of one matrix
source:
  weights: "*.pth"
  config: params.json
  fixed:
    windows: {value: null, reason: a window has no place in the class}
    kind: {values: [plain, simple]}
    gated: false
  unread: {"{field:dropout|seed}": changes training only}
target: {model: LlamaForCausalLM}
arguments:
  heads: {derive: width // 4 if width >= 8 else None, help: how many heads}
  theta: {help: the base}
  factor: {derive: 1.0 if not scaled else None, help: 8 or 32}
  scaled: false
  length: {guess: 128, help: 64 in the first release}
models:
  first: {when: {width: 16}, set: {theta: 10000.0, length: 64}}
  second: {when: {width: 32}, set: {theta: 500000.0}}
  third: {when: {width: 32, rows: 64}, set: {theta: 1000000.0, length: 256}}
facts:
  rows: dim("embed.weight", 0)
  width: dim("embed.weight", 1)
config:
  rename: {num_attention_heads: heads, rope_theta: theta, max_position_embeddings: length, vocab_size: rows}
  derive: {rope_scaling: '{"rope_type": "linear", "factor": factor} if scaled else None'}
rename: {embed.weight: model.embed_tokens.weight}
"""


def planned(
    place: Path, shape: Sequence[int], config: Mapping[str, Any] | None = None, **rest: Any
) -> tuple[Plan, list[str]]:
    (place / "tiny.yaml").write_text(SPEC)
    torch.save({"embed.weight": torch.zeros(*shape)}, place / "model.pth")
    (place / "params.json").write_text(json.dumps(config or {}))
    assigned = {
        name: rest.pop(name) for name in list(rest) if name in ("theta", "length", "scaled", "factor", "windows")
    }
    request = Request([place / "model.pth"], assigned=assigned, **rest)
    prepared = prepare(load_program(str(place / "tiny.yaml")), request)
    return prepared.plan, said(prepared.notes)


def said(notes: Sequence[Note]) -> list[str]:
    """What a person reads of notes."""
    return [line for note in notes for line in sentences(note)]


def test_a_release_is_recognised_by_its_sizes(tmp_path: Path) -> None:
    plan, lines = planned(tmp_path, (8, 16))
    assert (plan.values["theta"], plan.values["length"], plan.values["heads"]) == (10000.0, 64, 4)
    assert "first by its sizes: length=64, theta=10000.0" in lines
    assert "derived from the checkpoint: heads=4, factor=1.0" in lines
    assert plan.guesses == {}
    assert plan.released == ("first",)


def test_a_config_and_set_come_before_a_release(tmp_path: Path) -> None:
    assert planned(tmp_path, (8, 16), {"theta": 5.0})[0].values["theta"] == 5.0
    plan, lines = planned(tmp_path, (8, 16), {"theta": 5.0}, theta=7.0, length=9)
    assert (plan.values["theta"], plan.values["length"]) == (7.0, 9)
    assert not any("by its sizes" in line for line in lines)


def test_releases_that_differ_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"theta is 500000\.0 in second, 1000000\.0 in third.*ambiguous-model"):
        planned(tmp_path, (64, 32))
    assert planned(tmp_path, (64, 32), model="third")[0].values["theta"] == 1000000.0
    assert planned(tmp_path, (64, 32), theta=3.0)[0].values["theta"] == 3.0
    with pytest.raises(Refusal, match="did you mean 'second'"):
        planned(tmp_path, (64, 32), model="secnd")


def test_a_guess_is_a_warning_of_its_own(tmp_path: Path) -> None:
    plan, lines = planned(tmp_path, (8, 32))
    warnings = [line for line in lines if "is a guess" in line]
    assert warnings == ["length = 128 is a guess (64 in the first release); set it with --set length=VALUE"]
    assert plan.guesses == {"length": 128}
    assert not any("length" in line for line in lines if line not in warnings)
    with pytest.raises(Refusal, match=r"length is a guess: 128.*guessed-argument"):
        planned(tmp_path, (8, 32), strict=True)
    assert planned(tmp_path, (8, 32), strict=True, length=5)[0].guesses == {}


def test_what_follows_from_nothing_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refusal:
        planned(tmp_path, (8, 4))
    assert [d.message for d in refusal.value.diagnostics] == [
        "heads has no value: how many heads",
        "theta has no value: the base",
    ]
    with pytest.raises(Refusal, match="factor has no value: 8 or 32"):
        planned(tmp_path, (8, 16), scaled=True)
    assert planned(tmp_path, (8, 16), scaled=True, factor=8.0)[0].config["rope_scaling"]["factor"] == 8.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"windows": 4}, "windows is 4 in params.json: a window has no place in the class"),
        ({"kind": "other"}, "kind is 'other' in params.json"),
        ({"gated": True}, "gated is True in params.json"),
        ({"model": {"windows": 4, "theta": 1.0, "scaled": False}}, "windows is 4"),
    ],
)
def test_a_fixed_field_has_one_value(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(Refusal, match="unmet-requirement") as refusal:
        planned(tmp_path, (8, 16), config)
    assert message in str(refusal.value)


def test_a_fixed_field_may_say_so(tmp_path: Path) -> None:
    stated = {"windows": None, "kind": "simple", "gated": None, "dropout": 0.5}
    assert not any("the spec does not read" in line for line in planned(tmp_path, (8, 16), stated)[1])
    with pytest.raises(Refusal, match="windows is 4 in --set"):
        planned(tmp_path, (8, 16), windows=4)


def test_the_folder_records_guesses_and_releases(tmp_path: Path) -> None:
    torch.save(_llama2(), tmp_path / "model.pt")
    request = Request([tmp_path / "model.pt"], assigned={"n_heads": 4, "rope_theta": 10000.0})
    convert(load_program("olmo_core_llama"), request, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "mapspec.json").read_text())
    assert set(written["guesses"]) == {"layer_norm_eps", "max_sequence_length", "rope_scaling"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "layer_norm_eps" in card
    assert "guess" in card


def _llama2() -> dict[str, torch.Tensor]:
    shapes = {"embeddings": (16, 32), "lm_head.norm": (32,), "lm_head.w_out": (16, 32)}
    shapes |= {f"blocks.0.attention.w_{p}": (32, 32) for p in ("q", "k", "v", "out")}
    shapes |= {f"blocks.0.feed_forward.w{n}": (48, 32) for n in (1, 3)} | {"blocks.0.feed_forward.w2": (32, 48)}
    shapes |= {f"blocks.0.{n}_norm": (32,) for n in ("attention", "feed_forward")}
    return {f"{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}


# ---------------------------------------------------------------------------------------------------------------------
# What the shipped specs guessed before


def asks(spec: str, tensors: Mapping[str, Sequence[int]], place: Path, **given: Any) -> set[str]:
    """The arguments that a spec asks for; the checkpoint has no config."""
    torch.save({n: torch.zeros(*shape) for n, shape in tensors.items()}, place / "model.pt")
    try:
        prepare(load_program(spec), Request([place / "model.pt"], assigned=given))
    except Refusal as refusal:
        return {d.message.split()[0] for d in refusal.diagnostics if d.kind == "missing-argument"}
    return set()


def meta(width: int, rows: int, layers: int = 1, hidden: int = 48) -> dict[str, Sequence[int]]:
    shapes: dict[str, Sequence[int]] = {
        "tok_embeddings.weight": (rows, width), "norm.weight": (width,), "output.weight": (rows, width),
    }  # fmt: skip
    for i in range(layers):
        shapes |= {f"layers.{i}.attention.w{p}.weight": (width, width) for p in "qkvo"}
        shapes |= {f"layers.{i}.feed_forward.w{n}.weight": (hidden, width) for n in "13"}
        shapes |= {f"layers.{i}.feed_forward.w2.weight": (width, hidden)}
        shapes |= {f"layers.{i}.{n}_norm.weight": (width,) for n in ("attention", "ffn")}
    return shapes


def test_no_base_is_assumed(tmp_path: Path) -> None:
    assert asks("meta_llama", meta(32, 64), tmp_path, n_heads=4) == {"rope_theta"}
    assert asks("mistral_mistral", meta(32, 64), tmp_path, n_heads=4) == {"rope_theta"}
    assert asks("meta_llama", meta(32, 64), tmp_path, n_heads=4, rope_theta=1e4) == set()


def test_no_factor_is_assumed(tmp_path: Path) -> None:
    scaled = {"n_heads": 4, "rope_theta": 500000.0, "use_scaled_rope": True}
    assert asks("meta_llama", meta(32, 64), tmp_path, **scaled) == {"rope_scale_factor"}


def test_a_null_base_is_that_of_mistral_inference(tmp_path: Path) -> None:
    torch.save({n: torch.zeros(*s) for n, s in meta(32, 64).items()}, tmp_path / "consolidated.00.pth")
    (tmp_path / "params.json").write_text('{"n_heads": 4, "rope_theta": null}')
    assert prepare(load_program("mistral_mistral"), Request([tmp_path])).plan.config["rope_theta"] == 1000000.0


def megatron(width: int, layers: int) -> dict[str, Any]:
    layer = {
        "input_layernorm.weight": (width,), "input_layernorm.bias": (width,),
        "post_attention_layernorm.weight": (width,), "post_attention_layernorm.bias": (width,),
        "attention.query_key_value.weight": (3 * width, width), "attention.query_key_value.bias": (3 * width,),
        "attention.dense.weight": (width, width), "attention.dense.bias": (width,),
        "mlp.dense_h_to_4h.weight": (2 * width, width), "mlp.dense_h_to_4h.bias": (2 * width,),
        "mlp.dense_4h_to_h.weight": (width, 2 * width), "mlp.dense_4h_to_h.bias": (width,),
    }  # fmt: skip
    held = {f"layers.{i}.{n}": torch.zeros(*s) for i in range(layers) for n, s in layer.items()}
    held |= {f"final_layernorm.{n}": torch.zeros(width) for n in ("weight", "bias")}
    embedding = {
        "word_embeddings": {"weight": torch.zeros(64, width)},
        "position_embeddings": {"weight": torch.zeros(8, width)},
    }
    return {"model": {"language_model": {"embedding": embedding, "transformer": held}}}


def test_the_heads_of_megatron_are_those_of_a_release_or_of_the_user(tmp_path: Path) -> None:
    program = load_program("megatron_gpt2")
    given = {"bos_token_id": 0, "eos_token_id": 0}
    torch.save(megatron(32, 1), tmp_path / "small.pt")
    with pytest.raises(Refusal, match="num_attention_heads has no value"):
        prepare(program, Request([tmp_path / "small.pt"], assigned=given))
    config = tmp_path / "told.json"
    config.write_text('{"n_head": 4}')
    plan = prepare(program, Request([tmp_path / "small.pt"], assigned=given, config=config)).plan
    assert plan.config["n_head"] == 4
    torch.save(megatron(1024, 24), tmp_path / "released.pt")
    prepared = prepare(program, Request([tmp_path / "released.pt"], assigned=given))
    assert prepared.plan.config["n_head"] == 16
    assert "megatron-gpt2-345m by its sizes: num_attention_heads=16" in said(prepared.notes)


def gpt() -> dict[str, torch.Tensor]:
    shapes: dict[str, Sequence[int]] = {
        "wte.weight": (64, 32),
        "wpe.weight": (8, 32),
        "ln_f.weight": (32,),
        "ln_f.bias": (32,),
    }
    for name, rows, columns in (
        ("attn.c_attn", 96, 32),
        ("attn.c_proj", 32, 32),
        ("mlp.c_fc", 128, 32),
        ("mlp.c_proj", 32, 128),
    ):
        shapes |= {f"h.0.{name}.weight": (rows, columns), f"h.0.{name}.bias": (rows,)}
    shapes |= {f"h.0.ln_{n}.{p}": (32,) for n in (1, 2) for p in ("weight", "bias")}
    tensors = {f"transformer.{n}": torch.zeros(*s) for n, s in shapes.items()}
    return tensors | {"lm_head.weight": torch.zeros(64, 32)}


def test_the_kind_of_gelu_is_told_by_who_wrote_the_file(tmp_path: Path) -> None:
    """nanoGPT keeps its arguments; build-nanogpt has the same names, and the tanh approximation."""
    program = load_program("nanogpt_gpt2")
    torch.save({"model": gpt()}, tmp_path / "ckpt.pt")
    with pytest.raises(Refusal, match="activation has no value: gelu, the exact one, for nanoGPT; gelu_new"):
        prepare(program, Request([tmp_path / "ckpt.pt"], assigned={"n_head": 4}))
    plan = prepare(program, Request([tmp_path / "ckpt.pt"], assigned={"n_head": 4, "activation": "gelu_new"})).plan
    assert plan.config["activation_function"] == "gelu_new"
    torch.save({"model": gpt(), "model_args": {"n_head": 4, "dropout": 0.0}}, tmp_path / "ckpt.pt")
    assert prepare(program, Request([tmp_path / "ckpt.pt"])).plan.config["activation_function"] == "gelu"


@pytest.mark.parametrize(("width", "depth", "heads"), [(1280, 32, 16), (1408, 40, 16), (1664, 48, 16), (192, 12, 3)])
def test_the_heads_of_timm_are_those_of_its_builders(tmp_path: Path, width: int, depth: int, heads: int) -> None:
    models = {m.name: m for m in load_program("timm_vit").spec.models}
    fitting = [m for m in models.values() if m.when == {"embed_dim": width, "depth": depth}]
    assert [m.sets["num_heads"] for m in fitting] == [heads]
    shapes = {"cls_token": (1, 1, 64), "pos_embed": (1, 5, 64), "patch_embed.proj.weight": (64, 3, 8, 8)}
    assert "num_heads" in asks("timm_vit", shapes | {"head.weight": (5, 64)}, tmp_path)


@pytest.mark.parametrize(
    ("vision", "layers", "width"), [(1280, 32, 80), (1408, 40, 88), (1664, 48, 104), (1024, 24, 64)]
)
def test_the_two_models_of_clip_have_heads_of_their_own(vision: int, layers: int, width: int) -> None:
    models = load_program("clip_clip").spec.models
    fitting = [m for m in models if m.when == {"vision_width": vision, "vision_layers": layers}]
    assert [m.sets for m in fitting] == [{"text_head_width": 64, "vision_head_width": width}]
    assert load_program("clip_clip").spec.arguments["hidden_act"].derive is not None
