"""Every wrong conversion that loads is caught by the recorded tensors of the spec's own case.

A case whose norms are all ones, or whose experts are alike, would pass its tests and prove nothing; here it fails.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from support.mutations import Mutant, mutants
from support.oracle_cases import Case, cases, digests
from support.portion import portion

from compiler.jobs.convert import write
from compiler.jobs.prepare import prepare

RECORDED = [case for case in cases() if case.manifest]


@cache
def wrong(case: Case) -> list[Mutant]:
    prepared = prepare(case.program, case.request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    return portion(mutants(plan, checkpoint.tensors), 2)


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case.name)
def test_the_case_finds_every_mutant(tmp_path: Path, case: Case) -> None:
    checkpoint = prepare(case.program, case.request).checkpoint
    assert wrong(case)
    unseen = []
    for n, mutant in enumerate(wrong(case)):
        write(mutant.plan, checkpoint, case.request, tmp_path / str(n))
        if digests(tmp_path / str(n)) == case.manifest:
            unseen.append(mutant.name)
    assert unseen == []
