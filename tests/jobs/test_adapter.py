"""A LoRA follows its base model: PEFT loads it on the converted model, and it adds there what it added before."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.oracle_cases import Case
from support.parity import ORACLES, difference, logits
from support.source_models import Args, Grouped, Interleaved

from compiler.checkpoints.checkpoint import open_checkpoint
from compiler.cli.main import main
from compiler.diagnostics import Refusal
from compiler.executor.apply_rule import applied, loaded
from compiler.jobs.adapter import carry, check_copies
from compiler.jobs.convert import convert, write
from compiler.jobs.peft_format import CONFIG, Pair, read_adapter, write_peft, write_plain
from compiler.jobs.prepare import prepare
from compiler.ops.structural import Cast, Rearrange
from compiler.program.loading import load_program

BASE = Case(ORACLES / "minimind/dense_trained")
MERGED = Case(ORACLES / "minimind_lora/lora_identity")
LORA = MERGED.folder / "source" / "lora_identity_64.pth"
# Cases whose rules permute rows, take fused matrices apart, join others, and rename.
FOLLOWED = ["meta_llama/llama3_1shard_gqa", "internlm2/wqkv_2shards", "litgpt/phi3_fused", "litgpt/llama_gqa_fused_qkv",
            "litgpt/gpt_neox", "megatron_mcore/qwen2_qkv_bias", "minimind/dense_small", "torchtune/phi3"]  # fmt: skip
EMBEDDING = ("embed", "wte", "lm_head", "output.weight", "embed_out")


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as done:
        main(["adapter", *map(str, words)])
    return int(done.value.code or 0)


def base_words() -> list[object]:
    return ["qwen3", BASE.request.source[0], LORA, "OUT", "--config", BASE.request.config]


def random_pairs(case: Case, rank: int = 4) -> dict[str, Pair]:
    """An adapter of two in three matrices of the source, each of another rank than its neighbours."""
    prepared = prepare(case.program, case.request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    draw = torch.Generator().manual_seed(0)
    pairs = {}
    for n, name in enumerate(sorted({name for group in plan.groups for name in group.source_names})):
        shape = checkpoint.tensors[name].shape
        if len(shape) == 2 and not any(word in name for word in EMBEDDING) and n % 3 < 2:
            r = rank + n % 2
            pairs[name] = Pair(torch.randn(r, shape[1], generator=draw), torch.randn(shape[0], r, generator=draw))
    return pairs


def models(case: Case, pairs: dict[str, Pair], place: Path) -> tuple[Any, Any]:
    """The source's model with the adapter merged, and the converted model of the same base without it."""
    from transformers import AutoModelForCausalLM

    prepared = prepare(case.program, case.request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    write(plan, checkpoint, case.request, place)
    config = json.loads((place / "config.json").read_text())
    names = {
        "dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads", "vocab_size": "vocab_size",
        "n_kv_heads": "num_key_value_heads", "hidden_dim": "intermediate_size", "norm_eps": "rms_norm_eps",
        "rope_theta": "rope_theta",
    }  # fmt: skip
    args = Args(**{ours: config[theirs] for ours, theirs in names.items()})
    model = Grouped(args) if case.name.startswith("internlm2") else Interleaved(args)
    state = {n: loaded(t).float() for n, t in checkpoint.tensors.items() if n in model.state_dict()}
    model.load_state_dict({n: t + (pairs[n].b @ pairs[n].a if n in pairs else 0) for n, t in state.items()})
    converted = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, attn_implementation="eager")
    return model.eval(), converted.eval()


# ---------------------------------------------------------------------------------------------------------------------
# PEFT


