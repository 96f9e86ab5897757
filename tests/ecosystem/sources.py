"""What `--reverse` and `--to` write, loaded by the programs that own those layouts: `make test-originals`.

The programs are in a Python of their own, which `MAPSPEC_ORIGINALS` names; `run_original.py` is what it runs. `docs/ecosystem.md`
has the versions.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.oracle_cases import Case
from support.parity import ORACLES

from compiler.jobs.convert import convert
from compiler.jobs.request import Request
from compiler.program.loading import load_program

HERE = Path(__file__).parent
PYTHON = os.environ.get("MAPSPEC_ORIGINALS", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="MAPSPEC_ORIGINALS names no Python with the original programs")
MINIMIND = ORACLES / "minimind" / "dense_trained"
TOKENIZER = HERE.parent / "data" / "tokenizer"


def original(family: str, place: Path, inputs: torch.Tensor | dict[str, torch.Tensor], work: Path) -> torch.Tensor:
    """What the original program computes from a folder or file."""
    torch.save(inputs, work / "inputs.pt")
    command = [
        PYTHON,
        str(HERE / "run_original.py"),
        family,
        str(place),
        str(work / "inputs.pt"),
        str(work / "result.pt"),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    result: torch.Tensor = torch.load(work / "result.pt", weights_only=True)
    return result


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("litgpt", "litgpt/llama31_scaled"),
        ("litgpt", "litgpt/qwen3"),
        ("litgpt", "litgpt/gemma2"),
        ("litgpt", "litgpt/phi2"),
        ("litgpt", "litgpt/olmo2"),
        ("litgpt", "litgpt/falcon_7b"),
        ("litgpt", "litgpt/mixtral"),
        ("torchtune", "torchtune/llama31_scaled"),
        ("timm", "timm/vit"),
        ("torchtitan", "torchtitan/llama3_scaled"),
        ("torchtitan", "torchtitan/qwen3_tied"),
        ("mistral_inference", "mistral_inference/mixtral"),
        ("mistral_inference", "mistral_inference/mixtral_window"),
        ("whisper", "whisper/tiny"),
    ],
)
def test_the_original_loads_a_reverse(tmp_path: Path, family: str, name: str) -> None:
    """Its logits are the ones recorded from its own checkpoint."""
    case = Case(ORACLES / name)
    convert(case.program, case.request, tmp_path / "converted")
    convert(case.program, Request([tmp_path / "converted"], reverse=True), tmp_path / "back")
    assert case.golden is not None
    golden = load_file(case.golden)
    given = {key: tensor for key, tensor in golden.items() if key != "logits_fp32"}
    inputs = given if len(given) > 1 else next(iter(given.values()))
    logits = original(family, tmp_path / "back", inputs, tmp_path)
    wanted = golden["logits_fp32"].float()  # of the last positions
    logits = logits[:, -wanted.shape[1] :]
    torch.testing.assert_close(logits, wanted, atol=case.said["tolerance"], rtol=0)


@pytest.mark.parametrize(
    ("name", "grid", "settings"),
    [
        ("qwen3_tied", "tp=2,pp=2", {}),
        ("llama31_scaled", "tp=2", {}),
        ("qwen2_local", "pp=2", {}),
        ("qwen3_moe", "tp=2,pp=2", {"expert_layout": "local"}),
    ],
)
def test_megatron_core_loads_ranks(tmp_path: Path, name: str, grid: str, settings: dict[str, Any]) -> None:
    """One process of Megatron-Core for each file, its modules without Transformer Engine; the logits are the recorded ones."""
    case = Case(ORACLES / "megatron_mcore" / name)
    convert(case.program, case.request, tmp_path / "converted")
    assigned = {"fused_norms": False, **settings}
    request = Request([tmp_path / "converted"], reverse=True, ranks=grid, assigned=assigned)
    convert(case.program, request, tmp_path / "ranks")
    assert case.golden is not None
    golden = load_file(case.golden)
    wanted = golden["logits_fp32"].float()
    logits = original("megatron", tmp_path / "ranks", golden["input_ids"], tmp_path)[:, -wanted.shape[1] :]
    torch.testing.assert_close(logits, wanted, atol=case.said["tolerance"], rtol=0)


@pytest.mark.parametrize(("name", "settings"), [("qwen3_tp2", {}), ("qwen3_moe", {"own_norms": False})])
def test_megatron_core_loads_a_distributed_checkpoint(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    """One tensor for all layers, which each of two ranks reads a part of; every name must be there and no other."""
    case = Case(ORACLES / "megatron_mcore" / name)
    convert(case.program, case.request, tmp_path / "converted")
    program = load_program(case.program.spec.name.value.replace("mcore_", "mcore_dist_"))
    request = Request([tmp_path / "converted"], reverse=True, container="dcp", assigned=settings)
    convert(program, request, tmp_path / "dist")
    assert case.golden is not None
    golden = load_file(case.golden)
    wanted = golden["logits_fp32"].float()
    logits = original("megatron_dist", tmp_path / "dist", golden["input_ids"], tmp_path)[:, -wanted.shape[1] :]
    torch.testing.assert_close(logits, wanted, atol=case.said["tolerance"], rtol=0)


def test_megatron_core_loads_expert_parallel_ranks(tmp_path: Path) -> None:
    """Eight processes with half of the experts each compute what one process computes."""
    program, source = load_program("mcore_qwen3_moe"), ORACLES.parent / "trainers" / "megatron_experts" / "whole"
    convert(program, Request([source]), tmp_path / "converted")
    assigned = {"fused_norms": False, "expert_layout": "local"}
    ids, logits = torch.randint(0, 24, (1, 12), generator=torch.Generator().manual_seed(3)), []
    for n, grid in enumerate(("tp=1", "tp=2,pp=2,ep=2")):
        work = tmp_path / str(n)
        request = Request([tmp_path / "converted"], reverse=True, ranks=grid, assigned=assigned)
        convert(program, request, work / "ranks")
        logits.append(original("megatron", work / "ranks", ids, work))
    torch.testing.assert_close(*logits, atol=1e-5, rtol=0)


def test_litgpt_loads_what_torchtune_wrote(tmp_path: Path) -> None:
    """From one trainer to the other in one pass; the logits are those of the first."""
    case = Case(ORACLES / "torchtune" / "llama31_scaled")
    request = Request(case.request.source, assigned=case.request.assigned, to="litgpt")
    convert(case.program, request, tmp_path / "lit")
    assert case.golden is not None
    golden = load_file(case.golden)
    wanted = golden["logits_fp32"].float()
    logits = original("litgpt", tmp_path / "lit", golden["input_ids"], tmp_path)[:, -wanted.shape[1] :]
    torch.testing.assert_close(logits, wanted, atol=case.said["tolerance"], rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "q8_0"])
def test_llama_cpp_generates_the_same_tokens(tmp_path: Path, dtype: str) -> None:
    """MiniMind's own file as GGUF: greedy tokens are Transformers' for the folder of the same dtype; for that of Q8_0 those
    of the unquantized folder."""
    from transformers import AutoModelForCausalLM

    settings: dict[str, Any] = {"config": MINIMIND / "source" / "minimind_config_resolved.json", "tokenizer": TOKENIZER}
    program, source = load_program("qwen3"), [MINIMIND / "source" / "model.pth"]
    convert(program, Request(source, dtype=None if dtype == "q8_0" else dtype, **settings), tmp_path / "folder")
    convert(program, Request(source, dtype=dtype, to="gguf", **settings), tmp_path / "model.gguf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=torch.float32).eval()
    prompts = torch.randint(50, 6000, (6, 12), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted = model.generate(prompts, max_new_tokens=16, min_new_tokens=16, do_sample=False)[:, prompts.shape[1] :]
    assert torch.equal(original("gguf", tmp_path / "model.gguf", prompts, tmp_path), wanted)
