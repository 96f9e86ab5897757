"""What is known before anything is written: where each argument came from, and the notes, as data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from support.synthetic import synthetic

from compiler.cli.notes import sentences
from compiler.diagnostics import Refusal
from compiler.jobs.convert import convert
from compiler.jobs.detect import detect
from compiler.jobs.prepare import Prepared, prepare
from compiler.jobs.request import Request
from compiler.plan import notes
from compiler.program.environment import Origin
from compiler.program.loading import load_program
from compiler.settings.arguments import gather_without_spec

LLAMA = load_program("llama")
MADE = synthetic(LLAMA, 0, finite=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model.pth that brings arguments of its own, and no config."""
    torch.save({"model": dict(MADE.tensors), "args": {**MADE.arguments, "rope_theta": 5e5}}, tmp_path / "model.pth")
    return tmp_path / "model.pth"


def origins(prepared: Prepared) -> dict[str, tuple[object, Origin]]:
    return {name: (argument.value, argument.origin) for name, argument in prepared.arguments.items()}


def test_each_argument_knows_where_it_came_from(source: Path) -> None:
    config = source.parent / "words.json"
    config.write_text(json.dumps({"rope_theta": 7e5, "rms_norm_eps": 1e-6, "unheard": 3}))
    given = {"rms_norm_eps": 1e-4}
    prepared = prepare(LLAMA, Request([source], config=config, assigned=given))
    found = origins(prepared)
    assert found.keys() == LLAMA.spec.arguments.keys()
    assert found["num_attention_heads"] == (MADE.arguments["num_attention_heads"], Origin.CHECKPOINT)
    assert found["rope_theta"] == (7e5, Origin.CONFIG_FILE)
    assert found["rms_norm_eps"] == (1e-4, Origin.ASSIGNMENT)
    assert found["bos_token_id"] == (1, Origin.DEFAULT)
    assert prepared.arguments["rope_theta"].place == "words.json"
    assert prepared.defaults == {name: value for name, (value, origin) in found.items() if origin is Origin.DEFAULT}
    assert notes.UnreadFields(("unheard",)) in prepared.notes
    assert notes.DefaultArguments(prepared.defaults) in prepared.notes


def test_reversed_the_arguments_are_those_of_the_config_and_the_defaults_that_are_used(
    source: Path, tmp_path: Path
) -> None:
    convert(LLAMA, Request([source]), tmp_path / "out")
    prepared = prepare(LLAMA, Request([tmp_path / "out"], assigned={"rms_norm_eps": 1e-4}, reverse=True))
    found = origins(prepared)
    assert found["num_attention_heads"] == (MADE.arguments["num_attention_heads"], Origin.CONFIG_FILE)
    assert found["rope_theta"] == (5e5, Origin.CONFIG_FILE)
    assert found["rms_norm_eps"] == (1e-4, Origin.ASSIGNMENT)
    assert prepared.defaults == {}, "mapspec.json has what config.json does not carry"


def test_notes_come_before_a_refusal(source: Path) -> None:
    (source.parent / "config.json").write_text(json.dumps({"num_attention_heads": 3}))
    heard: list[notes.Note] = []
    with pytest.raises(Refusal):
        prepare(LLAMA, Request([source]), heard.append)
    assert notes.ConfigNextToWeights(source.parent / "config.json") in heard


def test_a_spec_fits_where_a_run_would_bind(tmp_path: Path) -> None:
    """`detect` judges by the code of `run`: here a config of the target's kind states what the spec cannot write."""
    program, config = load_program("qwen3"), tmp_path / "words.json"
    made = synthetic(program, 0, finite=True)
    request = Request([made.save(tmp_path, "*.safetensors")], config=config, assigned=made.arguments)
    config.write_text(json.dumps({"model_type": "qwen3", "attention_bias": False}))
    assert detect(request, [program])[0].status == "fits"
    config.write_text(json.dumps({"model_type": "qwen3", "attention_bias": True}))
    with pytest.raises(Refusal) as caught:
        prepare(program, request)
    fit = detect(request, [program])[0]
    assert (fit.status, fit.reasons) == ("near", tuple(d.message for d in caught.value.diagnostics))


def test_detect_looks_at_the_weights_that_are_asked_for(tmp_path: Path) -> None:
    held = {"model": {"x.weight": torch.ones(2)}, "ema": dict(MADE.tensors), "args": dict(MADE.arguments)}
    torch.save(held, tmp_path / "model.pth")
    assert detect(Request([tmp_path / "model.pth"], weights="ema"), [LLAMA])[0].status == "fits"
    assert detect(Request([tmp_path / "model.pth"], weights="model"), [LLAMA])[0].status == "no"


def test_without_a_spec_the_same_places_are_read_in_the_same_order(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text(json.dumps({"dim": 8, "n_heads": 2, "n_layers": 3, "dtype": "x"}))
    objects = {"args": {"dim": 4, "norm_eps": 1e-5}, "model_args": {"dim": 5}, "other": {"y": 1}}
    values = gather_without_spec(tmp_path / "model.pth", objects, None, {"n_heads": 4}, {"dim", "n_heads"})
    expected = {"dim": 8, "n_heads": 4, "n_layers": 3, "norm_eps": 1e-5, "dtype": "x"}
    assert {name: values.get(name) for name in expected} == expected
    assert "y" not in values
    assert gather_without_spec(tmp_path / "none" / "x.pth", objects, None, {}, {"dim"})["dim"] == 5


def test_every_kind_of_note_has_a_sentence() -> None:
    made: list[notes.Note] = [
        notes.Remark("x"),
        notes.ClassAgrees("X"),
        notes.ChosenSpec("a", "b"),
        notes.ConfigNextToWeights(Path("p/c.json")),
        notes.DefaultArguments({"n": 1}),
        notes.UnreadFields(("a",)),
        notes.DerivedArguments({"n": 1}),
        notes.ReleasedArguments(("a",), True, {"n": 1}),
        notes.GuessedArgument("n", 1, "2 in b"),
        notes.UnevenShapes((1, 2), 3, (("x", (2, 2)),)),
        notes.IntegerTensors((("x", "int32"),)),
        notes.IgnoredTensors(tuple((f"t{n}", "why") for n in range(10))),
    ]
    assert {type(note) for note in made} == set(get_args(notes.Note))
    lines = [sentences(note) for note in made]
    assert all(lines)
    assert lines[-1] == [*(f"ignored t{n}: why" for n in range(8)), "ignored 2 more tensors"]
