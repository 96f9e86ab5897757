"""Phi-3 as Llama: the original is Transformers' own Phi3ForCausalLM, with random weights and its fused matrices."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.parity import Job, logits_many

from compiler.diagnostics import Refusal
from compiler.jobs.convert import write
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.plan.plan import Plan
from compiler.program.loading import load_program

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IDS = torch.arange(40).reshape(1, 40) * 7 % 96


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Phi3Config, Phi3ForCausalLM

    torch.manual_seed(0)
    model = Phi3ForCausalLM(Phi3Config(**SIZES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1 if parameter.ndim == 1 else 0, 0.2)
    folder = tmp_path_factory.mktemp("phi3") / "model"
    model.save_pretrained(folder)
    return folder


def swapped(plan: Plan, a: str, b: str) -> Plan:
    """Two targets under each other's names."""

    def name(text: str) -> str:
        return text.replace(a, "\0").replace(b, a).replace("\0", b)

    return replace(
        plan,
        groups=tuple(replace(g, targets=g.targets.map(lambda t: replace(t, name=name(t.name)))) for g in plan.groups),
    )


def test_logits_are_those_of_phi3_and_a_swap_shows(original: Path, tmp_path: Path) -> None:
    request = Request([original])
    prepared = prepare(load_program("phi3_llama"), request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    write(plan, checkpoint, request, tmp_path / "right")
    write(swapped(plan, "gate_proj", "up_proj"), checkpoint, request, tmp_path / "gate_up")
    write(swapped(plan, "k_proj", "v_proj"), checkpoint, request, tmp_path / "k_v")
    folders = [original, tmp_path / "right", tmp_path / "gate_up", tmp_path / "k_v"]
    wanted, right, *wrong = logits_many([Job(folder, IDS) for folder in folders])
    assert json.loads((tmp_path / "right/config.json").read_text())["model_type"] == "llama"
    assert (wanted - right).abs().max() <= 2e-5
    assert all((wanted - other).abs().max() > 1e-2 for other in wrong)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"sliding_window": 16}, "sliding window"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}}, "LongRoPE"),
        ({"partial_rotary_factor": 0.5}, "partial rotary"),
    ],
)
def test_what_llama_cannot_say_is_refused(
    original: Path, tmp_path: Path, fields: dict[str, object], reason: str
) -> None:
    config = json.loads((original / "config.json").read_text())
    config.pop("rope_parameters", None)
    (tmp_path / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(Refusal, match=reason):
        prepare(load_program("phi3_llama"), Request([original], config=tmp_path / "config.json"))
