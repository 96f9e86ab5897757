"""`compile verify` takes the arguments of the conversion from the folder and the source; nobody gives them twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.oracle_cases import Case
from support.parity import ORACLES

from compiler.diagnostics import Refusal
from compiler.jobs.convert import write
from compiler.jobs.prepare import prepare
from compiler.verify.round_trip import RoundTrip, round_trip


@pytest.mark.parametrize("version", ["version_0", "version_1", "version_3"])
@pytest.mark.parametrize("asked", [True, False])
def test_a_version_that_config_does_not_carry(version: str, asked: bool, tmp_path: Path) -> None:
    """Megatron's GPT-2, whose layout depends on `checkpoint_version`."""
    case = Case(ORACLES / "megatron_gpt2" / version)
    prepared = prepare(case.program, case.request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    write(plan, checkpoint, case.request, tmp_path)
    request = case.request if asked else replace(case.request, assigned={})
    found = round_trip(case.program, request, tmp_path)
    assert found == RoundTrip(len({n for g in plan.groups for n in g.source_names}), 0, ())


def test_without_a_manifest_the_source_is_asked(tmp_path: Path) -> None:
    case = Case(ORACLES / "megatron_gpt2" / "version_1")
    prepared = prepare(case.program, case.request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    write(plan, checkpoint, case.request, tmp_path)
    (tmp_path / "mapspec.json").unlink()
    assert round_trip(case.program, case.request, tmp_path).differences == ()


def test_a_folder_of_other_heads_is_found(tmp_path: Path) -> None:
    """What config.json carries is that of the folder, not of the source."""
    case = Case(ORACLES / "megatron_gpt2" / "version_3")
    prepared = prepare(case.program, case.request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    write(plan, checkpoint, case.request, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"n_head": config["n_head"] // 2}))
    try:
        differences = [d.name for d in round_trip(case.program, case.request, tmp_path).differences]
    except Refusal as refusal:
        differences = [d.message for d in refusal.diagnostics]
    assert differences
