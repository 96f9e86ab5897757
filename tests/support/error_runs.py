"""What can be wrong with a checkpoint or a run: for each, a folder that has it and the words to type there.

The folder holds a sound spec (`small.yaml`), checkpoint (`model.safetensors`) and config; a case spoils one thing. What
the command says is recorded in `tests/errors/runs/<case>.out`, which docs/errors.md shows.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import jinja2
import torch

from compiler import templating
from compiler.cli.main import main
from compiler.executor import execute
from compiler.jobs import convert
from compiler.output.atomic_output import AtomicOutput
from compiler.verify import run_model
from compiler.verify.job import Job, Results

ROOT = Path(__file__).parent.parent.parent
ORACLES = ROOT / "tests" / "data" / "oracles"
HERE = ROOT / "tests" / "errors" / "runs"
RUN = "run small.yaml model.safetensors out"
SIZES = {"F32": 4, "F16": 2, "I64": 8, "I8": 1}
SHAPES = {
    "embed.weight": [64, 32],
    "norm.weight": [32],
    **{f"layers.{i}.{n}_norm.weight": [32] for i in (0, 1) for n in ("input", "post_attention")},
    **{
        f"layers.{i}.self_attn.{p}.weight": [n, 32]
        for i in (0, 1)
        for p, n in zip("qkvo", (32, 16, 16, 32), strict=True)
    },
    **{f"layers.{i}.mlp.gate_up.weight": [96, 32] for i in (0, 1)},
    **{f"layers.{i}.mlp.down.weight": [32, 48] for i in (0, 1)},
}


def weights(
    path: str, shapes: Mapping[str, list[int]], dtypes: Mapping[str, str] | None = None, ones: tuple[str, ...] = ()
) -> None:
    """A safetensors file of zeros (of ones where said), written by hand."""
    entries, data = {}, b""
    for name, shape in shapes.items():
        dtype, start = (dtypes or {}).get(name, "F32"), len(data)
        count = 1
        for length in shape:
            count *= length
        one = b"\x00\x00\x80\x3f" if name in ones else bytes(SIZES.get(dtype, 4))
        data += one * count
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, len(data)]}
    header = json.dumps(entries).encode()
    Path(path).write_bytes(len(header).to_bytes(8, "little") + header + data)


def config(**fields: object) -> None:
    Path("config.json").write_text(json.dumps({"num_attention_heads": 4, **fields}))


def without(*names: str) -> dict[str, list[int]]:
    return {n: s for n, s in SHAPES.items() if not n.startswith(names)}


def torch_file(path: str, pickled: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickled)


def edit(old: str, new: str) -> None:
    """Change the spec."""
    text = Path("small.yaml").read_text()
    assert old in text
    Path("small.yaml").write_text(text.replace(old, new))


HELD = contextlib.ExitStack()  # what a case sets up for its command, and no longer


def held(name: str, value: object) -> None:
    """Something of the compiler, or of Python, is otherwise while the command runs."""
    HELD.enter_context(mock.patch(name, value))


def quietly(words: str) -> None:
    """A command that comes before, and says nothing here."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.suppress(SystemExit),
    ):
        main(words.split())


def broken_off() -> None:
    """A run that was interrupted when the first bytes were safe."""

    def interrupted(task: Any, *rest: Any, **more: Any) -> None:
        write(task, *rest, **more)
        raise KeyboardInterrupt

    write = execute.write_folder
    with mock.patch("compiler.executor.execute.write_folder", interrupted):
        quietly(RUN)


# ---------------------------------------------------------------------------------------------------------------------
# Each returns the words to type.


def ambiguous_spec() -> str:
    Path("config.json").unlink()
    shapes = {"model.norm.weight": [64], "model.embed_tokens.weight": [128, 64], "lm_head.weight": [128, 64]}
    for i in (0, 1):
        at = f"model.layers.{i}."
        shapes |= {f"{at}{n}_layernorm.weight": [64] for n in ("input", "post_attention")}
        shapes |= {f"{at}self_attn.W_pack.weight": [192, 64], f"{at}self_attn.o_proj.weight": [64, 64]}
        shapes |= {f"{at}mlp.{p}_proj.weight": [96, 64] for p in ("gate", "up")}
        shapes |= {f"{at}mlp.down_proj.weight": [64, 96]}
    weights("model.safetensors", shapes)
    return "run auto model.safetensors out"


