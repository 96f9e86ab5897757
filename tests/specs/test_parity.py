"""The parity helper itself: it must see what it is there to see."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.parity import ORACLES, Job, difference, interpreters, largest_difference, logits, logits_many

# A model whose buffer loading leaves uninitialised: generation 5 builds it on the meta device and never fills it.
CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class ForgetfulConfig(PretrainedConfig):
    model_type = "forgetful"


class Forgetful(PreTrainedModel):
    config_class = ForgetfulConfig

    def __init__(self, config):
        super().__init__(config)
        self.table = torch.nn.Embedding(8, 8)
        self.register_buffer("shift", torch.ones(8), persistent=False)
        self.post_init()
{remedy}
    def forward(self, input_ids):
        return CausalLMOutput(logits=self.table(input_ids) + self.shift)
"""
REMEDY = """
    def _init_weights(self, module):
        if module is self:
            self.shift.copy_(torch.ones(8))
"""
IDS = torch.arange(8).reshape(1, 8)


def forgetful(folder: Path, remedy: str) -> Path:
    folder.mkdir()
    (folder / "modeling_forgetful.py").write_text(CODE.replace("{remedy}", remedy))
    names = {"AutoConfig": "ForgetfulConfig", "AutoModelForCausalLM": "Forgetful"}
    auto_map = {name: f"modeling_forgetful.{cls}" for name, cls in names.items()}
    config = {"model_type": "forgetful", "architectures": ["Forgetful"], "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"table.weight": torch.eye(8)}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_dirty_memory_shows_a_buffer_that_loading_forgot(tmp_path: Path) -> None:
    broken, whole = forgetful(tmp_path / "broken", ""), forgetful(tmp_path / "whole", REMEDY)
    jobs = [Job(folder, IDS, trust_remote_code=True, dirty=True) for folder in (broken, whole)]
    seen, healed = logits_many(jobs)
    assert seen.isnan().any()
    assert torch.equal(healed, torch.eye(8)[None] + 1)


def test_each_folder_brings_its_own_code(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = forgetful(tmp_path / "a/model", REMEDY.replace("ones(8)", "full((8,), 3.0)"))
    two = forgetful(tmp_path / "b/model", REMEDY.replace("ones(8)", "full((8,), 5.0)"))
    got = logits_many([Job(folder, IDS, trust_remote_code=True, dirty=True) for folder in (one, two)])
    assert [float(g[0, 0, 1]) for g in got] == [3.0, 5.0]


def test_a_folder_that_does_not_load_says_why(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"config\.json"):
        logits(tmp_path, IDS)


def test_golden_logits_are_those_of_the_last_positions() -> None:
    golden = ORACLES / "minimind/dense_trained/expected/golden_logits.safetensors"
    wanted = load_file(golden)["logits_fp32"]
    padded = torch.cat([torch.full((2, 20, 6400), 9.0), wanted], dim=1)
    assert difference(padded, golden) == 0
    assert difference(padded + 0.5, golden) == pytest.approx(0.5, abs=1e-6)
    assert difference(padded * float("nan"), golden) == float("inf")


def test_the_largest_difference_is_held_against_the_tolerance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("support.parity.interpreters", lambda: {"current": sys.executable})
    folder = forgetful(tmp_path / "whole", REMEDY)
    golden = tmp_path / "golden.safetensors"
    save_file({"input_ids": IDS, "logits_fp32": torch.eye(8)[None] + 1.25}, golden)
    assert largest_difference(folder, golden, 0.3, trust_remote_code=True) == 0.25
    with pytest.raises(AssertionError, match=r"allowed is 0\.2"):
        largest_difference(folder, golden, 0.2, trust_remote_code=True)


def test_the_current_interpreter_is_always_tried() -> None:
    assert "current" in interpreters()
