"""A target whose model code is the user's own file: `target: {code: ..., class: ...}`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import parity
from support.portion import portion

from compiler.diagnostics import Refusal
from compiler.jobs.compile import build
from compiler.jobs.convert import convert
from compiler.jobs.detect import detect
from compiler.jobs.prepare import Request
from compiler.program.loading import load_program

MODEL = """
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .tiny_layers import Mixer

print("this text goes to stdout when the file is imported")


class TinyConfig(PretrainedConfig):
    model_type = "tiny_own"

    def __init__(self, vocab_size=16, width=8, depth=2, slope=0.5, **kwargs):
        super().__init__(**kwargs)
        self.vocab_size, self.width, self.depth, self.slope = vocab_size, width, depth, slope


class TinyForCausalLM(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.mixers = nn.ModuleList([Mixer(config.width, config.slope) for _ in range(config.depth)])
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids, **kwargs):
        states = self.embed(input_ids)
        for mixer in self.mixers:
            states = mixer(states)
        return CausalLMOutput(logits=self.head(states))
"""
LAYERS = """
from torch import nn


class Mixer(nn.Module):
    def __init__(self, width, slope):
        super().__init__()
        self.linear, self.slope = nn.Linear(width, width), slope

    def forward(self, states):
        return states + nn.functional.leaky_relu(self.linear(states), self.slope)
"""
SPEC = """
spec: 1
name: tiny
summary: a small trainer's model with its own code
source: {weights: "*.pth"}
target: {code: code/tiny_model.py, class: TinyForCausalLM}
arguments: {slope: 0.5}
facts:
  vocab_size: dim("tok.weight", 0)
  width: dim("tok.weight", 1)
  depth: count("mix.{i}.weight")
config:
  copy: [vocab_size, width, depth, slope]
rename:
  tok.weight: embed.weight
  mix.{i}.{p:weight|bias}: mixers.{i}.linear.{p}
  out.weight: head.weight
example: {vocab_size: 16, width: 8, depth: 2}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    return write(tmp_path)


def write(folder: Path, model: str = MODEL, text: str = SPEC) -> Path:
    (folder / "code").mkdir(exist_ok=True)
    (folder / "code/tiny_model.py").write_text(model)
    (folder / "code/tiny_layers.py").write_text(LAYERS)
    (folder / "code/unrelated.py").write_text("")
    (folder / "tiny.yaml").write_text(text)
    return folder / "tiny.yaml"


def checkpoint(folder: Path) -> Path:
    torch.manual_seed(0)
    tensors = {"tok.weight": torch.randn(16, 8), "out.weight": torch.randn(16, 8)}
    for i in range(3):
        tensors |= {f"mix.{i}.weight": torch.randn(8, 8), f"mix.{i}.bias": torch.randn(8)}
    torch.save(tensors, folder / "source.pth")
    return folder / "source.pth"


def reference(source: Path, ids: Any, slope: float) -> Any:
    t = torch.load(source, weights_only=True)
    states = t["tok.weight"][ids]
    for i in range(3):
        mixed = states @ t[f"mix.{i}.weight"].T + t[f"mix.{i}.bias"]
        states = states + torch.nn.functional.leaky_relu(mixed, slope)
    return states @ t["out.weight"].T


def test_the_folder_loads_with_its_code(spec: Path, tmp_path: Path) -> None:
    """`compile run` copies the file and what it imports; every release loads the folder and gives the same logits."""
    source, out = checkpoint(tmp_path), tmp_path / "out"
    convert(load_program(str(spec)), Request([source], assigned={"slope": 0.25}), out)
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "tiny_own"
    assert config["auto_map"] == {
        "AutoConfig": "tiny_model.TinyConfig",
        "AutoModelForCausalLM": "tiny_model.TinyForCausalLM",
    }
    assert {file.name for file in out.glob("*.py")} == {"tiny_model.py", "tiny_layers.py"}
    ids = torch.arange(10)[None]
    for python in parity.interpreters().values():
        logits = parity.logits(out, ids, python, trust_remote_code=True)
        torch.testing.assert_close(logits, reference(source, ids, 0.25), atol=1e-5, rtol=1e-5)


def test_the_converter_copies_the_code(spec: Path, tmp_path: Path) -> None:
    """The converter and the files beside it, without the compiler, write what `compile run` writes."""
    source = checkpoint(tmp_path)
    convert(load_program(str(spec)), Request([source]), tmp_path / "run")
    for name, text in build(str(spec), prove=True).items():
        (tmp_path / "made" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "made" / name).write_text(text)
    assert {f.name for f in (tmp_path / "made/tiny").iterdir()} == {
        "convert_tiny.py",
        "tiny_model.py",
        "tiny_layers.py",
    }
    command = [sys.executable, "-P", tmp_path / "made/tiny/convert_tiny.py", source, tmp_path / "converted"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("tiny_model.py", "tiny_layers.py"):
        assert (tmp_path / "converted" / name).read_text() == (tmp_path / "run" / name).read_text()
    one, two = (load_file(tmp_path / folder / "model.safetensors") for folder in ("run", "converted"))
    assert all(torch.equal(one[name], two[name]) for name in one.keys() | two.keys())
    both = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("run", "converted")]
    assert both[0]["auto_map"] == both[1]["auto_map"]


