"""Answers of target classes that are kept: the same as asked for, and asked for anew whenever they may have changed."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest

from compiler.diagnostics import Refusal
from compiler.target import model_class, signature_cache
from compiler.target.class_signature import ClassSignature
from compiler.target.signature_cache import ClassQuestion

SMALL = {
    "hidden_size": 16, "intermediate_size": 24, "model_type": "llama", "num_attention_heads": 2, "num_hidden_layers": 1,
    "num_key_value_heads": 1, "tie_word_embeddings": True, "vocab_size": 32,
}  # fmt: skip


def ask(config: dict[str, object]) -> ClassSignature:
    return signature_cache.ask(ClassQuestion("LlamaForCausalLM", config))


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions that reach a class; the folder of the answers is `tmp_path`."""
    found: list[str] = []
    monkeypatch.setenv("MAPSPEC_CACHE", str(tmp_path))
    for name in ("signature", "config_schema"):

        def noted(*arguments: object, real: object = getattr(model_class, name), name: str = name) -> object:
            found.append(name)
            return real(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(model_class, name, noted)
    return found


def test_a_second_question_asks_no_class(asked: list[str]) -> None:
    first = ask(SMALL)
    assert ask(SMALL) == first == model_class.signature("LlamaForCausalLM", SMALL)
    assert first.ties == {"lm_head.weight": "model.embed_tokens.weight"}
    assert signature_cache.config_schema("LlamaForCausalLM") == signature_cache.config_schema("LlamaForCausalLM")
    assert asked == ["signature", "signature", "config_schema"]  # the second of the three is this test's own


def test_another_question_or_release_is_asked(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tied = ask(SMALL)
    untied = ask(SMALL | {"tie_word_embeddings": False})
    assert untied.shapes.keys() - tied.shapes.keys() == {"lm_head.weight"}
    monkeypatch.setattr(signature_cache, "_releases", lambda: ("99.0", "2.13.0"))
    assert ask(SMALL) == tied
    monkeypatch.setattr(signature_cache, "_source", lambda: "another text of target.py")
    assert ask(SMALL) == tied
    assert len(asked) == 4


@pytest.mark.parametrize("damage", ["", "{", '{"question": "?", "answer": {}}', "[]"])
def test_a_damaged_answer_is_asked_for_anew(asked: list[str], tmp_path: Path, damage: str) -> None:
    first = ask(SMALL)
    (kept,) = tmp_path.iterdir()
    kept.write_text(damage)
    assert ask(SMALL) == first
    assert json.loads(kept.read_text())["answer"]["ties"] == first.ties
    assert len(asked) == 2


def test_nothing_is_kept_of_releases_in_development_or_where_nothing_shall_be(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signature_cache, "_releases", lambda: ("5.0.0.dev0", "2.13.0"))
    signature_cache.config_schema("LlamaForCausalLM")
    monkeypatch.undo()
    monkeypatch.setenv("MAPSPEC_CACHE", "")
    signature_cache.config_schema("LlamaForCausalLM")
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("MAPSPEC_CACHE", str(blocked / "folder"))  # no folder can be made there
    signature_cache.config_schema("LlamaForCausalLM")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_refusal_is_not_kept(asked: list[str], tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(Refusal):
            ask(SMALL | {"num_attention_heads": 0})
    assert len(asked) == 2
    assert not list(tmp_path.iterdir())


def test_where_answers_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder that is named, else in that of the system; nowhere where it is named empty or there is no home."""
    monkeypatch.setenv("MAPSPEC_CACHE", str(tmp_path / "own"))
    assert signature_cache.cache_folder() == tmp_path / "own"
    monkeypatch.setenv("MAPSPEC_CACHE", "")
    assert signature_cache.cache_folder() is None
    monkeypatch.delenv("MAPSPEC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "system"))
    assert signature_cache.cache_folder() == tmp_path / "system" / "mapspec"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert signature_cache.cache_folder() == tmp_path / ".cache" / "mapspec"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert signature_cache.cache_folder() is None


def test_a_release_that_is_not_installed_as_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    signature_cache._releases.cache_clear()
    monkeypatch.setattr(metadata, "version", version)
    try:
        assert signature_cache._releases() == ("dev",)
    finally:
        signature_cache._releases.cache_clear()
