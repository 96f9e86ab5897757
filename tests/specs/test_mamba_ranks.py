"""Mamba 2 of tensor- and pipeline-parallel ranks, cut here by Megatron-Core's rule: a rank has its heads' and groups' rows of
z, x, B, C and dt one behind the other, so that the blocks of a projection have unequal lengths.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from compiler.diagnostics import Refusal
from compiler.jobs.convert import convert
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.program.loading import load_program

SPEC = "mcore_mamba2"
LAYERS, WIDTH, HEADS, INNER, GROUPS, STATE, TOKENS = 4, 16, 8, 32, 2, 5, 24
IN_PROJ, CONV = (INNER, INNER, GROUPS * STATE, GROUPS * STATE, HEADS), (INNER, GROUPS * STATE, GROUPS * STATE)
Tensors = dict[str, Tensor]


def layer(number: int) -> Tensors:
    """The tensors of one layer in one process, by Megatron-Core's names."""
    random = torch.Generator().manual_seed(number)
    shapes = {
        "in_proj.weight": (sum(IN_PROJ), WIDTH), "in_proj.layer_norm_weight": (WIDTH,), "conv1d.weight": (sum(CONV), 1, 4),
        "conv1d.bias": (sum(CONV),), "A_log": (HEADS,), "D": (HEADS,), "dt_bias": (HEADS,), "norm.weight": (INNER,),
        "out_proj.weight": (WIDTH, INNER),
    }  # fmt: skip
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def share(name: str, tensor: Tensor, rank: int, ranks: int) -> Tensor:
    """A rank's part of a layer's tensor."""
    if name == "in_proj.layer_norm_weight":
        return tensor
    if name == "out_proj.weight":
        return tensor.chunk(ranks, 1)[rank].contiguous()
    lengths = IN_PROJ if name == "in_proj.weight" else CONV if "conv1d" in name else (len(tensor),)
    return torch.cat([block.chunk(ranks)[rank] for block in tensor.split(lengths)])


def run(folder: Path, tensors: int, stages: int) -> Path:
    """The folder of a run."""
    outer = torch.Generator().manual_seed(99)
    embedding, output = torch.randn(TOKENS, WIDTH, generator=outer), torch.randn(TOKENS, WIDTH, generator=outer)
    step, own = folder / "iter_0000010", LAYERS // stages
    for stage in range(stages):
        for rank in range(tensors):
            held = {
                f"decoder.layers.{n}.mixer.{name}": share(name, tensor, rank, tensors)
                for n in range(own)
                for name, tensor in layer(stage * own + n).items()
            }
            if stage == 0:
                held["embedding.word_embeddings.weight"] = embedding.chunk(tensors)[rank].clone()
            if stage == stages - 1:
                held |= {
                    "output_layer.weight": output.chunk(tensors)[rank].clone(),
                    "decoder.final_norm.weight": torch.ones(WIDTH),
                }
            args = {"tensor_model_parallel_size": tensors, "pipeline_model_parallel_size": stages,
                    "rank": stage * tensors + rank, "world_size": stages * tensors, "mamba_num_groups": GROUPS,
                    "norm_epsilon": 1e-5, "num_layers": LAYERS, "hidden_size": WIDTH, "untie_embeddings_and_output_weights": True}  # fmt: skip
            place = step / (f"mp_rank_{rank:02}_{stage:03}" if stages > 1 else f"mp_rank_{rank:02}")
            place.mkdir(parents=True)
            torch.save({"model": held, "args": Namespace(**args), "iteration": 10}, place / "model_optim_rng.pt")
    return folder


def converted(source: Path, out: Path) -> Tensors:
    convert(load_program(SPEC), Request([source], check=False), out)
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize(("tensors", "stages"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_the_ranks_become_the_model(tmp_path: Path, tensors: int, stages: int) -> None:
    found = converted(run(tmp_path / "run", tensors, stages), tmp_path / "out")
    for n in range(LAYERS):
        for name, tensor in layer(n).items():
            inner = "norm.weight" if "layer_norm" in name else f"mixer.{name}"
            assert found[f"backbone.layers.{n}.{inner}"].equal(tensor), (n, name)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    wanted = {"num_heads": HEADS, "head_dim": INNER // HEADS, "n_groups": GROUPS, "state_size": STATE, "expand": 2}
    assert {name: config[name] for name in wanted} == wanted
    assert found["lm_head.weight"].shape == found["backbone.embeddings.weight"].shape == (TOKENS, WIDTH)


def test_plain_concatenation_is_another_model(tmp_path: Path) -> None:
    """The negative control: the parts one behind the other are not the projection of one process."""
    parts = [share("in_proj.weight", layer(0)["in_proj.weight"], rank, 2) for rank in range(2)]
    found = converted(run(tmp_path / "run", 2, 1), tmp_path / "out")["backbone.layers.0.mixer.in_proj.weight"]
    assert found.shape == torch.cat(parts).shape
    assert not found.equal(torch.cat(parts))


def lost(folder: Path) -> None:
    (folder / "iter_0000010" / "mp_rank_01_001" / "model_optim_rng.pt").unlink()


def other_blocks(folder: Path) -> None:
    file = folder / "iter_0000010" / "mp_rank_01_000" / "model_optim_rng.pt"
    held = torch.load(file, weights_only=False)
    held["model"]["decoder.layers.0.mixer.in_proj.weight"] = torch.randn(30, WIDTH)
    torch.save(held, file)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lost, "the file of tensor rank 1, pipeline rank 1 is missing; there are 3 of 4"),
        (other_blocks, "decoder.layers.0.mixer.in_proj.weight: blocks of 16 + 16 + 5 + 5 + 4"),
    ],
)
def test_ranks_that_do_not_fit(tmp_path: Path, spoil: Callable[[Path], None], says: str) -> None:
    folder = run(tmp_path / "run", 2, 2)
    spoil(folder)
    with pytest.raises(Refusal) as refused:
        prepare(load_program(SPEC), Request([folder]))
    assert says in str(refused.value), refused.value