def refused(spec: Path) -> str:
    with pytest.raises(Refusal) as caught:
        build(str(spec), prove=True)
    return "\n".join(f"{d} | {d.hint}" for d in caught.value.diagnostics)


# What is replaced in the spec or the model file -> words of the message.
FAULTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "no such file": ("code/tiny_model.py", "code/tiny_modle.py", ("tiny.yaml:6:16:", "unreadable-file")),
    "no such class": ("class: TinyForCausalLM", "class: TinyForCausallM", ("not defined", "TinyForCausalLM", "unknown-class")),
    "no model class": ("class: TinyForCausalLM", "class: TinyConfig", ("not a subclass of PreTrainedModel", "unknown-class")),
    "no config class": ("class: TinyForCausalLM", "class: TinyForCausalLM, config_class: Mixer", ("not a config class", "unknown-class")),
    "no class": ("code/tiny_model.py, class: TinyForCausalLM", "code/tiny_model.py", ("needs 'class'", "missing-key")),
    "two targets": ("target: {", "target: {model: LlamaForCausalLM, ", ("'model' and 'code'", "missing-key")),
    "blocks": ("target: {", "target: {blocks: {norm: rms, attention: {kind: fused}, mlp: {kind: plain}}, ", ("'blocks' belongs", "unknown-key")),
    "fields": ("config:\n", "config:\n  fields: {width: 8}\n", ("'fields' belongs", "unknown-key")),
    "unknown field": ("depth, slope]", "depth, slope]\n  set: {widht: 3}", ("no config field 'widht'", "width", "unknown-field")),
    "uncovered tensor": ("  out.weight: head.weight\n", "", ("head.weight", "uncovered-tensor")),
    "syntax": ("class TinyConfig(", "class TinyConfig((", ("tiny_model.py:12 is not Python", "unusable-code")),
    "exception": ("class TinyConfig(", "nothing.at_all\nclass TinyConfig(", ("tiny_model.py:12: NameError", "unusable-code")),
    "exit": ("class TinyConfig(", "raise SystemExit(3)\nclass TinyConfig(", ("tiny_model.py:12: SystemExit", "unusable-code")),
    "hard exit": ("class TinyConfig(", "import os; os._exit(3)\nclass TinyConfig(", ("status 3", "unusable-code")),
    "absolute import": ("from .tiny_layers", "from tiny_layers", ("No module named 'tiny_layers'", "relatively", "unusable-code")),
    "parent import": ("from .tiny_layers", "from ..tiny_layers", ("tiny_model.py:7: ", "relative import", "unusable-code")),
    "no model type": ('    model_type = "tiny_own"\n', "", ("no model_type", "unusable-code")),
    "taken model type": ('"tiny_own"', '"llama"', ("'llama' is one of Transformers", "unusable-code")),
    "standard config": ("config_class = TinyConfig", "from transformers import LlamaConfig as config_class", ("LlamaConfig is not defined in the code", "unusable-code")),
    "constructor": ("super().__init__(config)\n", "super().__init__(config)\n        config.nothing\n", ("does not accept this config", "unbuildable-target")),
}  # fmt: skip


@pytest.mark.parametrize("fault", portion(FAULTS, 3))
def test_faults(fault: str, tmp_path: Path) -> None:
    """Each is reported at the spec, with the place in the file where there is one."""
    old, new, words = FAULTS[fault]
    assert (SPEC + MODEL).count(old) == 1, "the fault replaces one place"
    text = refused(write(tmp_path, MODEL.replace(old, new), SPEC.replace(old, new)))
    assert "tiny.yaml:" in text
    for word in words:
        assert word in text


def test_the_code_runs_in_its_own_process(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is imported here, and detecting or reading a spec does not run it."""
    marker = spec.parent / "ran"
    write(spec.parent, f"open({str(marker)!r}, 'w').close()\n{MODEL}")
    program = load_program(str(spec))
    detect(Request([checkpoint(spec.parent)]), [program])
    assert not marker.exists()
    before = set(sys.modules)
    build(str(spec), prove=True)
    assert marker.exists()
    assert not [name for name in set(sys.modules) - before if "tiny" in name]
    assert program.spec.target.class_name == "TinyForCausalLM"


@pytest.mark.parametrize("kind", ["tiny_own", "llama"])
def test_a_config_names_the_architecture(kind: str, spec: Path, tmp_path: Path) -> None:
    """A config beside the weights is held to the type that the code states; reversed, so is the folder's."""
    source, out = checkpoint(tmp_path), tmp_path / "out"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "slope": 0.25}))
    program = load_program(str(spec))
    if kind == "llama":
        with pytest.raises(Refusal, match="model_type is 'llama', and tiny converts tiny_own"):
            convert(program, Request([source]), out)
        return
    convert(program, Request([source]), out)
    written = json.loads((out / "config.json").read_text())
    assert written["slope"] == 0.25
    convert(program, Request([out], reverse=True), tmp_path / "back.pth")
    first, again = (torch.load(path, weights_only=True) for path in (source, tmp_path / "back.pth"))
    assert all(torch.equal(first[name], again[name]) for name in first.keys() | again.keys())
    (out / "config.json").write_text(json.dumps(written | {"model_type": "tiny_other"}))
    with pytest.raises(Refusal, match="model_type is 'tiny_other', and tiny reverses tiny_own"):
        convert(program, Request([out], reverse=True), tmp_path / "other.pth")
