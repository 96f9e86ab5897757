"""Conversions from containers of other programs: the same folder as from the file of torch.save."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import torch
from support.synthetic import folder_image

from compiler.diagnostics import Refusal
from compiler.jobs.convert import convert
from compiler.jobs.detect import detect
from compiler.jobs.request import Request
from compiler.program.loading import load_program

DATA = Path(__file__).parents[1] / "data" / "oracles"
MEGATRON = DATA / "megatron_mcore" / "llama31_scaled" / "source" / "mp_rank_00" / "model_optim_rng.pt"
# What NeMo calls the arguments of this case, as its conf/megatron_llama_config.yaml does.
CONFIG = """
num_layers: 2
num_attention_heads: {heads}
max_position_embeddings: {positions}
normalization: rmsnorm
layernorm_epsilon: {epsilon}
activation: fast-swiglu
position_embedding_type: rope
rotary_percentage: 1.0
rotary_base: {base}
scale_positional_embedding: {scaled}
bias: false
"""


def nemo(path: Path, activation: str = "fast-swiglu", scaled: str = "false") -> Path:
    saved = torch.load(MEGATRON, weights_only=False)
    args = saved["args"]
    buffer = io.BytesIO()
    torch.save({f"model.{name}": tensor for name, tensor in saved["model"].items()}, buffer)
    text = CONFIG.format(heads=args.num_attention_heads, positions=args.max_position_embeddings,
                         epsilon=args.norm_epsilon, base=args.rotary_base, scaled=scaled)  # fmt: skip
    text = text.replace("fast-swiglu", activation)
    with tarfile.open(path, "w") as tar:
        for name, data in {"./model_config.yaml": text.encode(), "./model_weights.ckpt": buffer.getvalue()}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_a_nemo_archive_makes_the_folder_of_its_megatron_checkpoint(tmp_path: Path) -> None:
    program = load_program("mcore_llama")
    source = nemo(tmp_path / "llama.nemo")
    factor = torch.load(MEGATRON, weights_only=False)["args"].rope_scaling_factor
    assigned = {"fused_norms": False, "use_rope_scaling": True, "rope_scaling_factor": factor}
    convert(program, Request([MEGATRON], assigned={"fused_norms": False}, check=False), tmp_path / "expected")
    convert(program, Request([source], assigned=assigned, check=False), tmp_path / "out")
    assert folder_image(tmp_path / "out") == folder_image(tmp_path / "expected")
    assert (tmp_path / "out" / "config.json").read_bytes() == (tmp_path / "expected" / "config.json").read_bytes()
    [fit] = detect(Request([source], assigned=assigned), [program])
    assert fit.status == "fits"


@pytest.mark.parametrize(
    ("changed", "says"),
    [({"activation": "gelu"}, "activation is 'gelu'"), ({"scaled": "true"}, "use_rope_scaling here")],
)
def test_a_nemo_config_of_another_model_is_rejected(changed: dict[str, str], says: str, tmp_path: Path) -> None:
    source = nemo(tmp_path / "llama.nemo", **changed)
    with pytest.raises(Refusal, match=says):
        convert(load_program("mcore_llama"), Request([source]), tmp_path / "out")
    assert not (tmp_path / "out").exists()
