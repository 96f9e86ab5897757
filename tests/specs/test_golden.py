"""Converted folders give the logits of the original code, in every installed generation of Transformers.

Beside each stands a conversion that is wrong and loads all the same: the same measure must find it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from support.parity import ORACLES, Job, difference, interpreters, logits_many

from compiler.checkpoints.config_file import read_config_file
from compiler.jobs.convert import write
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.plan.plan import Plan
from compiler.program.loading import load_program

TOLERANCE = 2e-5  # float32 noise between processors is about 1e-5, on logits below 20

Change = Callable[[Plan], Plan]


def swapped(a: str, b: str) -> Change:
    """Two targets under each other's names."""

    def name(text: str) -> str:
        return text.replace(a, "\0").replace(b, a).replace("\0", b)

    def change(plan: Plan) -> Plan:
        groups = tuple(replace(g, targets=g.targets.map(lambda t: replace(t, name=name(t.name)))) for g in plan.groups)
        assert groups != plan.groups
        return replace(plan, groups=groups)

    return change


def without(rule: str) -> Change:
    """The ops of one rule left out."""

    def change(plan: Plan) -> Plan:
        groups = tuple(replace(g, ops=()) if g.rule.name == rule else g for g in plan.groups)
        assert groups != plan.groups
        return replace(plan, groups=groups)

    return change


def config(**fields: object) -> Change:
    """A config field lost or wrong."""

    def change(plan: Plan) -> Plan:
        assert all(plan.config[name] != value for name, value in fields.items())
        return replace(plan, config={**plan.config, **fields})

    return change


GATE_UP = swapped(".gate_proj.", ".up_proj.")
NORMS = swapped("input_layernorm", "post_attention_layernorm")
QK_NORMS = swapped("q_norm", "k_norm")
CASES: dict[tuple[str, str], dict[str, Change]] = {
    ("llama", "minimind2/dense"): {
        "gate_up": GATE_UP,
        "norms": NORMS,
        "q_o": swapped("q_proj", "o_proj"),
        "k_v": swapped("k_proj", "v_proj"),
        "theta": config(rope_theta=10000.0),
    },
    ("minimind1_llama", "minimind_v2_early/dense"): {
        "rope_q": without("rope_q"),
        "rope_k": without("rope_k"),
        "gate_up": GATE_UP,
        "norms": NORMS,
    },
    ("qwen3", "minimind/dense_trained"): {
        "gate_up": GATE_UP,
        "qk_norms": QK_NORMS,
        "k_v": swapped("k_proj", "v_proj"),
        "act": config(hidden_act="gelu"),
    },
    ("qwen3", "minimind/dense_small"): {"theta": config(rope_theta=10000.0), "norms": NORMS},
    ("qwen3", "minimind/dense_yarn"): {"yarn": config(rope_scaling=None), "qk_norms": QK_NORMS},
    ("qwen3_moe", "minimind/moe_trained"): {
        "gate_up": GATE_UP,
        "experts": swapped("experts.0.", "experts.1."),
        "norms": NORMS,
        "topk": config(num_experts_per_tok=2),
    },
}
NAMES = [f"{case}:{control or 'golden'}" for (_, case), controls in CASES.items() for control in ("", *controls)]


@dataclass(frozen=True)
class Source:
    weights: Path
    settings: Request

    @staticmethod
    def of(case: str) -> Source:
        """A recorded checkpoint with what its trainer's config says."""
        folder = ORACLES / case / "source"
        weights = next(p for p in sorted(folder.iterdir()) if p.suffix == ".pth")
        resolved = folder / "minimind_config_resolved.json"
        if resolved.is_file():
            return Source(weights, Request([weights], config=resolved))
        known = load_program("minimind1_llama").spec.arguments
        arguments = json.loads((folder / "config_kwargs.json").read_text())["kwargs"]
        return Source(weights, Request([weights], assigned={n: v for n, v in arguments.items() if n in known}))


@pytest.fixture(scope="module")
def differences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """For every case and control, the largest logit difference in each interpreter. One process per interpreter."""
    from safetensors.torch import load_file

    place = tmp_path_factory.mktemp("golden")
    jobs: list[Job] = []
    for (spec, case), controls in CASES.items():
        source = Source.of(case)
        prepared = prepare(load_program(spec), source.settings)
        plan, checkpoint = prepared.plan, prepared.checkpoint
        ids = load_file(ORACLES / case / "expected/golden_logits.safetensors")["input_ids"]
        for n, change in enumerate([lambda plan: plan, *controls.values()]):
            folder = place / f"{case.replace('/', '_')}_{n}"
            write(change(plan), checkpoint, source.settings, folder)
            jobs.append(Job(folder, ids))
    golden = [
        ORACLES / case / "expected/golden_logits.safetensors"
        for (_, case), controls in CASES.items()
        for _ in ("", *controls)
    ]
    found: dict[str, dict[str, float]] = {name: {} for name in NAMES}
    for interpreter, python in interpreters().items():
        for name, got, wanted in zip(NAMES, logits_many(jobs, python), golden, strict=True):
            found[name][interpreter] = difference(got, wanted)
    return found


@pytest.mark.parametrize("name", [n for n in NAMES if n.endswith(":golden")])
def test_logits_are_those_of_the_original(differences: dict[str, dict[str, float]], name: str) -> None:
    assert max(differences[name].values()) <= TOLERANCE, differences[name]


@pytest.mark.parametrize("name", [n for n in NAMES if not n.endswith(":golden")])
def test_a_wrong_conversion_is_found(differences: dict[str, dict[str, float]], name: str) -> None:
    assert min(differences[name].values()) > 50 * TOLERANCE, differences[name]


@pytest.mark.parametrize("case", [case for _, case in CASES if (ORACLES / case / "expected/config.json").is_file()])
def test_config_says_what_the_corrected_one_says(case: str) -> None:
    """Field by field against a config with which the standard class gave the recorded logits."""
    spec = next(s for s, c in CASES if c == case)
    wanted = read_config_file(ORACLES / case / "expected/config.json")
    plan = prepare(load_program(spec), Source.of(case).settings).plan
    shared = (
        plan.config.keys() & wanted.keys() - {"intermediate_size"}
        if "moe" in spec
        else plan.config.keys() & wanted.keys()
    )
    assert len(shared) >= 10
    assert {n: plan.config[n] for n in shared} == {n: wanted[n] for n in shared}
