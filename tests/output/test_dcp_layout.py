"""`--container dcp`: a folder that torch.distributed.checkpoint loads, and its own converter, and mapspec again."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.folders import files_of
from support.oracle_cases import Case
from support.parity import ORACLES
from support.synthetic import image, synthetic
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from compiler.checkpoints.checkpoint import open_checkpoint
from compiler.diagnostics import Refusal
from compiler.executor.apply_rule import loaded
from compiler.jobs.convert import convert
from compiler.jobs.request import Request
from compiler.program.loading import load_program
from compiler.program.program import Program

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of torch: there is no process group


@pytest.fixture(scope="module")
def program() -> Program:
    return load_program("llama")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, program: Program) -> Path:
    return synthetic(program, 0, dtype="bfloat16").save(tmp_path_factory.mktemp("source"), "*.pth")


def distributed(program: Program, source: Path, out: Path, **options: object) -> None:
    convert(program, Request([source], container="dcp", check=False, **options), out)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", ["5GB", "20KB"])
def test_torch_loads_the_bytes(tmp_path: Path, program: Program, source: Path, size: str) -> None:
    distributed(program, source, tmp_path / "out", max_shard_size=size)
    convert(program, Request([source], check=False), tmp_path / "plain")
    wanted = {n: loaded(t) for n, t in open_checkpoint(tmp_path / "plain").tensors.items()}
    assert (len(list((tmp_path / "out").glob("*.distcp"))) > 1) is (size == "20KB")
    state = {name: torch.zeros_like(tensor) for name, tensor in wanted.items()}
    dcp.load(state, checkpoint_id=tmp_path / "out")
    assert image(state) == image(wanted)
    dcp_to_torch_save(tmp_path / "out", tmp_path / "joined.pth")
    assert image(torch.load(tmp_path / "joined.pth", weights_only=True)) == image(wanted)
    ours = open_checkpoint(tmp_path / "out")
    assert image({name: loaded(tensor) for name, tensor in ours.tensors.items()}) == image(wanted)
    assert "model.safetensors.index.json" not in files_of(tmp_path / "out")


def test_it_is_what_torch_writes(tmp_path: Path, program: Program, source: Path) -> None:
    """The same tensors by torch's own writer: the same entries of the metadata, apart from places and sizes; and each
    item is a sound zip at a place that is aligned."""
    distributed(program, source, tmp_path / "out")
    state = {name: loaded(tensor) for name, tensor in open_checkpoint(tmp_path / "out").tensors.items()}
    dcp.save(state, checkpoint_id=tmp_path / "torch")
    mine, theirs = (dcp.FileSystemReader(tmp_path / name).read_metadata() for name in ("out", "torch"))
    assert mine.state_dict_metadata == theirs.state_dict_metadata
    assert mine.planner_data == theirs.planner_data
    assert mine.storage_data.keys() == theirs.storage_data.keys()
    for place in mine.storage_data.values():
        item = (tmp_path / "out" / place.relative_path).read_bytes()[place.offset :][: place.length]
        assert place.offset % 64 == 0
        assert zipfile.ZipFile(io.BytesIO(item)).testzip() is None


def test_the_same_bytes_again(tmp_path: Path, program: Program, source: Path) -> None:
    for name in ("one", "two"):
        distributed(program, source, tmp_path / name)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    distributed(program, source, tmp_path / "two", force=True, dtype="float32")
    assert files_of(tmp_path / "one").keys() == files_of(tmp_path / "two").keys()
    assert files_of(tmp_path / "one") != files_of(tmp_path / "two")


def test_the_code_of_the_card_loads_it(tmp_path: Path) -> None:
    """Also where embeddings are tied; the logits are those of the folder with safetensors."""
    from transformers import AutoModelForCausalLM

    case = Case(ORACLES / "minimind" / "dense_trained")
    convert(case.program, Request(case.request.source, config=case.request.config, container="dcp"), tmp_path / "out")
    convert(case.program, Request(case.request.source, config=case.request.config), tmp_path / "plain")
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    assert "dcp.load" in code
    assert "dcp" not in (tmp_path / "plain" / "README.md").read_text()
    made: dict[str, torch.nn.Module] = {}
    exec(code.replace("path/of/this/folder", str(tmp_path / "out")), made)
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        logits = made["model"].float().eval()(tokens).logits
        wanted = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32).eval()(tokens).logits
    assert torch.equal(logits, wanted)


def test_another_layout_under_its_keys(tmp_path: Path) -> None:
    """A trainer that keeps its weights under `model` has them there in the distributed checkpoint too."""
    program = load_program("nanogpt_gpt2")
    made = synthetic(program, 0, finite=True)
    source = made.save(tmp_path, "ckpt.pt")
    convert(program, Request([source], assigned=made.arguments, check=False), tmp_path / "hf")
    distributed(program, tmp_path / "hf", tmp_path / "out", reverse=True)
    distributed(program, tmp_path / "hf", tmp_path / "out", reverse=True, force=True)
    dcp_to_torch_save(tmp_path / "out", tmp_path / "joined.pth")
    joined = torch.load(tmp_path / "joined.pth", weights_only=True)
    convert(program, Request([tmp_path / "hf"], reverse=True, check=False), tmp_path / "back.pth")
    assert image(joined["model"]) == image(torch.load(tmp_path / "back.pth", weights_only=True))
    convert(program, Request([tmp_path / "out"], check=False), tmp_path / "again")
    assert image({n: loaded(t) for n, t in open_checkpoint(tmp_path / "again").tensors.items()}) == image(
        {n: loaded(t) for n, t in open_checkpoint(tmp_path / "hf").tensors.items()}
    )


def test_what_has_no_other_container(tmp_path: Path, program: Program, source: Path) -> None:
    parts = load_program("meta_llama")
    for one, out, options, words in (
        (program, "out.pth", {}, "a distributed checkpoint is a folder"),
        (program, "out", {"to": "gguf"}, "a GGUF file, has no other container"),
        (parts, "out", {"reverse": True, "parts": 2}, "a folder of model-parallel ranks has no other container"),
        (program, "out", {"to": "dcp"}, "use --container dcp"),
    ):
        with pytest.raises(Refusal, match=words):
            distributed(one, source, tmp_path / out, **options)
    assert not list(tmp_path.iterdir())
