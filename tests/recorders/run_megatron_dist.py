"""Record the same models as `run_megatron_core.py` in the distributed checkpoints that Megatron-Core itself saves
(torch_dist): each rank writes its chunks of the tensors, and one what all share, in `common.pt`.

Usage: python run_megatron_dist.py OUT [--seed N], with megatron-core installed; writes OUT/megatron_dist/CASE.
"""

from __future__ import annotations

import shutil
import tempfile
from argparse import Namespace
from functools import partial
from pathlib import Path

import recording
import run_megatron_core as core
import torch
from megatron.core import dist_checkpointing
from megatron.core.models.gpt import GPTModel

# Case -> how it is saved: one tensor for all layers, as it comes; one for each; or one for each that a rank has whole
STACKED, LAYERS, SINGLE = "", "_by_layer", "_single"
METADATA = {STACKED: {}, LAYERS: {"non_homogeneous_layers": True}, SINGLE: {"singleton_local_shards": True}}
CASES = {
    "llama31_scaled": [STACKED],
    "llama_padded_tp2": [STACKED, SINGLE],
    "qwen2_local": [STACKED, LAYERS],
    "qwen3_tp2": [STACKED, LAYERS, SINGLE],
    "qwen3_moe": [STACKED, LAYERS],
    "qwen3_moe_tp2": [STACKED, LAYERS, SINGLE],
}
SAID_ANEW = ("fused_norms", "expert_layout")  # what the way back cannot tell of a legacy checkpoint


def save(form: str, model: GPTModel, said: Namespace, place: Path) -> None:
    """As Megatron-LM saves a model of one pipeline stage. Before experts, the modules without Transformer Engine call
    their norm as if it were fused; those with it do not."""
    torch.cuda.synchronize = lambda: None
    state = model.sharded_state_dict(metadata=METADATA[form])
    for tensor in state.values():
        if said.num_experts and said.transformer_impl != "local":
            tensor.key = tensor.key.replace(".mlp.linear_fc1.layer_norm_weight", ".pre_mlp_layernorm.weight")
    folder = place / "dist"
    folder.mkdir(exist_ok=True)
    dist_checkpointing.save({"args": said, "checkpoint_version": 3.0, "iteration": 10, "model": state}, str(folder))


def record(out: Path, case: str, form: str, family: core.Family, seed: int) -> None:
    said = family.said
    given = {name: value for name, value in family.case.get("set", {}).items() if name not in SAID_ANEW}
    if said.num_experts and said.transformer_impl == "local":
        given["own_norms"] = False
    if form == SINGLE and not said.num_experts:
        given["joined_mlp"] = False
    if form and said.num_experts:
        given["expert_layout"] = "single" if form == SINGLE else "stacked"
    spec = family.spec if form else family.spec.replace("mcore_", "mcore_dist_")
    told = {"spec": spec, "weights": ".", "tolerance": 2e-5, **family.case, "set": given}
    with tempfile.TemporaryDirectory() as text:
        found = core.recorded(family, seed, Path(text), partial(save, form))
        recording.record(
            out / "megatron_dist" / f"{case}{form}",
            told,
            save=lambda source: shutil.copytree(Path(text) / "dist", source, dirs_exist_ok=True),
            **found,
        )


def main() -> None:
    options = recording.arguments(__doc__ or "")
    for case, forms in CASES.items():
        for form in forms:
            record(options.out, case, form, core.FAMILIES[case], options.seed)


if __name__ == "__main__":
    main()
