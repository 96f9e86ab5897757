"""What `compile verify` says about a difference: the layout of queries and keys, a field, a narrow dtype, a window."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import source_models
from support.oracle_cases import Case
from support.parity import ORACLES
from test_verify import DENSE, in_this_process, model_of

from compiler.cli.verify import agreement, faults
from compiler.jobs.convert import write
from compiler.jobs.prepare import prepare
from compiler.plan.plan import Plan
from compiler.verify import compare as compare_module
from compiler.verify import fault_finding, outputs, sequence_length
from compiler.verify.compare import SourceModel, Verdict, compare
from compiler.verify.config_alternatives import alternatives
from compiler.verify.fault_finding import Suspect, Trace, rules_at_fault
from compiler.verify.job import Trial

META = Case(ORACLES / "meta_llama" / "llama3_1shard_gqa")


class Rounded(source_models.Interleaved):
    """A source that computes its rotary angles in bfloat16."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        exact = source_models.angles
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(source_models, "angles", lambda *sizes: exact(*sizes).bfloat16().float())
            return super().forward(tokens)


class Insisting(source_models.Interleaved):
    """One that cannot do otherwise."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = super().forward(tokens).to(torch.bfloat16)
        assert logits.dtype == torch.bfloat16
        return logits


class Autocast(source_models.Interleaved):
    """One that trains in bfloat16."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(tokens)


class Short(source_models.Interleaved):
    """A source with a table of 100 positions."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        assert tokens.shape[1] <= 100
        return super().forward(tokens)


class Windowed(source_models.Interleaved):
    """A source in which a token sees the 70 tokens before it only."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            groups = query.shape[2] // key.shape[2]
            key, value = (t.repeat_interleave(groups, dim=2).transpose(1, 2) for t in (key, value))
            place = torch.arange(query.shape[1])
            apart = place[:, None] - place
            mask = (apart >= 0) & (apart < 70)
            mixed = torch.nn.functional.scaled_dot_product_attention(query.transpose(1, 2), key, value, mask)
            return mixed.transpose(1, 2).flatten(2)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(source_models, "attend", attend)
            return super().forward(tokens)


def compared(out: Path, model: str, plan: Plan | None = None, config: dict[str, Any] | None = None) -> Verdict:
    prepared = prepare(META.program, META.request)
    right, checkpoint = prepared.plan, prepared.checkpoint
    write(plan or right, checkpoint, META.request, out)
    source = SourceModel(entry=f"{model if ':' in model else f'{__name__}:{model}'}")
    if config is not None:
        fields = json.loads((META.folder / "source" / "params.json").read_text())
        (out.parent / "args.json").write_text(json.dumps(fields | config))
        source = replace(source, config=out.parent / "args.json")
    return compare(plan or right, checkpoint, META.request, out, source, in_this_process())


def without_rope_steps(plan: Plan, kinds: tuple[str, ...]) -> Plan:
    """A plan that leaves the rows of some projections in the order of the source."""
    groups = [
        replace(group, ops=()) if any(kind in group.target_list[0].name for kind in kinds) else group
        for group in plan.groups
    ]
    return replace(plan, groups=tuple(groups))


@pytest.mark.parametrize("kinds", [("q_proj", "k_proj"), ("q_proj",), ("k_proj",)])
def test_the_layout_of_queries_and_keys_is_named(kinds: tuple[str, ...], tmp_path: Path) -> None:
    prepared = prepare(META.program, META.request)
    plan = prepared.plan
    found = compared(tmp_path / "out", "support.source_models:Interleaved", without_rope_steps(plan, kinds))
    assert found.layout is not None
    assert set(found.layout.modules) == set(kinds)
    (said,) = faults(found, "the source", tmp_path)
    lines = sorted({str(g.rule.span.line) for g in plan.groups if any(k in g.target_list[0].name for k in kinds)})
    assert f"rope layout of {' and '.join(found.layout.modules)}: rule" in said.message
    assert all(line in said.message for line in lines)
    assert said.hint == "with rope_to_half on their rows the two models agree"


