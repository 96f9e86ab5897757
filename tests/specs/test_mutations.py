"""Every wrong conversion that loads is caught by the recorded tensors of the spec's own case.

A case whose norms are all ones, or whose experts are alike, would pass its tests and prove nothing; here it fails.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from support.mutations import Mutant, mutants, outcome
from support.oracle_cases import Case, Digest, cases, digest

from compiler.checkpoints.formats.stored_tensor import read_bytes
from compiler.jobs.prepare import prepare
from compiler.ops.kernels import tensor_of
from compiler.plan.plan import Plan

RECORDED = [case for case in cases() if case.manifest]


def seen(mutant: Mutant, plan: Plan, tensors: Mapping[str, torch.Tensor], right: Mapping[str, Digest]) -> bool:
    """Whether a tensor of the mutant is another than that of the right plan."""
    known = {id(group) for group in plan.groups}
    changed = [group for group in mutant.plan.groups if id(group) not in known]
    made = (item for group in changed for item in outcome(group, tensors).items())
    return any(digest(tensor) != right.get(name) for name, tensor in made)


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case.name)
def test_the_case_finds_every_mutant(case: Case) -> None:
    """In memory: `test_oracles` compares what is written."""
    prepared = prepare(case.program, case.request)
    stored = prepared.checkpoint.tensors
    tensors = {n: tensor_of(read_bytes(t), t.dtype, tuple(t.shape)) for n, t in stored.items()}
    plan = prepared.plan
    found = {n: digest(t) for group in plan.groups for n, t in outcome(group, tensors).items()}
    assert found == case.manifest
    wrong = list(mutants(plan, stored))
    assert wrong
    assert [mutant.name for mutant in wrong if not seen(mutant, plan, tensors, found)] == []


def test_a_case_of_equal_tensors_finds_no_mutant() -> None:
    """The measure itself: where every tensor is full of ones, exchanged names change nothing."""
    case = next(case for case in RECORDED if case.name == "timm/vit")
    prepared = prepare(case.program, case.request)
    ones = {n: torch.ones(t.shape) for n, t in prepared.checkpoint.tensors.items()}
    right = {n: digest(t) for group in prepared.plan.groups for n, t in outcome(group, ones).items()}
    assert not any(
        seen(mutant, prepared.plan, ones, right) for mutant in mutants(prepared.plan, prepared.checkpoint.tensors)
    )
