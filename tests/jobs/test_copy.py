"""One tensor of the source is several of the target: proven, planned, converted, and compared on the way back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.converter_process import ConverterProcess
from support.folders import files_of
from support.synthetic import folder_image, image
from torch import Tensor

from compiler.cli.main import main
from compiler.diagnostics import Refusal
from compiler.jobs.adapter import carry
from compiler.jobs.compile import build
from compiler.jobs.convert import convert
from compiler.jobs.peft_format import Pair
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.program.loading import load_program

# A norm that both parts of a layer share, and an embedding that the head shares in some checkpoints.
SPEC = """
spec: 1
name: shared
summary: tensors that the target stores twice
source: {weights: "*.safetensors"}
target: {model: LlamaForCausalLM}
arguments: {num_attention_heads: 2}
facts:
  one_table: exists("table.weight")
  vocab_size: dim("table.weight|embed.weight", 0)
  hidden_size: dim("layers.0.norm.weight", 0)
  intermediate_size: dim("layers.0.mlp.up_proj.weight", 0)
  num_hidden_layers: count("layers.{i}.norm.weight")
config:
  copy: [vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads]
  set: {tie_word_embeddings: false}
rename:
  norm.weight: model.norm.weight
  layers.{i}.self_attn.{p:q|k|v|o}_proj.weight: model.layers.{i}.self_attn.{p}_proj.weight
  layers.{i}.mlp.{p:gate|up|down}_proj.weight: model.layers.{i}.mlp.{p}_proj.weight
  embed.weight: {to: model.embed_tokens.weight, when: not one_table}
  head.weight: {to: lm_head.weight, when: not one_table}
transform:
  - name: norms
    from: layers.{i}.norm.weight
    copy: 2
    to:
      - model.layers.{i}.input_layernorm.weight
      - model.layers.{i}.post_attention_layernorm.weight
  - name: table
    from: table.weight
    copy: 2
    to: [model.embed_tokens.weight, lm_head.weight]
    when: one_table
example:
  - {one_table: true, vocab_size: 96, hidden_size: 32, intermediate_size: 80, num_hidden_layers: 3, num_attention_heads: 2}
  - {one_table: false, vocab_size: 96, hidden_size: 48, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4}
"""
SECOND = "model.layers.1.post_attention_layernorm.weight"


def tensors(one_table: bool) -> dict[str, Tensor]:
    """A source of any bits, NaN included."""
    shapes = {f"layers.{i}.self_attn.{p}_proj.weight": (32, 32) for i in range(2) for p in "qkvo"}
    shapes |= {f"layers.{i}.mlp.{p}_proj.weight": (80, 32) for i in range(2) for p in ("gate", "up")}
    shapes |= {f"layers.{i}.mlp.down_proj.weight": (32, 80) for i in range(2)}
    shapes |= dict.fromkeys(["table.weight"] if one_table else ["embed.weight", "head.weight"], (96, 32))
    bits = torch.Generator().manual_seed(0)
    made = {name: torch.randint(-(2**15), 2**15, shape, generator=bits).short() for name, shape in shapes.items()}
    made |= {f"layers.{i}.norm.weight": torch.randint(-(2**15), 2**15, (32,), generator=bits).short() for i in (0, 1)}
    made["norm.weight"] = torch.zeros(32).short()
    return {name: tensor.view(torch.bfloat16) for name, tensor in made.items()}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the spec and a source whose embedding is shared."""
    (tmp_path / "shared.yaml").write_text(SPEC)
    save_file(tensors(one_table=True), tmp_path / "source.safetensors")
    return tmp_path


def converted(place: Path) -> Path:
    convert(
        load_program(str(place / "shared.yaml")), Request([place / "source.safetensors"], check=False), place / "out"
    )
    return place / "out"


