"""Drafts for layouts of no public trainer: an encoder whose fused matrix holds one head after another."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compiler.diagnostics import Refusal, refuse
from compiler.draft import decide_by_model, spec_text
from compiler.draft.decide_by_example import alternatives, with_guess
from compiler.draft.decide_by_model import _choices, _without_idle_pairs
from compiler.draft.fuse_steps import IN_GROUPS, PAIRED
from compiler.draft.proposal import propose
from compiler.draft.reshape_steps import TRANSPOSE
from compiler.draft.rules import LOOSE, SQUARE, Guess
from compiler.draft.spec_text import Proposal
from compiler.jobs.compile import build
from compiler.verify.compare import SourceModel
from compiler.verify.source_model import build as build_model

WIDTH, INNER = 48, 96
CONFIG = {"vocab": 300, "d_model": WIDTH, "n_layers": 2, "n_heads": 4, "d_ff": INNER, "max_len": 80, "ln_eps": 1e-5}


def encoder() -> Proposal:
    modules = {"emb_ln": (WIDTH,), "pool": (WIDTH, WIDTH)}
    for layer in range(2):
        modules |= {f"layers.{layer}.{name}": (WIDTH,) for name in ("attn_ln", "mlp_ln")}
        modules |= {
            f"layers.{layer}.attn_in": (3 * WIDTH, WIDTH),
            f"layers.{layer}.attn_out": (WIDTH, WIDTH),
            f"layers.{layer}.fc1": (INNER, WIDTH),
            f"layers.{layer}.fc2": (WIDTH, INNER),
        }
    shapes = {"tok.weight": (300, WIDTH), "pos.weight": (80, WIDTH), "seg.weight": (2, WIDTH)}
    for name, shape in modules.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return propose("x_encoder", {name: (shape, "float32") for name, shape in shapes.items()}, "BertModel", CONFIG)


def by_heads(proposal: Proposal) -> Proposal:
    """The proposal with its fused matrices stored by heads."""
    for number, guess in enumerate(proposal.draft.guesses):
        if guess.kind == "transform":
            other = next(one for one in alternatives(guess) if tuple(one.steps) == IN_GROUPS)
            proposal = with_guess(proposal, number, replace(other, question=""))
    return proposal


def test_every_tensor_is_paired_and_what_names_reveal_is_not_asked() -> None:
    proposal = encoder()
    targets = {guess.sources[0]: guess.targets for guess in proposal.draft.guesses}
    assert targets["tok.weight"] == ["embeddings.word_embeddings.weight"]
    assert targets["seg.weight"] == ["embeddings.token_type_embeddings.weight"]
    attention = "encoder.layer.{i}.attention.self."
    assert targets["layers.{i}.attn_in.bias"] == [f"{attention}{p}.bias" for p in ("query", "key", "value")]
    assert proposal.draft.missing == []
    assert "layer_norm_eps: ln_eps" in proposal.text()
    assert not proposal.questions.keys() & {"layer_norm_eps", "tok.weight", "seg.weight"}
    assert {"qkv", "qkv_bias", "hidden_act"} <= proposal.questions.keys()


def test_a_class_without_groups_gets_rules_that_pass_the_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries and keys of equal sizes cannot be told apart by an example; rules for groups would ask for one."""
    spec = tmp_path / "x_encoder.yaml"
    spec.write_text(by_heads(encoder()).text(decided=True))
    assert "num_key_value_heads" not in spec.read_text()
    assert build(str(spec), prove=True)
    monkeypatch.setattr(spec_text, "_grouped", lambda proposal: True)
    spec.write_text(by_heads(encoder()).text(decided=True))
    with pytest.raises(Refusal) as caught:
        build(str(spec), prove=True)
    assert {problem.kind for problem in caught.value.diagnostics} == {"weak-example"}


def test_a_permutation_that_changes_no_logit_is_not_chosen() -> None:
    plain = Guess("transform", "qkv", ["qkv"], ["q", "k", "v"], [*IN_GROUPS])
    paired, other = replace(plain, steps=[*IN_GROUPS, PAIRED]), replace(plain, targets=["k", "q", "v"])
    choices = [{0: plain}, {0: paired}, {0: other}]
    assert _without_idle_pairs(choices, {0, 1}) == {0}
    assert _without_idle_pairs(choices, {1}) == {1}  # where only the permuted one agrees, the model rotates
    assert _without_idle_pairs(choices, {0, 2}) == {0, 2}


