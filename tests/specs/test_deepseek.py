"""DeepSeek-V3 in FP8: what Transformers' own reader of such weights makes of the recorded case is what the spec makes.

Beside it stand conversions that load and are wrong, and checkpoints that are not whole: rules of dense layers and of
layers with experts each miss what their own layers lack.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.parity import ORACLES, Job, difference, interpreters, logits_many
from support.synthetic import folder_image
from torch import Tensor

from compiler.diagnostics import Refusal
from compiler.jobs.convert import write
from compiler.jobs.detect import detect, known_specs
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.plan.plan import Plan
from compiler.program.loading import load_program

CASE, WHOLE = (ORACLES / "deepseek_v3" / name for name in ("fp8_blocks", "fp8_whole_blocks"))
GOLDEN = CASE / "expected" / "golden_logits.safetensors"
SPEC = "deepseek_v3_fp8_deepseek_v3"
Tensors = dict[str, Tensor]


def changed(folder: Path, change: Callable[[Tensors], Tensors] = dict, **fields: Any) -> Path:
    """A copy of the source with other tensors and config fields."""
    shutil.copytree(CASE / "source", folder)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    return folder


def converted(source: Path, out: Path, change: Callable[[Plan], Plan] = lambda plan: plan) -> Path:
    request = Request([source])
    prepared = prepare(load_program(SPEC), request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    write(change(plan), checkpoint, request, out)
    return out


# ---------------------------------------------------------------------------------------------------------------------
# What is wrong and loads


def scales(change: Callable[[Tensor], Tensor], part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {
        n: change(t).contiguous() if n.endswith(f"{part}.weight_scale_inv") else t for n, t in tensors.items()
    }


def as_text(plan: Plan) -> Plan:
    """Experts in the order 0, 1, 10, 11, 2."""
    order = dict(zip(map(str, range(12)), sorted(map(str, range(12))), strict=True))

    def named(name: str) -> str:
        before, experts, after = name.partition(".experts.")
        number, _, rest = after.partition(".")
        return f"{before}.experts.{order[number]}.{rest}" if experts else name

    return replace(
        plan,
        groups=tuple(replace(g, targets=g.targets.map(lambda t: replace(t, name=named(t.name)))) for g in plan.groups),
    )


def config(**fields: object) -> Callable[[Plan], Plan]:
    return lambda plan: replace(plan, config={**plan.config, **fields})


WRONG_SOURCES = {
    "scales in another order": scales(lambda t: t.flatten().flip(0).reshape(t.shape), "down_proj"),
    "scales lost": scales(torch.ones_like, "kv_b_proj"),
    "one scale lost": lambda tensors: (
        tensors
        | {
            "model.layers.0.mlp.up_proj.weight_scale_inv": torch.ones_like(
                tensors["model.layers.0.mlp.up_proj.weight_scale_inv"]
            )
        }
    ),
}
WRONG_PLANS = {
    "experts as text": as_text,
    "no scaling of positions": config(rope_scaling=None),
    "no groups of experts": config(n_group=1, topk_group=1),
    "weights of experts not scaled": config(routed_scaling_factor=1.0),
    "weights of experts not normed": config(norm_topk_prob=False),
    "halves turned": config(rope_interleave=False),
}  # fmt: skip


@pytest.fixture(scope="module")
def differences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """The largest difference from the recorded logits, in each interpreter."""
    place = tmp_path_factory.mktemp("fp8")
    folders = {"right": converted(CASE / "source", place / "right")}
    for n, (name, change) in enumerate(WRONG_SOURCES.items()):
        folders[name] = converted(changed(place / f"source{n}", change), place / f"wrong_source{n}")
    for n, (name, wrong) in enumerate(WRONG_PLANS.items()):
        folders[name] = converted(CASE / "source", place / f"wrong_plan{n}", wrong)
    jobs = [Job(folder, load_file(GOLDEN)["input_ids"]) for folder in folders.values()]
    found: dict[str, list[float]] = {name: [] for name in folders}
    for python in interpreters().values():
        for name, got in zip(folders, logits_many(jobs, python), strict=True):
            found[name].append(difference(got, GOLDEN))
    return found


def test_logits_are_those_of_the_recorded_model(differences: dict[str, list[float]]) -> None:
    assert max(differences["right"]) <= 2e-5, differences["right"]


@pytest.mark.parametrize("name", [*WRONG_SOURCES, *WRONG_PLANS])
def test_a_wrong_conversion_is_found(differences: dict[str, list[float]], name: str) -> None:
    assert min(differences[name]) > 1e-3, differences[name]


def test_transposed_scales_do_not_fit(tmp_path: Path) -> None:
    source = changed(tmp_path / "source", scales(torch.t, "o_proj"))
    with pytest.raises(Refusal, match=r"dequantize by blocks of \[16, 32\]"):
        prepare(load_program(SPEC), Request([source]))


def test_transformers_reads_the_same_weights(tmp_path: Path) -> None:
    """Its reader of FP8, on the published layout, against the converted folder: bit for bit."""
    reader = pytest.importorskip("transformers.integrations.finegrained_fp8")
    if not hasattr(reader, "Fp8Dequantize"):
        pytest.skip("this generation of Transformers dequantizes on a GPU only")
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    blocks = FineGrainedFP8Config(dequantize=True, weight_block_size=(16, 32))
    read = AutoModelForCausalLM.from_pretrained
    theirs = read(WHOLE / "source", dtype=torch.bfloat16, quantization_config=blocks).state_dict()
    ours = read(converted(WHOLE / "source", tmp_path / "out"), dtype=torch.bfloat16).state_dict()
    assert theirs.keys() == ours.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


# ---------------------------------------------------------------------------------------------------------------------
# What is not whole


def without(*words: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {n: t for n, t in tensors.items() if not any(word in n for word in words)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("layers.0.mlp.up_proj"), r"the checkpoint has no model\.layers\.\{dense\}|missing"),
        (without("layers.2.mlp.gate.e_score"), r"layers\.2\.mlp\.gate\.e_score_correction_bias"),
        (without("layers.1.mlp.experts.7.down_proj"), r"layers\.1\.mlp\.experts\.7\.down_proj"),
        (without("mlp.experts.11."), r"n_routed_experts = 12 \(config.json\), but the checkpoint has 11"),
        (without("layers.2.mlp.shared_experts.up_proj"), r"layers\.2\.mlp\.shared_experts\.up_proj"),
        (without("layers.1.self_attn.o_proj"), r"layers\.1\.self_attn\.o_proj"),
        (without("layers.2.input_layernorm"), r"num_hidden_layers = 3 \(config.json\)"),
        (without("layers.2."), r"num_hidden_layers = 3 \(config.json\)"),
        (without("layers.0.mlp.gate_proj"), r"first_k_dense_replace = 1 \(config.json\)"),
        (lambda t: t | {"model.layers.2.mlp.up_proj.weight": torch.ones(2, 2)}, r"layers\.2\.mlp\.up_proj\.weight"),
        (lambda t: t | {"model.layers.1.mlp.gate.weight": t["model.layers.1.mlp.gate.weight"].to(torch.float8_e4m3fn)},
         "quantized-weights"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_lacks_is_named(tmp_path: Path, change: Callable[[Tensors], Tensors], said: str) -> None:
    with pytest.raises(Refusal, match=said):
        prepare(load_program(SPEC), Request([changed(tmp_path / "source", change)]))


def test_a_layer_that_predicts_further_tokens_may_be_there_or_not(tmp_path: Path) -> None:
    whole = prepare(load_program(SPEC), Request([CASE / "source"])).plan
    bare = prepare(load_program(SPEC), Request([changed(tmp_path / "source", without("layers.3."))])).plan
    assert {name.split(".")[2] for name, _ in whole.ignored} == {"3"}
    assert bare.ignored == ()
    assert bare.config == whole.config
    assert [t.name for t in bare.targets] == [t.name for t in whole.targets]


def test_experts_may_begin_with_the_first_layer(tmp_path: Path) -> None:
    """The recorded model without its dense layer: nothing tells intermediate_size but the config."""

    def beheaded(tensors: Tensors) -> Tensors:
        numbered = [(name.split("."), t) for name, t in without("layers.0.")(tensors).items()]
        return {".".join([str(int(w) - 1) if w.isdecimal() and words[n - 1] == "layers" else w for n, w in enumerate(words)]): t
                for words, t in numbered}  # fmt: skip

    whole = converted(CASE / "source", tmp_path / "whole")
    source = changed(tmp_path / "source", beheaded, num_hidden_layers=2, first_k_dense_replace=0)
    bare = converted(source, tmp_path / "bare")
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (whole, bare))
    expected = beheaded(theirs)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(t, expected[name]) for name, t in ours.items())
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (whole, bare))
    assert after == before | {"num_hidden_layers": 2, "first_k_dense_replace": 0}
    script = Path(__file__).parent.parent.parent / "generated" / SPEC / f"convert_{SPEC}.py"
    words = [str(source), str(tmp_path / "converter"), "--config", str(source / "config.json")]
    subprocess.run([sys.executable, str(script), *words], check=True)
    assert folder_image(tmp_path / "converter") == folder_image(bare)
    assert len(logits_many([Job(bare, load_file(GOLDEN)["input_ids"], dirty=True)])) == 1


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"scoring_func": "softmax"}, "chooses experts by their sigmoid"),
        ({"topk_method": "greedy"}, "chooses experts by their sigmoid"),
        ({"moe_layer_freq": 2}, "in every layer behind the dense ones"),
        ({"attention_bias": True}, "biases of attention"),
        ({"n_shared_experts": 0}, "shared expert"),
        ({"n_group": 5}, "n_group"),
        ({"num_experts_per_tok": 7}, "num_experts_per_tok"),
        ({"num_attention_heads": 8, "num_key_value_heads": 8}, "num_attention_heads"),
        ({"num_key_value_heads": 2}, "keys and values of its own"),
        ({"quantization_config": {"quant_method": "awq", "weight_block_size": [16, 32]}}, "another way"),
        ({"qk_rope_head_dim": 4}, "qk_rope_head_dim"),
    ],
    ids=str,
)
def test_what_the_class_cannot_say_is_refused(tmp_path: Path, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refusal, match=reason):
        prepare(load_program(SPEC), Request([changed(tmp_path / "source", **fields)]))


def test_it_is_told_by_its_names() -> None:
    best, *others = detect(Request([CASE / "source"]), known_specs())
    assert (best.spec, best.status) == (SPEC, "fits")
    assert all(fit.status in ("near", "no") for fit in others)
    elsewhere = detect(Request([ORACLES / "litgpt" / "qwen3_moe" / "source"]), known_specs())
    assert next(fit for fit in elsewhere if fit.spec == SPEC).status == "no"


# ---------------------------------------------------------------------------------------------------------------------
# The converter


@pytest.mark.parametrize("dialect", ["published", "rope_parameters"])
def test_the_converter_writes_the_same(tmp_path: Path, dialect: str) -> None:
    """How positions are scaled is said in the words of either generation of Transformers."""
    source = changed(tmp_path / "source")
    if dialect == "rope_parameters":
        said = json.loads((source / "config.json").read_text())
        scaled = said.pop("rope_scaling")
        said["rope_parameters"] = {"rope_type": scaled.pop("type"), "rope_theta": said.pop("rope_theta"), **scaled}
        (source / "config.json").write_text(json.dumps(said))
    converted(source, tmp_path / "executor")
    script = Path(__file__).parent.parent.parent / "generated" / SPEC / f"convert_{SPEC}.py"
    words = [str(source), str(tmp_path / "converter"), "--config", str(source / "config.json")]
    subprocess.run([sys.executable, str(script), *words], check=True)
    assert folder_image(tmp_path / "converter") == folder_image(tmp_path / "executor")
    ours, theirs = (json.loads((tmp_path / n / "config.json").read_text()) for n in ("executor", "converter"))
    assert ours["rope_parameters"]["rope_type"] == "yarn"
    assert theirs == ours


def test_the_converter_names_what_lacks(tmp_path: Path) -> None:
    source = changed(tmp_path / "source", without("layers.1.mlp.experts.7.down_proj", "layers.2.self_attn.o_proj"))
    script = Path(__file__).parent.parent.parent / "generated" / SPEC / f"convert_{SPEC}.py"
    words = [str(source), str(tmp_path / "converter"), "--config", str(source / "config.json")]
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == "the checkpoint has no tensor called 'model.layers.2.self_attn.o_proj.weight'"
