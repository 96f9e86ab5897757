"""`plan --against`: what differs between the plans of two specs, as text, JSON and HTML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.error_runs import SHAPES, weights

from compiler.cli.main import main

SPEC = Path(__file__).parent.parent / "errors" / "runs" / "small.yaml"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    weights(str(tmp_path / "model.safetensors"), SHAPES | {"lm_head.weight": [64, 32]})
    (tmp_path / "config.json").write_text('{"num_attention_heads": 4}')
    return tmp_path / "model.safetensors"


def version(folder: Path, *changes: tuple[str, str]) -> Path:
    """The spec with each text of `changes` replaced, under its own name in a folder of its own."""
    text = SPEC.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    folder.mkdir()
    path = folder / SPEC.name
    path.write_text(text)
    return path


def say(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        main(["plan", *map(str, words)])
    said = capsys.readouterr()
    assert done.value.code == code, said.err
    return said.err if code else said.out


def found(capsys: pytest.CaptureFixture[str], spec: Path, source: Path, *words: object) -> dict[str, Any]:
    against = json.loads(say(capsys, spec, source, "--against", SPEC, "--json", *words))["against"]
    assert isinstance(against, dict)
    return against


def test_a_renamed_and_moved_rule_is_no_difference(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = version(tmp_path / "new", ("name: gate_up", "name: other"), ("\nrename:", "\n# moved\nrename:"))
    assert "no difference: 20 tensors and 9 fields" in say(capsys, spec, source, "--against", SPEC)


def test_exchanged_results_differ(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both specs read the same tensors with the same steps and write the same names and shapes."""
    spec = version(tmp_path / "new", ("gate_proj", "x_proj"), ("up_proj", "gate_proj"), ("x_proj", "up_proj"))
    against = found(capsys, spec, source)
    parts = {one["target"]: [one[side]["steps"][-1] for side in ("before", "after")] for one in against["changes"]}
    assert parts == {
        "model.layers.{0-1}.mlp.gate_proj.weight": ["result 1 of 2", "result 2 of 2"],
        "model.layers.{0-1}.mlp.up_proj.weight": ["result 2 of 2", "result 1 of 2"],
    }
    assert (against["equal_tensors"], against["config"]) == (16, [])


def test_steps_differ_by_sizes_alone(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = """transform:
  - name: rotary
    from: layers.{i}.self_attn.q.weight
    rearrange: "(head pair two) in -> (head two pair) in"
    sizes: {head: HEADS, two: 2}
    to: model.layers.{i}.self_attn.q_proj.weight
"""
    changes = (("{p:q|k|v|o}", "{p:k|v|o}"), ("transform:\n", step))
    old = version(tmp_path / "old", *changes, ("HEADS", "num_attention_heads"))
    new = version(tmp_path / "new", *changes, ("HEADS", "num_key_value_heads"))
    said = say(capsys, new, source, "--against", old)
    assert "- rotary" in said
    assert "{head: 4, two: 2}" in said
    assert "{head: 2, two: 2}" in said
    assert "2 tensors differ, 18 are equal" in said


def test_only_in_one(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = version(tmp_path / "new", ("tie_word_embeddings: true", "tie_word_embeddings: false"))
    against = found(capsys, spec, source)
    assert [(one["target"], one["before"]) for one in against["changes"]] == [("lm_head.weight", None)]
    assert (against["newly_read"], against["unread"]) == (["lm_head.weight"], [])
    assert [(one["field"], one["before"][0], one["after"][0]) for one in against["config"]] == [
        ("tie_word_embeddings", "true", "false")
    ]
    said = say(capsys, SPEC, source, "--against", spec)
    assert "- read by" in said
    assert "tie_word_embeddings: false (default) -> true (default)" in said


def test_an_argument_of_one_spec_only(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--set` reaches both plans, but an argument that the other spec lacks is no mistake there."""
    spec = version(tmp_path / "new", ("rope_theta: 10000.0", "rope_theta: 10000.0\n  extra: 0.1"),
                   ("config:\n", "config:\n  rename: {rms_norm_eps: extra}\n"))  # fmt: skip
    against = found(capsys, spec, source, "--set", "extra=0.2", "--set", "rope_theta=5.0")
    assert [(one["field"], one["after"][0]) for one in against["config"]] == [("rms_norm_eps", "0.2")]
    assert "has no argument 'extar'" in say(
        capsys, spec, source, "--against", SPEC, "--set", "extar=2", code=1
    )  # fmt: skip


def test_mistakes(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "smal.yaml" in say(capsys, SPEC, source, "--against", "smal.yaml", code=1)
    assert "[missing-tensor]" in say(capsys, SPEC, source, "--against", "litgpt_llama", code=1)


def test_page(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec, page = version(tmp_path / "new", ("rope_theta: 10000.0", "rope_theta: 5.0")), tmp_path / "plan.html"
    say(capsys, spec, source, "--against", SPEC, "--html", page)
    data = page.read_text().split('type="application/json">')[1].split("</script>")[0]
    assert [one["field"] for one in json.loads(data)["against"]["config"]] == ["rope_theta"]
    say(capsys, spec, source, "--html", page)
    data = page.read_text().split('type="application/json">')[1].split("</script>")[0]
    assert json.loads(data)["against"] is None
