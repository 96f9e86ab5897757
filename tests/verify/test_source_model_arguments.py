"""`compile verify` takes the arguments of the conversion from the folder and the source; nobody gives them twice."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.oracle_cases import Case
from support.parity import ORACLES

from compiler.diagnostics import Refusal
from compiler.jobs.convert import write
from compiler.jobs.prepare import prepare
from compiler.verify import model_inputs, source_model
from compiler.verify.round_trip import RoundTrip, round_trip


@pytest.mark.parametrize("version", ["version_0", "version_1", "version_3"])
@pytest.mark.parametrize("asked", [True, False])
def test_a_version_that_config_does_not_carry(version: str, asked: bool, tmp_path: Path) -> None:
    """Megatron's GPT-2, whose layout depends on `checkpoint_version`."""
    case = Case(ORACLES / "megatron_gpt2" / version)
    prepared = prepare(case.program, case.request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    write(plan, checkpoint, case.request, tmp_path)
    request = case.request if asked else replace(case.request, assigned={})
    found = round_trip(case.program, request, tmp_path)
    assert found == RoundTrip(len({n for g in plan.groups for n in g.source_names}), 0, ())


def test_without_a_manifest_the_source_is_asked(tmp_path: Path) -> None:
    case = Case(ORACLES / "megatron_gpt2" / "version_1")
    prepared = prepare(case.program, case.request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    write(plan, checkpoint, case.request, tmp_path)
    (tmp_path / "mapspec.json").unlink()
    assert round_trip(case.program, case.request, tmp_path).differences == ()


def test_a_folder_of_other_heads_is_found(tmp_path: Path) -> None:
    """What config.json carries is that of the folder, not of the source."""
    case = Case(ORACLES / "megatron_gpt2" / "version_3")
    prepared = prepare(case.program, case.request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    write(plan, checkpoint, case.request, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"n_head": config["n_head"] // 2}))
    try:
        differences = [d.name for d in round_trip(case.program, case.request, tmp_path).differences]
    except Refusal as refusal:
        differences = [d.message for d in refusal.diagnostics]
    assert differences


# ---------------------------------------------------------------------------------------------------------------------
# The source's own model, from its file

MODEL = """
import torch

class Sizes:
    def __init__(self, width, depth=1):
        self.width, self.depth = width, depth

class ModelConfig(Sizes):
    pass

class Plain(torch.nn.Module):
    def __init__(self, width, **rest):
        super().__init__()
        self.given = {"width": width, **rest}

class Annotated(torch.nn.Module):
    def __init__(self, sizes: Sizes):
        super().__init__()
        self.given = sizes

class Quoted(torch.nn.Module):
    def __init__(self, sizes: "ModelConfig"):
        super().__init__()
        self.given = sizes

class Guessed(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.given = config

class Nothing(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.given = None
"""


def made(tmp_path: Path, name: str, text: str = MODEL) -> Any:
    (tmp_path / "x_own_model.py").write_text(text)
    return source_model.build(f"{tmp_path / 'x_own_model.py'}:{name}", {"width": 8, "other": True}).given


def test_what_a_model_class_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fields themselves, or an object of the class that the argument or the module names."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert made(tmp_path, "Plain") == {"width": 8, "other": True}
    assert made(tmp_path, "Nothing") is None
    for name, kind in (("Annotated", "Sizes"), ("Quoted", "ModelConfig"), ("Guessed", "ModelConfig")):
        found = made(tmp_path, name)
        assert (type(found).__name__, found.width, found.depth) == (kind, 8, 1)
    two = MODEL.replace("class Plain", "class OtherArgs:\n    pass\n\nclass Plain")
    with pytest.raises(RuntimeError, match="Guessed takes config, and its class is unknown: annotate the argument"):
        made(tmp_path, "Guessed", two)
    with pytest.raises(FileNotFoundError, match=r"missing\.py is not a Python file"):
        source_model.build(f"{tmp_path / 'missing.py'}:Model", {})


def test_the_ways_to_call_a_model() -> None:
    """The likeliest first; any number of positional arguments, and fewer than there are inputs."""

    class Free:
        def forward(self, *inputs: int) -> None: ...

    class Named:
        def forward(self, mask: int, tokens: int, *, pixel_values: int = 0) -> None: ...

    class Few:
        def forward(self, tokens: int) -> None: ...

    inputs = {"input_ids": 1, "attention_mask": 2}
    assert list(source_model.calls(Free(), inputs, {})) == [([1, 2], {}), ([2, 1], {})]
    assert list(source_model.calls(Named(), inputs, {})) == [([2, 1], {}), ([1, 2], {})]
    found = list(source_model.calls(Named(), inputs | {"pixel_values": 3}, {"attention_mask": "mask"}))
    assert found == [([], {"pixel_values": 3, "mask": 2, "tokens": 1})]
    assert list(source_model.calls(Few(), inputs, {})) == []


def test_the_size_of_an_image() -> None:
    size = model_inputs._image_size
    assert size({"vision_config": {"image_size": 32}}) == (32, 32)
    assert size({"image_size": {"height": 24, "width": 48}}) == (24, 48)
    assert size({"image_size": [16, 8]}) == (16, 8)
    assert size({"image_size": {"shortest_edge": 24}}) == size({"image_size": 0}) == size({}) == (224, 224)


def test_tokens_of_a_vocabulary_without_plain_ones() -> None:
    """Special tokens are left out where two others are there."""

    def drawn(below: int, special: frozenset[int]) -> set[int]:
        shape = model_inputs.InputShape("input_ids", "tokens", (4, 64), below)
        return set(model_inputs._tensor(shape, 0, special).unique().tolist())

    assert drawn(6, frozenset((0, 1))) == {2, 3, 4, 5}
    assert drawn(3, frozenset((0, 1))) == {0, 1, 2}
    assert max(drawn(1 << 20, frozenset((0,)))) > 1 << 16
