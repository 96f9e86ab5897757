"""The table of config.json: each field that is written, with its value and where that comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.error_runs import SHAPES, weights

import mapspec
from compiler.cli.main import main
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.plan.config_table import ConfigRow, config_table
from compiler.program.loading import load_program

ROOT = Path(__file__).parent.parent.parent
SMALL = ROOT / "tests" / "errors" / "runs" / "small.yaml"
ORACLES = ROOT / "tests" / "data" / "oracles"


def table(spec: str | Path, source: Path, **options: Any) -> dict[str, ConfigRow]:
    plan = prepare(load_program(str(spec)), Request([source], checksums=False, **options)).plan
    return {row.field: row for row in config_table(plan)}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    weights(str(tmp_path / "model.safetensors"), SHAPES)
    (tmp_path / "config.json").write_text('{"num_attention_heads": 4}')
    return tmp_path / "model.safetensors"


def test_the_table_has_the_fields_of_the_file(small: Path) -> None:
    mapspec.convert(SMALL, small, small.parent / "out")
    written = json.loads((small.parent / "out" / "config.json").read_text())
    rows = table(SMALL, small)
    assert {name: row.value for name, row in rows.items()} == {
        name: value for name, value in written.items() if name not in ("architectures", "model_type")
    }
    assert {name for name, row in rows.items() if row.repeats} == {"rope_parameters", "rope_scaling", "torch_dtype"}
    card = (small.parent / "out" / "README.md").read_text()
    for row in rows.values():
        assert f"| `{row.field}` | `{row.text}` | {row.origin} |" in card


def test_each_origin_is_named(small: Path) -> None:
    rows = table(SMALL, small)
    assert (rows["num_attention_heads"].origin, rows["num_attention_heads"].kind) == ("config.json", "config file")
    assert rows["num_key_value_heads"].origin == "default"
    assert rows["hidden_size"].origin == "shape of embed.weight"
    assert table(SMALL, small, assigned={"num_key_value_heads": 2})["num_key_value_heads"].origin == "--set"


def test_a_release_and_the_checkpoint_are_named() -> None:
    source = ORACLES / "meta_llama" / "llama31_1shard_ropescaling" / "source"
    rows = table("meta_llama", source, model="llama-3.2-1b")
    assert rows["rope_scaling"].origin == "params.json, released model llama-3.2-1b"
    assert rows["rope_scaling"].kind == "released model"
    # The default of max_position_embeddings is null: the value follows from params.json alone.
    assert rows["max_position_embeddings"].origin == "params.json"
    trained = table("nanogpt", ORACLES / "nanogpt" / "trained_bias" / "source")
    assert trained["num_attention_heads"].origin == "the checkpoint's 'model_args'"
    assert (trained["hidden_act"].value, trained["hidden_act"].kind) == ("gelu", "default")
    assert trained["bias"].origin == "presence of transformer.h.0.ln_1.bias"


def test_plan_shows_it(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", str(SMALL), str(small), "--json"])
    rows = json.loads(capsys.readouterr().out)["config_table"]
    assert {
        "field": "num_key_value_heads",
        "value": 2,
        "origin": "default",
        "kind": "default",
        "argument": "num_key_value_heads",
        "repeats": False,
    } in rows
    with pytest.raises(SystemExit):
        main(["plan", str(SMALL), str(small)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["num_attention_heads", "4", "config.json"] in lines
    assert ["hidden_size", "32", "shape", "of", "embed.weight"] in lines


def test_a_reversed_plan_has_none(small: Path) -> None:
    out = small.parent / "out"
    mapspec.convert(SMALL, small, out)
    assert config_table(mapspec.plan(SMALL, out, reverse=True)) == []
