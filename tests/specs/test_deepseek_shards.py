"""DeepSeek-V3's inference shards: the recorded model, cut here by the rule of its own convert.py, becomes what the published
layout becomes, bit for bit; and shards that do not fit together are rejected.

The rule: a column-parallel matrix is cut by rows, a row-parallel one by columns, each with its scales; a rank has as many
experts in a row as the others; everything else is in every shard.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.converter_process import script
from support.parity import ORACLES
from support.synthetic import folder_image
from torch import Tensor

from compiler.diagnostics import Refusal
from compiler.executor.preconditions import check_replicas
from compiler.jobs.convert import convert
from compiler.jobs.detect import detect, unique
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.program.loading import load_program
from compiler.source.source_files import open_source

SPEC, PUBLISHED = "deepseek_mp_deepseek_v3", "deepseek_v3_fp8_deepseek_v3"
CASE = ORACLES / "deepseek_v3" / "fp8_whole_blocks" / "source"
BLOCK = [4, 8]  # its scales can be divided by 2 and 4
Tensors = dict[str, Tensor]
MODULES = {  # of the published layout -> in the shards, and the axis that is cut
    "embed_tokens": ("embed", 0), "lm_head": ("head", 0), "norm": ("norm", None), "gate": ("gate", None),
    "input_layernorm": ("attn_norm", None), "post_attention_layernorm": ("ffn_norm", None),
    "q_proj": ("wq", 0), "q_a_proj": ("wq_a", None), "q_a_layernorm": ("q_norm", None), "q_b_proj": ("wq_b", 0),
    "kv_a_proj_with_mqa": ("wkv_a", None), "kv_a_layernorm": ("kv_norm", None), "kv_b_proj": ("wkv_b", 0),
    "o_proj": ("wo", 1), "gate_proj": ("w1", 0), "down_proj": ("w2", 1), "up_proj": ("w3", 0),
}  # fmt: skip
LEAVES = {"weight": "weight", "weight_scale_inv": "scale", "e_score_correction_bias": "bias"}


def cut(tensors: Tensors, experts: int, parts: int) -> list[Tensors]:
    """The shards of a published model."""
    shards: list[Tensors] = [{} for _ in range(parts)]

    def slices(tensor: Tensor, axis: int) -> list[Tensor]:
        assert tensor.shape[axis] % parts == 0, (name, tensor.shape)
        return [piece.contiguous() for piece in tensor.chunk(parts, axis)]

    for name, tensor in tensors.items():
        *path, module, leaf = name.removeprefix("model.").split(".")
        own, axis = MODULES[module]
        words = {"self_attn": "attn", "mlp": "ffn"}
        new = ".".join([*(words.get(word, word) for word in path), own, LEAVES[leaf]])
        for part, shard in enumerate(shards):
            if "experts" in path:
                if int(path[-1]) // (experts // parts) == part:
                    shard[new] = tensor
            else:
                shard[new] = tensor if axis is None else slices(tensor, axis)[part]
    return shards


def published(folder: Path, quantized: bool) -> Path:
    """The recorded model in the published layout: with scales for blocks that can be divided, or in bfloat16."""
    folder.mkdir(parents=True)
    config = json.loads((CASE / "config.json").read_text())
    config["rope_scaling"] |= {"mscale_all_dim": config["rope_scaling"]["mscale"]}  # one number in the shards' config
    config["quantization_config"] |= {"weight_block_size": BLOCK}
    random = torch.Generator().manual_seed(5)
    last = config["num_hidden_layers"]  # the layers behind it are not in the shards
    tensors = {n: t for n, t in load_file(CASE / "model.safetensors").items() if f"layers.{last}." not in n}
    for name in list(tensors):
        if name.endswith("_scale_inv"):
            high, wide = tensors[name.removesuffix("_scale_inv")].shape
            shape = (-(-high // BLOCK[0]), -(-wide // BLOCK[1]))
            tensors[name] = 0.001 + 0.01 * torch.rand(shape, generator=random)
    if not quantized:
        tensors = {n: t.bfloat16() for n, t in tensors.items() if not n.endswith("_scale_inv")}
        tensors = {n: t.float() if n.endswith("correction_bias") else t for n, t in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def sharded(folder: Path, source: Path, parts: int) -> Path:
    """The shards of a published model, and the inference config beside them."""
    config = json.loads((source / "config.json").read_text())
    folder.mkdir(parents=True)
    for part, shard in enumerate(cut(load_file(source / "model.safetensors"), config["n_routed_experts"], parts)):
        save_file(shard, folder / f"model{part}-mp{parts}.safetensors")
    rope = config["rope_scaling"]
    theirs: dict[str, Any] = {
        "vocab_size": config["vocab_size"], "dim": config["hidden_size"], "inter_dim": config["intermediate_size"],
        "moe_inter_dim": config["moe_intermediate_size"], "n_layers": config["num_hidden_layers"],
        "n_dense_layers": config["first_k_dense_replace"], "n_heads": config["num_attention_heads"],
        "n_routed_experts": config["n_routed_experts"], "n_shared_experts": config["n_shared_experts"],
        "n_activated_experts": config["num_experts_per_tok"], "n_expert_groups": config["n_group"],
        "n_limited_groups": config["topk_group"], "route_scale": config["routed_scaling_factor"], "score_func": "sigmoid",
        "q_lora_rank": config.get("q_lora_rank") or 0, "kv_lora_rank": config["kv_lora_rank"],
        "qk_nope_head_dim": config["qk_nope_head_dim"], "qk_rope_head_dim": config["qk_rope_head_dim"],
        "v_head_dim": config["v_head_dim"], "dtype": "fp8", "rope_factor": rope["factor"], "mscale": rope["mscale"],
        "original_seq_len": rope["original_max_position_embeddings"], "max_seq_len": 4 * 16, "weight_block_size": BLOCK,
    }  # fmt: skip
    (folder / "config_tiny.json").write_text(json.dumps(theirs))
    return folder


def out_of(spec: str, source: Path, out: Path) -> Path:
    convert(load_program(spec), Request([source], check=False), out)
    return out


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("model") / "fp8", quantized=True)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_shards_become_what_the_published_layout_becomes(model: Path, tmp_path: Path, parts: int) -> None:
    ours = out_of(SPEC, sharded(tmp_path / "shards", model, parts), tmp_path / "ours")
    theirs = out_of(PUBLISHED, model, tmp_path / "theirs")
    assert folder_image(ours) == folder_image(theirs)
    assert json.loads((ours / "config.json").read_text()) == json.loads((theirs / "config.json").read_text())


def test_shards_in_bfloat16(tmp_path: Path) -> None:
    source = published(tmp_path / "plain", quantized=False)
    out = out_of(SPEC, sharded(tmp_path / "shards", source, 4), tmp_path / "out")
    wanted = {n: (str(t.dtype), t.view(torch.uint8)) for n, t in load_file(source / "model.safetensors").items()}
    found = {n: (str(t.dtype), t.view(torch.uint8)) for n, t in load_file(out / "model.safetensors").items()}
    assert found.keys() == wanted.keys()
    assert [n for n in wanted if found[n][0] != wanted[n][0] or not found[n][1].equal(wanted[n][1])] == []


def test_the_converter_joins_the_shards(model: Path, tmp_path: Path) -> None:
    shards = sharded(tmp_path / "shards", model, 2)
    command = [sys.executable, str(script(SPEC)), str(shards), str(tmp_path / "theirs"), "--no-check"]
    subprocess.run(command, check=True, capture_output=True)
    assert folder_image(tmp_path / "theirs") == folder_image(out_of(SPEC, shards, tmp_path / "ours"))


def test_detect_names_the_spec(model: Path, tmp_path: Path) -> None:
    shards = sharded(tmp_path / "shards", model, 2)
    fit = unique(detect(Request([shards]), [load_program(name) for name in (SPEC, PUBLISHED, "meta_llama")]), shards)
    assert (fit.spec, fit.status) == (SPEC, "fits")


# ---------------------------------------------------------------------------------------------------------------------
# Shards that do not fit


def shard(folder: Path, part: int) -> Path:
    return folder / f"model{part}-mp4.safetensors"


def removed(part: int) -> Callable[[Path], None]:
    return lambda folder: shard(folder, part).unlink()


def swapped(folder: Path) -> None:
    shard(folder, 1).rename(folder / "x")
    shard(folder, 2).rename(shard(folder, 1))
    (folder / "x").rename(shard(folder, 2))


def two_runs(folder: Path) -> None:
    shutil.copy(shard(folder, 0), folder / "model0-mp8.safetensors")


def too_many(folder: Path) -> None:
    shutil.copy(shard(folder, 0), shard(folder, 4))


def truncated(folder: Path) -> None:
    shard(folder, 3).write_bytes(shard(folder, 3).read_bytes()[:-9])


def change(folder: Path, part: int, tensors: Callable[[Tensors], Tensors]) -> None:
    save_file({n: t.contiguous() for n, t in tensors(load_file(shard(folder, part))).items()}, shard(folder, part))


def foreign(folder: Path) -> None:
    change(folder, 3, lambda held: {n: t[..., : t.shape[-1] // 2] for n, t in held.items()})


def no_head(folder: Path) -> None:
    change(folder, 2, lambda held: {n: t for n, t in held.items() if n != "head.weight"})


def lost_expert(folder: Path) -> None:
    change(folder, 2, lambda held: {n: t for n, t in held.items() if "layers.1.ffn.experts.6." not in n})


def twice(folder: Path) -> None:
    name = "layers.1.ffn.experts.0.w1.weight"
    held = load_file(shard(folder, 0))[name]
    change(folder, 2, lambda tensors: tensors | {name: held})


@pytest.mark.parametrize(
    ("spoil", "says", "kind"),
    [
        (removed(0), "the file of tensor rank 0 is missing; there are 3 of 4", "missing-part"),
        (removed(3), "the file of tensor rank 3 is missing; there are 3 of 4", "missing-part"),
        (swapped, "it is in file 2, but number 3 of 12 belongs to file 1 of 4", "unfit-parts"),
        (two_runs, "files of runs with 4, 8 ranks are in one folder", "ambiguous-container"),
        (too_many, "the names state 4 files, and there are ranks of 5", "unfit-parts"),
        (truncated, "model3-mp4.safetensors", "damaged-file"),
        (foreign, "parts of", "unfit-parts"),
        (no_head, "has head.weight", "missing-tensor"),
        (lost_expert, "n_routed_experts = 12 (config_tiny.json), but the checkpoint has 11", "config-mismatch"),
        (twice, "it is in file 0 and file 2, but number 0 of 12 belongs to file 0 of 4", "unfit-parts"),
    ],
)  # fmt: skip
def test_shards_that_do_not_fit(
    model: Path, tmp_path: Path, spoil: Callable[[Path], None], says: str, kind: str
) -> None:
    folder = sharded(tmp_path / "shards", model, 4)
    spoil(folder)
    with pytest.raises(Refusal) as refused:
        prepare(load_program(SPEC), Request([folder]))
    assert says in str(refused.value), refused.value
    assert kind in {problem.kind for problem in refused.value.diagnostics}, refused.value


def test_a_norm_that_differs(model: Path, tmp_path: Path) -> None:
    """As in a shard of another step."""
    folder = sharded(tmp_path / "shards", model, 4)
    change(folder, 3, lambda held: held | {"norm.weight": held["norm.weight"] + 1})
    with pytest.raises(Refusal, match=r"norm.weight should be the same in model0-mp4.safetensors and model3-mp4"):
        check_replicas(open_source(load_program(SPEC), [folder]))


def test_one_shard_alone(model: Path, tmp_path: Path) -> None:
    folder = sharded(tmp_path / "shards", model, 4)
    with pytest.raises(Refusal, match="this is one of 4 parts of a model"):
        prepare(load_program(SPEC), Request([shard(folder, 1)]))