@pytest.mark.parametrize("one_table", [True, False])
def test_there_and_back(place: Path, server: ConverterProcess, one_table: bool) -> None:
    """With the class's own check of what was written; the converter writes the same."""
    source = tensors(one_table)
    save_file(source, place / "source.safetensors")
    program = load_program(str(place / "shared.yaml"))
    for name, text in build(str(place / "shared.yaml"), prove=True).items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
    convert(program, Request([place / "source.safetensors"]), place / "out")
    made = load_file(place / "out" / "model.safetensors")
    for i in range(2):
        for copy in ("input", "post_attention"):
            assert image({"": made[f"model.layers.{i}.{copy}_layernorm.weight"]}) == image(
                {"": source[f"layers.{i}.norm.weight"]}
            )
    same = image({"": made["lm_head.weight"]}) == image({"": made["model.embed_tokens.weight"]})
    assert same == one_table
    converter = str(place / "shared" / "convert_shared.py")
    assert server.run(converter, str(place / "source.safetensors"), str(place / "converter")) == ""
    assert folder_image(place / "converter") == folder_image(place / "out")
    back = Request([place / "out"], reverse=True, assigned={"one_table": one_table})
    convert(program, back, place / "back.pth")
    assert image(torch.load(place / "back.pth", weights_only=True)) == image(source)


def test_a_copy_that_differs_is_an_error_that_names_both(place: Path) -> None:
    out = converted(place)
    made = load_file(out / "model.safetensors")
    made[SECOND].view(torch.int16)[7] ^= 1
    save_file(made, out / "model.safetensors")
    before = files_of(place)
    with pytest.raises(Refusal) as refused:
        convert(load_program(str(place / "shared.yaml")), Request([out], reverse=True), place / "back.pth")
    (diagnostic,) = refused.value.diagnostics
    assert diagnostic.kind == "unequal-copies"
    assert SECOND in diagnostic.message
    assert SECOND.replace("post_attention", "input") in diagnostic.message
    assert files_of(place) == before


def test_copies_that_a_later_step_turns_are_compared_after_it_is_undone(place: Path) -> None:
    """Of one of two copies rows and columns change places, so that the stored bytes differ by design."""
    turned = SPEC.replace("{p:q|k|v|o}", "{p:q|k}").replace("transform:\n", """transform:
  - name: values
    from: layers.{i}.self_attn.v_proj.weight
    to: ["model.layers.{i}.self_attn.v_proj.weight", "model.layers.{i}.self_attn.o_proj.weight"]
    steps: [{copy: 2}, {transpose: true, only: [1]}]
""")  # fmt: skip
    (place / "shared.yaml").write_text(turned)
    source = {name: tensor for name, tensor in tensors(one_table=True).items() if "o_proj" not in name}
    save_file(source, place / "source.safetensors")
    out, program = converted(place), load_program(str(place / "shared.yaml"))
    back = Request([out], reverse=True, assigned={"one_table": True})
    convert(program, back, place / "back.pth")
    assert image(torch.load(place / "back.pth", weights_only=True)) == image(source)
    made = load_file(out / "model.safetensors")
    made["model.layers.0.self_attn.o_proj.weight"].view(torch.int16)[3, 4] ^= 1
    save_file(made, out / "model.safetensors")
    names = r"model\.layers\.0\.self_attn\.o_proj\.weight differs from model\.layers\.0\.self_attn\.v_proj\.weight"
    with pytest.raises(Refusal, match=names):
        convert(program, back, place / "again.pth")


def test_parts_of_one_tensor_that_must_be_equal(place: Path) -> None:
    """Keys that the target repeats for each of two groups of heads."""
    repeated = SPEC.replace("{p:q|k|v|o}", "{p:q|v|o}").replace("transform:\n", """transform:
  - {name: keys, from: "layers.{i}.self_attn.k.weight", to: "model.layers.{i}.self_attn.k_proj.weight", steps: [{copy: 2}, {concat: 0}]}
""")  # fmt: skip
    (place / "shared.yaml").write_text(repeated)
    source = {name.replace("k_proj", "k"): tensor for name, tensor in tensors(one_table=True).items()}
    source |= {name: tensor[:16].clone() for name, tensor in source.items() if ".k." in name}
    save_file(source, place / "source.safetensors")
    out, program = converted(place), load_program(str(place / "shared.yaml"))
    back = Request([out], reverse=True, assigned={"one_table": True})
    convert(program, back, place / "back.pth")
    assert image(torch.load(place / "back.pth", weights_only=True)) == image(source)
    made = load_file(out / "model.safetensors")
    made["model.layers.1.self_attn.k_proj.weight"].view(torch.int16)[16, 0] ^= 1
    save_file(made, out / "model.safetensors")
    with pytest.raises(Refusal, match=r"part 1 of model\.layers\.1\.self_attn\.k_proj\.weight differs from part 0 of"):
        convert(program, back, place / "again.pth")


