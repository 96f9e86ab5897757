"""A few thousand damaged and hostile inputs against the whole program; `make fuzz` runs many more of the same."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from compiler import templating
from compiler.language import document

ROOT = Path(__file__).parent.parent.parent
INPUTS = Path(__file__).parent.parent / "fuzz" / "inputs.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def fuzzed(program: Path, what: str, folder: Path, rounds: int) -> dict[str, object]:
    words = [sys.executable, str(program), what, str(folder), str(rounds)]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=250, check=False)
    assert done.stdout, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(("what", "rounds"), [("safetensors", 200), ("pth", 200), ("spec", 100), ("injection", 150)])
def test_hostile_inputs(tmp_path: Path, what: str, rounds: int) -> None:
    found = fuzzed(INPUTS, what, tmp_path / "inputs", rounds)
    assert found["wrong"] == []
    assert isinstance(found["refused"], int)
    assert rounds // 2 < found["refused"] < rounds
    # Some pass: what is refused whatever it holds would show nothing.
    assert {"same", "different", "compiled"} & found.keys()


@pytest.mark.parametrize(("field", "behind"), [("weights", "*.pth"), ("config", ".yaml")])
def test_no_name_of_a_file_becomes_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, behind: str
) -> None:
    monkeypatch.syspath_prepend(str(INPUTS.parent))
    inputs = importlib.import_module("inputs")
    monkeypatch.setattr(templating, "formatted", lambda text: ast.unparse(ast.parse(text)))
    spec = document.plain(document.read_document(ROOT / "specs" / "meta_llama.yaml"))
    assert isinstance(spec, dict)
    guard = inputs.Guard()
    for payload in inputs.PAYLOADS:
        words = spec | {"source": {"weights": "*.pth", **spec["source"], field: payload + behind}}  # type: ignore[dict-item]
        (tmp_path / "meta_llama.yaml").write_text(json.dumps(words))
        guard.run(payload[:40], lambda: inputs.compiled(tmp_path / "meta_llama.yaml", guard))
    assert guard.wrong == []
    assert guard.counts["compiled"] > 10


@pytest.mark.parametrize(
    ("what", "rounds", "before", "after", "says"),
    [
        ("injection", 1200, "def inject(", "from compiler.render import python_source\npython_source.inside = lambda text: text\ndef inject(", "code|Syntax"),
        ("pth", 300, "folder: Path, rounds: int, rng", "folder: Path, rounds: int, rng", "although the file has checksums"),
    ],
    ids=["pasted text", "no checksums"],
)  # fmt: skip
def test_the_measure_finds_what_it_looks_for(
    tmp_path: Path, what: str, rounds: int, before: str, after: str, says: str
) -> None:
    text = INPUTS.read_text().replace("Path(__file__).parents[2]", f"Path({str(ROOT)!r})")
    assert before in text
    text = text.replace(before, after).replace("assigned=WORDS)", "assigned=WORDS, checksums=False)")
    (tmp_path / "broken.py").write_text(text)
    found = fuzzed(tmp_path / "broken.py", what, tmp_path / "inputs", rounds)
    assert isinstance(found["wrong"], list)
    assert any(re.search(says, problem) for problem in found["wrong"])
