"""nanochat's rendered model: each part counts, and `generate` continues a text as the original does."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from support.oracle_cases import Case
from support.parity import ORACLES, Job, difference, interpreters, logits_many

from compiler.diagnostics import Refusal
from compiler.jobs.convert import convert

WINDOWED, PADDED = (Case(ORACLES / "nanochat" / name) for name in ("windowed", "padded"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("nanochat")
    for case in (WINDOWED, PADDED):
        convert(case.program, case.request, place / case.folder.name)
    return {case.name: place / case.folder.name for case in (WINDOWED, PADDED)}


GENERATE = """
import json, sys, torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
found = []
for folder, golden in zip(sys.argv[1::2], sys.argv[2::2]):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    ids = load_file(golden)["input_ids"]
    def continued(ids, **options):
        made = model.generate(ids, attention_mask=options.pop("mask", torch.ones_like(ids)), max_new_tokens=12,
                              do_sample=False, pad_token_id=0, **options)
        return made[:, ids.shape[1]:].tolist()
    short = torch.cat((torch.zeros(1, 50, dtype=torch.long), ids[:, 50:]), 1)  # a text of 150 tokens in a batch with one of 200
    mask = torch.ones(2, ids.shape[1], dtype=torch.long)
    mask[1, :50] = 0
    found.append({
        "cached": continued(ids), "uncached": continued(ids, use_cache=False), "static": continued(ids, cache_implementation="static"),
        "beams": continued(ids, num_beams=2), "beams_uncached": continued(ids, num_beams=2, use_cache=False),
        "alone": continued(ids[:, 50:]), "batch": continued(torch.cat((ids, short)), mask=mask),
    })
print(json.dumps(found))
"""


@pytest.mark.parametrize("python", interpreters().values(), ids=interpreters().keys())
def test_generate_continues_as_the_original(folders: dict[str, Path], tmp_path: Path, python: str) -> None:
    """With a dynamic and a static cache and without one, by beams, and beside a shorter text."""
    words = [str(word) for case in (WINDOWED, PADDED) for word in (folders[case.name], case.golden)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([python, "-c", GENERATE, *words], env=environment, capture_output=True, text=True, check=True)
    for case, found in zip((WINDOWED, PADDED), json.loads(done.stdout.splitlines()[-1]), strict=True):
        original = json.loads((case.folder / "expected" / "generated.json").read_text())
        assert found["cached"] == found["uncached"] == found["static"] == [original], case.name
        assert found["beams"] == found["beams_uncached"], case.name
        assert found["batch"] == [original, *found["alone"]], case.name


# What is replaced in the rendered model.
BREAKS = {
    "norm after the embedding": ("self.embed_norm(inputs_embeds)", "inputs_embeds"),
    "smear": (" + self.smear_scale.weight * gate * before", ""),
    "smear of the token itself": ("(0, 0, 1, 0))[:, -length - 1 : -1]", "(0, 0, 1, 0))[:, -length:]"),
    "channels of the smear": ("[..., : self.config.smear_gate_channels]", "[..., -self.config.smear_gate_channels :]"),
    "scale of the layers": ("self.residual_scales.weight[number] * hidden_states", "hidden_states"),
    "embedding in each layer": (" + self.embedding_scales.weight[number] * embedded", ""),
    "subtracted layer": ("number == self.config.subtracted_layer", "number == self.config.subtracted_layer - 1"),
    "value embeddings": ("value = value + gate", "value = value + 0 * gate"),
    "gate of values": ("self.config.value_gate_scale * gate.sigmoid()", "gate.sigmoid()"),
    "norm of queries": ("self.q_norm(query), self.k_norm(key)", "query, key"),
    "rotation": ("rotate(query, *rotary), rotate(key, *rotary)", "query, key"),
    "cap of the logits": ("logits = (limit * torch.tanh(logits.float() / limit)).to(logits.dtype)", "pass"),
}


def test_each_part_changes_the_logits(folders: dict[str, Path], tmp_path: Path) -> None:
    assert WINDOWED.golden
    jobs = []
    for n, (old, new) in enumerate(BREAKS.values()):
        broken = tmp_path / str(n)
        broken.mkdir()
        for file in folders[WINDOWED.name].iterdir():
            content = file.read_bytes()
            if file.name.startswith("model_"):
                assert content.count(old.encode()) == 1, old
                content = content.replace(old.encode(), new.encode())
            (broken / file.name).write_bytes(content)
        jobs.append(Job(broken, load_file(WINDOWED.golden)["input_ids"], True))
    for name, got in zip(BREAKS, logits_many(jobs), strict=True):
        assert difference(got, WINDOWED.golden) > 1e-2, name


WRONG: dict[str, dict[str, Any]] = {
    "no windows": {"window_pattern": "L"},
    "windows of other layers": {"window_pattern": "LS"},
    "longer windows": {"sequence_len": 1024},
    "eps": {"rms_norm_eps": 0.0078125},
}


def test_a_wrong_argument_changes_the_logits(tmp_path: Path) -> None:
    """`--set` comes before the file that the trainer wrote. A wrong number of heads contradicts that file."""
    assert WINDOWED.golden
    with pytest.raises(Refusal, match=r"n_kv_head = 2 .* but the checkpoint has 1"):
        convert(WINDOWED.program, replace(WINDOWED.request, assigned={"n_head": 2}), tmp_path / "heads")
    for name, wrong in WRONG.items():
        convert(WINDOWED.program, replace(WINDOWED.request, assigned=wrong), tmp_path / name)
    ids = load_file(WINDOWED.golden)["input_ids"]
    for name, got in zip(WRONG, logits_many([Job(tmp_path / name, ids, True) for name in WRONG]), strict=True):
        assert difference(got, WINDOWED.golden) > 1e-3, name
