"""`compile plan`: everything in 100 columns, as JSON, and as a page. `make test-page` opens pages in a browser."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.error_runs import SHAPES, weights

import mapspec
from compiler.checkpoints.formats import stored_tensor
from compiler.cli.main import main
from compiler.diagnostics import Span
from compiler.ops.rearrange_notation import TRANSPOSE, parse_rearrange
from compiler.plan_report.overview import op_text

SPEC = str(Path(__file__).parent.parent / "errors" / "runs" / "small.yaml")


def say(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        main(["plan", *map(str, words)])
    said = capsys.readouterr()
    assert done.value.code == 0, said.err
    return said.out


@pytest.fixture
def small(tmp_path: Path) -> Path:
    weights(str(tmp_path / "model.safetensors"), SHAPES)
    (tmp_path / "config.json").write_text('{"num_attention_heads": 4}')
    return tmp_path / "model.safetensors"


def test_text(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = say(capsys, SPEC, small)
    assert max(map(len, said.splitlines())) <= 100
    assert "layers.{0-1}.mlp.gate_up.weight" in said
    assert "[96, 32] = [2 intermediate_size, hidden_size] float32" in said
    assert "split axis 0" in said
    # Each default is shown once, in the table of config.json.
    assert ["num_key_value_heads", "2", "default"] in [line.split() for line in said.splitlines()]
    assert "defaults used" not in said
    assert "lossy: nothing" in said
    assert "\033" not in said
    assert "gate_up" in say(capsys, SPEC, small, "--full")
    assert "layers.1.mlp.gate_up.weight" in say(capsys, SPEC, small, "--full")


def test_what_is_lost_is_named(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = say(capsys, SPEC, small, "--dtype", "float16")
    assert "lossy: rename" in said
    assert "a cast does not record the dtype" in said


def test_headers_are_enough(small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """No byte of a tensor is read, unless it is asked for: then what is tied is compared, as a run does."""
    weights(str(small), SHAPES | {"lm_head.weight": [64, 32]}, ones=("lm_head.weight",))
    read: list[int] = []
    plain = stored_tensor._read
    monkeypatch.setattr(
        stored_tensor, "_read", lambda path, offset, length: read.append(length) or plain(path, offset, length)
    )
    assert "= embed.weight, written once; not compared yet: a run, or --compare" in say(capsys, SPEC, small)
    mapspec.plan(SPEC, small)
    assert read == []
    with pytest.raises(SystemExit) as done:
        main(["plan", SPEC, str(small), "--compare"])
    assert (done.value.code, "[untied-weights]" in capsys.readouterr().err, sum(read)) == (1, True, 2 * 64 * 32 * 4)
    weights(str(small), SHAPES | {"lm_head.weight": [64, 32]})
    assert "= embed.weight, written once; equal bit for bit" in say(capsys, SPEC, small, "--compare")


def test_json(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = json.loads(say(capsys, SPEC, small, "--json"))
    assert plan["totals"]["target_tensors"] == 20
    line = next(line for line in plan["lines"] if line["rule"] == "gate_up")
    assert (line["line"], line["count"], line["moves"]) == (30, 2, 2)
    # Where the rows of the picture come from: the second half of the source is the second target.
    run = {"to": 0, "count": 48, "source": 0, "axis": 0, "start": 48, "step": 1}
    assert line["picture"]["targets"][1]["runs"] == [run]
    assert (line["effect"], line["label"]) == ("split", "split")
    full = json.loads(say(capsys, SPEC, small, "--json", "--full"))
    assert sum(line["count"] for line in plan["lines"]) == len(full["lines"])
    assert sum(line["nbytes"] for line in full["lines"]) == full["totals"]["target_bytes"]


def test_a_step_says_which_tensors_it_changes() -> None:
    turned = parse_rearrange(TRANSPOSE, {}, Span(""))
    assert op_text(turned) == "rearrange a b -> b a"
    assert op_text(replace(turned, only=(0, 1))) == "rearrange a b -> b a only [0, 1]"
