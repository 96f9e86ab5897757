"""mapspec from Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.synthetic import synthetic

from compiler import api, diagnostics

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(params=["llama", "phi3_llama", "qwen3_moe"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, dict[str, object]]:
    made = synthetic(api.load_spec(request.param), 0, "float16", finite=True)
    source = made.save(tmp_path, "*.safetensors")
    return request.param, source, {"assigned": made.arguments}


def test_what_is_written_is_what_is_yielded(case: tuple[str, Path, dict], tmp_path: Path) -> None:
    spec, source, settings = case
    told: list[int] = []
    made = api.convert(spec, source, tmp_path / "out", progress=told.append, **settings)
    found = dict(api.iter_tensors(spec, str(source), dtype="float32", **settings))
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == written.keys() == {t.name for t in made.targets}
    assert all(torch.equal(found[n], written[n].float()) for n in written)
    assert sum(told) == sum(t.nbytes for t in made.targets)
    assert [t.name for t in api.plan(spec, [source], **settings).targets] == list(found)


def test_the_files_of_a_spec() -> None:
    found = api.compile_spec(ROOT / "specs" / "llama.yaml", prove=False)
    assert found == {f"llama/{p.name}": p.read_text() for p in (ROOT / "generated" / "llama").glob("*.py")}


def test_what_is_wrong_is_said_before_the_first_tensor(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2)}, tmp_path / "x.pth")
    with pytest.raises(diagnostics.Refusal) as caught:
        api.iter_tensors("llama", tmp_path / "x.pth")
    assert all(isinstance(problem, diagnostics.Diagnostic) for problem in caught.value.diagnostics)
    source = synthetic(api.load_spec("llama"), 0).save(tmp_path, "*.safetensors")
    with pytest.raises(diagnostics.Refusal, match="no-device"):
        api.iter_tensors("llama", source, device="cuda:99")
    with pytest.raises(TypeError, match="dtyp"):
        api.plan("llama", source, dtyp="float32")


def test_importing_it_costs_nothing() -> None:
    code = (
        "import sys, compiler.api; print([n for n in ('torch', 'numpy', 'yaml', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
