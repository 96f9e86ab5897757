"""Converters for a pair of specs write what `run A SOURCE OUT --to B` writes: the tensors bit for bit, the config's text."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.oracle_cases import Case
from support.parity import ORACLES
from support.synthetic import image

from compiler.checkpoints.config_file import read_config_file
from compiler.cli.main import main
from compiler.diagnostics import Refusal
from compiler.jobs.compile import build
from compiler.jobs.convert import convert

# Case -> the second spec, and the config that it keeps.
PAIRS = {
    "litgpt/llama_gqa_fused_qkv": ("meta_llama", "params.json"),
    "litgpt/qwen3": ("mcore_qwen3", ""),
    "litgpt/mixtral": ("mistral_mixtral", "params.json"),
    "meta_llama/llama3_2shard_gqa": ("litgpt_llama", "model_config.yaml"),
    "torchtune/llama32_tied": ("mcore_llama", ""),
    "minimind/dense_trained": ("litgpt_qwen3", "model_config.yaml"),
    "megatron_mcore/qwen3_tp2": ("litgpt_qwen3", "model_config.yaml"),
}


def options(case: Case) -> list[str]:
    words = []
    for name, value in case.request.assigned.items():
        words += [f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else [f"--{name}", json.dumps(value)]
    return words + (["--config", str(case.request.config)] if case.request.config else [])


def run_script(text: str, place: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    script = place / "converter.py"
    script.write_text(text)
    monkeypatch.setattr(sys, "argv", [str(script), *words])
    runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_writes_what_run_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    case, (to, config) = Case(ORACLES / name), PAIRS[name]
    spec = case.program.spec.name.value
    (text,) = build(spec, prove=False, to=to).values()
    source = str(case.request.source[0])
    run_script(text, tmp_path, [source, str(tmp_path / "one"), "--no-check", *options(case)], monkeypatch)
    convert(case.program, replace(case.request, to=to, check=False), tmp_path / "two")
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.pt*"))
    assert files == sorted(p.relative_to(tmp_path / "two") for p in (tmp_path / "two").rglob("*.pt*"))
    assert len(files) == 1
    ours, theirs = (torch.load(tmp_path / place / files[0], weights_only=False) for place in ("one", "two"))
    if "model" in ours:
        assert vars(ours["args"]) == vars(theirs["args"])
        assert {n: v for n, v in ours.items() if n not in ("args", "model")} == {
            n: v for n, v in theirs.items() if n not in ("args", "model")
        }
        ours, theirs = ours["model"], theirs["model"]
    assert image(ours) == image(theirs)
    if config:
        assert read_config_file(tmp_path / "one" / config) == read_config_file(tmp_path / "two" / config)


def test_what_the_second_layout_has_no_place_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta's files have only the scaling of Llama 3.1."""
    case = Case(ORACLES / "litgpt" / "llama31_scaled")
    (text,) = build("litgpt_llama", prove=False, to="meta_llama").values()
    config = read_config_file(case.folder / "source" / "model_config.yaml")
    config["rope_adjustments"] = {**config["rope_adjustments"], "low_freq_factor": 2.0}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    words = [str(case.request.source[0]), str(tmp_path / "out"), "--config", str(tmp_path / "config.yaml")]
    with pytest.raises(SystemExit, match=r"rope_scaling is .*, and meta_llama has"):
        run_script(text, tmp_path, [*words, "--no-check"], monkeypatch)
    assert not (tmp_path / "out").exists()


def test_a_gguf_file_needs_run() -> None:
    with pytest.raises(Refusal, match=r"a converter cannot write a GGUF file .*no-converter"):
        build("qwen3", prove=False, to="gguf")


def test_check_compares_a_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pair is written, and compared with what is written."""
    words = ["litgpt_llama", "--to", "meta_llama", "--no-proof", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as end:
        main([*words, "-q"])
    assert end.value.code == 0
    (file,) = tmp_path.rglob("*.py")
    assert file.name == "convert_litgpt_llama_to_meta_llama.py"
    file.write_text(file.read_text().replace("wq", "wk"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([*words, "--check"])
    assert end.value.code == 1
    assert "wq" in capsys.readouterr().out