def test_a_source_that_rounds_blames_nobody(tmp_path: Path) -> None:
    """Its casts are replaced, so that a right folder agrees to float32, and a wrong one still differs."""
    found = compared(tmp_path / "right", "Rounded")
    assert found.agrees
    assert found.widened == ("bfloat16",)
    assert found.worst.difference < 1e-5 * found.worst.scale
    assert "(bfloat16 of its code replaced)" in agreement(found, "the source")
    prepared = prepare(META.program, META.request)
    plan = prepared.plan
    assert not compared(tmp_path / "wrong", "Rounded", without_rope_steps(plan, ("q_proj",))).agrees


def test_a_source_that_insists_on_its_dtype_has_its_tolerance(tmp_path: Path) -> None:
    found = compared(tmp_path / "out", "Insisting")
    assert (found.agrees, found.narrow, found.widened) == (True, ("bfloat16",), ())
    assert found.worst.difference > outputs.CLOSE * found.worst.scale
    assert "up to the rounding of bfloat16" in agreement(found, "the source")


def test_a_lost_window_is_seen(tmp_path: Path) -> None:
    """The source's config has it, the converted one lost it: the sequence is long enough to tell."""
    found = compared(tmp_path / "out", "Windowed", config={"sliding_window": 70})
    assert not found.agrees
    assert found.inputs["input_ids"] == (2, 102)
    assert found.worst.first is not None
    assert found.worst.first >= 70
    assert f"at token {found.worst.first + 1} and later" in faults(found, "the source", tmp_path)[0].message
    assert compared(tmp_path / "short", "Windowed").agrees


