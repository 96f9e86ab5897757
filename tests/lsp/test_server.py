"""The server, by a client that speaks JSON-RPC on its standard input and output; and what it asks of the target class."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compiler import packages
from compiler.diagnostics import Refusal
from compiler.lsp.analysis import TargetAnswers, analyse, ask_target, prove_and_ask

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "specs" / "litgpt_qwen2.yaml").read_text()
NORM = "transformer.ln_f.weight: model.norm.weight"


class Client:
    """An editor: one process of the server."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-c", "from compiler.cli.main import main; main(['lsp'])"]
        self.process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.number = 0
        self.told: list[dict[str, Any]] = []

    def send(self, method: str, params: Any = None, **rest: Any) -> None:
        assert self.process.stdin is not None
        body = json.dumps({"jsonrpc": "2.0", "method": method, "params": params, **rest}).encode()
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        length = 0
        while line := self.process.stdout.readline().strip():
            name, _, value = line.partition(b": ")
            length = int(value) if name == b"Content-Length" else length
        assert length, "the server has ended"
        answer: dict[str, Any] = json.loads(self.process.stdout.read(length))
        return answer

    def ask(self, method: str, params: Any = None) -> Any:
        self.number += 1
        self.send(method, params, id=self.number)
        while (answer := self.receive()).get("id") != self.number:
            self.told.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def diagnostics(self) -> dict[str, Any]:
        """The next diagnostics that are published."""
        while True:
            answer = self.told.pop(0) if self.told else self.receive()
            if answer.get("method") == "textDocument/publishDiagnostics":
                params: dict[str, Any] = answer["params"]
                return params


@pytest.fixture(scope="module")
def target() -> TargetAnswers:
    """The class is asked here, and its answers are cached for the server."""
    program = analyse("litgpt_qwen2.yaml", TEXT).program
    assert program is not None
    warnings, answers = prove_and_ask(program)
    assert warnings == ()
    assert answers is not None
    return answers


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    started = Client(tmp_path)
    yield started
    started.process.kill()
    started.process.communicate()


def at(uri: str, text: str, word: str) -> dict[str, Any]:
    """The position behind a word."""
    end = text.index(word) + len(word)
    position = {"line": text[:end].count("\n"), "character": end - text.rfind("\n", 0, end) - 1}
    return {"textDocument": {"uri": uri}, "position": position}