def test_the_merged_logits(tmp_path: Path) -> None:
    """MiniMind's own merge rounds to float16; PEFT adds in float32."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    convert(BASE.program, BASE.request, tmp_path / "base")
    convert(MERGED.program, MERGED.request, tmp_path / "merged")
    assert run(*[tmp_path / "peft" if w == "OUT" else w for w in base_words()]) == 0
    ids = load_file(BASE.golden)["input_ids"]  # type: ignore[arg-type]
    wanted = logits(tmp_path / "merged", ids)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        without = base(ids).logits
        adapted = PeftModel.from_pretrained(base, tmp_path / "peft").eval()(ids).logits
    assert (adapted - wanted).abs().max() < 0.02
    assert (without - wanted).abs().max() > 1
    assert difference(without, BASE.golden) < 2e-5  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["meta_llama/llama3_1shard_gqa", "internlm2/wqkv_2shards"])
def test_an_adapter_of_what_is_laid_out_anew(name: str, tmp_path: Path) -> None:
    """Against the source's own model with the adapter merged; an adapter that does not follow is far off."""
    from peft import PeftModel

    case = Case(ORACLES / name)
    prepared = prepare(case.program, case.request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    pairs = {n: Pair(p.a * 0.1, p.b * 0.1) for n, p in random_pairs(case).items()}
    source, converted = models(case, pairs, tmp_path / "base")
    carried = carry(plan, checkpoint.tensors, pairs, "")
    write_peft(carried, plan, tmp_path / "peft")
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        wanted = source(ids)
        wanted = wanted["logits"] if isinstance(wanted, dict) else wanted
        without = converted(ids).logits
        got = PeftModel.from_pretrained(converted, tmp_path / "peft").eval()(ids).logits
    scale = float(wanted.abs().max())
    assert (got - wanted).abs().max() < 1e-4 * scale
    assert (without - wanted).abs().max() > 0.05 * scale


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_it_adds_is_what_the_rule_makes_of_it(name: str) -> None:
    """f(W + B A) = f(W) + B' A', for every matrix of a model; nothing is added where nothing was."""
    case = Case(ORACLES / name)
    prepared = prepare(case.program, case.request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    pairs = random_pairs(case)
    carried = carry(plan, checkpoint.tensors, pairs, "")
    assert len(carried) > 2
    for group in plan.groups:
        bare = replace(group, ops=tuple(op for op in group.ops if not isinstance(op, Cast)))
        base = {n: loaded(checkpoint.tensors[n]).double() for n in group.source_names}
        wide = {n: t + (pairs[n].b.double() @ pairs[n].a.double() if n in pairs else 0) for n, t in base.items()}
        before, after = applied(bare, base.__getitem__), applied(bare, wide.__getitem__)
        for target, tensor in after.items():
            added = carried[target].b.double() @ carried[target].a.double() if target in carried else 0
            assert torch.allclose(before[target] + added, tensor, rtol=1e-9, atol=1e-9)


def test_there_and_back(tmp_path: Path) -> None:
    convert(BASE.program, BASE.request, tmp_path / "base")
    assert run(*[tmp_path / "peft" if w == "OUT" else w for w in base_words()]) == 0
    assert run("qwen3", tmp_path / "base", tmp_path / "peft", tmp_path / "x.pth", "--reverse") == 0
    wanted, got = torch.load(LORA), torch.load(tmp_path / "x.pth")
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[name], got[name]) and wanted[name].dtype == got[name].dtype for name in wanted)
    config = json.loads((tmp_path / "peft" / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (16, 16, ["o_proj", "q_proj"])


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({"lora_alpha": 32}, 2.0),
        ({"lora_alpha": 32, "use_rslora": True}, 8.0),
        ({"lora_alpha": 16, "alpha_pattern": {"q_proj": 8}}, 0.5),
        ({"lora_alpha": 16, "alpha_pattern": {"k_proj": 8}}, 1.0),
        ({"lora_alpha": 16, "alpha_pattern": {"k_proj|q_proj": 8}}, 0.5),
        ({"lora_alpha": 16, "alpha_pattern": {"proj": 8}}, 1.0),
    ],
)
def test_the_scale_of_peft_is_multiplied_in(fields: dict[str, Any], scale: float, tmp_path: Path) -> None:
    prepared = prepare(BASE.program, BASE.request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    pairs = carry(plan, checkpoint.tensors, read_adapter(LORA).pairs, "")
    write_peft(pairs, plan, tmp_path / "peft")
    path = tmp_path / "peft" / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    name = "model.layers.1.self_attn.q_proj.weight"
    found = read_adapter(tmp_path / "peft").pairs[name]
    assert torch.equal(found.a, pairs[name].a)
    assert torch.equal(found.b.float(), pairs[name].b.float() * scale)


def test_other_names_of_a_layer_get_their_own_rank(tmp_path: Path) -> None:
    """A layer that is not adapted, and two ranks: modules are named in full, and PEFT reads the ranks."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    convert(BASE.program, BASE.request, tmp_path / "base")
    prepared = prepare(BASE.program, BASE.request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    pairs = dict(read_adapter(LORA).pairs)
    first = "model.layers.0.self_attn.q_proj.weight"
    del pairs["model.layers.1.self_attn.q_proj.weight"]
    pairs[first] = Pair(pairs[first].a[:3], pairs[first].b[:, :3])
    write_peft(carry(plan, checkpoint.tensors, pairs, ""), plan, tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / CONFIG).read_text())
    assert config["target_modules"] == ["model.layers.0.self_attn.q_proj", "o_proj"]
    assert config["rank_pattern"] == {"model.layers.0.self_attn.q_proj": 3}
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    before = base.model.layers[0].self_attn.q_proj.weight.detach().clone()
    merged = PeftModel.from_pretrained(base, tmp_path / "peft").merge_and_unload()
    added = merged.model.layers[0].self_attn.q_proj.weight - before
    assert torch.allclose(added, pairs[first].b.float() @ pairs[first].a.float(), atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "LOHA"}, "peft_type LOHA"),
        ({"peft_type": "LOKR"}, "peft_type LOKR"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base model"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"lora_bias": True}, "lora_bias"),
        ({"a_setting_of_tomorrow": 2}, "a_setting_of_tomorrow"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_setting_that_changes_the_adapter_is_refused(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    write_peft(read_adapter(LORA).pairs, prepare(BASE.program, BASE.request).plan, tmp_path)
    plain = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(plain | fields))
    for place in (tmp_path, tmp_path / "adapter_model.safetensors"):
        with pytest.raises(Refusal, match=f"not a plain LoRA: .*{says}"):
            read_adapter(place)
    neutral = {"lora_dropout": 0.1, "layers_to_transform": [0, 1], "use_dora": False, "bias": "none", "novel": None}
    (tmp_path / CONFIG).write_text(json.dumps(plain | neutral))
    assert read_adapter(tmp_path).pairs


@pytest.mark.parametrize(
    "fields",
    [
        {"lora_alpha": None},
        {"lora_alpha": "16"},
        {"lora_alpha": True},
        {"lora_alpha": [8]},
        {"alpha_pattern": [1]},
        {"alpha_pattern": {"(": 3}},
        {"alpha_pattern": {"a": None}},
        {"alpha_pattern": {"((a|b)*)*c": 1}},
        {"use_rslora": "yes"},
    ],
)
def test_a_malformed_setting_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    pair = {"A": torch.ones(4, 8), "B": torch.ones(8, 4)}
    save_file(
        {f"base_model.model.a.lora_{key}.weight": t for key, t in pair.items()}, tmp_path / "adapter_model.safetensors"
    )
    (tmp_path / CONFIG).write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 8, "r": 4}))
    assert len(read_adapter(tmp_path).pairs) == 1
    (tmp_path / CONFIG).write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 8, "r": 4} | fields))
    with pytest.raises(Refusal, match=f"{next(iter(fields))} = .* is malformed") as refused:
        read_adapter(tmp_path)
    assert refused.value.diagnostics[0].kind == "bad-config"


@pytest.mark.parametrize("dtype", [torch.int32, torch.float8_e4m3fn])
def test_factors_of_a_type_that_no_scale_fits(tmp_path: Path, dtype: torch.dtype) -> None:
    pair = {"A": torch.ones(4, 8).to(dtype), "B": torch.ones(8, 4).to(dtype)}
    save_file({f"a.lora.{key}.weight": factor for key, factor in pair.items()}, tmp_path / "lora.safetensors")
    with pytest.raises(Refusal, match="of the type"):
        read_adapter(tmp_path / "lora.safetensors")


def test_a_rank_of_zero(tmp_path: Path) -> None:
    torch.save({"a.lora.A.weight": torch.ones(0, 8), "a.lora.B.weight": torch.ones(8, 0)}, tmp_path / "lora.pth")
    with pytest.raises(Refusal, match="shape-mismatch"):
        read_adapter(tmp_path / "lora.pth")


def test_what_is_not_part_of_a_lora_is_refused(tmp_path: Path) -> None:
    """A saved module, a magnitude of DoRA: nothing is dropped."""
    write_peft(read_adapter(LORA).pairs, prepare(BASE.program, BASE.request).plan, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    for name in ("base_model.model.lm_head.weight", "base_model.model.x.lora_magnitude_vector", "x.lora_B.bias"):
        save_file(tensors | {name: torch.ones(2, 2)}, file)
        with pytest.raises(Refusal, match=f"not part of a plain LoRA: {name}"):
            read_adapter(tmp_path)
    twice = "model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file(tensors | {twice: torch.ones(2, 2)}, file)
    with pytest.raises(Refusal, match="occurs twice"):
        read_adapter(tmp_path)


def test_a_file_of_peft_is_scaled_by_the_settings_next_to_it(tmp_path: Path) -> None:
    plan = prepare(BASE.program, BASE.request).plan
    write_peft(read_adapter(LORA).pairs, plan, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"the base model may be in the same folder")
    settings = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(settings | {"lora_alpha": 64}))
    name = "model.layers.1.self_attn.q_proj.weight"
    plain = read_adapter(LORA).pairs[name].b.float()
    for place in (tmp_path, tmp_path / "adapter_model.safetensors"):
        assert torch.equal(read_adapter(place).pairs[name].b.float(), plain * 4)
    (tmp_path / CONFIG).write_text(json.dumps({n: v for n, v in settings.items() if n != "lora_alpha"}))
    assert torch.equal(read_adapter(tmp_path).pairs[name].b.float(), plain / 2)  # PEFT's default is 8
    (tmp_path / CONFIG).unlink()
    with pytest.raises(Refusal, match="missing-config"):
        read_adapter(tmp_path / "adapter_model.safetensors")
    assert read_adapter(LORA).pairs


def test_an_embedding(tmp_path: Path) -> None:
    """PEFT names and transposes its factors otherwise, and may save a copy of the weights."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    convert(BASE.program, BASE.request, tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["embed_tokens", "q_proj"]))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(tmp_path / "peft", save_embedding_layers=False)
    assert run("qwen3", tmp_path / "base", tmp_path / "peft", tmp_path / "x.pth", "--reverse") == 0
    pair = read_adapter(tmp_path / "x.pth").pairs["model.embed_tokens.weight"]
    embedding = base.get_input_embeddings()
    delta = embedding.get_delta_weight("default")
    assert torch.allclose(pair.b @ pair.a, delta, atol=1e-5)
    source = [tmp_path / "x.pth" if w == LORA else tmp_path / "again" if w == "OUT" else w for w in base_words()]
    assert run(*source) == 0
    again = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32), tmp_path / "again"
    )
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.allclose(again.eval()(ids).logits, model.eval()(ids).logits, atol=1e-3)

    name = "base_model.model.model.embed_tokens.base_layer.weight"
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    stored = load_file(tmp_path / "base" / "model.safetensors")["model.embed_tokens.weight"]
    words = ("qwen3", tmp_path / "base", tmp_path / "peft", tmp_path / "y.pth", "--reverse")
    save_file(tensors | {name: stored + 1}, tmp_path / "peft" / "adapter_model.safetensors")
    assert run(*words) == 1
    save_file(tensors | {name: stored}, tmp_path / "peft" / "adapter_model.safetensors")
    assert run(*words) == 0


