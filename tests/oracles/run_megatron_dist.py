"""Record the same models as `run_megatron_core.py` in the distributed checkpoints that Megatron-Core itself saves
(torch_dist): one tensor for all layers, of which each rank writes its chunks, and what all share in `common.pt`.

Usage: python run_megatron_dist.py OUT [--seed N], with megatron-core installed; writes OUT/megatron_dist/CASE.
"""

from __future__ import annotations

import shutil
import tempfile
from argparse import Namespace
from pathlib import Path

import recording
import run_megatron_core as core
import torch
from megatron.core import dist_checkpointing
from megatron.core.models.gpt import GPTModel

CASES = ["llama31_scaled", "llama_padded_tp2", "qwen2_local", "qwen3_tp2", "qwen3_moe", "qwen3_moe_tp2"]


def save(model: GPTModel, said: Namespace, place: Path) -> None:
    """As Megatron-LM saves a model of one pipeline stage. Before experts, the modules without Transformer Engine call
    their norm as if it were fused; those with it do not."""
    torch.cuda.synchronize = lambda: None
    state = model.sharded_state_dict()
    for tensor in state.values():
        if said.num_experts and said.transformer_impl != "local":
            tensor.key = tensor.key.replace(".mlp.linear_fc1.layer_norm_weight", ".pre_mlp_layernorm.weight")
    folder = place / "dist"
    folder.mkdir(exist_ok=True)
    dist_checkpointing.save({"args": said, "checkpoint_version": 3.0, "iteration": 10, "model": state}, str(folder))


def record(out: Path, case: str, family: core.Family, seed: int) -> None:
    said = family.said
    given = {n: value for n, value in family.case.get("set", {}).items() if n not in ("fused_norms", "grouped_experts")}
    if said.num_experts and said.transformer_impl == "local":
        given["own_norms"] = False  # which the way back cannot tell
    spec = family.spec.replace("mcore_", "mcore_dist_")
    told = {"spec": spec, "weights": ".", "tolerance": 2e-5, **family.case, "set": given}
    with tempfile.TemporaryDirectory() as text:
        found = core.recorded(family, seed, Path(text), save)
        recording.record(
            out / "megatron_dist" / case,
            told,
            save=lambda source: shutil.copytree(Path(text) / "dist", source, dirs_exist_ok=True),
            **found,
        )


def main() -> None:
    options = recording.arguments(__doc__ or "")
    for case in CASES:
        record(options.out, case, core.FAMILIES[case], options.seed)


if __name__ == "__main__":
    main()
