"""Asking a class in a process of its own: the same answers, the same errors, and no process where one is not needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from compiler.diagnostics import Refusal
from compiler.target import ask_class, signature_cache
from compiler.target.ask_class import PendingAnswer
from compiler.target.signature_cache import ClassQuestion

SMALL = {
    "hidden_size": 16, "intermediate_size": 24, "model_type": "llama", "num_attention_heads": 2, "num_hidden_layers": 1,
    "num_key_value_heads": 1, "tie_word_embeddings": True, "vocab_size": 32,
}  # fmt: skip
QUESTION = ClassQuestion("LlamaForCausalLM", SMALL)


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not imported Transformers, with a cache of its own."""
    monkeypatch.setenv("MAPSPEC_CACHE", str(tmp_path))
    monkeypatch.setattr(ask_class.sys, "modules", {n: m for n, m in sys.modules.items() if n != "transformers"})


@pytest.mark.usefixtures("apart")
def test_a_process_answers_once_and_the_cache_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pending = PendingAnswer(QUESTION)
    answer = pending.result()
    assert answer.shapes["model.embed_tokens.weight"] == (32, 16)
    assert answer.ties == {"lm_head.weight": "model.embed_tokens.weight"}
    monkeypatch.setattr(subprocess, "Popen", None)  # whoever starts a process fails
    assert PendingAnswer(QUESTION).result() == answer == signature_cache.cached(QUESTION)
    other = ClassQuestion("LlamaForCausalLM", SMALL | {"dtype": "bfloat16", "torch_dtype": "bfloat16"})
    assert signature_cache.cached(other) == answer


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize(
    ("question", "kind"),
    [
        (ClassQuestion("LlamaForCausalLM", SMALL | {"num_attention_heads": 0}), "unbuildable-target"),
        (ClassQuestion("LamaForCausalLM", SMALL), "unknown-class"),
    ],
)
def test_what_the_class_rejects_arrives(question: ClassQuestion, kind: str) -> None:
    with pytest.raises(Refusal) as caught:
        PendingAnswer(question).result()
    assert [d.kind for d in caught.value.diagnostics] == [kind]
    assert signature_cache.cached(question) is None


@pytest.mark.usefixtures("apart")
def test_a_process_that_dies_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask_class, "package_root", lambda: Path("/nowhere"))
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(ask_class.sys, "executable", "/bin/false")
    with pytest.raises(Refusal) as caught:
        PendingAnswer(QUESTION).result()
    assert caught.value.diagnostics[0].kind == "unbuildable-target"


@pytest.mark.usefixtures("apart")
def test_a_process_that_nobody_waits_for_is_ended() -> None:
    pending = PendingAnswer(QUESTION)
    process = pending._process
    assert process is not None
    assert process.poll() is None
    pending.stop()
    assert process.poll() is not None