def test_copies_of_the_base_in_another_type(tmp_path: Path) -> None:
    """PEFT saves the base's embedding in the type in which it was trained; what counts is the value."""
    torch.manual_seed(0)
    stored = torch.randn(4, 3).half()
    save_file({"w.weight": stored}, tmp_path / "base.safetensors")
    base = open_checkpoint(tmp_path / "base.safetensors")
    other = stored.clone()
    other[1, 2] *= 1.002
    cases = [(stored.float(), True), (stored.bfloat16(), True), (stored.double(), True), (stored, True)]
    cases += [(other, False), (other.float(), False), (stored.float() + 0.01, False), (stored.float().T, False)]
    cases += [(stored.float().bfloat16() * 2, False), (torch.zeros(4, 3, dtype=torch.int32), False)]
    for number, (copy, fits) in enumerate(cases):
        factors = {
            f"base_model.model.w.lora_{key}.weight": torch.ones(shape) for key, shape in (("A", (1, 3)), ("B", (4, 1)))
        }
        folder = tmp_path / str(number)
        folder.mkdir()
        tensors = factors | {"base_model.model.w.base_layer.weight": copy.contiguous()}
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / CONFIG).write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
        adapter = read_adapter(folder)
        if fits:
            check_copies(base, adapter, "a")
            continue
        with pytest.raises(Refusal, match="differ from those of BASE"):
            check_copies(base, adapter, "a")


