"""A small sample of the campaign (`make campaign`): plausible mistakes in shipped specs, and what catches each."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from campaign.judge import CAUGHT, Judge
from campaign.mistakes import Known, Mistake, chosen

SPECS = Path(__file__).parent.parent.parent / "specs"
# Kind, a part of the place, and what catches it.
MISTAKES = [
    ("targets of one shape", "", "tensors"),
    ("gate and up", "", "tensors"),
    ("rotary op dropped", "", "compile"),
    ("config key misspelled", "", "compile"),
    ("axis of a size", "", "compile"),
    ("requirement dropped", "n_kv_heads is None", "controls"),
]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return Judge(SPECS / "llama2c_llama.yaml", tmp_path_factory.mktemp("campaign"))


@pytest.fixture(scope="module")
def mistakes(judge: Judge) -> list[Mistake]:
    return chosen(str(judge.spec), judge.known, random.Random(1), 0)


@pytest.mark.parametrize(("kind", "place", "by"), MISTAKES)
def test_a_mistake_is_caught(judge: Judge, mistakes: list[Mistake], kind: str, place: str, by: str) -> None:
    one = next(mistake for mistake in mistakes if mistake.kind == kind and place in mistake.place)
    assert judge.judge(one).by == by


def test_the_right_spec_is_no_mistake(judge: Judge) -> None:
    """The measure itself: nothing is caught where nothing is wrong, and a value that no one checks survives."""
    text = judge.spec.read_text()
    assert judge.judge(Mistake("none", "", "", text)).by == "no effect"
    loose = text.replace("  max_seq_len: 2048", "  max_seq_len: 4096")
    assert loose != text
    assert judge.judge(Mistake("default of an argument", "arguments/max_seq_len", "", loose)).by not in CAUGHT[:2]


def test_every_kind_of_mistake_is_made() -> None:
    known = Known({}, ["one", "two"], ["hidden_sizes"])
    made: set[str] = set()
    for name in ("meta_llama", "mcore_llama", "fms_llama"):
        made |= {mistake.kind for mistake in chosen(str(SPECS / f"{name}.yaml"), known, random.Random(1), 60)}
    assert len(made) >= 20


def test_the_same_seed_gives_the_same_mistakes(judge: Judge) -> None:
    found = [chosen(str(judge.spec), judge.known, random.Random("1 llama"), 12) for _ in range(2)]
    assert found[0] == found[1]
    assert len({mistake.kind for mistake in found[0]}) == 12
