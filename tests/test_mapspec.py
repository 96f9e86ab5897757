"""`import mapspec`: the functions of the commands."""

from __future__ import annotations

import inspect
import pydoc
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.parity import ORACLES
from support.synthetic import synthetic

import mapspec
from compiler.diagnostics import Diagnostic
from compiler.jobs.request import DEFAULTS, Request

ROOT = Path(__file__).parent.parent
TOKENIZER = Path(__file__).parent / "data" / "tokenizer"


@pytest.fixture(params=["llama", "phi3_llama", "qwen3_moe"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, dict[str, Any]]:
    made = synthetic(mapspec.load_spec(request.param), 0, "float16", finite=True)
    source = made.save(tmp_path, "*.safetensors")
    return request.param, source, {"arguments": made.arguments}


def test_what_is_written_is_what_is_yielded(case: tuple[str, Path, dict[str, Any]], tmp_path: Path) -> None:
    spec, source, settings = case
    sizes: list[int] = []
    made = mapspec.convert(spec, source, tmp_path / "out", progress=sizes.append, **settings)
    tensors = dict(mapspec.iter_tensors(spec, str(source), dtype="float32", **settings))
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors.keys() == written.keys() == {t.name for t in made.targets}
    assert all(torch.equal(tensors[n], written[n].float()) for n in written)
    assert sum(sizes) == sum(t.nbytes for t in made.targets)
    assert [t.name for t in mapspec.plan(spec, [source], **settings).targets] == list(tensors)


def test_the_files_of_a_spec() -> None:
    files = mapspec.compile_spec(ROOT / "specs" / "llama.yaml", prove=False)
    assert files == {f"llama/{p.name}": p.read_text() for p in (ROOT / "generated" / "llama").glob("*.py")}


def test_every_path_may_be_text(tmp_path: Path) -> None:
    source = ORACLES / "litgpt" / "qwen3" / "source"
    heard: list[str] = []
    out = str(tmp_path / "out")
    mapspec.convert("auto", str(source), out, tokenizer=str(TOKENIZER), on_note=heard.append)
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert any(line.startswith("using the spec litgpt_qwen3") for line in heard)
    config = str(next(source.glob("*.yaml"), source / "model_config.yaml"))
    best, *_ = mapspec.detect(str(source), config=config, specs=[str(ROOT / "tests" / "errors" / "runs")])
    assert (best.spec, best.status) == ("litgpt_qwen3", "fits")
    back = mapspec.verify("litgpt_qwen3", str(source), out)
    assert not back.differences  # type: ignore[union-attr]


def test_a_source_model_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What names the model reaches the comparison, which tests of `verify` run."""
    from compiler.verify import compare

    asked: list[Any] = []
    monkeypatch.setattr(compare, "verify", lambda *args: asked.append(args))
    mapspec.verify("llama", "x.pth", "out", source_model="a:B", source_config="c.json", length=8, arguments={"n": 1})
    ((program, request, out, model),) = asked
    assert (program.spec.name.value, out, model.entry) == ("llama", Path("out"), "a:B")
    assert (request.assigned, request.source, model.config, model.length) == (
        {"n": 1},
        [Path("x.pth")],
        Path("c.json"),
        8,
    )


def test_the_keywords_are_the_fields_of_a_request() -> None:
    keywords = inspect.signature(mapspec.convert).parameters
    for field in fields(Request):
        if field.name in ("source", "compare", "names"):
            continue
        name = {"assigned": "arguments"}.get(field.name, field.name)
        assert keywords[name].default == DEFAULTS.get(field.name), name


def test_what_is_wrong_is_reported_before_the_first_tensor(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2)}, tmp_path / "x.pth")
    with pytest.raises(mapspec.Refusal) as caught:
        mapspec.iter_tensors("llama", tmp_path / "x.pth")
    assert all(isinstance(problem, Diagnostic) for problem in caught.value.diagnostics)
    source = synthetic(mapspec.load_spec("llama"), 0).save(tmp_path, "*.safetensors")
    with pytest.raises(mapspec.Refusal, match="no-device"):
        mapspec.iter_tensors("llama", source, device="cuda:99")
    with pytest.raises(TypeError, match="dtyp"):
        mapspec.plan("llama", source, dtyp="float32")  # type: ignore[call-arg]


def test_help_shows_every_function_with_an_example() -> None:
    text = pydoc.plain(pydoc.render_doc(mapspec))
    for name in mapspec.__all__:
        thing = getattr(mapspec, name)
        if not inspect.isfunction(thing):
            continue
        assert f"    {name}(" in text
        assert f"mapspec.{name}(" in (inspect.getdoc(thing) or "")
        assert "Any" not in [p.annotation for p in inspect.signature(thing).parameters.values()], name


def test_importing_it_costs_nothing() -> None:
    code = "import sys, mapspec; print([n for n in ('torch', 'numpy', 'yaml', 'transformers') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