def test_the_adapter_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(BASE.program, BASE.request, tmp_path / "base")
    assert run(*[tmp_path / "peft" if w == "OUT" else w for w in base_words()]) == 0
    reverse = ("qwen3", tmp_path / "base", tmp_path / "peft")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for out in ("peft/adapter_model.safetensors", "peft/adapter_config.json", "base/model.safetensors"):
        assert run(*reverse, tmp_path / out, "--reverse", "--force") == 1
        assert "[output-exists]" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    for _ in range(2):  # over what the first one wrote
        assert run(*reverse, tmp_path / "x.pth", "--reverse", "--force") == 0
        assert run(*[tmp_path / "peft" if w == "OUT" else w for w in base_words()], "--force") == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "peft", "x.pth"]
    assert not list(tmp_path.rglob("*~"))


def test_half_a_pair_and_none_are_refused(tmp_path: Path) -> None:
    torch.save({"x.lora.A.weight": torch.ones(2, 3)}, tmp_path / "half.pth")
    torch.save({"x.weight": torch.ones(2, 3)}, tmp_path / "none.pth")
    with pytest.raises(Refusal, match="not a pair of matrices"):
        read_adapter(tmp_path / "half.pth")
    with pytest.raises(Refusal, match="contains no LoRA weights"):
        read_adapter(tmp_path / "none.pth")