def test_a_function_that_takes_something_else_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x_mine.py"
    file.write_text("def load(path):\n    return path.upper()\n")
    with pytest.raises(RuntimeError, match="load got one dict, the source's config, and raised AttributeError: 'dict'"):
        build_model(f"{file}:load", CONFIG)


def asked_about(*guesses: Guess) -> Any:
    return SimpleNamespace(draft=SimpleNamespace(guesses=list(guesses)))


def test_a_square_matrix_is_tried_both_ways() -> None:
    """With those that are asked about for the same reason, all at once."""
    one, other = (Guess("rename", "", [f"l.{n}"], [f"t.{n}"], question=SQUARE) for n in "ab")
    ((turned, plain),) = _choices(asked_about(one, Guess("keep", "", ["x"], ["x"]), other))
    assert turned.keys() == plain.keys() == {0, 2}
    assert [guess.steps for guess in turned.values()] == [[TRANSPOSE], [TRANSPOSE]]
    assert [(guess.kind, guess.steps) for guess in plain.values()] == [("rename", []), ("rename", [])]
    assert [guess.name for guess in turned.values()] == ["t_a", "t_b"]


def test_the_targets_of_alike_tensors_are_exchanged() -> None:
    """Those of one shape, in every order; a single one, and more than four, are left as they are."""
    alike = [Guess("rename", "", [f"s.{n}"], [f"t.{n}"], shape=(4, 4), question=LOOSE) for n in range(3)]
    single = Guess("rename", "", ["s.x"], ["t.x"], shape=(2,), question=LOOSE)
    (orders, *others) = _choices(asked_about(*alike, single))
    found = {tuple(guess.targets[0] for guess in choice.values()) for choice in orders}
    assert found == {*permutations(("t.0", "t.1", "t.2"))}
    assert all([guess.sources for guess in choice.values()] == [["s.0"], ["s.1"], ["s.2"]] for choice in orders)
    assert all({3} == choice.keys() for choices in others for choice in choices)


def test_the_sources_of_a_joined_tensor_are_tried_in_every_order() -> None:
    joined = Guess("transform", "qk", ["q", "k"], ["qk"], [{"concat": 0}], source_sizes=["a", "b"])
    first, second = alternatives(joined)
    assert first is joined
    assert (second.sources, second.source_sizes, second.targets) == (["k", "q"], ["b", "a"], ["qk"])
    assert alternatives(replace(joined, source_sizes=[]))[1].source_sizes == []


def test_a_step_gets_a_name_that_no_other_has() -> None:
    proposal = encoder()
    names = ["x", "x_2", ""]
    proposal.draft.guesses[:] = [Guess("transform", name, [f"s{n}"], [f"t{n}"]) for n, name in enumerate(names)]
    changed = with_guess(proposal, 2, Guess("transform", "x", ["s2"], ["t2"]))
    assert [guess.name for guess in changed.draft.guesses] == ["x", "x_2", "x_3"]
    assert [guess.name for guess in proposal.draft.guesses] == names, "the proposal is not changed"


def test_too_many_combinations_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """And without a question that logits decide, the model is not run either."""
    run: list[object] = []
    proposal = by_heads(encoder())
    monkeypatch.setattr(decide_by_model, "plan_of", lambda *_: SimpleNamespace(targets=()))
    monkeypatch.setattr(decide_by_model, "MOST_COMBINATIONS", 1)
    words: Any = (SimpleNamespace(), SimpleNamespace(), SourceModel(entry="own.py:f"), run.append)
    unchanged, said = decide_by_model.decide_by_model(proposal, *words)
    assert unchanged is proposal
    assert re.fullmatch(r"own.py:f was not run: \d+ combinations are too many", said), said

    def refused(one: Proposal, _: object) -> Any:
        """No other version of the draft binds."""
        if one is not proposal:
            refuse("draft.yaml", "it does not bind", "shape-mismatch")
        return SimpleNamespace(targets=())

    monkeypatch.setattr(decide_by_model, "plan_of", refused)
    _, said = decide_by_model.decide_by_model(proposal, *words)
    assert said == "own.py:f was not run: no question has alternatives that logits could tell apart"
    assert run == []