def no_fitting_spec() -> str:
    weights("model.safetensors", {"conv.weight": [3, 3], "conv.bias": [3]})
    return "run auto model.safetensors out"


def ambiguous_container() -> str:
    Path("folder").mkdir()
    weights("folder/a.safetensors", SHAPES)
    weights("folder/b.safetensors", SHAPES)
    return "run small.yaml folder out"


def bad_config() -> str:
    Path("config.json").write_text("[1, 2]")
    return RUN


def bad_index() -> str:
    Path("model.safetensors.index.json").write_text('{"weight_map": {"embed.weight": "../model.safetensors"}}')
    return "run small.yaml model.safetensors.index.json out"


def colliding_names() -> str:
    weights("more.safetensors", {"norm.weight": [32]})
    return "run small.yaml model.safetensors more.safetensors out"


def config_mismatch() -> str:
    config(num_hidden_layers=3)
    return RUN


def contradictory_field() -> str:
    config(rope_theta=1000000.0, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    return RUN


def damaged_file() -> str:
    whole = Path("model.safetensors").read_bytes()
    Path("model.safetensors").write_bytes(whole[:-100])
    return RUN


def hostile_pickle() -> str:
    torch_file("model.pth", b"cos\nsystem\n(S'echo hello'\ntR.")
    return "run small.yaml model.pth out"


def index_gap() -> str:
    weights("model.safetensors", {n.replace("layers.1.", "layers.2."): s for n, s in SHAPES.items()})
    return RUN


def irreversible_rule() -> str:
    edit("    split: 0\n", "    steps: [{cast: float32}, {split: 0}]\n")
    return "run small.yaml model.safetensors out.pth --reverse"


def json_syntax() -> str:
    Path("config.json").write_text('{"num_attention_heads": 4,}')
    return RUN


def made_from(shapes: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """The shapes of the target, from those of the source."""
    names = {
        "embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight",
        **{f"layers.{i}.{n}_norm.weight": f"model.layers.{i}.{n}_layernorm.weight" for i in (0, 1) for n in ("input", "post_attention")},
        **{f"layers.{i}.self_attn.{p}.weight": f"model.layers.{i}.self_attn.{p}_proj.weight" for i in (0, 1) for p in "qkvo"},
        **{f"layers.{i}.mlp.down.weight": f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)},
    }  # fmt: skip
    made = {new: shapes[old] for old, new in names.items()}
    return made | {f"model.layers.{i}.mlp.{p}_proj.weight": [48, 32] for i in (0, 1) for p in ("gate", "up")}


def lost_values() -> str:
    edit(
        "tie:\n",
        "create:\n  model.layers.{i}.self_attn.q_proj.bias: {like: 'layers.{i}.self_attn.q.weight', shape: [32], fill: zeros}\ntie:\n",
    )
    biases = {f"model.layers.{i}.self_attn.q_proj.bias": [32] for i in (0, 1)}
    weights("made.safetensors", made_from(SHAPES) | biases, ones=("model.layers.1.self_attn.q_proj.bias",))
    return "run small.yaml made.safetensors out.pth --reverse"


def missing_argument() -> str:
    Path("config.json").unlink()
    return RUN


def other_architecture() -> str:
    config(model_type="gemma")
    return RUN


def unconverted_field() -> str:
    config(residual_multiplier=0.22)
    return RUN


MODELS = """
models:
  first: {when: {vocab_size: 64}, set: {rope_theta: 10000.0}}
  second: {when: {hidden_size: 32}, set: {rope_theta: 500000.0}}
"""


def ambiguous_model() -> str:
    Path("small.yaml").write_text(Path("small.yaml").read_text() + MODELS)
    config(rms_norm_eps=1e-5)
    return RUN


def unknown_model() -> str:
    Path("small.yaml").write_text(Path("small.yaml").read_text() + MODELS)
    return RUN + " --model secnd"


def guessed_argument() -> str:
    edit("  rope_theta: 10000.0", "  rope_theta: {guess: 10000.0, help: 500000 for the second release}")
    return RUN + " --strict"


def missing_config() -> str:
    Path("config.json").unlink()
    return "run small.yaml model.safetensors out.pth --reverse"


def missing_part() -> str:
    edit('weights: "*.safetensors"', 'weights: "part_*.safetensors"')
    edit("config: config.json}", "config: config.json, merge: {embed.weight: 1}}")
    Path("folder").mkdir()
    for number in (0, 2):
        weights(f"folder/part_{number}.safetensors", SHAPES)
    return "run small.yaml folder out"


def missing_source() -> str:
    return "run llava_llava text=model.safetensors out"


def repeated_source() -> str:
    return "run llava_llava text=model.safetensors vision=model.safetensors out"


def missing_tensor() -> str:
    weights("model.safetensors", without("layers.1.self_attn.k", "norm"))
    return RUN


def missing_processor() -> str:
    Path("empty").mkdir()
    return RUN + " --processor empty"


def missing_tokenizer() -> str:
    Path("empty").mkdir()
    return RUN + " --tokenizer empty"


def unsupported_tokenizer() -> str:
    """Ranks, of which the spec says nothing."""
    tokens = (base64.b64encode(bytes([byte])).decode() for byte in range(256))
    Path("ranks.tiktoken").write_text("".join(f"{token} {rank}\n" for rank, token in enumerate(tokens)))
    return RUN + " --tokenizer ranks.tiktoken"


def missing_weights() -> str:
    Path("empty").mkdir()
    return "run small.yaml empty out"


def mixed_dtypes() -> str:
    edit(
        "from: layers.{i}.mlp.gate_up.weight\n    split: 0\n",
        "from: ['layers.{i}.mlp.g.weight', 'layers.{i}.mlp.u.weight']\n    steps: [{concat: 0}, {split: 0}]\n",
    )
    edit('dim("layers.0.mlp.gate_up.weight", 0) // 2', 'dim("layers.0.mlp.g.weight", 0)')
    halves = {f"layers.{i}.mlp.{p}.weight": [48, 32] for i in (0, 1) for p in "gu"}
    weights("model.safetensors", without("layers.0.mlp.g", "layers.1.mlp.g") | halves, {"layers.1.mlp.u.weight": "F16"})
    return RUN


def mixed_prefix() -> str:
    weights("model.safetensors", {("module." if "layers" in n else "") + n: s for n, s in SHAPES.items()})
    return RUN


def output_exists() -> str:
    Path("out").mkdir()
    Path("out/notes.txt").write_text("keep me")
    return RUN


def output_unwritable() -> str:
    Path("file").write_text("")
    return "run small.yaml model.safetensors file/out"


def padded_index() -> str:
    weights("model.safetensors", {n.replace("layers.1.mlp.d", "layers.01.mlp.d"): s for n, s in SHAPES.items()})
    return RUN


def quantized_weights() -> str:
    dtypes = {"layers.0.mlp.down.weight": "I8"}
    weights("model.safetensors", SHAPES, dtypes)
    return RUN


def shape_mismatch() -> str:
    weights("model.safetensors", SHAPES | {"layers.1.mlp.gate_up.weight": [95, 32]})
    return RUN


def unequal_copies() -> str:
    edit("  layers.{i}.{n:input|post_attention}_norm.weight: model.layers.{i}.{n}_layernorm.weight\n", "")
    names = [f"model.layers.{{i}}.{n}_layernorm.weight" for n in ("input", "post_attention")]
    edit("input_norm.weight", "norm.weight")
    edit("transform:\n", f"transform:\n  - {{name: norms, from: 'layers.{{i}}.norm.weight', to: {names}, copy: 2}}\n")
    weights("made.safetensors", made_from(SHAPES), ones=("model.layers.1.post_attention_layernorm.weight",))
    return "run small.yaml made.safetensors out.pth --reverse"


def unclaimed_tensor() -> str:
    weights("model.safetensors", SHAPES | {"layers.0.self_attn.rope.inv_freq": [4]})
    return RUN


def unfit_parts() -> str:
    edit("config: config.json}", "config: config.json, merge: {embed.weight: 1}}")
    weights("more.safetensors", SHAPES | {"embed.weight": [60, 32]})
    return "run small.yaml model.safetensors more.safetensors out"


def unknown_argument() -> str:
    return RUN + " --set num_attention_head=4"


def unknown_format() -> str:
    Path("model.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(60))
    return "run small.yaml model.h5 out"


def unknown_kind() -> str:
    return "explain missing-tensors"


def unmet_requirement_of_a_checkpoint() -> str:
    weights("model.safetensors", SHAPES | {f"layers.{i}.self_attn.q_norm.weight": [8] for i in (0, 1)})
    return RUN


def unreadable_file() -> str:
    return "run small.yaml missing.safetensors out"


def unread_statement() -> str:
    pair = len("llama.logit_scale").to_bytes(8, "little") + b"llama.logit_scale" + struct.pack("<If", 6, 0.5)
    name = (
        len("general.architecture").to_bytes(8, "little")
        + b"general.architecture"
        + struct.pack("<IQ", 8, 5)
        + b"llama"
    )
    tensor = struct.pack("<Q", 4) + b"norm" + struct.pack("<IQIQ", 1, 8, 0, 0)
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + name + pair + tensor
    Path("model.gguf").write_bytes(header + bytes(-len(header) % 32) + bytes(32))
    return "run small.yaml model.gguf out"


def unread_config() -> str:
    Path("settings.json").write_text(json.dumps({"heads": 4, "theta": 1e6}))
    return RUN + " --config settings.json"


def unsupported_pickle() -> str:
    torch_file("model.pth", b"\x80\x02}\x82\x01.")
    return "run small.yaml model.pth out"


def unsupported_tensor() -> str:
    weights("model.safetensors", SHAPES, {"norm.weight": "F6_E2M3"})
    return RUN


def untied_weights() -> str:
    weights("model.safetensors", SHAPES | {"lm_head.weight": [64, 32]}, ones=("lm_head.weight",))
    return RUN


def wrong_extension() -> str:
    torch_file("model.safetensors", pickle.dumps({}))
    return RUN


def wrong_type_of_an_argument() -> str:
    return RUN + " --set num_key_value_heads=two"


def wrong_usage() -> str:
    return RUN + " --max-shard-size huge"


# ---------------------------------------------------------------------------------------------------------------------
# What needs more than a folder: a run before, or something that is otherwise while the command runs.


def bad_template() -> str:
    plain = templating.environment
    texts = jinja2.DictLoader({"converter/module.py.jinja": "def {{ x }}("})
    held("compiler.render.converter.environment", lambda: plain().overlay(loader=texts, undefined=jinja2.Undefined))
    return "small.yaml --no-proof"


def changed_tensor() -> str:
    quietly(RUN)
    path = Path("out/model.safetensors")
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 0x40
    path.write_bytes(whole)
    return "verify small.yaml model.safetensors out"


def diverging_model() -> str:
    source = ORACLES / "meta_llama" / "llama3_1shard_gqa" / "source"
    for name in ("consolidated.00.pth", "params.json"):
        shutil.copyfile(source / name, name)
    text = (ROOT / "specs" / "meta_llama.yaml").read_text().replace("name: meta_llama", "name: crossed")
    text = text.replace("w1.weight: model.layers.{i}.mlp.gate_proj", "w1.weight: model.layers.{i}.mlp.up_proj")
    text = text.replace("w3.weight: model.layers.{i}.mlp.up_proj", "w3.weight: model.layers.{i}.mlp.gate_proj")
    Path("crossed.yaml").write_text(text)
    quietly("run crossed.yaml consolidated.00.pth out")

    def here(place: Path, job: Job) -> Results:
        with contextlib.redirect_stderr(io.StringIO()):
            return run_model.results(job)

    held("compiler.verify.compare.run_job", here)
    held("sys.path", [*sys.path, str(Path(__file__).parent)])
    return "verify crossed.yaml consolidated.00.pth out --source-model source_models:Interleaved"


def incomparable_outputs() -> str:
    quietly(RUN)

    def made(place: Path, job: Job) -> Results:
        return Results(({"logits": torch.ones(2, 64, 32)} if job.written else {"0": torch.ones(2, 8)},), {}, {})

    held("compiler.verify.compare.run_job", made)
    return "verify small.yaml model.safetensors out --source-model trained:Model"


def disk_full() -> str:
    held("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 50_000, 50_000))
    return RUN


def failed_step() -> str:
    edit("  norm.weight: model.norm.weight\n", "")
    edit("transform:\n", "transform:\n  - {name: norm, from: norm.weight, to: model.norm.weight, affine: {shift: 1}}\n")

    def full(*tensors: object, **numbers: object) -> None:
        raise RuntimeError("out of memory: tried to allocate 128 bytes")

    held("compiler.ops.kernels.TorchAlgebra.compute", full)
    return RUN


def file_changed() -> str:
    plain = execute.write_folder

    def meanwhile(*rest: Any, **more: Any) -> None:
        plain(*rest, **more)
        os.utime("model.safetensors", ns=(1, 1))

    held("compiler.executor.execute.write_folder", meanwhile)
    return RUN


def file_truncated() -> str:
    plain = convert.write

    def cut(*rest: Any) -> None:
        with open("model.safetensors", "r+b") as file:
            file.truncate(20_000)
        plain(*rest)

    held("compiler.jobs.convert.write", cut)
    return RUN


def lost_rank() -> str:
    held("compiler.output.ranks.JOIN", 0.01)
    HELD.enter_context(mock.patch.dict(os.environ, {"RANK": "0", "WORLD_SIZE": "2"}))
    held("compiler.output.ranks.PARTING", 0.01)
    return RUN


def misread_field() -> str:
    edit("  copy: [vocab_size,", "  set: {head_dim: null}\n  copy: [vocab_size,")
    return RUN + " --readback"


def missing_package() -> str:
    held("importlib.util.find_spec", lambda name: None)
    return "small.yaml"


def config_value() -> str:
    return RUN + " --set rope_theta=-1"


def no_route() -> str:
    return RUN + " --to litgpt_gemma"


def no_converter() -> str:
    return "qwen3 --to gguf --no-proof"


def no_device() -> str:
    return RUN + " --device nowhere"


def logits_not_checked() -> str:
    quietly(RUN)
    return "verify small.yaml model.safetensors out --require-logits"


def output_busy() -> str:
    HELD.enter_context(AtomicOutput(Path("out"), force=False, resume=False, fingerprint="x"))
    return RUN


def resume_mismatch() -> str:
    broken_off()
    return RUN + " --resume --dtype float16"


def unfinished_output() -> str:
    broken_off()
    return RUN


def unrunnable_model() -> str:
    quietly(RUN)
    return "verify small.yaml model.safetensors out --source-model trained:Model"


def too_little_memory() -> str:
    quietly(RUN)
    held("compiler.process.available", lambda: 400_000_000)
    return "verify small.yaml model.safetensors out --source-model trained:Model"


def unsupported_adapter() -> str:
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text('{"peft_type": "LORA", "use_dora": true}')
    weights("adapter/adapter_model.safetensors", {"base_model.model.layers.0.mlp.down.lora_A.weight": [2, 48]})
    return "adapter small.yaml model.safetensors adapter peft"


def unfit_ranks() -> str:
    HELD.enter_context(mock.patch.dict(os.environ, {"RANK": "1", "WORLD_SIZE": "2"}))
    held("compiler.output.ranks.PARTING", 0.01)
    told = {"state": "go", "place": "out", "fingerprint": "that of another run", "nonce": "1"}
    held(
        "compiler.output.ranks.Crew._wait",
        lambda crew, done, limit=0.0: crew.states.update({0: told | {"known": {"1": crew.nonce}}}),
    )
    return RUN


def inexpressible_rule() -> str:
    text = Path("small.yaml").read_text()
    Path("small.yaml").write_text(text.replace("    split: 0\n", "    steps: [{cast: bfloat16}, {split: 0}]\n"))
    return "small.yaml --emit transformers --no-proof"


CASES: dict[str, Callable[[], str]] = {
    name: function
    for name, function in sorted(globals().items())
    if callable(function)
    and getattr(function, "__module__", "") == __name__
    and function.__annotations__ == {"return": "str"}
}


def transcript(name: str, folder: Path) -> str:
    """The command and what it says, in a fresh folder."""
    shutil.copyfile(HERE / "small.yaml", folder / "small.yaml")
    before = Path.cwd()
    os.chdir(folder)
    said = io.StringIO()
    try:
        weights("model.safetensors", SHAPES)
        config()
        words = CASES[name]()
        with HELD, contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
            main(words.split())
    finally:
        os.chdir(before)
    plain = said.getvalue().replace(f"{folder}/", "").replace(f"process {os.getpid()}", "process 4711")
    kept = [line for line in plain.splitlines() if not line.startswith("note: ")]
    return "\n".join([f"$ mapspec {words}", *kept]) + "\n"