def test_another_base_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_plain(
        {"model.layers.7.self_attn.q_proj.weight": Pair(torch.ones(2, 64), torch.ones(64, 2))}, tmp_path / "a.pth"
    )
    write_plain(
        {"model.layers.0.self_attn.q_proj.weight": Pair(torch.ones(2, 32), torch.ones(64, 2))}, tmp_path / "b.pth"
    )
    for file, text in (("a.pth", "tensors that BASE does not have"), ("b.pth", "it adds [64, 32] to")):
        words = [tmp_path / "out" if w == "OUT" else tmp_path / file if w == LORA else w for w in base_words()]
        assert run(*words) == 1
        assert text in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_a_rule_that_turns_a_matrix_over(tmp_path: Path) -> None:
    """The factors change places; PEFT speaks of the layer and not of how its weight lies. There and back."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    case, program = Case(ORACLES / "nanogpt/trained_bias"), load_program("nanogpt_gpt2")
    prepared = prepare(program, case.request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    pairs = {n: Pair(p.a * 0.1, p.b * 0.1) for n, p in random_pairs(case).items() if ".h." in n}
    assert len(pairs) > 4
    state = {n: loaded(t).float() for n, t in checkpoint.tensors.items()}
    torch.save(state, tmp_path / "base.pth")
    torch.save(
        {n: t + (pairs[n].b @ pairs[n].a if n in pairs else 0) for n, t in state.items()}, tmp_path / "merged.pth"
    )
    write_plain(pairs, tmp_path / "lora.pth")
    given = dict(case.request.assigned) | {"n_head": plan.values["n_head"], "activation": plan.values["activation"]}
    for name in ("base", "merged"):
        convert(program, replace(case.request, source=[tmp_path / f"{name}.pth"], assigned=given), tmp_path / name)
    sets = [f"--set={key}={value}" for key, value in given.items()]
    assert run("nanogpt_gpt2", tmp_path / "base.pth", tmp_path / "lora.pth", tmp_path / "peft", *sets) == 0
    assert json.loads((tmp_path / "peft" / CONFIG).read_text())["fan_in_fan_out"]
    load = AutoModelForCausalLM.from_pretrained
    wanted, base = (load(tmp_path / name, dtype=torch.float32).eval() for name in ("merged", "base"))
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        apart = (base(ids).logits - wanted(ids).logits).abs().max()
        got = PeftModel.from_pretrained(base, tmp_path / "peft").eval()(ids).logits
        assert (got - wanted(ids).logits).abs().max() < 1e-4 * apart
    assert run("nanogpt_gpt2", tmp_path / "base", tmp_path / "peft", tmp_path / "back.pth", "--reverse") == 0
    back = read_adapter(tmp_path / "back.pth").pairs
    assert back.keys() == pairs.keys()
    assert all(torch.allclose(back[n].b @ back[n].a, pairs[n].b @ pairs[n].a, atol=1e-5) for n in pairs)


def test_a_rule_that_does_more_is_refused() -> None:
    """Where inputs are laid out anew, the other factor would have to follow."""
    case = Case(ORACLES / "minimind/dense_small")
    prepared = prepare(case.program, case.request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    group = next(g for g in plan.groups if g.source_names[0].endswith("mlp.down_proj.weight"))
    shape = checkpoint.tensors[group.source_names[0]].shape
    columns = Rearrange((("a",), ("two", "b")), (("a",), ("b", "two")), False, (("two", 2),))
    mixed = replace(group, ops=(columns,))
    pair = {group.source_names[0]: Pair(torch.randn(2, shape[1]), torch.randn(shape[0], 2))}
    with pytest.raises(Refusal, match="an adapter cannot be converted by the rule"):
        carry(replace(plan, groups=(mixed,)), checkpoint.tensors, pair, "")
