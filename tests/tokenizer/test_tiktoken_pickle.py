"""A pickled Encoding of tiktoken, as nanochat saves it, becomes a tokenizer.json without running it."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from test_vocabularies import DATA, GOLDEN, TEXTS, built, loaded, recorded

from compiler.diagnostics import Refusal
from compiler.model_folder.sidecar_files import tokenizer_files
from compiler.tokenizer.find import TOKENIZER_JSON
from compiler.tokenizer.tiktoken import read_ranks

RANKS = read_ranks("x", (DATA / "ranks.tiktoken").read_bytes()) or {}


class Encoding:
    """Stands for `tiktoken.core.Encoding`: pickled by its state, tiktoken 0.14."""

    def __init__(self, state: object) -> None:
        self.state = state

    def __getstate__(self) -> object:
        return self.state


def pickled(path: Path, monkeypatch: pytest.MonkeyPatch, state: object) -> Path:
    module = ModuleType("tiktoken.core")
    monkeypatch.setattr(Encoding, "__module__", "tiktoken.core")
    module.Encoding = Encoding  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tiktoken", ModuleType("tiktoken"))
    monkeypatch.setitem(sys.modules, "tiktoken.core", module)
    path.write_bytes(pickle.dumps(Encoding(state)))
    return path


def state(pattern: str, special: dict[str, int], **changes: Any) -> dict[str, Any]:
    return {"name": "x", "pat_str": pattern, "mergeable_ranks": RANKS, "special_tokens": special} | changes


@pytest.fixture
def encoding() -> dict[str, Any]:
    """The pattern and the special tokens of the recorded tokenizer."""
    tokenizer, _ = recorded("llama3")
    fields = json.loads(tokenizer.texts[TOKENIZER_JSON])
    pattern = fields["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    return state(pattern, {token["content"]: token["id"] for token in fields["added_tokens"]})


def test_it_gives_the_ids_of_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: dict[str, Any]
) -> None:
    (tmp_path / "token_bytes.pt").write_bytes(b"of no use")
    pickled(tmp_path / "tokenizer.pkl", monkeypatch, encoding)
    golden = GOLDEN["llama3"]
    begin = golden["special"][golden["roles"]["bos"]]
    for place in (tmp_path, tmp_path / "tokenizer.pkl"):
        tokenizer = built(place, bos_token_id=begin)
        encode = loaded(tokenizer).encode
        assert [encode(text, add_special_tokens=False).ids for text in TEXTS] == golden["ids"]
        for text, ids in zip(golden["special_texts"], golden["special_ids"], strict=True):
            assert encode(text, add_special_tokens=False).ids == ids
        assert tokenizer.special["bos"] == golden["roles"]["bos"]
        assert not tokenizer.copies  # a pickle is not copied


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("gpt2", "it only names tiktoken's own encoding 'gpt2' [unsupported-tokenizer]"),
        ({"pat_str": None}, "it is not a pickled Encoding of tiktoken [damaged-file]"),
        ({"mergeable_ranks": {b"a": 0, b"b": 2}}, "its ranks are not 0 to 1, each once"),
        ({"mergeable_ranks": {b"a": 0, b"b": 1}}, "254 of the 256 single bytes have no token"),
        ({"special_tokens": {"<a>": 3}}, "do not follow its ranks"),
        ({"special_tokens": {"<a>": 9000, "<b>": 9000}}, "do not follow its ranks"),
        ({"special_tokens": {"<a>": 1 << 40}}, "do not follow its ranks"),
    ],
)
def test_what_is_not_complete_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: dict[str, Any], change: Any, says: str
) -> None:
    content = encoding | change if isinstance(change, dict) else change
    with pytest.raises(Refusal) as caught:
        built(pickled(tmp_path / "tokenizer.pkl", monkeypatch, content))
    assert says in str(caught.value)


def test_nothing_in_it_runs(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return (exec, ("raise SystemExit('it ran')",))

    (tmp_path / "tokenizer.pkl").write_bytes(pickle.dumps([b"tiktoken", Attack()]))
    assert tokenizer_files(tmp_path, print, named=True)
    with pytest.raises(Refusal, match="hostile-pickle"):
        built(tmp_path)
