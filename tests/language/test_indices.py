"""Guards of indices: which rule reads which number, what is missed where, and what two rules may not share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compiler.diagnostics import Refusal
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.plan.plan import Plan
from compiler.program.lint import lint
from compiler.program.loading import load_program

SPEC = """
spec: 1
name: small
summary: layers of two kinds
source: {weights: "*.pth"}
target: {model: LlamaForCausalLM}
arguments: {n: 2, most: 5}
indices: {GUARDS}
rename:
  "h.{low}.w": "l.{low}.w"
  "h.{high}.w": "l.{high}.v"
  "h.{high}.{e}.x": "l.{high}.{e}.x"
ignore: {"h.{rest}.w": further layers}
example: {n: 2}
"""
GUARDS = "{low: low < n, high: n <= high < most, rest: rest >= most}"
NAMES = [*(f"h.{i}.w" for i in range(7)), *(f"h.{i}.{e}.x" for i in (2, 3, 4) for e in range(3))]


def planned(folder: Path, names: list[str], guards: str = GUARDS, **values: int) -> Plan:
    (folder / "small.yaml").write_text(SPEC.replace("{GUARDS}", guards))
    torch.save({name: torch.ones(2) for name in names}, folder / "model.pth")
    return prepare(load_program(str(folder / "small.yaml")), Request([folder / "model.pth"], assigned=values)).plan


def test_each_number_has_its_rule(tmp_path: Path) -> None:
    plan = planned(tmp_path, NAMES)
    made = {source: g.target_list[0].name for g in plan.groups for source in g.source_names}
    assert {n: t for n, t in made.items() if n.endswith("w")} == {
        "h.0.w": "l.0.w", "h.1.w": "l.1.w", "h.2.w": "l.2.v", "h.3.w": "l.3.v", "h.4.w": "l.4.v",
    }  # fmt: skip
    assert [name for name, _ in plan.ignored] == ["h.5.w", "h.6.w"]


def test_a_guard_reads_arguments(tmp_path: Path) -> None:
    names = [name for name in NAMES if not name.startswith("h.2.") or name.endswith("w")]
    made = [t.name for t in planned(tmp_path, names, n=3).targets]
    assert made[:5] == ["l.0.w", "l.1.w", "l.2.w", "l.3.v", "l.4.v"]


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (["h.1.w"], r"no h\.1; it has 0, 2, 3, 4 \[index-gap"),
        (["h.3.w"], r"1 tensor is missing: h\.3\.w"),
        (["h.2.w", "h.2.0.x", "h.2.1.x", "h.2.2.x"], r"no h\.2; it has 0, 1, 3, 4 \[index-gap"),
        (["h.3.1.x"], r"1 tensor is missing: h\.3\.1\.x"),
        (["h.2.0.x", "h.2.1.x", "h.2.2.x"], "3 tensors are missing"),
        (["h.0.w", "h.1.w"], r"the checkpoint has no h\.\{low\}\.w \[missing-tensor"),
        (["h.2.w", "h.3.w", "h.4.w"], r"the checkpoint has no h\.\{high\}\.w \[missing-tensor"),
    ],
)
def test_each_rule_misses_its_own_numbers(tmp_path: Path, lost: list[str], said: str) -> None:
    with pytest.raises(Refusal, match=said):
        planned(tmp_path, [name for name in NAMES if name not in lost])


@pytest.mark.parametrize("name", ["h.1.0.x", "h.6.0.x", "h.02.w", "h.99999999999.1.x"])
def test_a_number_of_no_rule(tmp_path: Path, name: str) -> None:
    with pytest.raises(Refusal, match=r"no rule|padded-index"):
        planned(tmp_path, [*NAMES, name])


def test_rows_that_begin_late_have_no_gap_before(tmp_path: Path) -> None:
    """No rule reads a number below 2 of these, so that none is missed; one in the middle is."""
    guards = "{low: low < n, high: high >= n, rest: rest < 0}"
    names = [name for name in NAMES if name.endswith("x")]
    with pytest.raises(Refusal) as caught:
        planned(tmp_path, [name for name in names if "h.3." not in name], guards)
    assert "no h.3; it has 2, 4" in str(caught.value)


def test_two_rules_that_share_a_number_are_found_when_it_is_there(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"h\.1\.w is claimed by more than one rule"):
        planned(tmp_path, NAMES, "{low: low <= n, high: n - 1 <= high < most, rest: rest >= most}")


def test_what_folds_or_opens_has_no_guard(tmp_path: Path) -> None:
    text = SPEC.replace("{GUARDS}", "{e: e < n}").partition("rename:")[0]
    rules = "transform: [{name: fold, from: 'h.{i}.{e}.x', to: 'l.{i}.x', stack: e}]\nexample: {n: 2}\n"
    (tmp_path / "small.yaml").write_text(text + rules)
    with pytest.raises(Refusal, match=r"fold folds or opens \{e\}, which has a guard"):
        load_program(str(tmp_path / "small.yaml"))


def test_a_guard_of_no_name_is_told(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SPEC.replace("{GUARDS}", GUARDS[:-1] + ", more: more > 1}"))
    assert "no name uses the index {more}" in "\n".join(map(str, lint(load_program(str(tmp_path / "small.yaml")))))