def test_a_late_difference_is_explained_on_a_shorter_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The window shows from token 71 on; what is tried after that needs no longer sequences."""
    lengths: list[int] = []
    trials = compare_module._Pair.trials

    def recorded(pair: Any, asked: Any, both: bool) -> Any:
        lengths.append(pair.inputs["input_ids"].shape[-1])
        return trials(pair, asked[:1], both)

    monkeypatch.setattr(compare_module._Pair, "trials", recorded)
    monkeypatch.setattr(compare_module, "suspects", lambda plan: fault_finding.suspects(plan)[:1])
    found = compared(tmp_path / "out", "Windowed", config={"sliding_window": 70, "original_max_seq_len": 400})
    assert found.inputs["input_ids"] == (2, 432)
    assert not found.agrees
    assert found.rules == ()
    assert found.worst.first is not None
    assert set(lengths) == {found.worst.first + sequence_length.MARGIN}
    (said,) = faults(found, "the source", tmp_path)
    assert said.hint.startswith("neither a single rule nor a usual value of a config field explains it")


def test_a_source_under_autocast_runs_in_float32(tmp_path: Path) -> None:
    found = compared(tmp_path / "out", "Autocast")
    assert (found.agrees, found.narrow, found.widened) == (True, (), ("bfloat16",))


def test_a_source_with_fewer_positions_runs_shorter(tmp_path: Path) -> None:
    found = compared(tmp_path / "out", "Short", config={"sliding_window": 70})
    assert found.agrees
    assert found.inputs["input_ids"] == (2, 64)
    assert found.unseen == ("sliding_window = 70 (needs 102 tokens)",)
    assert "NOT seen: sliding_window = 70 (needs 102 tokens)" in agreement(found, "the source")


@pytest.mark.parametrize("field", ["rms_norm_eps", "hidden_act", "rope_theta"])
def test_a_wrong_field_is_named(field: str, tmp_path: Path) -> None:
    prepared = prepare(DENSE.program, DENSE.request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    write(plan, checkpoint, DENSE.request, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    wrong = {"rms_norm_eps": 1e-2, "hidden_act": "relu", "rope_theta": 1e4}[field]
    right, config[field] = config[field], wrong
    if field == "rope_theta":
        config["rope_parameters"]["rope_theta"] = wrong
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = model_of(DENSE, "minimind", tmp_path)
    found = compare(plan, checkpoint, DENSE.request, tmp_path, model, in_this_process())
    assert found.field is not None
    assert (found.field.name, found.field.old, found.field.new) == (field, wrong, right)


def test_a_rule_that_only_hides_the_fault_is_not_blamed() -> None:
    """Two rules make the models agree when they are replaced; the weights of one are used after the first wrong output."""
    prepared = prepare(META.program, META.request)
    plan = prepared.plan
    writers = {target.name: group.rule for group in plan.groups for target in group.target_list}
    guilty, hiding = writers["model.layers.0.mlp.gate_proj.weight"], writers["model.norm.weight"]
    order = ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.down_proj", "model.norm"]
    traced = Trace("model.layers.0.mlp.down_proj", 1.0, False, frozenset(), order, writers, True)
    suspects = [Suspect((rule,), Trial(("x",), "rows")) for rule in (hiding, guilty)]
    assert rules_at_fault(traced, suspects) == ((guilty,), False)
    assert rules_at_fault(traced, suspects[:1]) == ((hiding,), False)
    early = replace(traced, module="model.norm", alone=True)
    assert rules_at_fault(early, suspects) == ((hiding, guilty), True)


# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "source", "affordable", "tokens", "unseen"),
    [
        ({}, {}, 10**6, 64, 0),
        ({"n_positions": 32}, {}, 10**6, 32, 0),
        ({"sliding_window": 4096, "max_position_embeddings": 32768}, {}, 10**6, 4128, 0),
        ({"sliding_window": 4096, "max_position_embeddings": 32768}, {}, 4000, 64, 1),
        ({"sliding_window": 4096, "use_sliding_window": False}, {}, 10**6, 64, 0),
        ({"sliding_window": 4096, "max_position_embeddings": 4096}, {}, 10**6, 64, 0),
        ({"sliding_window": 100, "max_position_embeddings": 110}, {}, 10**6, 110, 0),
        ({}, {"window_size": [127, 0]}, 10**6, 159, 0),
        ({"rope_parameters": {"original_max_position_embeddings": 8192}}, {}, 10**6, 8224, 0),
        ({"text_config": {"sliding_window": 512}, "vision_config": {"window_size": 900}}, {}, 10**6, 544, 0),
        ({"sliding_window": 128, "rope_scaling": {"original_max_position_embeddings": 8192}}, {}, 1000, 160, 1),
        ({"max_position_embeddings": 100, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, {}, 10**6, 132, 0),
    ],
)
def test_the_length(config: dict[str, Any], source: dict[str, Any], affordable: int, tokens: int, unseen: int) -> None:
    found = sequence_length.choose_length(config, (source,), lambda length: length <= affordable)
    assert (found.tokens, len(found.unseen)) == (tokens, unseen)


def test_alternatives_are_of_the_same_kind() -> None:
    config = {
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "num_attention_heads": 8,
        "rope_theta": 1e4, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0},
        "vision_config": {"hidden_act": "silu"}, "layer_types": ["full"], "name": "x", "sliding_window": None,
    }  # fmt: skip
    found = alternatives(config, {"window": 70, "theta": 3e4})
    changes = {(change.name, change.new) for change in found}
    assert {("rope_theta", 3e4), ("sliding_window", 70), ("num_attention_heads", 4), ("factor", 32.0)} <= changes
    assert {("tie_word_embeddings", True), ("hidden_act", "gelu"), ("vision_config.hidden_act", "gelu")} <= changes
    assert ("rope_scaling", None) in changes
    assert not {name for name, _ in changes} & {"name", "layer_types", "rope_type"}
    theta = next(change.config for change in found if change.name == "rope_theta")
    assert theta["rope_theta"] == theta["rope_parameters"]["rope_theta"] == 3e4
    one = next(change.config for change in found if change.name == "vision_config.hidden_act")
    assert (one["hidden_act"], one["vision_config"]["hidden_act"] != "silu") == ("silu", True)
