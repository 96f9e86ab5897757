"""The names of vLLM's form: every emitted mapper gives each name of its spec the name that the rules give it.

`StandIn` has the semantics that vLLM publishes for WeightsMapper (vllm/model_executor/models/utils.py); vLLM itself is not
installed for these tests.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest

from compiler.cli.main import main
from compiler.diagnostics import Diagnostic, Refusal
from compiler.emit.weights_mapper import render
from compiler.language.name_pattern import options
from compiler.program.loading import load_program
from compiler.program.program import Program

ROOT = Path(__file__).parent.parent.parent
NUMBERS = ("0", "1", "12")


@dataclass
class StandIn:
    """Four tables, tried in this order, every entry on every name; None drops a tensor."""

    orig_to_new_regex: dict[re.Pattern[str], str | None] = field(default_factory=dict)
    orig_to_new_substr: dict[str, str | None] = field(default_factory=dict)
    orig_to_new_prefix: dict[str, str | None] = field(default_factory=dict)
    orig_to_new_suffix: dict[str, str | None] = field(default_factory=dict)

    def new_name(self, name: str) -> str | None:
        for pattern, new in self.orig_to_new_regex.items():
            if pattern.search(name):
                if new is None:
                    return None
                name = pattern.sub(new, name)
        for table, place in (("substr", str.__contains__), ("prefix", str.startswith), ("suffix", str.endswith)):
            for old, new in getattr(self, f"orig_to_new_{table}").items():
                if place(name, old):
                    if new is None:
                        return None
                    name = new.join(name.rsplit(old, 1)) if table == "suffix" else name.replace(old, new, 1)
        return name


def emitted() -> dict[str, str]:
    """The mappers of the shipped specs that have one."""
    found: dict[str, str] = {}
    problems: list[Diagnostic] = []
    for path in sorted((ROOT / "specs").glob("*.yaml")):
        try:
            found[path.stem] = render(load_program(str(path)))
        except Refusal as refusal:
            problems += refusal.diagnostics
    assert {problem.kind for problem in problems} == {"inexpressible-rule"}
    assert all(problem.span.line for problem in problems)
    return found


def mapper(text: str, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    for name in ("vllm", "vllm.model_executor", "vllm.model_executor.models", "vllm.model_executor.models.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["vllm.model_executor.models.utils"].WeightsMapper = StandIn  # type: ignore[attr-defined]
    names: dict[str, StandIn] = {}
    exec(text, names)
    return names["mapper"]


def renamings(program: Program) -> Iterator[tuple[str, str]]:
    """Names that the rules read and write, with small and large numbers and every choice of words."""
    for rule in program.rules:
        (source,), (target,) = rule.sources, rule.targets
        texts = [NUMBERS if hole.is_index else options(hole) or () for hole in source.holes.values()]
        for choice in product(*texts):
            captures = dict(zip(source.holes, choice, strict=True))
            yield source.fill(captures), target.fill(captures)


def test_each_name_becomes_that_of_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = emitted()
    assert {"torchtitan_qwen3", "whisper_whisper", "rwkv4_rwkv", "gguf_qwen3"} <= texts.keys()
    for name, text in texts.items():
        program, one = load_program(str(ROOT / "specs" / f"{name}.yaml")), mapper(text, monkeypatch)
        pairs = dict(renamings(program))
        assert {old: one.new_name(old) for old in pairs} == pairs
        if name == "whisper_whisper":
            assert one.new_name("decoder.mask") is None


def test_a_wrong_entry_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    program = load_program(str(ROOT / "specs" / "torchtitan_qwen3.yaml"))
    text = render(program)
    wrong = text.replace('"layers.": "model.layers."', '"layers.": "layers."')
    assert wrong != text
    one = mapper(wrong, monkeypatch)
    assert any(one.new_name(old) != new for old, new in renamings(program))


def test_a_spec_with_steps_is_rejected_at_its_rule() -> None:
    with pytest.raises(Refusal, match=r"torchtitan_llama\.yaml:\d+:\d+: .* cannot express rope_q: it renames tensors"):
        render(load_program(str(ROOT / "specs" / "torchtitan_llama.yaml")))


def test_the_command_writes_and_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["torchtitan_qwen3", "--emit", "vllm", "--no-proof", "--out", str(tmp_path)]
    file = tmp_path / "emit" / "vllm" / "torchtitan_qwen3.py"
    codes = []
    for more in ([], ["--check"]):
        with pytest.raises(SystemExit) as done:
            main([*words, *more])
        codes.append(done.value.code)
    file.write_text(file.read_text().replace("self_attn", "attn"))
    with pytest.raises(SystemExit) as done:
        main([*words, "--check"])
    assert [*codes, done.value.code] == [0, 0, 1]
    assert '+        ".attention.": ".self_attn.",' in capsys.readouterr().out
    with pytest.raises(SystemExit) as done:
        main(["llama2c_llama", *words[1:]])
    assert done.value.code == 1
    assert [*tmp_path.rglob("*.py")] == [file]


def test_the_kept_mapper_is_fresh() -> None:
    kept = ROOT / "generated" / "emit" / "vllm" / "torchtitan_qwen3.py"
    assert kept.read_text() == render(load_program(str(ROOT / "specs" / "torchtitan_qwen3.yaml")))
