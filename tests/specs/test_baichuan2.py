"""Baichuan2 as Llama: the recorded logits are those of a model that scales its head whenever it runs; see ORIGIN.md."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.parity import ORACLES, Job, difference, interpreters, logits_many

from compiler.diagnostics import Refusal
from compiler.jobs.convert import write
from compiler.jobs.detect import detect, known_specs
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.ops.algebra import Op
from compiler.ops.lossy import Normalize
from compiler.program.loading import load_program

CASE = ORACLES / "baichuan2" / "norm_head"
GOLDEN = CASE / "expected" / "golden_logits.safetensors"


WRONG: dict[str, tuple[Op, ...]] = {"the head as it is": (), "columns for rows": (Normalize(0),)}


@pytest.fixture(scope="module")
def differences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The largest difference from the recorded logits over all interpreters; the smallest where it should be large."""
    place, request = tmp_path_factory.mktemp("baichuan2"), Request([CASE / "source"])
    prepared = prepare(load_program("baichuan2_llama"), request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    write(plan, checkpoint, request, place / "right")
    folders = {"right": place / "right"}
    for name, ops in WRONG.items():
        groups = tuple(replace(g, ops=ops) if g.rule.name == "head" else g for g in plan.groups)
        folders[name] = place / name.replace(" ", "_")
        write(replace(plan, groups=groups), checkpoint, request, folders[name])
    jobs = [Job(folder, load_file(GOLDEN)["input_ids"]) for folder in folders.values()]
    found: dict[str, list[float]] = {name: [] for name in folders}
    for python in interpreters().values():
        for name, got in zip(folders, logits_many(jobs, python), strict=True):
            found[name].append(difference(got, GOLDEN))
    return {name: (max if name == "right" else min)(values) for name, values in found.items()}


def test_a_head_that_is_not_scaled_is_found(differences: dict[str, float]) -> None:
    assert differences.pop("right") <= 2e-5
    assert min(differences.values()) > 1e-2, differences


@pytest.mark.parametrize(
    ("fields", "shape", "reason"),
    [
        ({}, (64000, 32), r"use specs/baichuan_llama\.yaml"),
        ({"num_attention_heads": 40}, (128, 5120), "ALiBi"),
        ({"tie_word_embeddings": True}, (128, 32), "cannot be one tensor"),
        ({"num_attention_heads": 5}, (128, 32), "does not divide hidden_size"),
    ],
    ids=["the first generation", "13B", "tied", "heads"],
)
def test_what_it_is_not_for_is_refused(
    tmp_path: Path, fields: dict[str, Any], shape: tuple[int, int], reason: str
) -> None:
    shutil.copytree(CASE / "source", tmp_path / "source")
    tensors = load_file(tmp_path / "source" / "model.safetensors")
    tensors["model.embed_tokens.weight"] = torch.zeros(shape, dtype=torch.float16)
    save_file(tensors, tmp_path / "source" / "model.safetensors")
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    config |= {"vocab_size": shape[0], "hidden_size": shape[1], **fields}
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    with pytest.raises(Refusal, match=reason):
        prepare(load_program("baichuan2_llama"), Request([tmp_path / "source"]))


def test_the_first_generation_points_here(tmp_path: Path) -> None:
    shutil.copytree(CASE / "source", tmp_path / "source")
    tensors = load_file(tmp_path / "source" / "model.safetensors")
    tensors["model.embed_tokens.weight"] = torch.zeros(125696, 32, dtype=torch.float16)
    save_file(tensors, tmp_path / "source" / "model.safetensors")
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    (tmp_path / "source" / "config.json").write_text(json.dumps(config | {"vocab_size": 125696}))
    with pytest.raises(Refusal, match=r"use specs/baichuan2_llama\.yaml"):
        prepare(load_program("baichuan_llama"), Request([tmp_path / "source"]))
    fits = detect(Request([tmp_path / "source"]), [p for p in known_specs() if "baichuan" in p.spec.name.value])
    assert [(fit.spec, fit.status) for fit in fits] == [("baichuan2_llama", "fits"), ("baichuan_llama", "near")]
