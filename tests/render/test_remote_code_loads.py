"""Path B by the whole flow: what `compile run` writes, loaded with `trust_remote_code` in every installed Transformers.

Each folder is loaded twenty times while memory is full of NaN, since a buffer that loading leaves unset is right by
luck now and then. Path A of the same checkpoint must agree, and write the same text.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.parity import ORACLES, interpreters

from compiler.jobs.convert import convert
from compiler.jobs.request import Request
from compiler.program.loading import load_program

LOADS = 20
TOLERANCE = 2e-5
CASES = {
    "minimind/dense_trained": ("minimind", "qwen3"),
    "minimind/dense_small": ("minimind", "qwen3"),
    "minimind/dense_yarn": ("minimind", "qwen3"),
    "minimind/moe_trained": ("minimind", "qwen3_moe"),
    "minimind2/dense": ("minimind2", "llama"),
    "minimind2/moe_shared": ("minimind2", None),
}
# The fresh process: loads, compares, generates; prints JSON.
SCRIPT = '''
import json, sys, torch
sys.path.insert(0, sys.argv[1])
from support.parity import soil, difference
from pathlib import Path
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
found = {}
for case, golden, custom, standard in json.loads(sys.argv[2]):
    ids = load_file(golden)["input_ids"]
    apart, texts = [], {}
    for n in range(int(sys.argv[3])):
        soil()
        model = AutoModelForCausalLM.from_pretrained(custom, trust_remote_code=True, dtype=torch.float32, attn_implementation="eager").eval()
        torch.use_deterministic_algorithms(False)
        with torch.no_grad():
            logits = model(ids).logits
        apart.append(difference(logits, Path(golden)))
    models = {"custom": model}
    if standard:
        models["standard"] = AutoModelForCausalLM.from_pretrained(standard, dtype=torch.float32, attn_implementation="eager").eval()
        with torch.no_grad():
            found[case + " paths"] = float((models["standard"](ids).logits - logits).abs().max())
    for name, each in models.items():
        for cache in (True, False):
            made = each.generate(ids[:1, :8], max_new_tokens=64, min_new_tokens=64, do_sample=False, use_cache=cache, pad_token_id=0)
            texts[f"{name} {cache}"] = made[0].tolist()
    found[case] = apart
    found[case + " same text"] = len({tuple(t) for t in texts.values()}) == 1 and len(next(iter(texts.values()))) == 72
print(json.dumps(found))
'''  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    place = tmp_path_factory.mktemp("paths")
    jobs = []
    for case, specs in CASES.items():
        folders = []
        for spec in specs:
            if spec is not None:
                source = ORACLES / case / "source"
                request = Request([source / "model.pth"], config=source / "minimind_config_resolved.json")
                folders.append(place / f"{case.replace('/', '_')}_{spec}")
                convert(load_program(spec), request, folders[-1])
        golden = ORACLES / case / "expected/golden_logits.safetensors"
        jobs.append([case, str(golden), str(folders[0]), str(folders[1]) if folders[1:] else None])
    results = {}
    for name, python in interpreters().items():
        settings = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(place / "modules"), "OMP_NUM_THREADS": "1"}
        words = [python, "-c", SCRIPT, str(Path(__file__).parent.parent), json.dumps(jobs), str(LOADS)]
        done = subprocess.run(words, env=os.environ | settings, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        results[name] = json.loads(done.stdout.splitlines()[-1])
    return results


@pytest.mark.parametrize("case", CASES)
def test_every_load_gives_the_original_logits(found: dict[str, dict[str, Any]], case: str) -> None:
    for name, result in found.items():
        assert len(result[case]) == LOADS
        assert max(result[case]) <= TOLERANCE, (name, result[case])


@pytest.mark.parametrize("case", [case for case, (_, standard) in CASES.items() if standard])
def test_both_paths_agree(found: dict[str, dict[str, Any]], case: str) -> None:
    assert all(result[case + " paths"] <= TOLERANCE for result in found.values()), found


@pytest.mark.parametrize("case", CASES)
def test_both_paths_write_the_same_text_cached_or_not(found: dict[str, dict[str, Any]], case: str) -> None:
    assert all(result[case + " same text"] for result in found.values()), found


def test_the_folder_says_where_its_code_lies(tmp_path: Path) -> None:
    source = ORACLES / "minimind/dense_small/source"
    convert(
        load_program("minimind"),
        Request([source / "model.pth"], config=source / "minimind_config_resolved.json"),
        tmp_path / "out",
    )
    config = json.loads((tmp_path / "out/config.json").read_text())
    for place in config["auto_map"].values():
        assert (tmp_path / "out" / f"{place.split('.')[0]}.py").is_file()
