"""The labels of axes: those of the shipped specs are recorded, and one that could fit by chance is not made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compiler.diagnostics import Span
from compiler.language.name_pattern_parser import parse_pattern
from compiler.program.axis_labels import AxisLabels, name_form, record_labels, recorded_labels, spec_digest
from compiler.program.loading import load_program
from compiler.proof import record_labels as recorder
from compiler.resources import axis_labels_path

SPECS = sorted((Path(__file__).parent.parent.parent / "specs").glob("*.yaml"))


def test_every_shipped_spec_has_its_labels() -> None:
    """`python -m compiler.proof.record_labels` after a change of a spec."""
    recorded = json.loads(axis_labels_path().read_text())
    assert {p.stem: spec_digest(load_program(str(p)).spec) for p in SPECS} == {
        n: e["digest"] for n, e in recorded.items()
    }


@pytest.mark.parametrize(
    "name", ["llama", "whisper_whisper", "deepseek_v3_fp8_deepseek_v3", "gpt_oss_mxfp4_gpt_oss", "minimind"]
)
def test_the_record_is_what_the_proof_makes(name: str) -> None:
    recorded = json.loads(axis_labels_path().read_text())[name]
    made = recorder.record([p for p in SPECS if p.stem == name])[name]
    assert json.loads(json.dumps(made)) == recorded


def test_labels_that_could_fit_by_chance() -> None:
    """A kernel of 3 is not the number of layers, nor a number of groups of 32 the heads."""
    recorded = json.loads(axis_labels_path().read_text())
    assert recorded["whisper_whisper"]["source"]["encoder.conv1.weight"][2] == []
    assert recorded["gpt_oss_mxfp4_gpt_oss"]["source"]["model.layers.{}.mlp.experts.gate_up_proj_blocks"][2:] == [
        [],
        [],
    ]
    assert recorded["clip_clip"]["source"]["visual.positional_embedding"][0] == ["side * side + 1"]


def test_forms() -> None:
    def form(pattern: str, name: str) -> str | None:
        return name_form(parse_pattern(pattern, Span("")), name)

    assert form("layers.{i}.{p:q|k}.w", "layers.12.k.w") == "layers.{}.k.w"
    assert form("fc1.weight{e}", "fc1.weight3") == "fc1.weight{}"
    assert form(r"/^a\.[a-z]+\.w$/", "a.b.w") is None
    assert name_form(None, "layers.12.k0.w") == "layers.{}.k0.w"


def test_labels_are_kept_in_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAPSPEC_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine.yaml").write_text(
        (SPECS[0].parent / "llama.yaml").read_text().replace("name: llama", "name: mine")
    )
    spec = load_program(str(tmp_path / "mine.yaml")).spec
    assert recorded_labels(spec) is None
    labels = AxisLabels({"a": (("x",), ())}, {})
    record_labels(spec, labels)
    assert recorded_labels(spec) == labels
    monkeypatch.setenv("MAPSPEC_CACHE", "")
    record_labels(spec, labels)
    assert recorded_labels(spec) is None
