"""`tp_plan="auto"` on two processes gives the logits, gradients and tokens of one process."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import parity
from support.custom_models import MODELS

from compiler.render.remote_code.render import auto_map, render_custom

SIZES: dict[str, Any] = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 48, "max_position_embeddings": 64, "initializer_range": 0.3}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "tied_with_norms": ("minimind", {"num_key_value_heads": 2}),
    "shared_experts": ("minimind2", {"num_key_value_heads": 2, "use_moe": True, "tie_word_embeddings": False}),
    "fused_and_tied": ("nanogpt", {"bias": False}),
}
SCRIPT = Path(__file__).parent.parent / "support" / "tensor_parallel.py"
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One package per case: the rendered code and a saved model with random weights."""
    root = tmp_path_factory.mktemp("parallel")
    sys.path.insert(0, str(root))
    for case, (name, sizes) in CASES.items():
        folder = root / f"parallel_{case}"
        folder.mkdir()
        for file, text in {"__init__.py": "", **render_custom(MODELS[name])}.items():
            (folder / file).write_text(text)
        module = importlib.import_module(f"{folder.name}.model_{name}")
        config = getattr(module, MODELS[name].config_class)(**SIZES, **sizes)
        config.auto_map = auto_map(MODELS[name])
        torch.manual_seed(0)
        getattr(module, MODELS[name].model_class)(config).save_pretrained(folder)
    sys.path.remove(str(root))
    return [root / f"parallel_{case}" for case in CASES]


@pytest.mark.parametrize("release", parity.interpreters())
def test_two_processes_agree_with_one(release: str, folders: list[Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    python = parity.interpreters()[release]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [python, SCRIPT, str(port), str(rank), *folders],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=240) for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), outputs[0][1] + outputs[1][1]
    assert "match nothing" not in outputs[0][1]
    assert "not applied" not in outputs[0][1]
    found = json.loads(outputs[0][0].splitlines()[-1])
    norms = ("q_norm.weight", "k_norm.weight")
    for folder, result in found.items():
        assert result["split"], folder
        assert result["logits"] <= TOLERANCE, folder
        assert result["same tokens"], folder
        wrong = {name for name, difference in result["gradients"].items() if difference > TOLERANCE}
        # transformers 4 has no style that sums the gradients of norms over ranks.
        assert {name for name in wrong if not (result["release"] < 5 and name.endswith(norms))} == set(), folder
    tied = next(result for folder, result in found.items() if folder.endswith("fused_and_tied"))
    assert ("transformer.wte.weight" in tied["split"]) is (tied["release"] >= 5)
