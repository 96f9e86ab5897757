"""The mapping for Transformers loads the source of every spec as the folder that `run` writes loads, bit for bit.

Four specs by default; `make test-emit` has all of them, and all examples.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import transformers
from safetensors.torch import load_file, save_file
from support.portion import ALL
from support.synthetic import Synthetic, image, saved, synthetic

from compiler.jobs.convert import convert
from compiler.jobs.emit import emit
from compiler.jobs.request import Request
from compiler.program.environment import Environment, Given, NamedShapes
from compiler.program.loading import load_program
from compiler.program.program import Program

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import make_emit  # noqa: E402

# Interleaved heads; a fused projection; fused experts; folded experts.
SOME = ["torchtitan_llama", "internlm2_llama", "torchtitan_qwen3_moe", "minimind2_granite_moe_shared"]
EXPRESSIBLE = re.findall(r"^\| \[(\w+)\]\S+ \| yes ", (ROOT / "docs" / "emit.md").read_text(), re.MULTILINE)
NAMES = EXPRESSIBLE if ALL else SOME

pytestmark = pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) < 5, reason="Transformers 4 has no such mappings"
)


def module(name: str, text: str, folder: Path) -> ModuleType:
    """The emitted text as a module."""
    (folder / f"{name}.py").write_text(text)
    found = importlib.util.spec_from_file_location(f"emitted_{name}", folder / f"{name}.py")
    assert found
    assert found.loader
    made = importlib.util.module_from_spec(found)
    found.loader.exec_module(made)
    return made


def emitted(name: str) -> str:
    """The mapping of a shipped spec."""
    (text,) = emit(str(ROOT / "specs" / f"{name}.yaml"), "transformers").values()
    return text


def parameters(mapping: ModuleType, source: Synthetic, program: Program, example: int) -> dict[str, Any]:
    """The values that an example has for the parameters of `register`."""
    given = {name: Given(value, "the example") for name, (value, _) in program.spec.examples[example].items()}
    env = Environment(program, NamedShapes(source.tensors), given, trusted=True)
    return {name: env[name] for name in inspect.signature(mapping.register).parameters}


@contextmanager
def registered(mapping: ModuleType, values: dict[str, Any]) -> Iterator[None]:
    """The mapping in Transformers' table, for a while."""
    from transformers import conversion_mapping

    conversion_mapping.get_checkpoint_conversion_mapping("legacy")  # fills the table
    before = dict(conversion_mapping._checkpoint_conversion_mapping_cache)
    try:
        mapping.register(**values)
        yield
    finally:
        conversion_mapping._checkpoint_conversion_mapping_cache = before


@pytest.mark.parametrize("path", sorted((ROOT / "generated" / "emit" / "transformers").glob("*.py")))
def test_kept_mappings_are_fresh(path: Path) -> None:
    assert path.read_text() == emitted(path.stem)


@pytest.mark.parametrize("name", NAMES)
def test_source_loads_as_the_folder_does(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = load_program(str(ROOT / "specs" / f"{name}.yaml"))
    text = emitted(name)
    mapping = module(name, text, tmp_path)
    cls = getattr(transformers, program.spec.target.class_name)
    for example in range(len(program.spec.examples) if ALL else 1):
        folder = tmp_path / str(example)
        folder.mkdir()
        source = synthetic(program, example, finite=True)
        file = saved(source, folder, program)
        convert(program, Request([file], assigned=source.arguments, check=False), folder / "out")
        wanted = cls.from_pretrained(folder / "out", dtype="auto")
        with registered(mapping, parameters(mapping, source, program, example)):
            model, report = cls.from_pretrained(
                None, config=wanted.config, state_dict=dict(source.tensors), dtype="auto", output_loading_info=True
            )
            assert not report["missing_keys"]
            assert not report["mismatched_keys"]
            assert image(model.state_dict()) == image(wanted.state_dict())
            if not example:  # a folder with the config of the target and the tensors of the source
                (mixed := folder / "mixed").mkdir()
                save_file(dict(source.tensors), mixed / "model.safetensors", metadata={"format": "pt"})
                wanted.config.save_pretrained(mixed)
                assert image(cls.from_pretrained(mixed, dtype="auto").state_dict()) == image(wanted.state_dict())
            if "cannot be undone (" not in text:
                model.save_pretrained(folder / "back")
                back = load_file(folder / "back" / "model.safetensors")
                aliases = {n for n in source.tensors for tie in program.ties if tie.alias.match(n) is not None}
                assert image(back) == image({n: t for n, t in source.tensors.items() if n not in aliases - back.keys()})


def test_a_wrong_mapping_is_noticed(tmp_path: Path) -> None:
    """The comparison above, where two renamings of the same shape are exchanged."""
    name = "torchtitan_llama"
    program = load_program(str(ROOT / "specs" / f"{name}.yaml"))
    text = emitted(name)
    wrong = (
        text.replace(".mlp.gate_proj.", ".mlp.?.")
        .replace(".mlp.up_proj.", ".mlp.gate_proj.")
        .replace(".?.", ".up_proj.")
    )
    assert wrong != text
    source = synthetic(program, 0, finite=True)
    file = saved(source, tmp_path, program)
    convert(program, Request([file], assigned=source.arguments, check=False), tmp_path / "out")
    wanted = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    found = []
    for each in (text, wrong):
        with registered(module("exchanged", each, tmp_path), {}):
            model = transformers.LlamaForCausalLM.from_pretrained(
                None, config=wanted.config, state_dict=dict(source.tensors)
            )
        found.append(image(model.state_dict()) == image(wanted.state_dict()))
    assert found == [True, False]


@pytest.mark.skipif(not ALL, reason="renders every spec; make test-emit")
def test_the_page_is_fresh() -> None:
    assert make_emit.PAGE.read_text() == make_emit.page(), "python docs/make_emit.py"