def test_the_proof_reads_sizes_from_what_is_copied(place: Path) -> None:
    (place / "shared.yaml").write_text(SPEC.replace('dim("layers.0.norm.weight", 0)', 'dim("table.weight", 0)'))
    with pytest.raises(Refusal, match="wrong-fact"):
        build(str(place / "shared.yaml"), prove=True)


def test_a_target_is_written_once(place: Path) -> None:
    twice = SPEC.replace("to: [model.embed_tokens.weight, lm_head.weight]", "to: [model.norm.weight, lm_head.weight]")
    (place / "shared.yaml").write_text(twice.replace("    when: one_table\n", ""))
    with pytest.raises(Refusal, match=r"both write 'model\.norm\.weight'"):
        load_program(str(place / "shared.yaml"))


def test_a_plan_shows_both(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for words in ([], ["--html", "plan.html"]):
        with pytest.raises(SystemExit) as done:
            main(["plan", "shared.yaml", "source.safetensors", *words])
        assert done.value.code == 0
    text, page = capsys.readouterr().out, (place / "plan.html").read_text()
    for shown in (text, page):
        assert "copy parts 2" in shown
        assert "post_attention_layernorm" in shown
        assert "lm_head.weight" in shown


def test_an_adapter_of_a_copied_matrix_changes_both(place: Path) -> None:
    program = load_program(str(place / "shared.yaml"))
    draw = torch.Generator().manual_seed(1)
    pair = Pair(torch.randn(2, 32, generator=draw), torch.randn(96, 2, generator=draw))
    forward = prepare(program, Request([place / "source.safetensors"]))
    there = carry(forward.plan, forward.checkpoint.tensors, {"table.weight": pair}, "")
    assert there.keys() == {"model.embed_tokens.weight", "lm_head.weight"}
    back = prepare(program, Request([converted(place)], reverse=True, assigned={"one_table": True}))
    (again,) = carry(back.plan, back.checkpoint.tensors, there, "").values()
    assert torch.allclose(again.b @ again.a, pair.b @ pair.a, atol=1e-5)
    other = Pair(pair.a, pair.b * 2)
    for unequal in ({"lm_head.weight": pair}, there | {"lm_head.weight": other}):
        with pytest.raises(Refusal, match="whose adapters differ"):
            carry(back.plan, back.checkpoint.tensors, unequal, "")


def test_there_and_back_without_torch_in_little_memory(place: Path) -> None:
    """A table of 96 MiB; both directions take a fraction of it."""
    source = tensors(one_table=True)
    source["table.weight"] = torch.zeros(3 << 19, 32, dtype=torch.bfloat16)
    save_file(source, place / "source.safetensors")
    code = """
import sys
from pathlib import Path
from compiler.jobs.convert import convert
from compiler.jobs.request import Request
from compiler.program.loading import load_program
place = Path(sys.argv[1])
program = load_program(str(place / "shared.yaml"))
convert(program, Request([place / "source.safetensors"], check=False), place / "out")
back = Request([place / "out"], reverse=True, check=False, assigned={"one_table": True})
convert(program, back, place / "back.pth")
assert "torch" not in sys.modules
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
    done = subprocess.run([sys.executable, "-c", code, str(place)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 90_000, "kilobytes, Python and the compiler included"
    assert (place / "out" / "model.safetensors").stat().st_size > 2 * (96 << 20)