def test_a_session(client: Client, target: TargetAnswers, tmp_path: Path) -> None:
    path = tmp_path / "litgpt_qwen2.yaml"
    path.write_text("never read")
    uri = path.as_uri()
    client.ask("initialize", {"processId": None, "rootUri": None, "capabilities": {}})
    client.send("initialized", {})
    document = {"uri": uri, "languageId": "yaml", "version": 1, "text": TEXT}
    client.send("textDocument/didOpen", {"textDocument": document})
    assert client.diagnostics()["diagnostics"] == []

    def change(version: int, text: str) -> None:
        new = {"textDocument": {"uri": uri, "version": version}, "contentChanges": [{"text": text}]}
        client.send("textDocument/didChange", new)

    # A mistake, behind a character that UTF-16 counts twice.
    wrong = TEXT.replace("n_head: {help: the number of attention heads}", 'n_head: {help: "\U0001f600", gess: 8}', 1)
    change(2, wrong)
    found = client.diagnostics()
    assert found["version"] == 2
    line = wrong[: wrong.index("gess")].count("\n")
    places = {d["code"]: (d["range"]["start"], d["severity"]) for d in found["diagnostics"]}
    assert places == {"unknown-key": ({"line": line, "character": len('  n_head: {help: "\U0001f600", ') + 1}, 1)}

    # The class's names come once its thread is done.
    typed = TEXT.replace(NORM, "transformer.ln_f.weight: model.n", 1)
    change(3, typed)
    labels: list[str] = []
    deadline = time.monotonic() + 60
    while not labels and time.monotonic() < deadline:
        items = client.ask("textDocument/completion", at(uri, typed, "transformer.ln_f.weight: model.n"))
        labels = [item["label"] for item in items]
    assert labels == ["model.norm.weight"]
    edit = items[0]["textEdit"]
    assert edit["range"]["end"]["character"] - edit["range"]["start"]["character"] == len("model.n")

    change(4, TEXT)
    shown = client.ask("textDocument/hover", at(uri, TEXT, "model.layers.{i}.mlp.up_pro"))
    assert "`[intermediate_size, n_embd]` = `[160, 64]`" in shown["contents"]["value"]
    place = client.ask("textDocument/definition", at(uri, TEXT, "kv_rows: n_query"))
    assert place["uri"] == uri
    assert place["range"]["start"] == {"line": TEXT[: TEXT.index("  n_query_groups:")].count("\n"), "character": 2}

    # Only the proof knows that the class has no such tensor.
    client.told.clear()
    unknown = TEXT.replace(NORM, NORM + "s", 1)
    change(5, unknown)
    assert client.diagnostics()["diagnostics"] == []
    client.send("textDocument/didSave", {"textDocument": {"uri": uri}})
    assert client.diagnostics()["diagnostics"] == []
    proven = client.diagnostics()["diagnostics"]
    assert "unknown-target" in {d["code"] for d in proven}
    assert (
        next(d for d in proven if d["code"] == "unknown-target")["range"]["start"]["line"]
        == at(uri, TEXT, NORM)["position"]["line"]
    )

    # A text with a mistake is not proven; what is wrong without a place in the text is shown at its start.
    change(6, wrong)
    assert {d["code"] for d in client.diagnostics()["diagnostics"]} == {"unknown-key"}
    client.send("textDocument/didSave", {"textDocument": {"uri": uri}})
    assert {d["code"] for d in client.diagnostics()["diagnostics"]} == {"unknown-key"}
    other = (tmp_path / "wrong.yaml").as_uri()
    client.send("textDocument/didOpen", {"textDocument": {**document, "uri": other, "text": wrong}})
    found = client.diagnostics()
    assert (found["uri"], {d["code"] for d in found["diagnostics"]}) == (other, {"unknown-key"})
    client.send("textDocument/didClose", {"textDocument": {"uri": other}})
    assert client.diagnostics() == {"uri": other, "diagnostics": []}

    # A sound text that is saved is proven, and its class has been asked then.
    change(7, TEXT)
    assert client.diagnostics()["diagnostics"] == []
    client.send("textDocument/didSave", {"textDocument": {"uri": uri}})
    assert client.diagnostics()["diagnostics"] == []
    assert client.diagnostics()["diagnostics"] == []

    client.ask("shutdown")
    client.send("exit")
    assert client.process.wait(10) == 0


def test_the_class_is_asked(target: TargetAnswers) -> None:
    assert target.class_name == "Qwen2ForCausalLM"
    assert target.shapes["model.embed_tokens.weight"] == (128, 64)
    assert "lm_head.weight" in target.shapes  # the first example ties it
    assert {"hidden_size", "rms_norm_eps"} <= {*target.fields}
    assert target.values["kv_rows"] == 16
    assert target.labels["model.norm.weight"][0][0] == "n_embd"


def test_an_unknown_class_is_a_diagnostic() -> None:
    program = analyse("litgpt_qwen2.yaml", TEXT.replace("model: Qwen2ForCausalLM", "model: Qwen2ForCausal", 1)).program
    assert program is not None
    with pytest.raises(Refusal, match="unknown-class"):
        ask_target(program)
    found, answers = prove_and_ask(program)
    assert [d.kind for d in found] == ["unknown-class"]
    assert answers is None


def test_without_the_library_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from compiler.cli.main import main

    monkeypatch.setattr(packages, "missing", lambda *names: [*names])
    with pytest.raises(SystemExit) as ended:
        main(["lsp"])
    assert ended.value.code == 1
    assert capsys.readouterr().err.splitlines() == [
        "mapspec lsp: needs pygls, which is not installed [missing-package]",
        "  hint: pip install 'mapspec[lsp]'",
    ]
