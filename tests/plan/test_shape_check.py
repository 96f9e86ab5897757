"""Shapes are compared with the labels of their axes, without importing transformers or torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from compiler.cli.main import main

ROOT = Path(__file__).parent.parent.parent
LAYER = {
    "input_layernorm": [32], "post_attention_layernorm": [32], "self_attn.q_proj": [32, 32], "self_attn.k_proj": [16, 32],
    "self_attn.v_proj": [16, 32], "self_attn.o_proj": [32, 32], "mlp.gate_proj": [24, 32], "mlp.up_proj": [24, 32],
    "mlp.down_proj": [32, 24],
}  # fmt: skip
SHAPES = {
    "model.embed_tokens.weight": [40, 32],
    "model.norm.weight": [32],
    **{f"model.layers.{i}.{name}.weight": shape for i in range(3) for name, shape in LAYER.items()},
}
SETTINGS = ("--set", "num_attention_heads=4", "--set", "num_key_value_heads=2")


def checkpoint(path: Path, shapes: dict[str, list[int]]) -> Path:
    """A safetensors file of zeros."""
    header, size = {}, 0
    for name, shape in shapes.items():
        length = 4
        for n in shape:
            length *= n
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [size, size + length]}
        size += length
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    return path


def run(folder: Path, shapes: dict[str, list[int]]) -> int:
    file = checkpoint(folder / "model.safetensors", shapes)
    with pytest.raises(SystemExit) as done:
        main(["plan", "llama", str(file), *SETTINGS])
    return int(done.value.code or 0)


def test_a_checkpoint_that_fits(tmp_path: Path) -> None:
    assert run(tmp_path, SHAPES) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {f"model.layers.{i}.mlp.up_proj.weight": [20, 32] for i in range(3)},
            "model.layers.0.mlp.up_proj.weight has shape [20, 32], but must have [intermediate_size = 24, hidden_size = 32]",
        ),
        ({"model.layers.1.mlp.up_proj.weight": [20, 32]}, "model.layers.1.mlp.up_proj.weight has shape [20, 32]"),
        ({"model.norm.weight": [3, 3]}, "model.norm.weight has shape [3, 3], but must have 1 axis: [hidden_size]"),
        ({"model.norm.weight": []}, "model.norm.weight has shape []"),
        ({"model.norm.weight": [0]}, "model.norm.weight has shape [0], but must have [hidden_size = 32]"),
        ({"model.layers.2.mlp.down_proj.weight": [24, 32]}, "model.layers.2.mlp.down_proj.weight has shape [24, 32]"),
        (
            {"model.layers.0.self_attn.v_proj.weight": [8, 32]},
            "model.layers.0.self_attn.v_proj.weight has shape [8, 32]",
        ),
    ],
)
def test_a_shape_that_does_not_fit(
    changes: dict[str, list[int]], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, SHAPES | changes) == 1
    err = capsys.readouterr().err
    assert message in err
    assert "[wrong-shape]" in err
    assert "llama.yaml:" in err


def test_every_layer_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, SHAPES | {f"model.layers.{i}.mlp.up_proj.weight": [20, 32] for i in range(3)})
    err = capsys.readouterr().err
    assert err.count("[wrong-shape]") == 1
    assert "so have model.layers.1.mlp.up_proj.weight, model.layers.2.mlp.up_proj.weight" in err


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "model.safetensors", SHAPES | {"model.norm.weight": [3, 3]})
    code = (
        "import sys\nfrom compiler.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    print([n for n in ('torch', 'transformers') if n in sys.modules])\n"
    )
    command = [sys.executable, "-c", code, "plan", "llama", str(file), *SETTINGS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "[wrong-shape]" in done.stderr
    assert done.stdout.strip() == "[]"


def test_labels_of_another_text_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAPSPEC_CACHE", "")
    text = (ROOT / "specs" / "llama.yaml").read_text()
    (tmp_path / "llama.yaml").write_text(text.replace("vocab_size: 128", "vocab_size: 136"))
    file = checkpoint(tmp_path / "model.safetensors", SHAPES | {"model.norm.weight": [3, 3]})
    with pytest.raises(SystemExit) as done:
        main(["plan", str(tmp_path / "llama.yaml"), str(file), *SETTINGS])
    assert done.value.code == 0
