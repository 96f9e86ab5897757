"""`compile verify`: right folders agree with their source models, wrong ones are found and their rule is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from support import source_models
from support.mutations import mutants
from support.oracle_cases import Case
from support.parity import ORACLES
from support.portion import portion

from compiler.cli.main import main
from compiler.cli.verify import faults
from compiler.diagnostics import Refusal
from compiler.jobs.convert import write
from compiler.jobs.prepare import prepare
from compiler.program.loading import load_program
from compiler.verify.compare import SourceModel, Verdict, compare, open_folder
from compiler.verify.job import Job, Results
from compiler.verify.neutral_weights import LEVELS, neutral
from compiler.verify.round_trip import check_config, check_names, compare_weights, round_trip
from compiler.verify.run_model import results

# case -> the spec of path B whose code is the source's model, or a class of source_models.
CASES = {
    "minimind2/dense": "minimind2",
    "nanogpt/trained_bias": "nanogpt",
    "meta_llama/llama3_1shard_gqa": "support.source_models:Interleaved",
    "internlm2/wqkv_2shards": "support.source_models:Grouped",
}
GROUPED = {
    "dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads", "hidden_dim": "intermediate_size", "norm_eps": "rms_norm_eps",
}  # fmt: skip
DENSE = Case(ORACLES / "minimind/dense_small")
SMALL = ORACLES / "minimind/dense_small/source"
WORDS = ["qwen3", str(SMALL / "model.pth"), "OUT", "--config", str(SMALL / "minimind_config_resolved.json")]


def model_of(case: Case, name: str, tmp_path: Path) -> SourceModel:
    if ":" not in name:
        return SourceModel(load_program(name))
    if not name.endswith("Grouped"):
        return SourceModel(entry=name)
    fields = json.loads((case.folder / "source" / "config.json").read_text())
    config = tmp_path / "args.json"
    config.write_text(json.dumps(fields | {ours: fields[theirs] for ours, theirs in GROUPED.items()}))
    return SourceModel(entry=name, config=config)


def in_this_process() -> Callable[[Path, Job], Results]:
    """Runs jobs here; what the source model returns is the same for every mutant and computed once."""
    known: dict[Any, Results] = {}

    def run(place: Path, job: Job) -> Results:
        if job.written:
            return results(job)
        key = tuple(job.trials), job.watch, tuple((n, tuple(t.shape)) for n, t in (job.inputs or {}).items())
        if key not in known:
            known[key] = results(job)
        return known[key]

    return run


def names(verdict: Verdict) -> list[str]:
    return [rule.name or str(rule.targets[0]) for rule in verdict.rules]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    torch.set_num_threads(1)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))


@pytest.mark.parametrize("name", CASES)
def test_a_right_conversion_agrees_and_every_mutant_is_found(name: str, tmp_path: Path) -> None:
    """Each wrong conversion is found; in four of five at least the rule that was changed is the one that is named."""
    case = Case(ORACLES / name)
    prepared = prepare(case.program, case.request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    model, run = model_of(case, CASES[name], tmp_path), in_this_process()
    write(plan, checkpoint, case.request, tmp_path / "right")
    right = compare(plan, checkpoint, case.request, tmp_path / "right", model, run)
    assert right.agrees
    assert right.worst.argmax == 1.0
    assert right.worst.divergence is not None
    assert right.worst.divergence < 1e-9
    assert (right.unused, right.unseen, right.narrow, right.widened) == ((), (), (), ())
    unseen, unnamed, total = [], [], 0
    for n, mutant in enumerate(portion(mutants(plan, checkpoint.tensors), 5)):
        write(mutant.plan, checkpoint, case.request, tmp_path / str(n))
        found = compare(mutant.plan, checkpoint, case.request, tmp_path / str(n), model, run)
        total += 1
        if found.agrees:
            unseen.append(mutant.name)
        # A mutant is named for its rule, or for the two rules that it exchanges.
        elif not any(mutant.name.startswith(rule) or f" and {rule}" in mutant.name for rule in names(found)):
            unnamed.append((mutant.name, found.module, names(found)))
    assert unseen == []
    assert len(unnamed) <= total / 5, unnamed


def test_in_fresh_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [w.replace("OUT", str(tmp_path / "out")) for w in WORDS]
    assert status(["run", *words, "--verify", "--source-spec", "minimind"]) == 0
    assert "agrees with the model of the spec minimind on 2 x 64 tokens" in capsys.readouterr().out


def test_a_wrong_config_is_no_rules_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A lost theta: the tensors are right and the model is not."""
    out = tmp_path / "out"
    words = [w.replace("OUT", str(out)) for w in WORDS]
    prepared = prepare(DENSE.program, DENSE.request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    write(plan, checkpoint, DENSE.request, out)
    config = json.loads((out / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = config["rope_theta"] = 10000.0
    (out / "config.json").write_text(json.dumps(config))
    assert status(["verify", *words]) == 1  # without a model: the source's own config says otherwise
    assert "rope_theta is 10000.0 here, but the conversion would write 1000000.0" in capsys.readouterr().err
    found = compare(plan, checkpoint, DENSE.request, out, model_of(DENSE, "minimind", tmp_path), in_this_process())
    assert not found.agrees
    assert found.module == "model.layers.0.self_attn.o_proj"
    (said,) = faults(found, "the source", out)
    assert (said.kind, said.span.path) == ("diverging-model", str(out))
    assert said.message.startswith("rope_theta = 10000.0 in config.json is wrong")
    assert said.hint == "with rope_theta = 1000000.0 the two models agree"


def test_what_does_not_fit_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Refused before anything is loaded; where only the search for a rule has no room, that is said."""
    from compiler import process
    from compiler.verify import compare as verify

    prepared = prepare(DENSE.program, DENSE.request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    write(plan, checkpoint, DENSE.request, tmp_path)
    model, weights = model_of(DENSE, "minimind", tmp_path), verify._elements(checkpoint) * 4
    monkeypatch.setattr(process, "available", lambda: verify.PROGRAM + weights)
    with pytest.raises(Refusal, match="GB are free"):
        compare(plan, checkpoint, DENSE.request, tmp_path, model, lambda place, job: pytest.fail("it ran"))
    monkeypatch.setattr(process, "available", lambda: verify.PROGRAM + 2 * weights)
    mutant = next(m for m in mutants(plan, checkpoint.tensors) if "exchanged" in m.name)
    write(mutant.plan, checkpoint, replace(DENSE.request, force=True), tmp_path)
    found = compare(mutant.plan, checkpoint, DENSE.request, tmp_path, model, in_this_process())
    assert (found.agrees, found.searched, found.rules) == (False, False, ())
    assert "too little memory to search for the rule" in faults(found, "the source", tmp_path)[0].hint


def test_free_memory(tmp_path: Path) -> None:
    from compiler.process import available

    assert available(tmp_path) is None
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  7000 kB\nHugePages_Total: 0\n")
    assert available(tmp_path) == 7000 * 1024
    for limit, free in (("max", 7000 * 1024), ("5000000", 5000000 - 3000000 + 1000000), ("1000", 0)):
        (group / "memory.max").write_text(limit)
        (group / "memory.current").write_text("3000000")
        (group / "memory.stat").write_text("anon 5\ninactive_file 1000000\n")
        assert available(tmp_path) == free
    assert (available() or 1) > 0


def test_experts_run(tmp_path: Path) -> None:
    """Experts are fused by loading, and replaced as they lie on the disk."""
    case = Case(ORACLES / "minimind/moe_trained")
    prepared = prepare(case.program, case.request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    write(plan, checkpoint, case.request, tmp_path / "out")
    model, run = model_of(case, "minimind", tmp_path), in_this_process()
    assert compare(plan, checkpoint, case.request, tmp_path / "out", model, run).agrees
    mutant = next(m for m in mutants(plan, checkpoint.tensors) if "experts" in m.name)
    write(mutant.plan, checkpoint, case.request, tmp_path / "wrong")
    found = compare(mutant.plan, checkpoint, case.request, tmp_path / "wrong", model, run)
    assert any("experts" in name for name in names(found))


def status(words: list[str]) -> int:
    with pytest.raises(SystemExit) as done:
        main(words)
    return int(done.value.code or 0)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--source-model", "nowhere"], "is neither MODULE:CLASS nor FILE.py:FUNCTION"),
        (["--source-model", "a:B", "--source-spec", "minimind"], "both name the source model"),
        (["--source-spec", "qwen3"], "needs a spec with its own code"),
        (["--length", "1"], "it must be 2 or more"),
        (["--source-model", "no_such.py:f:g"], "is neither MODULE:CLASS nor FILE.py:FUNCTION"),
        (["--source-model", "support.source_models:Interleaved"], "TypeError"),
    ],
)
def test_a_model_that_cannot_be_run(
    words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = [w.replace("OUT", str(out)) for w in WORDS]
    assert status(["run", *given]) == 0
    assert status(["verify", *given, *words]) in (1, 2)
    said = capsys.readouterr().err
    assert text in said
    assert "Traceback" not in said


def test_a_file_with_a_function(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is called with the config, in a process of its own, and what it prints is no result."""
    case = Case(ORACLES / "timm/vit")
    weights, out = case.request.source[0], tmp_path / "out"
    (tmp_path / "helper.py").write_text(Path(source_models.__file__).read_text())
    (tmp_path / "build.py").write_text(
        "import helper\n\ndef model(config):\n    print(sorted(config))\n    return helper.VisionClassifier(config)\n"
    )
    words = ["timm_vit", str(weights), str(out), "--set", "num_heads=4"]
    assert status(["run", *words]) == 0
    capsys.readouterr()
    # num_heads is that of the conversion, from mapspec.json.
    words = [*words[:3], "--source-model", f"{tmp_path / 'build.py'}:model", "--require-logits", "--json"]
    assert status(["verify", *words]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["proof"] == "logits"
    assert result["inputs"] == {"pixel_values": [2, 3, 16, 16]}
    assert result["outputs"]["logits"]["difference"] == result["difference"] < 1e-5
    assert result["argmax"] == 1.0
    assert "agrees with" in result["text"]


def test_without_a_model_nothing_is_required_to_agree_but_what_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [w.replace("OUT", str(tmp_path / "out")) for w in WORDS]
    assert status(["run", *words, "--verify", "--require-logits"]) == 1
    assert "logits NOT checked" in capsys.readouterr().err
    assert status(["verify", *words]) == 0
    assert status(["verify", *words, "--require-logits"]) == 1
    assert "[logits-not-checked]" in capsys.readouterr().err


def test_tensors_without_axes_come_back(tmp_path: Path) -> None:
    """A scale of shape () and 64-bit integers; and a changed one is found."""
    case = Case(ORACLES / "clip/vit")
    prepared = prepare(case.program, case.request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    write(plan, checkpoint, case.request, tmp_path)
    found = round_trip(case.program, case.request, tmp_path)
    assert (found.differences, found.rounded) == ((), 0)
    scaled = load_file(tmp_path / "model.safetensors")
    save_file(scaled | {"logit_scale": scaled["logit_scale"] + 1}, tmp_path / "model.safetensors", {"format": "pt"})
    (difference,) = round_trip(case.program, case.request, tmp_path).differences
    assert (difference.name, difference.text) == ("logit_scale", "is restored with 1 of 1 elements changed")


def test_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(["verify", *[w.replace("OUT", str(tmp_path)) for w in WORDS], "--source-spec", "minimind"]) == 1
    assert "not a converted folder" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Without a source model


def test_every_lost_bit_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = [w.replace("OUT", str(out)) for w in WORDS]
    assert status(["run", *words, "--verify"]) == 0
    said = capsys.readouterr().out
    assert "round trip exact (24 tensors); logits NOT checked — pass --source-spec SPEC or --source-model" in said
    data = bytearray((out / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (out / "model.safetensors").write_bytes(data)
    assert status(["verify", *words]) == 1
    assert "is restored with 1 of" in capsys.readouterr().err


def test_a_config_that_the_conversion_does_not_write(tmp_path: Path) -> None:
    """A field that is edited or removed, unless it changes no function."""
    out = tmp_path / "out"
    prepared = prepare(DENSE.program, DENSE.request)
    write(prepared.plan, prepared.checkpoint, replace(DENSE.request, check=False), out)
    text = (out / "config.json").read_text()
    check_config(prepared.plan, out)

    def spoiled(**fields: object) -> str:
        config = json.loads(text) | fields
        (out / "config.json").write_text(json.dumps({n: value for n, value in config.items() if value is not None}))
        try:
            check_config(prepared.plan, out)
        except Refusal as refusal:
            return str(refusal)
        return ""

    assert spoiled() == spoiled(eos_token_id=5) == spoiled(max_position_embeddings=9) == ""
    assert "rms_norm_eps is 2e-06 here, but the conversion would write 1e-06" in spoiled(rms_norm_eps=2e-6)
    assert "hidden_act is 'gelu' here" in spoiled(hidden_act="gelu")
    assert "it has no rope_theta" in spoiled(rope_theta=None, rope_parameters=None)
    assert "rope_scaling is {" in spoiled(rope_scaling={"rope_type": "linear", "factor": 2.0}, rope_parameters=None)
    assert spoiled() == ""  # also without the fields that are null
    assert status(["run", "hf", str(out), str(tmp_path / "again")]) == 0  # in the dialects that Transformers writes
    assert status(["verify", "hf", str(out), str(tmp_path / "again")]) == 0


def test_a_tensor_that_nothing_reads(tmp_path: Path) -> None:
    import torch

    prepared = prepare(DENSE.program, DENSE.request)
    write(prepared.plan, prepared.checkpoint, replace(DENSE.request, check=False), tmp_path / "out")
    check_names(prepared.plan, open_folder(tmp_path / "out"))
    file = tmp_path / "out" / "model.safetensors"
    save_file(load_file(file) | {"lora.weight": torch.ones(2)}, file, {"format": "pt"})
    with pytest.raises(Refusal, match=r"does not write: lora\.weight"):
        check_names(prepared.plan, open_folder(tmp_path / "out"))


def test_rounding_is_told_from_damage(tmp_path: Path) -> None:
    case = DENSE
    prepared = prepare(case.program, replace(case.request, dtype="bfloat16"))
    plan, checkpoint = prepared.plan, prepared.checkpoint
    write(plan, checkpoint, case.request, tmp_path / "out")
    prepared = prepare(case.program, replace(case.request, source=[tmp_path / "out"], config=None, reverse=True))
    back, held = prepared.plan, prepared.checkpoint
    found = compare_weights(plan, checkpoint, back, held)
    assert found.differences == ()
    assert found.equal == 0
    assert found.rounded == len(plan.targets)


# ---------------------------------------------------------------------------------------------------------------------
# What is put in the place of a rule


@pytest.mark.parametrize("level", LEVELS)
def test_neutral_values_are_alike_as_their_level_says(level: str) -> None:
    import torch

    given = {"a": torch.randn(6, 4), "b": torch.randn(6, 4), "c": torch.randn(5), "d": torch.randn(2, 6, 4)}
    made = neutral(given, level)
    assert {n: t.shape for n, t in made.items()} == {n: t.shape for n, t in given.items()}
    assert torch.equal(made["a"], made["b"])
    assert torch.equal(made["a"], made["a"].bfloat16().float())
    assert torch.equal(made["a"], made["a"].flip(0)) == (level in ("rows", "elements"))
    assert torch.equal(made["a"], made["a"].flip(1)) == (level in ("columns", "elements"))
    assert torch.equal(made["c"], made["c"].flip(0)) == (level != "names")
    assert all(torch.equal(t, neutral(given, level)[n]) for n, t in made.items())
