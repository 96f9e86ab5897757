"""`compile sample` writes the same small checkpoint everywhere, and the commands work on it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from compiler.cli.main import main
from compiler.jobs.sample import write_sample

FILES = ["config.json", "lora.pth", "model.pth", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "new"
    assert write_sample(folder) == FILES
    return folder


def test_everybody_gets_the_same_bytes(sample: Path) -> None:
    """The output that the documents show depends on them."""
    assert hashlib.sha256((sample / "model.pth").read_bytes()).hexdigest().startswith("1dc98e0419999f25")


def test_torch_reads_it(sample: Path) -> None:
    weights = torch.load(sample / "model.pth", weights_only=True)
    assert torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
    assert not torch.equal(weights["model.layers.0.mlp.up_proj.weight"], weights["model.layers.1.mlp.up_proj.weight"])
    matrices = torch.cat([t.flatten() for t in weights.values() if t.dim() == 2]).float()
    norms = torch.cat([t for t in weights.values() if t.dim() == 1]).float()
    assert matrices.mean().abs() < 0.01 < matrices.std()
    assert (norms.mean() - 1).abs() < 0.1 < norms.std()
    assert {t.dim() for t in torch.load(sample / "lora.pth", weights_only=True).values()} == {2}


def test_its_tokenizer_encodes_any_text(sample: Path) -> None:
    tokenizer = Tokenizer.from_file(str(sample / "tokenizer.json"))
    text = "<|im_start|>Grüße, 世界!\n<|im_end|>"
    ids = tokenizer.encode(text).ids
    assert (ids[0], ids[-1]) == (1, 2)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_a_folder_with_files_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(SystemExit) as done:
        main(["sample", str(tmp_path)])
    assert done.value.code == 1
    assert "[output-exists]" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]
