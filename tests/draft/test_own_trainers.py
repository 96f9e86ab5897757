"""Drafts for layouts of no public trainer: an encoder whose fused matrix holds one head after another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from compiler.diagnostics import Refusal
from compiler.draft import spec_text
from compiler.draft.decide_by_example import alternatives, with_guess
from compiler.draft.decide_by_model import _without_idle_pairs
from compiler.draft.fuse_steps import IN_GROUPS, PAIRED
from compiler.draft.proposal import propose
from compiler.draft.rules import Guess
from compiler.draft.spec_text import Proposal
from compiler.jobs.compile import build
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
