"""The `sanitize` of mlx-lm's form makes the arrays that `run` writes, bit for bit.

Arrays of mlx have numpy's methods, so numpy stands in for mlx.core where mlx is not installed. Four specs by default;
`make test-emit` has all of them, and all examples.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.portion import ALL
from support.synthetic import Synthetic, saved, synthetic

from compiler.diagnostics import Refusal
from compiler.emit.mlx_sanitize import render
from compiler.jobs.convert import convert
from compiler.jobs.request import Request
from compiler.program.loading import load_program
from compiler.program.program import Program

ROOT = Path(__file__).parent.parent.parent
# A split in groups; stacked experts; folded experts; axes in another order.
SOME = ["internlm2_llama", "torchtitan_qwen3_moe", "minimind2_granite_moe_shared", "transformer_lens_gpt2"]
PAGE = (ROOT / "docs" / "emit.md").read_text()
EXPRESSIBLE = re.findall(r"^\| \[(\w+)\]\S+ \|.*\| yes \|$", PAGE, re.MULTILINE)


@cache
def array_library() -> ModuleType:
    """mlx.core, else numpy."""
    if importlib.util.find_spec("mlx"):
        import mlx.core

        return mlx.core  # type: ignore[no-any-return]
    return np


def sanitized(text: str, source: Synthetic, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arrays that the emitted text makes of a source, as numpy's."""
    library = array_library()
    package = ModuleType("mlx")
    package.core = library  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlx", package)
    monkeypatch.setitem(sys.modules, "mlx.core", library)
    names: dict[str, Any] = {}
    exec(text, names)
    tensors = {**source.tensors, **source.ignored}
    arrays = {name: library.array(tensor.numpy()) for name, tensor in tensors.items()}
    return {name: np.array(a) for name, a in names["sanitize"](arrays, SimpleNamespace(**config)).items()}


def image(arrays: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What makes arrays the same."""
    return {name: (str(a.dtype), a.shape, np.ascontiguousarray(a).tobytes()) for name, a in arrays.items()}


def converted(program: Program, example: int, folder: Path) -> tuple[Synthetic, dict[str, Any], dict[str, Any]]:
    """A source, the config and the tensors that `run` writes of it."""
    source = synthetic(program, example, finite=True)
    convert(program, Request([saved(source, folder, program)], assigned=source.arguments, check=False), folder / "out")
    return (
        source,
        json.loads((folder / "out" / "config.json").read_text()),
        load_file(folder / "out" / "model.safetensors"),
    )


@pytest.mark.parametrize("name", EXPRESSIBLE if ALL else SOME)
def test_the_arrays_are_those_that_run_writes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = load_program(str(ROOT / "specs" / f"{name}.yaml"))
    text = render(program)
    for example in range(len(program.spec.examples) if ALL else 1):
        (folder := tmp_path / str(example)).mkdir()
        source, config, wanted = converted(program, example, folder)
        made = sanitized(text, source, config, monkeypatch)
        tied = {n for n in source.tensors for tie in program.ties if tie.alias.match(n) is not None}
        extra = made.keys() - wanted.keys()
        assert len(extra) <= len(tied)
        assert image({n: made[n] for n in made.keys() - extra}) == image(wanted)


def test_a_wrong_axis_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = load_program(str(ROOT / "specs" / "internlm2_llama.yaml"))
    text = render(program)
    wrong = text.replace("return [q_proj, k_proj, v_proj]", "return [q_proj, v_proj, k_proj]")
    assert wrong != text
    source, config, wanted = converted(program, 0, tmp_path)
    assert image(sanitized(wrong, source, config, monkeypatch)) != image(wanted)


def test_what_mlx_lacks_is_rejected_at_its_rule() -> None:
    with pytest.raises(Refusal, match=r"baichuan2_llama\.yaml:\d+:\d+: .* it has no operation for normalize"):
        render(load_program(str(ROOT / "specs" / "baichuan2_llama.yaml")))


def test_the_kept_function_is_fresh() -> None:
    kept = ROOT / "generated" / "emit" / "mlx" / "torchtitan_llama.py"
    assert kept.read_text() == render(load_program(str(ROOT / "specs" / "torchtitan_llama.yaml")))
